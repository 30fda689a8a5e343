"""`python -m cifar_ray.compare A B`: whether one of two models is better, and on which pictures they differ."""

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
from cifar_ray.evaluation.selection import DataChoice, load_selected, select

PROG = "python -m cifar_ray.compare"


class CompareCommand(DataChoice):
    """Runs two models over the same images, by default those that the first one's training set aside for the test."""

    first: Annotated[Positional[str], tyro.conf.arg(metavar="A")] = Field(
        description="NAME, NAME@3, the name of a run, or the path of a bundle or a run"
    )
    second: Annotated[Positional[str], tyro.conf.arg(metavar="B")] = Field(description="the model to hold against it, named likewise")
    storage: str = Field(default_factory=default_storage, description=f"path or URI; default ${STORAGE_VARIABLE} or ./storage")
    out: str | None = Field(None, description="folder for comparison.html, comparison.json and pictures; default <storage>/comparisons/…")
    engine: EngineName = Field("torch", description="what computes; auto is what a server would take")
    precision: PrecisionName = "auto"


def main(argv: Sequence[str] | None = None) -> int:
    """Compares as the flags say; the command line's own where `argv` is `None`."""
    command: CompareCommand = cli.parse(CompareCommand, argv, PROG)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from cifar_ray.cli.bars import Bars
    from cifar_ray.evaluation.comparison import Contender, compare_models, summarize, to_json  # torch: seconds
    from cifar_ray.evaluation.scoring import device_here
    from cifar_ray.inference.predictor import Predictor
    from cifar_ray.reports.comparison_report import to_files
    from cifar_ray.store import load_model

    bundles = [load_model(reference, command.storage) for reference in (command.first, command.second)]
    data = select(bundles[0].manifest, command)
    selected = (data, load_selected(bundles[1].manifest, data.config, command.split))
    a, b = (
        Contender(bundle.reference, Predictor(bundle, device_here(), command.precision, command.engine), images)
        for bundle, images in zip(bundles, selected, strict=True)
    )
    with Bars() as bars:
        comparison = compare_models(a, b, bars.start)
    folder = cli.output_folder(command.out, command.storage, f"comparisons/{a.reference}-{b.reference}/{data.name}-{command.split}")
    for name, content in to_files(comparison).items():
        folder.replace(name, content)
    print("\n".join(f"{name:12} {text}" for name, text in summarize(to_json(comparison))))
    print(f"{'report':12} {folder.path('comparison.html')}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
