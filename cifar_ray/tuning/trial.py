"""One trial on Ray: Tune runs `run_trial`, which runs the training loop of `train` in a `TorchTrainer`.

With one worker, training runs in the process of the trial (Ray Train's local mode, `num_workers=0`), which Tune reuses for
the next trial: a trial starts in tenths of a second instead of 10–20 s. With more workers, Ray Train starts separate
processes, and its callback forwards their reports to Tune.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
from typing import Any

import ray
import torch
from ray import train, tune
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch import get_device as get_ray_device
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from cifar_ray.cluster.plan import WorkerPlan
from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import load_splits
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits
from cifar_ray.errors import DataError, TrainingError, advising_on_memory
from cifar_ray.storage import FileTree
from cifar_ray.training.loop.fit import fit
from cifar_ray.training.loop.snapshot import Snapshot
from cifar_ray.training.on_ray.ingest import DATA_DIFFER
from cifar_ray.training.on_ray.ray_trainer import POLL_INTERVAL_S
from cifar_ray.training.records.results import EpochReport, Weights
from cifar_ray.training.steps.micro_batches import memory_advice
from cifar_ray.training.weights.initial_network import load_parent
from cifar_ray.tuning.record import AGAIN
from cifar_ray.tuning.search_job import digest_labels
from cifar_ray.tuning.space import trial_config

SNAPSHOT_FILE = "snapshot.pt"
WORKERS_FILE = "placement_group"
DIVERGED = "diverged"  # key of a result; the value is the reason

# Fields of an epoch that are reported; confusion matrices would make the record large.
REPORT_FIELDS = {field.name for field in dataclasses.fields(EpochReport)} - {"val_confusion"}

# A diverged trial reports these values, so that searchers avoid its parameters. The user never sees them.
_WORST = {"val_accuracy": 0.0, "val_map": 0.0, "val_loss": 1e9}

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrialJob:
    """Settings shared by all trials of a search.

    Attributes:
        fixed: config of all trials; a trial replaces the searched fields.
        storage: storage of the search.
        folder: parent of the folders of trials, relative to the storage.
        plan: workers of one trial and their resources.
        resumed: folders of interrupted trials, by `config_key`.
        digest: `digest_labels` of the driver's data; empty if unknown.
    """

    fixed: dict[str, Any]
    storage: str
    folder: str
    plan: WorkerPlan
    resumed: dict[str, str]
    digest: str = ""

    @property
    def in_process(self) -> bool:
        """Whether the process of the trial is its only worker."""
        return self.plan.num_workers == 1

    def resources(self) -> dict[str, float]:
        """Resources that Tune reserves for the process of a trial; separate workers reserve their own."""
        if not self.in_process:
            return {"CPU": 0.01}
        return {"CPU": self.plan.cpus} | ({"GPU": 1} if self.plan.use_gpu else {})


def config_key(config: dict[str, Any]) -> str:
    """A key of a config, equal for equal configs. Trials are deterministic, so trials with equal configs can share a snapshot."""
    return json.dumps(config, sort_keys=True)


def run_trial(tune_config: dict[str, Any], job: TrialJob) -> None:
    """The function that Tune runs: train with the parameters from Tune, and report each epoch to Tune."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_INTERVAL_S)
    trial_id = tune.get_context().get_trial_id()
    folder = f"{job.folder}/{job.resumed.get(config_key(tune_config), trial_id)}"
    parameters = {path: value for path, value in tune_config.items() if path != AGAIN}
    config = trial_config(parse_config(TrainConfig, job.fixed), parameters)
    work = {"config": config.model_dump(mode="json"), "storage": job.storage, "folder": folder, "threads": max(1, int(job.plan.cpus))}
    work[AGAIN] = AGAIN in tune_config
    # at another size, other pictures may be near-duplicates, and these stay in one split
    same_images = (config.image_size, config.resize_policy) == (job.fixed["image_size"], job.fixed["resize_policy"])
    work["digest"] = job.digest if same_images else ""
    trainer = TorchTrainer(
        train_trial,
        train_loop_config=work | {"in_process": job.in_process},
        torch_config=TorchConfig(backend="nccl" if job.plan.use_gpu else "gloo"),
        scaling_config=train.ScalingConfig(num_workers=0, use_gpu=job.plan.use_gpu) if job.in_process else job.plan.scaling_config(),
        run_config=train.RunConfig(
            name=f"{trial_id}-workers",
            storage_path=FileTree(job.storage, job.folder).path(),
            storage_filesystem=FileTree(job.storage, job.folder).file_system,
            failure_config=train.FailureConfig(max_failures=0, controller_failure_limit=0),
            callbacks=[] if job.in_process else [TuneReportCallback()],
        ),
    )
    trainer.fit()


def train_trial(work: dict[str, Any]) -> None:
    """The function that each worker of a trial runs: `fit`, from the snapshot of the trial if there is one.

    Raises:
        DataError: if the driver has other labels, so that trials could not be compared, or workers would disagree on the number of steps.
    """
    config = parse_config(TrainConfig, work["config"])
    if work["in_process"]:  # inside a Tune function, Ray Train's own functions raise an error
        report, shard = tune.report, Shard()
    else:
        report, shard = train.report, Shard(train.get_context().get_world_rank(), train.get_context().get_world_size())
    device = get_ray_device()
    prepare_process(work["threads"])
    files = FileTree(work["storage"], work["folder"])
    if shard.rank == 0 and not work["in_process"]:
        files.replace(WORKERS_FILE, get_current_placement_group().id.hex().encode())
    splits = without_test(load_splits(config))
    if work["digest"] not in ("", digest_labels(splits)):
        raise DataError(f"{config.data_dir or splits.name}: {DATA_DIFFER}")
    if work[AGAIN]:  # the splits were made with the original seed, so only training differs
        config = config.model_copy(update={"seed": config.seed + 1})
    start = _read_snapshot(files, device)
    last = start.last["epoch"] if start else 0
    if start is not None:
        report(_reported(start.last))  # the driver may have been killed before it received this epoch

    def on_snapshot(snapshot: Snapshot) -> None:
        if shard.rank == 0:
            files.replace(SNAPSHOT_FILE, snapshot.to_bytes())

    def on_epoch(epoch: EpochReport, weights: Weights) -> None:
        nonlocal last
        del weights
        last = epoch.epoch
        report(_reported(dataclasses.asdict(epoch)))

    advice = memory_advice(config, device, splits.train.image_size_px, shard.world_size)
    try:
        with advising_on_memory(advice):  # without memory, a trial fails; it does not diverge
            fit(
                config,
                splits,
                device=device,
                shard=shard,
                on_step=lambda *_: None,
                on_epoch=on_epoch,
                on_snapshot=on_snapshot,
                parent=load_parent(config),
                resume=start,
            )
    except TrainingError as error:  # every worker raises it, because the loss is summed over all workers
        report(_WORST | {"epoch": last + 1, DIVERGED: str(error)})


def release_workers(files: FileTree, folder: str) -> None:
    """Stop the workers of a stopped trial and release their resources.

    Ray does this itself only if its dashboard runs, because Ray asks the dashboard whether the trial has ended.
    """
    group = files.read(f"{folder}/{WORKERS_FILE}")
    if group is not None:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group.decode())))


def without_test(splits: DatasetSplits) -> DatasetSplits:
    """The splits without test images, which a search must not use."""
    return DatasetSplits(splits.name, splits.train, splits.val, None)


def _read_snapshot(files: FileTree, device: torch.device) -> Snapshot | None:
    data = files.read(SNAPSHOT_FILE)
    if data is None:
        return None
    try:
        return Snapshot.from_bytes(data, device)
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError) as error:
        _logger.warning("%s is damaged, restarting the trial from the first epoch: %s", files.path(SNAPSHOT_FILE), error)
        return None


def _reported(epoch: dict[str, Any]) -> dict[str, Any]:
    """The figures of an epoch for Tune, without missing ones, such as figures of the other task."""
    return {name: epoch[name] for name in REPORT_FIELDS if epoch.get(name) is not None}
