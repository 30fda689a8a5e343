"""The training loop: no Ray, no files. Runs alone, or as one of several workers once `torch.distributed` is set up."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cifar_ray.config import TestTimeAugmentation, TrainConfig
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.data.loader import EvaluationLoader, Normalization, Shard, Step, TrainLoader
from cifar_ray.data.streamed import TrainingImages, TrainingSplits
from cifar_ray.errors import TrainingError
from cifar_ray.metrics import Evaluation, evaluate_logits
from cifar_ray.models import DataInitialized
from cifar_ray.models.precision import Precision
from cifar_ray.store import Architecture, Bundle
from cifar_ray.store.gallery import Judged
from cifar_ray.training.averaging import WeightAverage
from cifar_ray.training.collective import average_buffers, sum_over_workers
from cifar_ray.training.compiled import compiled, warm_up
from cifar_ray.training.evaluate import evaluate, gather_logits
from cifar_ray.training.optim import create_optimizers, learning_rate_factor, scale_rates, set_learning_rate
from cifar_ray.training.reports import Confusion, EpochReport, FitResult
from cifar_ray.training.snapshot import Snapshot
from cifar_ray.training.start import freeze, initial_network, input_statistics, rate_factors
from cifar_ray.trust import Logits, Trust

Weights = dict[str, Tensor]
OnStep = Callable[[int, int, int], None]  # epoch, counted from 1; steps done in it; steps an epoch

_WHITENING_IMAGES = 5000
_CPU_MICRO_BATCH_PX = (
    250 * 32 * 32
)  # activations of a piece this large stay in a core's cache: about 1.7 times as fast as 2,000 images at once


class Trainer:
    """A network with all that trains it on one worker.

    Args:
        config: the whole job.
        splits: the data, the same on all workers.
        device: where this worker computes.
        shard: which part of each batch is this worker's.
        parent: the bundle to begin with, as `config.start` says; `None` for fresh weights.
    """

    def __init__(
        self, config: TrainConfig, splits: TrainingSplits, device: torch.device, shard: Shard, parent: Bundle | None = None
    ) -> None:
        self.config, self.device, self.shard, self.parent = config, device, shard, parent
        self.precision = Precision.resolve(config.precision, device)
        statistics = input_statistics(config, splits.train, parent)
        self.normalization = Normalization(*statistics, self.precision.dtype)
        self.loader = TrainLoader(
            splits.train,
            batch_size=config.batch_size,
            micro_batch_size=config.micro_batch_size or _auto_micro_batch_size(device, splits.train.image_size_px),
            augmentation=config.augmentation,
            normalization=self.normalization,
            shard=shard,
            seed=config.seed,
            device=device,
        )
        torch.manual_seed(config.seed)
        self.model = self._create_model(splits.train)
        self.frozen = freeze(self.model, config.start) if config.start else []
        self.optimizers = create_optimizers(self.model, config.optimizer, config.batch_size)
        if config.start:
            scale_rates(self.optimizers, rate_factors(self.model, config.start.stage_decay))
        self.average = WeightAverage(self.model, config.averaging) if config.averaging.name != "none" else None
        self.scaler = self.precision.grad_scaler()
        self._compiled = compiled(self.model, config.compile)
        self.parallel = self._wrap()
        self._stem_frozen = False

    @property
    def network(self) -> nn.Module:
        """The network that is evaluated and kept: that which learns, or its average."""
        return self.model if self.average is None else self.average.network

    def _create_model(self, train: TrainingImages) -> nn.Module:
        model = initial_network(self.config, train, self.parent)
        model = model.to(self.device).to(memory_format=torch.channels_last)
        if isinstance(model, DataInitialized) and not self.parent:
            model.initialize_from(self.normalization(self.loader.sample(_WHITENING_IMAGES)))
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            if norm.momentum is not None:  # as much forgetting a step, however many pieces it has
                norm.momentum = 1 - (1 - norm.momentum) ** (1 / self.loader.pieces_per_step)
        return model

    def _wrap(self) -> nn.Module:
        """The network as DDP sees it; made anew when the set of trained weights changes."""
        if self.shard.world_size == 1:
            return self._compiled
        return DistributedDataParallel(self._compiled, broadcast_buffers=False, gradient_as_bucket_view=True)

    def warm_up(self) -> None:
        """Compiles the network, where it is to be, so that no epoch waits for that.

        Raises:
            ConfigError: if it cannot be compiled here.
        """
        if self.config.compile != "none":
            sizes, side = self.loader.piece_sizes, self.loader.image_size_px
            pieces = (torch.zeros(size, side, side, 3, dtype=torch.uint8, device=self.device) for size in sizes)
            warm_up(self._compiled, self.model, map(self.normalization, pieces), self.precision)

    def train_epoch(self, epoch: int, on_step: OnStep) -> tuple[float, float]:
        """Trains on every image once.

        Args:
            epoch: counted from 0.
            on_step: called after each step.

        Returns:
            Mean loss and accuracy over all workers' images.
        """
        if epoch >= self.config.stem_epochs and not self._stem_frozen and isinstance(self.model, DataInitialized):
            self.model.freeze_stem()
            self.parallel = self._wrap()
            self._stem_frozen = True
        self.parallel.train()
        # dropout, too, follows from the epoch, and differs between workers; there are at most 10,000 epochs and 4096 workers
        torch.manual_seed(self.config.seed << 32 | epoch << 12 | self.shard.rank)
        for module in (module for stage in self.frozen for module in stage.modules):
            module.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number, step in enumerate(self.loader.epoch(epoch)):
            done = epoch + number / self.loader.steps_per_epoch
            set_learning_rate(self.optimizers, learning_rate_factor(self.config.schedule, done, self.config.epochs))
            sums += self.train_step(step)
            on_step(epoch + 1, number + 1, self.loader.steps_per_epoch)
        loss, accuracy = (sum_over_workers(sums) / len(self.loader)).tolist()
        if not math.isfinite(loss):
            raise TrainingError(f"the loss became {loss} in epoch {epoch + 1}; lower the learning rate or pass --precision fp32")
        average_buffers(self.model)
        if self.average is not None:
            average_buffers(self.average.network)
        return loss, accuracy

    def train_step(self, step: Step) -> Tensor:
        """Accumulates the gradients of this worker's pieces, then updates the weights once.

        Returns:
            float64 `[2]`: summed loss and number of right answers of this worker.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number, (inputs, labels) in enumerate(step.pieces):
            with _communicating(self.parallel, last=number + 1 == step.num_pieces):
                with self.precision.autocast():
                    logits = self.parallel(inputs).float()
                loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing, reduction="sum")
                # DDP averages over workers; times world_size makes it the mean over the global batch, whatever the shares
                self.scaler.scale(loss * (self.shard.world_size / step.global_size)).backward()  # type: ignore[no-untyped-call]
            main_labels = labels.argmax(1) if labels.is_floating_point() else labels  # of mixed images that of the larger share
            sums += torch.stack((loss.detach().double(), (logits.argmax(1) == main_labels).sum().double()))
        self._update()
        return sums

    def _update(self) -> None:
        if self.config.optimizer.clip_norm is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.parallel.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.after_step(self.model)

    def evaluate(self, dataset: ImageDataset, augmentation: TestTimeAugmentation = "none") -> Evaluation:
        """Evaluates the present weights on a split, each image once over all workers."""
        return evaluate(self.network, self._part_of(dataset), self.precision, augmentation)

    def logits(self, dataset: ImageDataset) -> Logits:
        """Logits of the present weights, `[N, C]` in the order of the split, equal on all workers."""
        return gather_logits(self.network, self._part_of(dataset), self.precision, self.shard.slice(len(dataset)), len(dataset))

    def _part_of(self, dataset: ImageDataset) -> EvaluationLoader:
        return EvaluationLoader(
            dataset,
            batch_size=self.config.micro_batch_size or _auto_micro_batch_size(self.device, dataset.image_size_px) or 2000,
            normalization=self.normalization,
            shard=self.shard,
            device=self.device,
        )


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
    resume: Snapshot | None = None,
) -> FitResult:
    """Trains to the end, then evaluates the kept weights once on test.

    Args:
        config: the whole job.
        splits: the data; every worker passes the same.
        device: where this worker computes.
        shard: this worker's part.
        on_step: called after each step.
        on_epoch: called after each epoch with its report and the present weights (on the device, not copied).
        parent: the bundle that `config.start` names.
        on_snapshot: called before `on_epoch` with all that it takes to go on from there.
        resume: goes on from there instead of starting.

    Raises:
        DataError: if a batch is larger than the training split.
        ConfigError: if model, image size and precision do not go together.
        TrainingError: if the loss is no longer finite.
    """
    trainer = Trainer(config, splits, device, shard, parent)
    trainer.warm_up()
    started = time.perf_counter()
    best: EpochReport | None = None
    kept: Weights = {}
    if resume is not None:
        resume.restore(trainer)
        best, kept = EpochReport(**resume.best), resume.state["kept"]
    for epoch in range(resume.last["epoch"] if resume else 0, config.epochs):
        begun = time.perf_counter()
        loss, accuracy = trainer.train_epoch(epoch, on_step)
        trained_s = time.perf_counter() - begun
        val = trainer.evaluate(splits.val) if splits.val is not None else None
        report = EpochReport(
            epoch=epoch + 1,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=val.loss if val else None,
            val_accuracy=val.accuracy if val else None,
            learning_rate=trainer.optimizers[0].param_groups[0]["lr"],
            seconds=time.perf_counter() - begun,
            images_per_s=len(trainer.loader) / trained_s,
            improved=val is None or best is None or val.accuracy > (best.val_accuracy or 0),
            val_confusion=_plain(val),
        )
        if report.improved:
            best = report
            kept = {name: tensor.detach().clone() for name, tensor in trainer.network.state_dict().items()}
        assert best is not None, "the first epoch improves"  # noqa: S101
        if on_snapshot is not None:
            on_snapshot(Snapshot.of(trainer, dataclasses.asdict(report), dataclasses.asdict(best), kept))
        on_epoch(report, trainer.network.state_dict())
        if config.patience is not None and report.epoch - best.epoch >= config.patience:
            break
    assert best is not None, "epochs ≥ 1"  # noqa: S101
    train_seconds = time.perf_counter() - started
    trainer.network.load_state_dict(kept)
    trust = Trust.fit(trainer.logits(splits.val), splits.val.labels) if splits.val is not None else Trust()
    metrics, test, judged = _judge_on_test(trainer, splits.test, trust)
    if best.val_accuracy is not None:
        metrics = {"val_accuracy": best.val_accuracy} | metrics
    return FitResult(
        best_epoch=best.epoch,
        normalization=trainer.normalization,
        metrics=metrics,
        trust=trust,
        precision=trainer.precision.name,
        train_seconds=train_seconds,
        architecture=_architecture(config, splits.train, parent),
        parent_weights_sha256=parent.manifest.weights_sha256 if parent else None,
        test_confusion=_plain(test),
        test_judged=judged,
    )


def _architecture(config: TrainConfig, train: TrainingImages, parent: Bundle | None) -> Architecture:
    inherited = parent.manifest.architecture.arguments if parent else {}
    return Architecture(name=config.model, arguments=inherited | {"num_classes": train.num_classes, "image_size": train.image_size_px})


def _judge_on_test(trainer: Trainer, test: ImageDataset | None, trust: Trust) -> tuple[dict[str, float], Evaluation | None, Judged | None]:
    if test is None:
        return {}, None, None
    logits = trainer.logits(test)
    evaluation = evaluate_logits(logits, test.labels, trust.temperature)
    metrics = {"test_accuracy": evaluation.accuracy} | trust.metrics(logits, test.labels)
    if trainer.config.test_time_augmentation != "none":
        metrics["test_accuracy_tta"] = trainer.evaluate(test, trainer.config.test_time_augmentation).accuracy
    return metrics, evaluation, Judged.of(logits, test.labels, trust.temperature)


def _plain(evaluation: Evaluation | None) -> Confusion | None:
    return None if evaluation is None else tuple(map(tuple, evaluation.confusion.tolist()))


def _communicating(parallel: nn.Module, last: bool) -> Any:
    """Lets DDP exchange gradients after a worker's last piece only."""
    if isinstance(parallel, DistributedDataParallel) and not last:
        return parallel.no_sync()
    return torch.enable_grad()


def _auto_micro_batch_size(device: torch.device, image_size_px: int) -> int | None:
    return None if device.type == "cuda" else max(1, _CPU_MICRO_BATCH_PX // image_size_px**2)
