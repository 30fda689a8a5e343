"""Fine-tune the last stages of the probe's network on a CPU, within a time budget; the state is saved after each epoch."""

from __future__ import annotations

import dataclasses
import io
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cifar_ray.config import TrainConfig
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.errors import TrainingError, advising_on_memory
from cifar_ray.metrics.trust import Trust
from cifar_ray.models import create_model
from cifar_ray.training.loop.judging import judge, of_validation
from cifar_ray.training.probe.tail import Activations, Tail, TailTrainer, fits_memory, split
from cifar_ray.training.records.results import EpochReport, TrainedRun
from cifar_ray.training.records.run_folder import Run

if TYPE_CHECKING:
    from cifar_ray.training.records.progress import Progress

_CHECKPOINT = "tail.pt"


def with_one_view(run: TrainedRun) -> TrainedRun:
    """The same head on the features of one view; fine-tuning starts from it."""
    architecture = run.result.architecture
    if "views" not in architecture.arguments:
        return run
    arguments = {key: value for key, value in architecture.arguments.items() if key not in ("views", "mirror_views")}
    result = dataclasses.replace(run.result, architecture=architecture.model_copy(update={"arguments": arguments}))
    weights = {name.removeprefix("network."): tensor for name, tensor in run.weights.items()}
    return dataclasses.replace(run, result=result, weights=weights)


def open_tail(probe: TrainedRun, splits: TrainingSplits) -> tuple[nn.Module, Tail] | None:
    """The probe's network with one view, and its two parts; `None` if it cannot be split, or the activations do not fit into memory."""
    if not isinstance(splits.train, ImageDataset):
        return None
    single = with_one_view(probe)
    network = create_model(single.result.architecture.name, **single.result.architecture.arguments)
    network.load_state_dict(single.weights)
    tail = split(network, splits.train.image_size_px)
    return (network, tail) if tail is not None and fits_memory(tail, len(splits.train)) else None


def finetune_tail(
    run: Run, config: TrainConfig, probe: TrainedRun, splits: TrainingSplits, split_network: tuple[nn.Module, Tail], progress: Progress
) -> TrainedRun:
    """Train the upper part for `config.epochs` epochs, resume an interrupted training, and keep the weights of the best epoch.

    Args:
        run: the run, in whose folder each epoch is saved.
        config: config of the fine-tuning.
        probe: the trained probe.
        splits: the data set, in memory.
        split_network: result of `open_tail`.
        progress: receives the progress.

    Raises:
        TrainingError: if there is too little memory.
    """
    with advising_on_memory(tail_memory_advice(config), TrainingError):
        return _finetune(run, config, probe, splits, split_network, progress)


def tail_memory_advice(config: TrainConfig) -> str:
    """Advice for the user if memory runs out: a smaller batch, because these steps have no micro-batches."""
    fewer = f"pass a --batch-size below {config.batch_size}, or " if config.batch_size > 1 else "pass "
    return f"{fewer}--method probe, which needs less memory"


def _finetune(
    run: Run, config: TrainConfig, probe: TrainedRun, splits: TrainingSplits, split_network: tuple[nn.Module, Tail], progress: Progress
) -> TrainedRun:
    started = time.perf_counter()
    network, tail = split_network
    assert isinstance(splits.train, ImageDataset)  # noqa: S101
    about = probe.result.normalization
    trainer = TailTrainer(tail, config, splits.train, about.mean, about.std)
    held: dict[str, Activations] = {
        name: trainer.activations(part.images) for name, part in splits if name != "train" and isinstance(part, ImageDataset)
    }
    state, plain = _State(trainer), Trust.plain(splits.train.labels)
    state.load(run.files.read(_CHECKPOINT))
    trainer.prepare(progress.on_task)
    progress.on_message(
        f"fine-tuning the last stages on a CPU: {config.epochs} epochs, {trainer.num_views} augmented views of each picture"
    )
    while trainer.epoch < config.epochs:
        epoch_started, number = time.perf_counter(), trainer.epoch + 1
        loss, accuracy = trainer.run_epoch(config.epochs, partial(progress.on_step, number))
        val = plain.evaluate(trainer.outputs(held["val"])[0], splits.val.labels) if splits.val is not None else None
        seconds = time.perf_counter() - epoch_started
        state.add(
            EpochReport(
                epoch=trainer.epoch,
                train_loss=loss,
                train_accuracy=accuracy,
                learning_rate=trainer.learning_rate,
                seconds=seconds,
                images_per_s=trainer.steps_per_epoch * trainer.batch_size / seconds,
                improved=state.is_better(val.score if val else None),
                **of_validation(val),
            )
        )
        run.files.replace(_CHECKPOINT, state.to_bytes())
        progress.on_epoch(state.reports[-1])
    trainer.average.network.load_state_dict(state.kept)
    outputs = {name: trainer.outputs(part) for name, part in held.items()}
    trust = dataclasses.replace(probe.result.trust, familiarity=None)  # fitted on features of the old weights
    if splits.val is not None:
        logits, features = outputs["val"]
        trust = Trust.fit(logits, splits.val.labels, features, splits.val.bursts, config.min_precision)
    judged = judge(splits, outputs, trust)
    tail.upper.load_state_dict(state.kept)
    result = dataclasses.replace(
        with_one_view(probe).result,
        best_epoch=state.best,
        metrics=judged.metrics,
        train_seconds=time.perf_counter() - started,
        trust=trust,
        test_confusion=judged.test_confusion,
        test_predictions=judged.test_predictions,
    )
    run.write_history(state.reports)
    return TrainedRun(run.name, run.files.path(), result, state.reports, network.state_dict())


class _State:
    """Position and results of the training so far, and their serialisation."""

    def __init__(self, trainer: TailTrainer) -> None:
        self.trainer = trainer
        self.reports: list[EpochReport] = []
        self.best = 0
        self.kept: dict[str, torch.Tensor] = {}

    def is_better(self, score: float | None) -> bool:
        """Whether an epoch is the best so far; of equal epochs, the later one is."""
        return score is None or not self.best or score >= (self.reports[self.best - 1].val_score or 0)

    def add(self, report: EpochReport) -> None:
        """Append the report of an epoch; keep the weights if it is the best one."""
        self.reports.append(report)
        if report.improved:
            self.best, self.kept = report.epoch, self.trainer.weights()

    def to_bytes(self) -> bytes:
        """Everything that a resumed training needs."""
        trainer, buffer = self.trainer, io.BytesIO()
        torch.save(
            {
                "upper": trainer.tail.upper.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
                "average": trainer.average.state_dict(),
                "epoch": trainer.epoch,
                "best": self.best,
                "kept": self.kept,
                "reports": [report.figures() for report in self.reports],
            },
            buffer,
        )
        return buffer.getvalue()

    def load(self, data: bytes | None) -> None:
        """Restore the state from `to_bytes`; `None` for a new training."""
        if data is None:
            return
        state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
        trainer = self.trainer
        trainer.tail.upper.load_state_dict(state["upper"])
        for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        trainer.average.load_state_dict(state["average"])
        trainer.epoch, self.best, self.kept = state["epoch"], state["best"], state["kept"]
        self.reports = [EpochReport(**figures) for figures in state["reports"]]
