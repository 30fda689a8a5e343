"""End trials by their rules: withdraw a version that fails or is slow, promote a version that meets its conditions."""

from __future__ import annotations

from contextlib import suppress

from cifar_ray.errors import ConcurrentChangeError
from cifar_ray.store.log import Reason
from cifar_ray.store.registry import ModelStore
from cifar_ray.store.staging.rules import Condition, figures_for_log, reason_to_withdraw, unmet
from cifar_ray.store.staging.stage_file import Stage, StageFile
from cifar_ray.store.staging.tallies import Tally


def supervise(store: ModelStore, stages: StageFile, stage: Stage, tally: Tally) -> Reason | None:
    """End a trial if one of its rules says so. Every server may call this: each change happens, and is logged, only once.

    Args:
        store: store of the model.
        stages: file of the trials.
        stage: the trial.
        tally: observations of all servers.

    Returns:
        What was done; `None` if the trial goes on, or another process has ended it.

    Raises:
        StoreError: if the storage cannot be read or written.
        BundleError: if the version to promote is damaged.
    """
    seen = store.pointers(stage.name)
    if seen.production == stage.version:  # promoted by a user, or by a server that died before it ended the trial
        stages.end(stage)
        return None
    if stage.against not in (None, seen.production):  # these observations are about another production version
        stages.start_again(store, stage)
        return None
    reason = decide(stage, tally)
    if reason is None:
        return None
    if reason.action == "promote":
        with suppress(ConcurrentChangeError):  # this version was not compared with the new production version
            store.promote(stage.name, stage.version, replacing=seen, reason=reason)
            stages.end(stage)
            return reason
        return None
    if not stages.end(stage):
        return None
    store.log.add(stage.reference, reason)
    return reason


def decide(stage: Stage, tally: Tally) -> Reason | None:
    """What the rules of a trial decide now; `None` if it goes on."""
    if stage.withdraws and (problem := reason_to_withdraw(tally)):
        return Reason("withdraw", problem, figures_for_log(tally))
    if stage.promote_after is None or tally.staged.requests < stage.promote_after:
        return None
    if unmet([Condition.parse(text) for text in stage.conditions], tally):
        return None
    return Reason("promote", f"after {tally.staged.requests:,} requests its rule holds", figures_for_log(tally))
