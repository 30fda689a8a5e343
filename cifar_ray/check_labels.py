"""`python -m cifar_ray.check_labels`: finds labels that are probably wrong, and writes a table with corrected ones."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.arguments.parsing import parse
from cifar_ray.cli.check_flags import CheckLabelsCommand

PROG = "cifar-ray check_labels"


def main(argv: Sequence[str] | None = None) -> int:
    """Check labels, or apply decisions; `argv` contains the flags, `None` means the flags of this process."""
    command: CheckLabelsCommand = parse(CheckLabelsCommand, argv, PROG)
    cli.show_log()
    from cifar_ray.cli.report_folder import print_figures, save_report

    if command.apply is not None:
        from cifar_ray.evaluation.label_check.corrections import apply_decisions

        print_figures(apply_decisions(command.data, command.columns, command.apply, command.corrected_table()))
        return 0

    from cifar_ray.cli.output.terminal import ProgressDisplay
    from cifar_ray.evaluation.label_check.check import check_labels
    from cifar_ray.reports import label_report

    with ProgressDisplay() as display:
        checked = check_labels(command.train_config(), command.model, command.storage, display.start)
    following = command.next_command()
    folder = save_report(
        label_report.to_files(checked, following), command.out, command.storage, f"label_checks/{checked.pictures.splits.name}"
    )
    print_figures(label_report.describe(label_report.summary(checked)))
    print_figures([(name, folder.path(file)) for name, file in (("look at", label_report.PAGE), ("table", label_report.TABLE))])
    if following and checked.suspects:
        print_figures([("then", f"decide on the page, download decisions.csv, and: {following}")])
    return 0


if __name__ == "__main__":
    cli.end(cli.run(main))
