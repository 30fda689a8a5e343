"""What a search has found so far: one file that is written whole after every epoch, and all pictures and tables come from it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from cifar_ray.errors import StoreError
from cifar_ray.storage import FileTree

STATE_FILE = "state.json"
AGAIN = "again"  # beside the parameters that Tune is given: with another seed

# interrupted: was running when the search was; goes on from its snapshot. stopped: by the scheduler or the time budget.
Status = Literal["running", "interrupted", "finished", "stopped", "diverged", "failed"]
Epoch = dict[str, Any]  # the fields of `EpochReport`


@dataclass
class Trial:
    """One recipe that was tried.

    Attributes:
        number: from 1, in order of start.
        trial_id: Ray Tune's; another one after a restart.
        folder: where its snapshot is.
        parameters: drawn values by path.
        status: how it ended.
        reason: why, where it diverged or failed.
        epochs: reports by epoch, in the order they came.
        again: it repeats the trial of the same number with another seed.
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
        """What Tune is given."""
        return self.parameters | ({AGAIN: True} if self.again else {})

    def add(self, report: Epoch) -> None:
        """Takes an epoch's report; one that comes again after a restart replaces the first."""
        self.epochs = [known for known in self.epochs if known["epoch"] < report["epoch"]] + [report]

    @property
    def epochs_done(self) -> int:
        """Number of its last epoch."""
        return self.epochs[-1]["epoch"] if self.epochs else 0

    @property
    def seconds(self) -> float:
        """Of training and evaluation."""
        return float(sum(report["seconds"] for report in self.epochs))

    def best(self, metric: str) -> Epoch | None:
        """Its best epoch."""
        ranked = [report for report in self.epochs if report.get(metric) is not None and math.isfinite(report[metric])]
        return max(ranked, key=lambda report: score(report, metric)) if ranked else None


def score(report: Epoch, metric: str) -> float:
    """The metric such that more is better."""
    value = float(report[metric])
    return -value if metric == "val_loss" else value


@dataclass
class Record:
    """A search.

    Attributes:
        metric: what ranks trials.
        max_epochs: of a trial that is not stopped.
        num_samples: trials in all.
        trials: by number.
        repeats: leading trials once more.
        elapsed_s: time spent in all invocations.
        ended: nothing is left to be done.
    """

    metric: str
    max_epochs: int
    num_samples: int
    trials: list[Trial] = field(default_factory=list)
    repeats: list[Trial] = field(default_factory=list)
    elapsed_s: float = 0.0
    ended: bool = False

    def trial(self, trial_id: str, config: dict[str, Any]) -> Trial:
        """The trial with Ray's id, else the interrupted one with this config, else a new one."""
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
        """Trials and repeats that have not ended."""
        return [trial for trial in [*self.trials, *self.repeats] if trial.status == "running"]

    def interrupted(self) -> list[Trial]:
        """Trials that have to go on."""
        return [trial for trial in self.trials if trial.status == "interrupted"]

    def settled(self) -> list[Trial]:
        """Trials that need no more work."""
        return [trial for trial in self.trials if trial.status not in ("running", "interrupted")]

    def settle(self, status: Status, reason: str = "") -> None:
        """Gives those that still run this status."""
        for trial in self.running():
            trial.status, trial.reason = status, reason

    def runs(self, trial: Trial) -> list[Trial]:
        """A trial and its repeat, if that came to its end."""
        return [trial, *(one for one in self.repeats if one.number == trial.number and one.status in ("finished", "diverged"))]

    def figure(self, trial: Trial) -> float | None:
        """The metric at its best epoch, the mean with its repeat's; `None` if a run broke or has none yet."""
        runs = self.runs(trial)
        best = [run.best(self.metric) for run in runs if run.status not in ("diverged", "failed")]
        figures = [float(epoch[self.metric]) for epoch in best if epoch]
        return sum(figures) / len(runs) if len(figures) == len(runs) else None

    def ranked(self) -> list[Trial]:
        """Trials that have a figure and did not break, best first; of equals the first."""
        figures = [(trial, self.figure(trial)) for trial in self.trials]
        able = [(trial, {self.metric: figure}) for trial, figure in figures if figure is not None]
        return [trial for trial, _ in sorted(able, key=lambda pair: -score(pair[1], self.metric))]

    def to_repeat(self, most: int, at_once: int) -> list[Trial]:
        """What to train with another seed: the leaders, as long as the first has not been, or what was interrupted.

        Args:
            most: repeats in all.
            at_once: how many fit beside each other.
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
        """Of all trials and repeats."""
        return sum(trial.epochs_done for trial in [*self.trials, *self.repeats])

    def save(self, files: FileTree) -> None:
        """Writes `state.json` and `trials.csv`."""
        files.replace(STATE_FILE, json.dumps(dataclasses.asdict(self)).encode())
        files.replace("trials.csv", self.to_csv())

    @classmethod
    def load(cls, files: FileTree) -> Record | None:
        """Reads it back; `None` where there is none.

        Raises:
            StoreError: if the file is not ours.
        """
        data = files.read(STATE_FILE)
        if data is None:
            return None
        try:
            values = json.loads(data)
            record = cls(**values | {name: [Trial(**trial) for trial in values.get(name, [])] for name in ("trials", "repeats")})
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{files.path(STATE_FILE)} is damaged ({error}); choose another --name") from None
        record.settle("interrupted")  # their process was killed
        return record

    def to_csv(self) -> bytes:
        """A row a trial: status, figures of its best epoch, the metric with another seed, parameters."""
        paths = list(dict.fromkeys(path for trial in self.trials for path in trial.parameters))
        figures = ["best_epoch", "val_accuracy", "val_loss", "train_accuracy"]
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


def images_per_s(trial: Trial) -> float:
    """Mean over its epochs, evaluation not counted; 0 before the first."""
    rates = [report["images_per_s"] for report in trial.epochs]
    return sum(rates) / len(rates) if rates else 0.0


def format_parameters(parameters: dict[str, Any]) -> str:
    """Short names and three digits, for a line."""
    return " ".join(f"{path.rpartition('.')[2]}={value:.3g}" if isinstance(value, float) else f"{path.rpartition('.')[2]}={value}"
                    for path, value in parameters.items())  # fmt: skip
