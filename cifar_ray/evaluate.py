"""`python -m cifar_ray.evaluate`: measures how good a model is, where it fails, and whether the figures can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.model_flags import EvaluateCommand
from cifar_ray.config import storage_flag

PROG = "cifar-ray evaluate"


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate a model; `argv` contains the flags, `None` means the flags of this process."""
    command: EvaluateCommand = cli.parse(EvaluateCommand, argv, PROG)
    cli.show_log()

    from cifar_ray.cli.output.terminal import ProgressDisplay
    from cifar_ray.cli.report_folder import print_figures, save_report
    from cifar_ray.evaluation.examinations import evaluate_stored, save_with_gallery  # imports torch, too slow for --help
    from cifar_ray.evaluation.figures import summarize, to_json
    from cifar_ray.reports.evaluation_report import to_files

    with ProgressDisplay() as display:
        examined = evaluate_stored(
            command.model,
            command.storage,
            command,
            display.start,
            precision=command.precision,
            engine=command.engine,
            robustness_images=command.robustness_images,
            look_for_leakage=command.leakage,
            num_workers=command.num_workers,
        )
    evaluation = examined.evaluation
    default = f"evaluations/{evaluation.reference}/{evaluation.data.name}-{evaluation.data.split}"
    folder = save_report(to_files(evaluation, examined.predictor), command.out, command.storage, default)
    report = ("report", folder.path("report.html"))
    print_figures([("model", evaluation.reference), *summarize(to_json(evaluation)), report])
    if command.attach:
        saved = save_with_gallery(examined, command.storage).reference
        print_figures(
            [("saved", f"{saved}: {evaluation.reference} with its gallery; cifar-ray store promote {saved}{storage_flag(command.storage)}")]
        )
    print_figures([("serve", f"cifar-ray serve {evaluation.reference}{storage_flag(command.storage)}")])
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))
