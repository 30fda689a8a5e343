"""`python -m cifar_ray.compare A B`: tests whether one of two models is better, and shows the pictures on which they differ."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.model_flags import CompareCommand
from cifar_ray.config import storage_flag

PROG = "cifar-ray compare"


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two models; `argv` contains the flags, `None` means the flags of this process."""
    command: CompareCommand = cli.parse(CompareCommand, argv, PROG)
    cli.show_log()

    from cifar_ray.cli.output.terminal import ProgressDisplay
    from cifar_ray.cli.report_folder import print_figures, save_report
    from cifar_ray.evaluation.comparison import summarize, to_json
    from cifar_ray.evaluation.examinations import compare_stored  # imports torch, too slow for --help
    from cifar_ray.metrics.intervals import SIGNIFICANT
    from cifar_ray.reports.comparison_report import to_files

    with ProgressDisplay() as display:
        comparison = compare_stored(
            (command.first, command.second),
            command.storage,
            command,
            display.start,
            precision=command.precision,
            engine=command.engine,
        )
    a, b = comparison.a, comparison.b
    default = f"comparisons/{a.reference}-{b.reference}/{a.data.name}-{a.data.split}"
    folder = save_report(to_files(comparison), command.out, command.storage, default)
    figures = to_json(comparison)
    print_figures([*summarize(figures), ("report", folder.path("comparison.html"))])
    better = (a, b) if figures["p_value"] >= SIGNIFICANT else (b,) if figures["difference"] > 0 else (a,)
    print_figures([("serve", " or ".join(f"cifar-ray serve {one.reference}{storage_flag(command.storage)}" for one in better))])
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))
