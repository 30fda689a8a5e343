"""The training loop, from the initial weights or a snapshot to the final test; uses neither Ray nor files."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from cifar_ray.config import TrainConfig
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.data.streamed import TrainingImages, TrainingSplits
from cifar_ray.errors import TrainingError
from cifar_ray.metrics.trust import Trust
from cifar_ray.store import Architecture, Bundle
from cifar_ray.training.loop.command import Command
from cifar_ray.training.loop.judging import judge, of_validation
from cifar_ray.training.loop.snapshot import Snapshot, state_of
from cifar_ray.training.loop.step_monitor import NotFiniteError, StepMonitor, Stopped
from cifar_ray.training.loop.trainer import OnStep, Trainer
from cifar_ray.training.records.results import EpochReport, FitResult, Weights

_MAX_REWINDS = 3
_MAX_SKIPPED = 20  # skipped steps in a row
_ADVICE = "lower the learning rate, or pass --precision fp32, --on-nan skip or --on-nan rewind"


def after_each_epoch(epoch: int, step: int) -> Command:
    """Default of `next_command`: save a snapshot after each epoch."""
    return Command.CONTINUE if step else Command.SAVE


def fit(
    config: TrainConfig,
    splits: TrainingSplits,
    *,
    device: torch.device,
    shard: Shard,
    on_step: OnStep,
    on_epoch: Callable[[EpochReport, Weights], None],
    parent: Bundle | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    next_command: Callable[[int, int], Command] = after_each_epoch,
    resume: Snapshot | None = None,
    on_message: Callable[[str], None] = lambda _: None,
) -> FitResult:
    """Train to the end, then evaluate the best weights once on the test images.

    Args:
        config: config of the job.
        splits: the data set, the same on every worker.
        device: device of this worker.
        shard: this worker's part.
        on_step: called after each step.
        on_epoch: called after each epoch with its report and the present weights (on the device, not copied).
        parent: the bundle that `config.start` names.
        on_snapshot: receives a snapshot for resuming, after a save command and after the last epoch, before `on_epoch`.
        next_command: called after each step with the number of finished epochs and of steps since then; the result on rank 0 counts.
        resume: snapshot to resume from.
        on_message: receives messages for the user.

    Raises:
        DataError: if a batch is larger than the training split.
        ConfigError: if model, image size and precision are incompatible.
        TrainingError: if loss, gradients or weights are not finite and `config.on_nan` does not help.
        Stopped: after a stop command.
    """
    trainer = Trainer(config, splits, device, shard, parent, on_message)
    state = _FitState(trainer, splits, on_step, on_epoch, on_snapshot, next_command, on_message)
    if resume is not None:
        state.resume_from(resume)
    state.run()
    return state.result()


class _FitState:
    """State of the training loop: position and results so far."""

    def __init__(
        self,
        trainer: Trainer,
        splits: TrainingSplits,
        on_step: OnStep,
        on_epoch: Callable[[EpochReport, Weights], None],
        on_snapshot: Callable[[Snapshot], None] | None,
        next_command: Callable[[int, int], Command],
        on_message: Callable[[str], None],
    ) -> None:
        self.trainer, self.config, self.splits = trainer, trainer.config, splits
        self.on_step, self.on_epoch, self.on_snapshot, self.next_command, self.on_message = (
            on_step,
            on_epoch,
            on_snapshot,
            next_command,
            on_message,
        )
        self.monitor = StepMonitor(trainer.device)
        self.epoch = self.step = self.rewinds = 0
        self.history: list[EpochReport] = []
        self.best: EpochReport | None = None
        self.kept: Weights = {}
        self.command = Command.CONTINUE
        self.started = self.epoch_started = time.perf_counter()
        self.good: bytes | None = None

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or early stopping applies."""
        waited = self.epoch - self.best.epoch if self.best else 0
        return self.epoch >= self.config.epochs or (self.config.patience is not None and waited >= self.config.patience)

    def run(self) -> None:
        """Run the remaining epochs."""
        if self.config.on_nan == "rewind":
            self.good = self._snapshot().to_bytes()
        while not self.finished:
            try:
                self._run_epoch()
            except NotFiniteError as error:
                if self.good is None:
                    raise TrainingError(f"{error}; {_ADVICE}") from None
                if self.rewinds == _MAX_REWINDS:
                    raise TrainingError(f"{error}, even after {self.rewinds} rewinds; lower the learning rate") from None
                self._rewind(str(error), self.good)

    def resume_from(self, snapshot: Snapshot) -> None:
        """Restore the state from a snapshot."""
        snapshot.restore(self.trainer)
        self.trainer.rewind_lr_factor = 0.5**snapshot.rewinds
        self.epoch, self.step, self.rewinds = snapshot.epoch, snapshot.step, snapshot.rewinds
        self.history = [EpochReport(**figures) for figures in snapshot.history]
        self.best = self.history[snapshot.best_epoch - 1] if snapshot.best_epoch else None
        self.kept = snapshot.state["kept"]
        now = time.perf_counter()
        self.started, self.epoch_started = (now - spent for spent in snapshot.seconds)

    def _rewind(self, why: str, good: bytes) -> None:
        rewinds = self.rewinds + 1
        self.monitor = StepMonitor(self.trainer.device)
        # a new trainer, because the stem may be frozen by now
        self.trainer = Trainer(self.config, self.splits, self.trainer.device, self.trainer.shard, self.trainer.parent, self.on_message)
        self.resume_from(Snapshot.from_bytes(good, self.trainer.device))
        self.rewinds, self.trainer.rewind_lr_factor = rewinds, 0.5**rewinds
        self.on_message(
            f"{why}: rewinding to epoch {self.epoch + 1}, step {self.step + 1}, with learning rate × {self.trainer.rewind_lr_factor:g}"
        )

    def _run_epoch(self) -> None:
        trainer = self.trainer
        if self.step == 0:
            self.epoch_started = time.perf_counter()
        loss, accuracy = trainer.train_epoch(self.epoch, self._after_step, self.step)
        trained_s = time.perf_counter() - self.epoch_started
        val = trainer.evaluate(self.splits.val) if self.splits.val is not None else None
        report = EpochReport(
            epoch=self.epoch + 1,
            train_loss=loss,
            train_accuracy=accuracy,
            learning_rate=trainer.learning_rate,
            seconds=time.perf_counter() - self.epoch_started,
            images_per_s=trainer.images_seen / trained_s,
            improved=val is None or self.best is None or val.score > (self.best.val_score or 0),
            **of_validation(val),
        )
        if report.improved:
            self.best = report
            self.kept = {name: tensor.detach().clone() for name, tensor in trainer.network.state_dict().items()}
        self.history.append(report)
        self.epoch, self.step = self.epoch + 1, 0
        command = max(self.command, self.monitor.agree(self.next_command(self.epoch, 0)))
        self.command = Command.CONTINUE
        if command or self.finished:
            self._save()
        self.on_epoch(report, trainer.network.state_dict())
        if command == Command.STOP and not self.finished:
            raise Stopped

    def _after_step(self, epoch: int, done: int, steps: int) -> None:
        self.step = done
        self.on_step(epoch, done, steps)
        where = f"step {done} of epoch {epoch}"
        skipped = self.trainer.skipped_in_a_row
        if skipped:
            self.on_message(f"skipped {where}: loss or gradients are not finite")
        if skipped == _MAX_SKIPPED:
            raise TrainingError(
                f"{skipped} steps in a row up to {where} had a loss or gradients that are not finite; lower the learning rate"
            )
        command = self.monitor.after_step(where, self.next_command(self.epoch, done), self.trainer.step_sums[0])
        if done == steps or command:
            command = max(command, self.monitor.settle())
        if done == steps:
            self.command = command  # `_run_epoch` saves at the end of the epoch
        elif command:
            self._save()
            if command == Command.STOP:
                raise Stopped

    def _save(self) -> None:
        if self.on_snapshot is None and self.good is None:
            return
        if not bool(torch.stack([torch.isfinite(weight).all() for weight in self.trainer.model.parameters()]).all()):  # wait once
            raise NotFiniteError(f"the weights are not finite after {self._where()}")
        snapshot = self._snapshot()
        if self.good is not None:
            self.good = snapshot.to_bytes()
        if self.on_snapshot is not None:
            self.on_snapshot(snapshot)

    def _where(self) -> str:
        return f"step {self.step} of epoch {self.epoch + 1}" if self.step else f"epoch {self.epoch}"

    def _snapshot(self) -> Snapshot:
        now = time.perf_counter()
        return Snapshot(
            epoch=self.epoch,
            step=self.step,
            history=[report.figures() for report in self.history],
            best_epoch=self.best.epoch if self.best else 0,
            seconds=(now - self.started, now - self.epoch_started),
            rewinds=self.rewinds,
            state=state_of(self.trainer, self.kept, within_epoch=self.step > 0),
        )

    def result(self) -> FitResult:
        """Evaluate the best weights after the last epoch."""
        trainer, splits, best = self.trainer, self.splits, self.best
        assert best is not None, "epochs ≥ 1"  # noqa: S101
        train_seconds = time.perf_counter() - self.started
        trainer.network.load_state_dict(self.kept)
        outputs = {split: trainer.outputs(part) for split, part in splits if isinstance(part, ImageDataset) and split != "train"}
        trust, val = Trust.plain(splits.train.labels), splits.val
        if val is not None:
            logits, features = outputs["val"]
            trust = Trust.fit(logits, val.labels, features, val.bursts, self.config.min_precision)
        judgement = judge(splits, outputs, trust)
        metrics = judgement.metrics
        if splits.test is not None and self.config.test_time_augmentation != "none":
            key = "test_map_tta" if trainer.is_multi_label else "test_accuracy_tta"
            metrics[key] = trainer.evaluate(splits.test, self.config.test_time_augmentation).score
        if best.val_accuracy is not None:
            metrics = {"val_accuracy": best.val_accuracy} | metrics
        return FitResult(
            best_epoch=best.epoch,
            normalization=trainer.normalization,
            metrics=metrics,
            trust=trust,
            precision=trainer.precision.name,
            train_seconds=train_seconds,
            architecture=_architecture(self.config, splits.train, trainer.parent),
            parent_weights_sha256=trainer.parent.manifest.weights_sha256 if trainer.parent else None,
            test_confusion=judgement.test_confusion,
            test_predictions=judgement.test_predictions,
            pretrained=trainer.origin,
        )


def _architecture(config: TrainConfig, train: TrainingImages, parent: Bundle | None) -> Architecture:
    inherited = parent.manifest.architecture.arguments if parent else {}
    return Architecture(name=config.model, arguments=inherited | {"num_classes": train.num_classes, "image_size": train.image_size_px})
