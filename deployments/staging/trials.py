"""Follow the versions on trial in the storage, and collect what this process observes of them."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Protocol

from cifar_ray.errors import CifarRayError
from cifar_ray.storage import FileTree
from cifar_ray.store import ModelStore
from cifar_ray.store.staging.stage_file import FOLDER, Stage, StageFile
from cifar_ray.store.staging.supervision import supervise
from cifar_ray.store.staging.tallies import Tally, read_tallies, write_tally

POLL_S = 2.0

logger = logging.getLogger("ray.serve")


@dataclass
class Trial:
    """A version on trial, and what this process has observed."""

    stage: Stage
    tally: Tally = field(default_factory=Tally)


class Trials(Protocol):
    """The versions on trial."""

    def find(self, name: str) -> Trial | None:
        """The trial of a model; `None` if it has none. Called for every request."""


class NoTrials(Trials):
    """No version is on trial."""

    def find(self, name: str) -> Trial | None:
        """Implements `Trials`."""
        return None


class TrialsInStorage(Trials):
    """Follows the trials in the storage, writes the observations of this process, and applies the rules to those of all processes.

    Args:
        storage: path or URI.
    """

    def __init__(self, storage: str) -> None:
        self._storage = storage
        self._id = uuid.uuid4().hex
        self._trials: dict[str, Trial] = {}
        self._written: dict[str, bytes] = {}
        self._problem = ""

    def find(self, name: str) -> Trial | None:
        """Implements `Trials`."""
        return self._trials.get(name)

    def follow(self) -> None:
        """Start a thread that reads the storage every two seconds."""
        threading.Thread(target=self._follow_forever, name="trials", daemon=True).start()

    def look(self) -> None:
        """Read the storage once. Never raises: after an error, the server continues with the trials that it knows."""
        problem = ""
        try:
            self._look()
        except CifarRayError as error:
            problem = str(error)
        except Exception as error:  # if this thread ended, a failing version would stay on trial
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if problem and problem != self._problem:
            logger.warning("versions on trial cannot be followed: %s", problem)
        self._problem = problem

    def _look(self) -> None:
        stages = StageFile(self._storage, timeout_s=0)
        present = {stage.name: stage for stage in stages.read()}
        ended = [trial.stage for name, trial in self._trials.items() if trial.stage != present.get(name)]
        kept = {name: trial for name, trial in self._trials.items() if trial.stage == present.get(name)}
        self._trials = {name: kept.get(name) or Trial(stage) for name, stage in present.items()}
        for stage in ended:
            logger.info("%s is no longer on trial", stage.reference)
            self._written.pop(stage.folder, None)
            FileTree(self._storage, f"{FOLDER}/{stage.folder}", timeout_s=0).remove()  # this process may have written after the end
        for trial in self._trials.values():
            self._write_and_judge(stages, trial)

    def _write_and_judge(self, stages: StageFile, trial: Trial) -> None:
        folder, content = trial.stage.folder, trial.tally.to_json()
        if content != self._written.get(folder):
            write_tally(stages.files, folder, self._id, trial.tally)
            self._written[folder] = content
        of_all = read_tallies(stages.files, folder, without=[self._id]) + trial.tally
        if done := supervise(ModelStore(self._storage, timeout_s=0), stages, trial.stage, of_all):
            logger.warning("%s %s: %s", done.action, trial.stage.reference, done.why)
            self._trials = {name: other for name, other in self._trials.items() if other is not trial}

    def _follow_forever(self) -> None:
        while True:
            self.look()
            time.sleep(POLL_S)
