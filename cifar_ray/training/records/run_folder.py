"""The folder of a run, `<storage>/runs/<name>`: its config, its history, and the check whether the run may start or resume."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from typing import Any

from cifar_ray.config import TrainConfig, parse_config, storage_flag, to_yaml
from cifar_ray.config.documents import flatten
from cifar_ray.errors import ConfigError, DataError, StoreError
from cifar_ray.storage import FileTree
from cifar_ray.storage.probe import StorageProbe
from cifar_ray.training.records import curves, history
from cifar_ray.training.records.checkpoint import Checkpoints
from cifar_ray.training.records.results import EpochReport
from cifar_ray.training.records.saved_runs import CLAIMS, CONFIG_FILE, FIRST_CLAIM, latest_run, read_config, saved_settings

_logger = logging.getLogger(__name__)
_DATA_FILE, _END_FILE = "data.sha256", "finished.json"
_FREE = {
    "checkpoint_every",
    "cluster",
    "cuda_graph",
    "max_failures",
    "num_workers",
    "worker_timeout_s",
    "storage",
}  # may change when a run resumes


class Run:
    """One run, new or unfinished.

    Args:
        config: config of the run; its `name` is set.
        resume: `auto` or the run's name resumes an unfinished run with the same config; `never` raises if the run exists. With its name
            and a config that only adds epochs, a finished run is extended.
        fingerprint: fingerprint of the data; a run that started with other data is not resumed.

    Attributes:
        fingerprint: fingerprint of the data; empty if unknown.
        files: files of the run's folder.
        checkpoints: checkpoints of the run.
        is_resumed: whether the run was started before.

    Raises:
        ConfigError: if `resume` has another value, or a run of that name exists and has another config or is finished.
        DataError: if the data set has changed since the run started.
        StoreError: if the storage cannot be used.
    """

    def __init__(self, config: TrainConfig, resume: str = "auto", fingerprint: str = "") -> None:
        assert config.name is not None  # noqa: S101
        self.name, self.config, self.fingerprint = config.name, config, fingerprint
        self.files = FileTree(config.storage, f"runs/{config.name}")
        self.checkpoints = Checkpoints(config.storage, config.name)
        if resume not in ("auto", "never", config.name):
            raise ConfigError(f"--resume {resume}: expected auto or never; to resume a run: cifar-ray train --resume {resume}")
        saved = read_config(self.files)
        self.is_resumed = saved is not None
        self._extends: dict[str, Any] | None = None  # the config of the finished run that this one extends
        if saved is None:
            return
        config = self.config = config.model_copy(update={"draws": saved["draws"]})  # a run of an earlier release continues with its draws
        where = f"name: run {self.name!r} exists in {config.storage}/runs"
        changes = _differences(saved, config)
        differs = f"; it has {', '.join(changes)}" if changes else ""
        if self.is_finished():
            if resume != self.name or not self._grows(saved):
                longer = (
                    f", or train it for longer: {self.command()} --epochs N, with N above {saved.get('epochs')}"
                    if config.method == "scratch"
                    else ""
                )
                raise ConfigError(f"{where} and is finished{differs}; choose another --name{longer}")
            self._extends, changes = saved, []
        if resume == "never":
            raise ConfigError(f"{where}{differs}; choose another --name, or remove --resume never")
        if changes:
            raise ConfigError(f"{where} with another config{differs}; choose another --name, or resume it with {self.command()}")
        if fingerprint and (self.files.read(_DATA_FILE) or fingerprint.encode()) != fingerprint.encode():
            again = f"; a deleted review does not come back: repeat the run with --config {config.storage}/runs/{self.name}/{CONFIG_FILE}"
            remedy = again if config.with_reviews else ""
            raise DataError(f"{where}, but its images or labels have changed since; restore them, or choose another --name{remedy}")

    def is_finished(self) -> bool:
        """Whether the run's model was saved; runs of early releases, which cannot resume, count as finished."""
        end = self._read_end()
        if end is not None:
            epochs = (read_config(self.files) or {}).get("epochs", 0)
            return bool(end.get("epochs", epochs) >= epochs)
        (has_history,) = self.files.have_files(["history.json"])
        return self.config.method == "scratch" and has_history and self.checkpoints.attempts() == 0

    def _read_end(self) -> dict[str, Any] | None:
        data = self.files.read(_END_FILE)
        try:
            return None if data is None else dict(json.loads(data))
        except (ValueError, TypeError):  # damaged, but its presence shows that the run has ended
            return {}

    def _grows(self, saved: dict[str, Any]) -> bool:
        """Whether the config only adds epochs to the saved config, and the run still has a checkpoint."""
        more = self.config.epochs > saved.get("epochs", 0) and self.config.method == "scratch"
        return more and not _differences(saved | {"epochs": self.config.epochs}, self.config) and bool(self.checkpoints.places())

    def begin(self) -> StorageProbe:
        """Claim the name, then write the fingerprint of the data set and the config; from now on, the same command resumes this run.

        Returns:
            The probe with which workers check that they see this folder.

        Raises:
            ConfigError: if another process has claimed the name for another config since this object was created.
        """
        if not self.is_resumed:
            self._claim()
            self.files.replace(_DATA_FILE, self.fingerprint.encode())
            self.files.replace(CONFIG_FILE, to_yaml(self.config).encode())
        if self._extends is not None:
            # until the second write the run counts as finished; then finished.json has fewer epochs than config.yaml
            end = {"epochs": self._extends["epochs"]} | (self._read_end() or {})
            self.files.replace(_END_FILE, json.dumps(end, indent=1).encode())
            self.files.replace(CONFIG_FILE, to_yaml(self.config).encode())
        return StorageProbe.place(self.files)

    def _claim(self) -> None:
        """Claim the name. If several processes start a run of this name at the same time, the first one decides the config."""
        if self.files.add_numbered(CLAIMS, {CONFIG_FILE: to_yaml(self.config).encode()}) == 1:
            return
        first = read_config(self.files, FIRST_CLAIM)
        if first is not None and (changes := _differences(first, self.config)):
            where = f"name: run {self.name!r} in {self.config.storage}/runs"
            raise ConfigError(f"{where} was started just now with another config; it has {', '.join(changes)}; choose another --name")

    def extra_config(self, name: str) -> TrainConfig | None:
        """The config of a later phase of this run, as `save_extra_config` wrote it; `None` if there is none.

        Raises:
            ConfigError, StoreError: if the file is damaged.
        """
        saved = read_config(self.files, name)
        return None if saved is None else parse_config(TrainConfig, saved | {"storage": self.config.storage})

    def save_extra_config(self, name: str, config: TrainConfig) -> None:
        """Write the config of a later phase, so that a resumed run repeats it."""
        self.files.replace(name, to_yaml(config).encode())

    def with_config(self, config: TrainConfig) -> Run:
        """The same run with the config of a later phase."""
        later = copy.copy(self)
        later.config, later.is_resumed = config, True
        return later

    def write_history(self, reports: Sequence[EpochReport]) -> None:
        """Write history and curves. An error is only logged, because it must not prevent saving the model, which comes later."""
        try:
            self.files.replace("history.csv", history.to_csv(reports))
            self.files.replace("history.json", history.to_json(reports))
            self.files.replace("curves.png", curves.draw_curves(reports, self.name))
        except Exception as error:
            _logger.warning("history and curves of run %s are not written: %s: %s", self.name, type(error).__name__, error)

    def finish(self, **about: Any) -> None:
        """Mark the run as finished, and keep only the last checkpoint."""
        self.files.replace(_END_FILE, json.dumps({"epochs": self.config.epochs} | about, indent=1).encode())
        self.checkpoints.sweep(keep=1)

    def command(self) -> str:
        """The command that resumes the run."""
        return f"cifar-ray train --resume {self.name}{storage_flag(self.config.storage)}"


def unfinished_twin(config: TrainConfig, fingerprint: str) -> Run | None:
    """Find the run that began last, if it has another name, the same settings and images, and is unfinished."""
    try:
        name = latest_run(config.storage)
        # with the same images, another time of the reviews makes no difference
        until = saved_settings(name, config.storage).get("reviews_until")
        run = Run(config.model_copy(update={"name": name, "reviews_until": until}), fingerprint=fingerprint)
    except (ConfigError, DataError, StoreError):  # there is none, it has other settings, or it is finished
        return None
    return run if run.is_resumed and name != config.name else None


def _differences(saved: dict[str, Any], config: TrainConfig) -> list[str]:
    """Differences between the saved and the present config, as `field saved (now present)`."""
    # earlier releases saved no task; it follows from the labels, which the fingerprint covers
    known = {"task": config.task} | {key: value for key, value in saved.items() if key in TrainConfig.model_fields}
    theirs = flatten(parse_config(TrainConfig, known | {"storage": config.storage}).model_dump(mode="json"))
    ours = flatten(config.model_dump(mode="json"))
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key) and key.partition(".")[0] not in _FREE]
    return [f"{key} {theirs.get(key, 'None')} (now {ours.get(key, 'None')})" for key in keys]
