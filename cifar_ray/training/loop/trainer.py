"""Epochs and steps of training on one worker, or on several with `torch.distributed`; uses neither Ray nor files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cifar_ray.config import TestTimeAugmentation, TrainConfig
from cifar_ray.data.batches.loader import EvaluationLoader, Normalization, Step, TrainLoader
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.errors import ConfigError
from cifar_ray.metrics.accuracy import Logits
from cifar_ray.metrics.trust import Figures, Trust
from cifar_ray.models import DataInitialized
from cifar_ray.models.precision import Precision, depthwise_in_float32
from cifar_ray.store import Bundle
from cifar_ray.training.loop.averaging import WeightAverage
from cifar_ray.training.loop.collective import average_buffers, sum_over_workers
from cifar_ray.training.loop.compiled import compiled, warm_up
from cifar_ray.training.loop.losses import training_loss
from cifar_ray.training.loop.optimizers import (
    create_optimizers,
    keep_rates_on,
    learning_rate_factor,
    peak_learning_rate,
    scale_rates,
    set_learning_rate,
)
from cifar_ray.training.loop.validation import evaluate, gather_outputs
from cifar_ray.training.steps.captured import captured_steps
from cifar_ray.training.steps.micro_batches import auto_micro_batch_size
from cifar_ray.training.weights.initial_network import freeze, initial_network, kept_in_evaluation, rate_factors

OnStep = Callable[[int, int, int], None]  # epoch (from 1), steps done in it, steps per epoch

_WHITENING_IMAGES = 5000
_RESIDENT_BYTES = 2 << 30  # validation and test images of at most this size each stay on a GPU


class Trainer:
    """A network with its optimizers and data, on one worker.

    Args:
        config: config of the job.
        splits: the data set, the same on all workers.
        device: device of this worker.
        shard: this worker's part of each batch.
        parent: the bundle to start from; `None` for fresh weights.
        on_message: receives messages for the user.

    Attributes:
        origin: origin of pretrained weights; `None` for fresh ones.
        sums: summed loss and number of correct predictions of this worker in this epoch so far, float64 `[2]`.
        step_sums: summed loss and number of correct predictions of the last step.
        images_seen: number of images of all workers in this epoch so far.
        skipped_in_a_row: number of consecutive skipped steps, with `--on-nan skip`.
        rewind_lr_factor: factor of the learning rate after rewinds.
        learning_rate: `optimizer.lr` in the last step, scaled by batch size, schedule and rewinds.
    """

    def __init__(
        self,
        config: TrainConfig,
        splits: TrainingSplits,
        device: torch.device,
        shard: Shard,
        parent: Bundle | None = None,
        on_message: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config, self.device, self.shard, self.parent = config, device, shard, parent
        self.precision = Precision.resolve(config.precision, device)
        torch.manual_seed(config.seed)
        initial = initial_network(config, splits.train, parent)
        self.origin = initial.origin
        self.normalization = Normalization(initial.mean, initial.std, self.precision.dtype)
        self.loader = TrainLoader(
            splits.train,
            batch_size=config.batch_size,
            micro_batch_size=config.micro_batch_size or auto_micro_batch_size(device, splits.train.image_size_px),
            augmentation=config.augmentation,
            normalization=self.normalization,
            shard=shard,
            seed=config.seed,
            device=device,
            sampling=config.sampling,
            draws=config.draws,
        )
        self.loss = training_loss(config, splits.train.labels, splits.train.num_classes, device)
        self.is_multi_label = splits.train.labels.ndim == 2
        self.model = self._prepare(initial.network)
        self._check_single_images()
        self.frozen = freeze(self.model, config.start) if config.start else []
        images = min(self.loader.micro_batch_size or config.batch_size, config.batch_size)
        self._in_evaluation = kept_in_evaluation(self.model, self.frozen, images) if config.start else []
        compiles = device.type == "cuda" and config.compile != "none"
        self.optimizers = create_optimizers(self.model, config.optimizer, config.batch_size, compiles)
        if config.start:
            scale_rates(self.optimizers, rate_factors(self.model, config.start.stage_decay))
        self.average = WeightAverage(self.model, config.averaging) if config.averaging.name != "none" else None
        self.scaler = self.precision.grad_scaler()
        self._compiled = compiled(self.model, config.compile)
        self.parallel = self._wrap()
        self._stem_frozen = False
        self.on_message = on_message
        self._captured = captured_steps(config, device, shard, self.loader, self.train_step, self._on_refused, on_message)
        if compiles or self._captured:
            keep_rates_on(device, self.optimizers)
        self._held: dict[int, EvaluationLoader] = {}
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.step_sums = self.sums
        self.images_seen = self.skipped_in_a_row = 0
        self.rewind_lr_factor = 1.0
        self.learning_rate = 0.0
        self._warm_up()

    @property
    def network(self) -> nn.Module:
        """The network that is evaluated and saved: the trained one, or its running average."""
        return self.model if self.average is None else self.average.network

    def _prepare(self, model: nn.Module) -> nn.Module:
        model = model.to(self.device).to(memory_format=torch.channels_last)
        if self.device.type == "cpu":
            depthwise_in_float32(model)
        if isinstance(model, DataInitialized) and not self.parent:
            model.initialize_from(self.normalization(self.loader.sample(_WHITENING_IMAGES)))
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            if norm.momentum is not None:  # the same decay per step for any number of micro-batches
                norm.momentum = 1 - (1 - norm.momentum) ** (1 / self.loader.pieces_per_step)
        return model

    def _check_single_images(self) -> None:
        """Refuse micro-batches of one image if batch normalisation would have one value per channel.

        Raises:
            ConfigError: naming the flags.
        """
        if self.loader.piece_sizes[-1] > 1:
            return
        side = self.loader.image_size_px
        image = self.normalization(torch.zeros(1, side, side, 3, dtype=torch.uint8, device=self.device))
        try:
            with torch.no_grad(), self.precision.autocast():
                copy.deepcopy(self.model).train()(image)
        except ValueError:
            raise ConfigError(
                f"batch_size: {self.config.model} cannot train on single images of {side} px, because batch normalisation needs more "
                "than one value; pass a larger --batch-size, --micro-batch-size or --image-size"
            ) from None

    def _wrap(self) -> nn.Module:
        """Wrap the network in DDP; needed again when the set of trained weights changes."""
        if self.shard.world_size == 1:
            return self._compiled
        return DistributedDataParallel(self._compiled, broadcast_buffers=False, gradient_as_bucket_view=True)

    def _on_refused(self, reason: str) -> None:
        self.on_message(reason)
        self.parallel.zero_grad(set_to_none=True)
        state, self.scaler = self.scaler.state_dict(), self.precision.grad_scaler()  # the old scaler expects the second half of a step
        self.scaler.load_state_dict(state)

    def _warm_up(self) -> None:
        """Compile the network, if configured, before the first epoch.

        Raises:
            ConfigError: if the network cannot be compiled on this machine.
        """
        if self.config.compile != "none":
            sizes, side = self.loader.piece_sizes, self.loader.image_size_px
            pieces = (torch.zeros(size, side, side, 3, dtype=torch.uint8, device=self.device) for size in sizes)
            warm_up(self._compiled, self.model, map(self.normalization, pieces), self.precision)

    def train_epoch(self, epoch: int, on_step: OnStep, first_step: int = 0) -> tuple[float, float | None]:
        """Train for one epoch.

        Args:
            epoch: counted from 0.
            on_step: called after each step; an exception from it ends the epoch.
            first_step: step from which to resume the epoch; restore `sums` and `images_seen` before.

        Returns:
            Mean loss and accuracy over the images of all workers, without skipped steps; the accuracy is `None` for several labels per
            image.
        """
        if epoch >= self.config.stem_epochs and not self._stem_frozen and isinstance(self.model, DataInitialized):
            self.model.freeze_stem()
            self.parallel = self._wrap()
            self._stem_frozen = True
            if self._captured:
                self._captured.clear()
        if first_step == 0:
            self.sums, self.images_seen = torch.zeros_like(self.sums), 0
        self.parallel.train()
        for module in self._in_evaluation:
            module.eval()
        for number, step in enumerate(self.loader.epoch(epoch, first_step), first_step):
            torch.manual_seed(_dropout_seed(self.config.seed, epoch, number, self.shard.rank))
            done = epoch + number / self.loader.steps_per_epoch
            factor = learning_rate_factor(self.config.schedule, done, self.config.epochs) * self.rewind_lr_factor
            set_learning_rate(self.optimizers, factor)
            self.learning_rate = factor * peak_learning_rate(self.config.optimizer, self.config.batch_size)
            self.step_sums = self._captured.run(step) if self._captured else self.train_step(step)
            if self.average is not None and not self.skipped_in_a_row:
                self.average.after_step(self.model)
            self.sums += self.step_sums
            self.images_seen += 0 if self.skipped_in_a_row else step.global_size
            on_step(epoch + 1, number + 1, self.loader.steps_per_epoch)
        loss, accuracy = (sum_over_workers(self.sums.clone()) / max(1, self.images_seen)).tolist()
        average_buffers(self.model)
        if self.average is not None:
            average_buffers(self.average.network)
        return loss, None if self.is_multi_label else accuracy

    def train_step(self, step: Step) -> Tensor:
        """Accumulate the gradients of this worker's micro-batches, then update the weights once.

        Returns:
            float64 `[2]`: summed loss and number of correct predictions of this worker; zeros for a skipped step.
        """
        buffers = [buffer.clone() for buffer in self.model.buffers()] if self.config.on_nan == "skip" else []
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number, (inputs, labels) in enumerate(step.pieces):
            with _communicating(self.parallel, last=number + 1 == step.num_pieces):
                with self.precision.autocast():
                    logits = self.parallel(inputs).float()
                loss = self.loss(logits, labels)
                # DDP averages over workers; the factor world_size makes this the mean over the global batch, for any shares
                self.scaler.scale(loss * (self.shard.world_size / step.global_size)).backward()  # type: ignore[no-untyped-call]
            hits = self.loss.hits(logits, labels)
            sums += torch.stack((loss.detach().double(), torch.zeros_like(sums[0]) if hits is None else hits.double()))
        if self.config.on_nan == "skip" and not self._is_finite(sums[0]):
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            self.parallel.zero_grad(set_to_none=True)
            self.skipped_in_a_row += 1
            return torch.zeros_like(sums)
        self.skipped_in_a_row = 0
        self._update()
        return sums

    def _is_finite(self, loss: Tensor) -> bool:
        """Whether loss and gradients of a step are finite on all workers; for fp16 the scaler checks the gradients."""
        health = loss.clone()
        if not self.scaler.is_enabled():
            health += nn.utils.get_total_norm([weight.grad for weight in self.model.parameters() if weight.grad is not None])
        return bool(torch.isfinite(sum_over_workers(health)))

    def _update(self) -> None:
        if self.config.optimizer.clip_norm is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.parallel.zero_grad(set_to_none=True)

    def evaluate(self, dataset: ImageDataset, augmentation: TestTimeAugmentation = "none") -> Figures:
        """Evaluate the present weights on a split, without calibration; the workers share the images, and all get the same figures."""
        if dataset.is_multi_label:
            return Trust.plain(dataset.labels).evaluate(self.outputs(dataset, augmentation)[0], dataset.labels)
        return evaluate(self.network, self._part_of(dataset), self.precision, augmentation)

    def outputs(self, dataset: ImageDataset, augmentation: TestTimeAugmentation = "none") -> tuple[Logits, Logits]:
        """Compute logits `[N, C]` and features `[N, D]` of a split with the present weights, see `gather_outputs`."""
        rows = self.shard.slice(len(dataset))
        return gather_outputs(self.network, self._part_of(dataset), self.precision, rows, len(dataset), augmentation)

    def _part_of(self, dataset: ImageDataset) -> EvaluationLoader:
        key = id(dataset.images)
        if key in self._held:
            return self._held[key]
        size = self.config.micro_batch_size or auto_micro_batch_size(self.device, dataset.image_size_px) or 2000
        part = EvaluationLoader(dataset, batch_size=size, normalization=self.normalization, shard=self.shard, device=self.device)
        if self.device.type == "cuda" and dataset.images.nbytes <= _RESIDENT_BYTES:
            self._held[key] = part  # the splits outlive the trainer, so the `id` stays unique
        return part


def _dropout_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Seed of dropout: it depends on the step, and differs between workers."""
    return int(np.random.SeedSequence((seed, epoch, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _communicating(parallel: nn.Module, last: bool) -> Any:
    """Let DDP exchange gradients only after a worker's last micro-batch."""
    if isinstance(parallel, DistributedDataParallel) and not last:
        return parallel.no_sync()
    return torch.enable_grad()
