"""The file `stages.json`: which version of each model is on trial, and how."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cifar_ray.config.documents import without_format
from cifar_ray.errors import StoreError
from cifar_ray.storage import FileTree
from cifar_ray.store.aliases import PRODUCTION
from cifar_ray.store.log import Reason
from cifar_ray.store.registry import ModelStore

FOLDER = "stages"

_FILE = "stages.json"
_FORMAT_VERSION = 1


class Stage(BaseModel):
    """A version on trial.

    Attributes:
        name: name of the model.
        version: version on trial.
        share: fraction of the requests that it answers, 0–1; 0 is a shadow, which sees requests and answers none.
        staged_at_ms: when the trial began, in milliseconds since 1970; it tells trials of one version apart.
        promote_after: number of requests after which the version is promoted if the conditions hold; `None` never promotes it.
        conditions: conditions for the promotion, see `Condition`.
        withdraws: whether the version is withdrawn when it fails or is slow.
        against: production version that it is compared with; `None` until the trial starts, and in trials of older releases.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    share: float = Field(ge=0, lt=1)
    staged_at_ms: int = Field(default_factory=lambda: time.time_ns() // 1_000_000)
    promote_after: int | None = Field(None, ge=1)
    conditions: tuple[str, ...] = ()
    withdraws: bool = True
    against: int | None = None

    @property
    def reference(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def is_shadow(self) -> bool:
        """Whether it answers no request."""
        return self.share == 0

    @property
    def folder(self) -> str:
        """Folder of the observations of this trial, relative to the folder of all trials."""
        return f"{self.name}/{self.version}-{self.staged_at_ms}"

    def __str__(self) -> str:
        return f"{self.reference} as a shadow" if self.is_shadow else f"{self.reference} for {100 * self.share:g} % of the requests"


_STAGES = TypeAdapter(tuple[Stage, ...])


class StageFile:
    """The versions on trial, at most one for each model.

    Args:
        storage: path or URI.
        timeout_s: as for `FileTree`.

    Raises:
        StoreError: from every method, if the file is damaged, or the storage refuses the operation or cannot be reached.
    """

    def __init__(self, storage: str, timeout_s: float | None = None) -> None:
        self._storage = storage
        self.files = FileTree(storage, FOLDER, timeout_s)

    def read(self) -> tuple[Stage, ...]:
        """All versions on trial."""
        return self._decode(self.files.read(_FILE))

    def start(self, store: ModelStore, stage: Stage) -> Stage | None:
        """Start a trial; it replaces a trial of the same version. Running servers follow within some seconds.

        Returns:
            The replaced trial; `None` if there was none.

        Raises:
            StoreError: if the version does not exist, is damaged, or cannot be compared with the production version, or if another version
                of the model is on trial.
        """
        stage = stage.model_copy(update={"against": _check_comparable(store, stage)})
        replaced: list[Stage] = []

        def started(present: tuple[Stage, ...]) -> tuple[Stage, ...]:
            replaced[:] = [one for one in present if one.name == stage.name]
            for one in replaced:
                if one.version != stage.version:
                    raise StoreError(f"{one} is on trial already; end it first with: cifar-ray store unstage {one.name}")
            return (*(one for one in present if one.name != stage.name), stage)

        self._change(started)
        store.log.add(stage.reference, Reason("stage", str(stage), {"rules": stage_rules(stage)}))
        return replaced[0] if replaced else None

    def end(self, stage: Stage) -> bool:
        """End a trial and delete its observations.

        Returns:
            Whether this call ended the trial; if several processes try, exactly one gets `True`.
        """
        found: list[Stage] = []

        def ended(present: tuple[Stage, ...]) -> tuple[Stage, ...]:
            found[:] = [one for one in present if one.folder == stage.folder]
            return tuple(one for one in present if one.folder != stage.folder)

        self._change(ended)
        if found:
            FileTree(self._storage, f"{FOLDER}/{stage.folder}").remove()
        return bool(found)

    def start_again(self, store: ModelStore, stage: Stage) -> bool:
        """Start a trial with new counts, because production has another version now; end it if the two cannot be compared.

        Returns:
            Whether this call did it; if several processes try, exactly one gets `True`.
        """
        if not self.end(stage):
            return False
        again = stage.model_copy(update={"staged_at_ms": max(time.time_ns() // 1_000_000, stage.staged_at_ms + 1)})
        try:
            self.start(store, again)
        except StoreError as error:
            store.log.add(stage.reference, Reason("withdraw", str(error)))
        return True

    def find(self, reference: str) -> Stage:
        """The trial of a model, by `name` or `name@version`.

        Raises:
            StoreError: if there is no such trial; the message lists the trials.
        """
        stages = self.read()
        for stage in stages:
            if reference in (stage.name, stage.reference):
                return stage
        raise StoreError(f"{reference} is not on trial. On trial: {', '.join(stage.reference for stage in stages) or 'none'}")

    def _change(self, change: Callable[[tuple[Stage, ...]], tuple[Stage, ...]]) -> None:
        self.files.update(_FILE, lambda data: _encode(change(self._decode(data))))

    def _decode(self, data: bytes | None) -> tuple[Stage, ...]:
        where = self.files.path(_FILE)
        try:
            values: dict[str, Any] = {} if data is None else TypeAdapter(dict[str, Any]).validate_json(data)
            return _STAGES.validate_python(without_format(values, where, _FORMAT_VERSION).get("stages", ()))
        except ValidationError:
            raise StoreError(f"{where} is damaged; delete this file, then stage the versions again") from None


def stage_rules(stage: Stage) -> str:
    """The rules of a trial, as text for the user."""
    rules = []
    if stage.promote_after:
        held = f" if {' and '.join(stage.conditions)}" if stage.conditions else ""
        rules.append(f"promoted after {stage.promote_after:,} requests{held}")
    if stage.withdraws:
        rules.append("withdrawn if it fails or is slow")
    return "; ".join(rules) or "none"


def _encode(stages: tuple[Stage, ...]) -> bytes:
    content = {"format_version": _FORMAT_VERSION, "stages": _STAGES.dump_python(stages, mode="json")}
    return TypeAdapter(dict[str, Any]).dump_json(content, indent=2)


def _check_comparable(store: ModelStore, stage: Stage) -> int:
    """The production version, if it can be compared with the version on trial."""
    new = store.check(stage.reference)
    production = store.aliases(stage.name).get(PRODUCTION)
    if production is None:
        raise StoreError(
            f"{stage.name} has no production version to compare with; promote one first: cifar-ray store promote {stage.name}@N"
        )
    if production == stage.version:
        raise StoreError(f"{stage.reference} is the production version already")
    present = store.manifest(f"{stage.name}@{production}")
    if new.task != present.task:
        raise StoreError(f"{stage.reference} is {new.task} and the production version {present.task}, so they cannot be compared")
    return production
