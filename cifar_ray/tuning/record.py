"""The record of a search: all trials and their results, written to one file after every epoch. Reports and tables use it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from cifar_ray.config.documents import without_format
from cifar_ray.errors import StoreError
from cifar_ray.storage import FileTree

STATE_FILE = "state.json"
FORMAT_VERSION = 1
AGAIN = "again"  # key in Tune's config, in addition to the parameters: repeat the trial with another seed

OUT_OF_TIME = "the time budget was used up"  # reason of a stopped trial

# interrupted: the trial was running when the search was interrupted; it resumes from its snapshot.
# stopped: the scheduler stopped the trial, or the time budget was used up.
Status = Literal["running", "interrupted", "finished", "stopped", "diverged", "failed"]
Epoch = dict[str, Any]  # the fields of `EpochReport`


@dataclass
class Trial:
    """A training run with one set of parameters.

    Attributes:
        number: number of the trial, from 1, in order of start.
        trial_id: id in Ray Tune; changes after a restart of the search.
        folder: folder of the trial's snapshot.
        parameters: parameter values by path.
        status: state or outcome.
        reason: reason why the trial stopped, diverged or failed; empty otherwise.
        epochs: report of each epoch, in order.
        again: whether it repeats the trial of the same number with another seed.
    """

    number: int
    trial_id: str
    folder: str
    parameters: dict[str, Any]
    status: Status = "running"
    reason: str = ""
    epochs: list[Epoch] = field(default_factory=list)
    again: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The config for Ray Tune."""
        return self.parameters | ({AGAIN: True} if self.again else {})

    def add(self, report: Epoch) -> None:
        """Add the report of an epoch; after a restart, a repeated epoch replaces the earlier report and all later ones."""
        self.epochs = [known for known in self.epochs if known["epoch"] < report["epoch"]] + [report]

    @property
    def epochs_done(self) -> int:
        """Number of the last finished epoch; 0 before the end of the first."""
        return self.epochs[-1]["epoch"] if self.epochs else 0

    def is_over(self, max_epochs: int, patience: int | None) -> bool:
        """Whether the trial ended by itself, after all epochs or by its patience, so that the scheduler did not stop it."""
        improved = max((report["epoch"] for report in self.epochs if report["improved"]), default=0)
        return self.epochs_done >= max_epochs or (patience is not None and self.epochs_done - improved >= patience)

    @property
    def seconds(self) -> float:
        """Total time of training and evaluation, seconds."""
        return float(sum(report["seconds"] for report in self.epochs))

    def best(self, metric: str, until: int | None = None) -> Epoch | None:
        """Report of the best epoch, or of the best of the first `until` epochs; `None` if no epoch has a finite metric."""
        epochs = [report for report in self.epochs if until is None or report["epoch"] <= until]
        ranked = [report for report in epochs if report.get(metric) is not None and math.isfinite(report[metric])]
        return max(ranked, key=lambda report: score(report, metric)) if ranked else None


def score(report: Epoch, metric: str) -> float:
    """The metric with its sign changed if lower is better, so that higher is better."""
    value = float(report[metric])
    return -value if metric == "val_loss" else value


@dataclass
class Record:
    """State of a search.

    Attributes:
        metric: the metric that ranks trials.
        max_epochs: epochs of a trial that is not stopped early.
        num_samples: planned number of trials.
        trials: trials in the order of their numbers.
        repeats: repeats of leading trials with another seed.
        elapsed_s: total time of the search, without pauses between invocations.
        ended: whether the search is complete.
        val_images: number of validation images; `None` for a search of an earlier release.
    """

    metric: str
    max_epochs: int
    num_samples: int
    trials: list[Trial] = field(default_factory=list)
    repeats: list[Trial] = field(default_factory=list)
    elapsed_s: float = 0.0
    ended: bool = False
    val_images: int | None = None

    def trial(self, trial_id: str, config: dict[str, Any]) -> Trial:
        """The trial with this Ray Tune id, else the interrupted trial with this config, else a new trial."""
        for trial in [*self.trials, *self.repeats]:
            if trial.trial_id == trial_id:
                return trial
        for trial in [*self.trials, *self.repeats]:
            if trial.status == "interrupted" and trial.config == config:
                trial.trial_id, trial.status = trial_id, "running"
                return trial
        parameters = {path: value for path, value in config.items() if path != AGAIN}
        if AGAIN in config:
            number = next(trial.number for trial in self.trials if trial.parameters == parameters)
            self.repeats.append(Trial(number, trial_id, trial_id, parameters, again=True))
            return self.repeats[-1]
        self.trials.append(Trial(len(self.trials) + 1, trial_id, trial_id, parameters))
        return self.trials[-1]

    def running(self) -> list[Trial]:
        """Trials and repeats that are running."""
        return [trial for trial in [*self.trials, *self.repeats] if trial.status == "running"]

    def interrupted(self) -> list[Trial]:
        """Trials to resume."""
        return [trial for trial in self.trials if trial.status == "interrupted"]

    def settled(self) -> list[Trial]:
        """Trials that are complete, with any outcome."""
        return [trial for trial in self.trials if trial.status not in ("running", "interrupted")]

    def settle(self, status: Status, reason: str = "") -> None:
        """Set the status of all running trials and repeats."""
        for trial in self.running():
            trial.status, trial.reason = status, reason

    def runs(self, trial: Trial) -> list[Trial]:
        """A trial and its repeat, if the repeat is complete."""
        return [trial, *(one for one in self.repeats if one.number == trial.number and one.status in ("finished", "diverged"))]

    def full_runs(self, trial: Trial) -> list[Trial]:
        """The runs of a trial that had the full budget: its own, its repeat, both or none."""
        return [run for run in self.runs(trial) if run.status == "finished"]

    def figure(self, trial: Trial) -> float | None:
        """The metric at the best epoch: the mean over the runs with the full budget; without such a run, the metric of the trial itself.

        A short run is never averaged with a full run. `None` if a run diverged, failed or has no metric yet.
        """
        if any(run.status in ("diverged", "failed") for run in self.runs(trial)):
            return None
        best = [run.best(self.metric) for run in self.full_runs(trial) or [trial]]
        figures = [float(epoch[self.metric]) for epoch in best if epoch]
        return sum(figures) / len(figures) if figures and len(figures) == len(best) else None

    def ranked(self) -> list[Trial]:
        """Trials that have a metric and did not diverge or fail, best first; equal trials are in the order of their numbers.

        Trials are only compared at equal budgets: trials with a full run come first, then the others, see `_rank_short`.
        """
        figures = [(trial, figure) for trial in self.trials if (figure := self.figure(trial)) is not None]
        full = [(trial, {self.metric: figure}) for trial, figure in figures if self.full_runs(trial)]
        ranked = [trial for trial, _ in sorted(full, key=lambda pair: -score(pair[1], self.metric))]
        return ranked + _rank_short([trial for trial, _ in figures if trial not in ranked], self.metric)

    def to_repeat(self, most: int, at_once: int) -> list[Trial]:
        """Trials to repeat with another seed: trials with an interrupted repeat, else the leading trials, until the first one is repeated.

        If no trial had the full budget, the repeat of the leader is the first run with the full budget.

        Args:
            most: maximum number of repeats.
            at_once: number of trials that run in parallel.
        """
        ended = {repeat.number for repeat in self.repeats if repeat.status not in ("running", "interrupted")}
        waiting = {repeat.number for repeat in self.repeats} - ended
        ranked = self.ranked()
        if waiting:
            return [trial for trial in self.trials if trial.number in waiting]
        if not ranked or ranked[0].number in ended:
            return []
        return [trial for trial in ranked if trial.number not in ended][: max(0, min(at_once, most - len(ended)))]

    @property
    def epochs_run(self) -> int:
        """Total epochs of all trials and repeats."""
        return sum(trial.epochs_done for trial in [*self.trials, *self.repeats])

    def save(self, files: FileTree) -> None:
        """Write `state.json` and `trials.csv`."""
        files.replace(STATE_FILE, json.dumps({"format_version": FORMAT_VERSION} | dataclasses.asdict(self)).encode())
        files.replace("trials.csv", self.to_csv())

    @classmethod
    def load(cls, files: FileTree) -> Record | None:
        """Read the record of a search; `None` if there is none.

        Raises:
            StoreError: if the file is damaged.
            ConfigError: if a newer release wrote it.
        """
        data = files.read(STATE_FILE)
        if data is None:
            return None
        try:
            values = without_format(json.loads(data), files.path(STATE_FILE), FORMAT_VERSION)
            record = cls(**values | {name: [Trial(**trial) for trial in values.get(name, [])] for name in ("trials", "repeats")})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(f"{files.path(STATE_FILE)} is damaged ({error}); choose another --name") from None
        record.settle("interrupted")  # the process of these trials was killed
        return record

    def to_csv(self) -> bytes:
        """One row per trial: status, metrics of its best epoch, the metric with another seed, parameters."""
        paths = list(dict.fromkeys(path for trial in self.trials for path in trial.parameters))
        figures = ["best_epoch", "val_accuracy", "val_loss", "train_accuracy"]
        if any("val_map" in epoch for trial in self.trials for epoch in trial.epochs):
            figures = ["best_epoch", "val_map", "val_loss"]
        table = io.StringIO()
        columns = ["trial", "status", "epochs", *figures, AGAIN, "images_per_s", "seconds", *paths, "reason"]
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        for trial in self.trials:
            best = trial.best(self.metric) or {}
            again = [(repeat.best(self.metric) or {}).get(self.metric) for repeat in self.runs(trial)[1:]]
            writer.writerow(
                {"trial": trial.number, "status": trial.status, "epochs": trial.epochs_done, "reason": trial.reason}
                | {name: best.get("epoch" if name == "best_epoch" else name) for name in figures}
                | {AGAIN: again[0] if again else None}
                | {"images_per_s": round(images_per_s(trial)), "seconds": round(trial.seconds, 2)}
                | trial.parameters
            )
        return table.getvalue().encode()


def _rank_short(trials: list[Trial], metric: str) -> list[Trial]:
    """Rank trials without a full run: first those with more than half the epochs of the longest, at an epoch that they all reached.

    The other trials follow, ranked in the same way. So a trial that has just started does not rank above a longer trial, and a trial that
    was cut off an epoch later than another has no advantage.
    """
    ranked: list[Trial] = []
    left = list(trials)
    while left:
        longest = max(trial.epochs_done for trial in left)
        group = [trial for trial in left if 2 * trial.epochs_done > longest]
        epoch = min(trial.epochs_done for trial in group)
        ranked += sorted(group, key=lambda trial: -score(best, metric) if (best := trial.best(metric, epoch)) else math.inf)
        left = [trial for trial in left if trial not in group]
    return ranked


def images_per_s(trial: Trial) -> float:
    """Mean training throughput over all epochs, without evaluation; 0 before the first epoch."""
    rates = [report["images_per_s"] for report in trial.epochs]
    return sum(rates) / len(rates) if rates else 0.0


def format_parameters(parameters: dict[str, Any]) -> str:
    """Parameters in one line, with short names and three digits."""
    return " ".join(f"{path.rpartition('.')[2]}={value:.3g}" if isinstance(value, float) else f"{path.rpartition('.')[2]}={value}"
                    for path, value in parameters.items())  # fmt: skip
