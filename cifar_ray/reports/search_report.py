"""Write the results of a search: `best.yaml`, figures, and `report.html` with the figures inside."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_ray.config import TrainConfig, to_yaml
from cifar_ray.reports import search_figures
from cifar_ray.reports.renderer import Code, Picture, Section, Table, render
from cifar_ray.storage import FileTree
from cifar_ray.tuning.certainty import describe_certainty
from cifar_ray.tuning.importance import MIN_TRIALS, parameter_importance
from cifar_ray.tuning.record import Record
from cifar_ray.tuning.search_job import best_config
from cifar_ray.tuning.space import SearchSpace
from cifar_ray.tuning.standings import describe_figure, row


def write_results(
    record: Record, fixed: TrainConfig, space: SearchSpace, files: FileTree, title: str, notes: Sequence[str] = ()
) -> TrainConfig | None:
    """Write `best.yaml`, `curves.png`, `parallel.png`, `importance.png` and `report.html` of a search, finished or not.

    Args:
        record: record of the search.
        fixed: config that the best recipe completes.
        space: the search space.
        files: files of the search.
        title: name of the search.
        notes: further sentences about the best trial.

    Returns:
        The best recipe; `None` if no trial has a metric yet.

    Raises:
        StoreError: if the storage cannot be written.
    """
    best = best_config(record, fixed)
    if best is not None:
        files.replace("best.yaml", to_yaml(best).encode())
    pictures = _pictures(record, space)
    for name, picture in pictures.items():
        files.replace(f"{name}.png", picture.png)
    files.replace(
        "report.html",
        render(f"Search {title}", _summary(record), _sections(record, best, pictures, [*describe_certainty(record, fixed, space), *notes])),
    )
    return best


def _pictures(record: Record, space: SearchSpace) -> dict[str, Picture]:
    if not record.ranked():
        return {}
    pictures = {
        "curves": Picture(search_figures.curves(record), "The metric after each epoch, one line per trial."),
        "parallel": Picture(
            search_figures.parallel_coordinates(record, space),
            "One line per trial, from its parameters to its result. Darker is better; dashed: stopped before its last epoch, so its "
            "result is not comparable with that of a full trial; red and dotted: diverged or failed.",
        ),
    }
    importance = parameter_importance(record, space)
    if importance is not None:
        pictures["importance"] = Picture(
            search_figures.importance_bars(importance),
            f"How much worse a random forest predicts the metric after epoch {importance.epoch} of {record.max_epochs} when this "
            f"parameter is shuffled; bars show ± 1 standard deviation. All {importance.count} trials are compared after that epoch; after "
            "more epochs other parameters may matter.",
        )
    return pictures


def _summary(record: Record) -> str:
    possible = record.num_samples * record.max_epochs
    epochs = sum(trial.epochs_done for trial in record.trials)
    repeats = len(record.repeats)
    repeated = f", {repeats} trial{'s' * (repeats > 1)} repeated with another seed" if repeats else ""
    state = "finished" if record.ended else "not finished; run the same command again to resume"
    return (
        f"{len(record.trials)} of {record.num_samples} trials, {epochs} of {possible} epochs run ({100 * epochs / possible:.0f} %)"
        f"{repeated}, {record.elapsed_s / 60:.1f} minutes; {state}"
    )


def _sections(record: Record, best: TrainConfig | None, pictures: dict[str, Picture], certainty: list[str]) -> list[Section]:
    too_few = f"Importance needs at least {MIN_TRIALS} trials that finished or were stopped, with different results."
    sections = [
        Section("Learning curves", [pictures["curves"]] if "curves" in pictures else ["No trial has a result yet."]),
        *([Section("Parameters and result", [pictures["parallel"]])] if "parallel" in pictures else []),
        Section("Importance of each parameter", [pictures.get("importance", too_few)]),
        Section("Trials", [_trial_table(record)]),
    ]
    if best is None:
        return sections
    leader = record.ranked()[0]
    found = Section(
        f"Best: trial {leader.number}, {record.metric} {describe_figure(record, leader)}",
        [
            f"{'. '.join(line[0].upper() + line[1:] for line in certainty)}.",
            "The validation split selected this trial, so expect slightly less on the test split. Train it with:",
            Code("cifar-ray train --config best.yaml"),
        ],
    )
    return [found, *sections, Section("best.yaml", [Code(to_yaml(best))])]


def _trial_table(record: Record) -> Table:
    ranked = record.ranked()
    others = [trial for trial in record.trials if trial not in ranked]
    head = ("trial", "status", "epoch", f"latest {record.metric}", "best", "images/s", "parameters", "reason")
    return Table(head, [[*row(record, trial), trial.reason] for trial in [*ranked, *others]], best_row=0 if ranked else None)
