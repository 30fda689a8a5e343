"""Trials on a pretrained network start from a probe, as the fine-tuning of `train` does."""

from __future__ import annotations

from dataclasses import dataclass

from cifar_ray.config import TrainConfig
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.data.task_progress import StartTask
from cifar_ray.metrics.score import Score
from cifar_ray.store.bundle import MANIFEST_FILE
from cifar_ray.training.probe.linear_probe import train_probe
from cifar_ray.training.probe.mirroring import mirroring_harms
from cifar_ray.training.records.results import TrainedRun
from cifar_ray.training.transfer import PROBE_FOLDER, describe_probe, finetuning_config, save_probe
from cifar_ray.tuning.record import Record
from cifar_ray.tuning.search_job import SearchJob

# A probe has one network, one image size and one division of the pictures. Trials that search these start from pretrained weights alone.
_OF_PROBE = {"model", "pretrained", "image_size", "resize_policy"}


@dataclass(frozen=True)
class TrialStart:
    """Where the trials of a search start.

    Attributes:
        trials: config of the trials, except for the searched fields.
        result: config that the best recipe completes.
        description: one line about the probe for the user; empty without a probe.
        score: of the probe on the validation images; `None` without a probe.
    """

    trials: TrainConfig
    result: TrainConfig
    description: str = ""
    score: Score | None = None

    def notes(self, record: Record) -> list[str]:
        """One line for the user if no trial is better than the probe."""
        ranked = record.ranked()
        best = record.figure(ranked[0]) if ranked and record.metric != "val_loss" else None
        if best is None or self.score is None or best > self.score.value:
            return []
        return [f"no trial is better than the probe, {self.score}; train without --config saves the probe"]


def start_trials(job: SearchJob, record: Record, splits: DatasetSplits, progress: StartTask) -> TrialStart:
    """Train a probe and save it in the folder of the search, unless its trials train from scratch.

    All trials of a search start alike: a resumed search keeps the probe of its first trials, or none if an earlier release began it.

    Args:
        job: the search.
        record: its results so far.
        splits: the data set.
        progress: receives the progress.

    Raises:
        CifarRayError: see `train_probe`.
    """
    fixed = job.fixed
    is_saved = job.files.read(f"{PROBE_FOLDER}/{MANIFEST_FILE}") is not None
    began_without = bool(record.trials) and not is_saved
    if fixed.method == "scratch" or began_without or _OF_PROBE & {parameter.path for parameter in job.space}:
        return TrialStart(fixed, fixed)
    mirror = fixed.augmentation.flip == "none" or not mirroring_harms(fixed, splits, progress)
    probe = train_probe(fixed, DatasetSplits(splits.name, splits.train, splits.val, None), progress, mirror=mirror)
    if not is_saved:
        save_probe(job.files, TrainedRun(job.name, job.files.path(), probe.result, [probe.report], probe.weights), fixed, splits)
    return TrialStart(
        finetuning_config(fixed, job.folder, mirror=mirror),
        fixed.model_copy(update={"method": "finetune"}),
        f"{describe_probe(probe, splits)}; trials start from it",
        Score.find(probe.result.metrics, "val", len(splits.val or ())),
    )
