"""`python -m cifar_ray.evaluate`: how good a model is, where it fails, and whether the figures can be trusted."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from pydantic import Field
from tyro.conf import Positional

from cifar_ray import cli
from cifar_ray.config import STORAGE_VARIABLE, EngineName, PrecisionName, default_storage
from cifar_ray.evaluation.selection import DataChoice

PROG = "python -m cifar_ray.evaluate"


class EvaluateCommand(DataChoice):
    """Examines a model: accuracy, classes, bias, calibration, mistakes, slices, robustness, leakage and cost."""

    model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")] = Field(
        description="NAME, NAME@3, the name of a run, or the path of a bundle or a run"
    )
    storage: str = Field(default_factory=default_storage, description=f"path or URI; default ${STORAGE_VARIABLE} or ./storage")
    out: str | None = Field(None, description="folder for report.html, evaluation.json and pictures; default <storage>/evaluations/…")
    robustness_images: int = Field(2000, ge=0, description="images to corrupt (12 corruption types, 5 severities); 0 for none")
    leakage: bool = Field(True, description="look for images that show what a training image shows")
    attach: bool = Field(
        False, description="keep a new version of the model that shows its confusion matrix and mistakes on the server's page"
    )
    engine: EngineName = Field("torch", description="what computes; auto is what a server would take")
    precision: PrecisionName = "auto"
    num_workers: int | None = Field(None, ge=1, le=4096, description="score on so many workers of a Ray cluster; default: in this process")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates as the flags say; the command line's own where `argv` is `None`."""
    command: EvaluateCommand = cli.parse(EvaluateCommand, argv, PROG)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from cifar_ray.cli.bars import Bars
    from cifar_ray.evaluation.figures import summarize, to_json
    from cifar_ray.evaluation.model_evaluation import corruption_stride, evaluate_model, score_here  # torch takes seconds
    from cifar_ray.evaluation.new_versions import with_gallery
    from cifar_ray.evaluation.scoring import device_here
    from cifar_ray.evaluation.selection import select
    from cifar_ray.inference.predictor import Predictor
    from cifar_ray.reports.evaluation_report import to_files
    from cifar_ray.store import ModelStore, load_model

    bundle = load_model(command.model, command.storage)
    data = select(bundle.manifest, command)
    predictor = Predictor(bundle, device_here(), command.precision, command.engine)
    every = corruption_stride(len(data.images), command.robustness_images)
    with Bars() as bars:
        if command.num_workers is None:
            scores = score_here(predictor, data.images, every)
        else:
            from cifar_ray.evaluation.scoring_on_ray import score_on_ray

            workers, precision, engine = command.num_workers, command.precision, command.engine
            scores = score_on_ray(bundle, data, every, num_workers=workers, precision=precision, engine=engine)
        evaluation = evaluate_model(predictor, bundle.reference, data, scores, bars.start, look_for_leakage=command.leakage)
    folder = cli.output_folder(command.out, command.storage, f"evaluations/{bundle.reference}/{data.name}-{command.split}")
    for name, content in to_files(evaluation, predictor).items():
        folder.replace(name, content)
    print("\n".join(f"{name:12} {text}" for name, text in [("model", bundle.reference), *summarize(to_json(evaluation))]))
    print(f"{'report':12} {folder.path('report.html')}")
    if command.attach:
        made = with_gallery(bundle, evaluation)
        kept = ModelStore(command.storage).save(made.name, made.manifest, made.weights, made.attachments)
        print(f"{'kept':12} {kept.reference}: {bundle.reference} with its gallery; python -m cifar_ray.store promote {kept.reference}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
