"""`python -m cifar_ray.stats`: describes a data set, its broken files and duplicates, and what a network sees of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from cifar_ray import cli
from cifar_ray.cli.model_flags import parse_stats_command
from cifar_ray.config import TrainConfig, printable

PROG = "cifar-ray stats"


def main(argv: Sequence[str] | None = None) -> int:
    """Examine a data set; `argv` contains the flags, `None` means the flags of this process."""
    command = parse_stats_command(argv, PROG)
    cli.show_log()

    from cifar_ray.cli.output.terminal import ProgressDisplay
    from cifar_ray.cli.report_folder import print_figures, save_report
    from cifar_ray.evaluation.dataset_examination import summarize, to_json
    from cifar_ray.evaluation.examinations import examine_dataset  # imports torch, too slow for --help
    from cifar_ray.reports.dataset_report import to_files

    config, why = command.train_config()
    with ProgressDisplay() as display:
        examination = examine_dataset(
            config,
            display.start,
            look_for_duplicates=command.duplicates,
            on_broken=lambda file: print_figures([("broken", printable(f"{file.where}: {file.reason}"))]),
        )
    files = to_files(examination, command.augmentation, command.seed)
    folder = save_report(files, command.out, command.storage, f"stats/{examination.splits.name}")
    training = [("training", why)] if why else []
    train = ("train", f"cifar-ray train {_data_flags(config)}")
    print_figures([*summarize(to_json(examination)), *training, ("report", folder.path("stats.html")), train])
    return 0


def _data_flags(config: TrainConfig) -> str:
    """The flags of `train` for these images."""
    if config.dataset == "folder" and config.data_dir is not None:
        return f"--data-dir {shlex.quote(config.data_dir)}"
    return f"--dataset {config.dataset}" + ("" if config.data_dir is None else f" --data-dir {shlex.quote(config.data_dir)}")


if __name__ == "__main__":
    cli.end(cli.run(main))
