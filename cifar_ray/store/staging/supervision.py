"""Ends a trial by its rules: withdraws a version that fails or is slow, promotes one that has proved itself."""

from __future__ import annotations

from contextlib import suppress

from cifar_ray.errors import ConcurrentChangeError
from cifar_ray.store.aliases import PRODUCTION
from cifar_ray.store.log import Reason
from cifar_ray.store.registry import ModelStore
from cifar_ray.store.staging.rules import Condition, figures_for_log, reason_to_withdraw, unmet
from cifar_ray.store.staging.stage_file import Stage, StageFile
from cifar_ray.store.staging.tallies import Tally


def supervise(store: ModelStore, stages: StageFile, stage: Stage, tally: Tally) -> Reason | None:
    """End a trial if one of its rules says so. Every server may call it: each change happens, and is logged, once.

    Args:
        store: holds the model.
        stages: holds the trial.
        stage: the trial.
        tally: what all servers observed.

    Returns:
        What was done; `None` if the trial goes on, or another process has ended it.

    Raises:
        StoreError: if the storage cannot be read or written.
        BundleError: if the version to promote is damaged.
    """
    if store.aliases(stage.name).get(PRODUCTION) == stage.version:  # a person promoted it, or a server that then died
        stages.end(stage)
        return None
    reason = decide(stage, tally)
    if reason is None:
        return None
    if reason.action == "promote":
        with suppress(ConcurrentChangeError):  # another version is in production now, with which this one was not compared
            store.promote(stage.name, stage.version, reason=reason)
            stages.end(stage)
            return reason
        return None
    if not stages.end(stage):
        return None
    store.log.add(stage.reference, reason)
    return reason


def decide(stage: Stage, tally: Tally) -> Reason | None:
    """What the rules of a trial say now."""
    if stage.withdraws and (problem := reason_to_withdraw(tally)):
        return Reason("withdraw", problem, figures_for_log(tally))
    if stage.promote_after is None or tally.staged.requests < stage.promote_after:
        return None
    if unmet([Condition.parse(text) for text in stage.conditions], tally):
        return None
    return Reason("promote", f"after {tally.staged.requests:,} requests its rule holds", figures_for_log(tally))
