"""Fine-tune the last stages of a network on a CPU, on cached activations of the stages below.

The lower stages are frozen: the fastest engine computes their output once, for a few augmented views of each picture. Torch trains the
last stages. This is several times as fast as whole training steps, and loses little, because the last stages hold most of the weights.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cifar_ray.config import TrainConfig
from cifar_ray.data.batches.augmentation import Augmentation, Augmenter
from cifar_ray.data.batches.transforms import as_fractions
from cifar_ray.data.dataset import ImageDataset
from cifar_ray.data.statistics import ChannelValues, training_weights
from cifar_ray.data.task_progress import StartTask
from cifar_ray.inference.engines.choice import choose
from cifar_ray.inference.engines.conversion import NetworkInput
from cifar_ray.inference.engines.engine import TorchEngine
from cifar_ray.inference.engines.features import WithFeatures
from cifar_ray.models.precision import Precision
from cifar_ray.models.stages import head_name
from cifar_ray.training.loop.averaging import WeightAverage
from cifar_ray.training.loop.losses import training_loss
from cifar_ray.training.loop.optimizers import create_optimizers, learning_rate_factor, peak_learning_rate, set_learning_rate

_LOWER_BLOCKS = 5  # frozen blocks, of seven; with fewer, activations are larger and steps slower, for the same accuracy
_VIEWS = (2, 8)
_MEMORY_BYTES = 3_000_000_000
_PICTURES_AT_ONCE = 64
_ROWS_AT_ONCE = 16
_TIMED_STEPS = 3
_OPTIMIZER_FACTOR = 1.2  # duration of a step ÷ duration of its forward and backward pass
_DRAW_STREAM, _STEP_STREAM = 11, 12

Activations = npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Tail:
    """A network in two parts.

    Attributes:
        lower: frozen stages, from normalised images to flattened activations.
        upper: stages to train, from activations `[N, C, H, W]` to logits.
        shape: `(C, H, W)` of the activations.
    """

    lower: nn.Module
    upper: nn.Sequential
    shape: tuple[int, int, int]


def split(network: nn.Module, image_size_px: int) -> Tail | None:
    """Split a network of the EfficientNet family; the parts share its weights. `None` for other networks."""
    names = [name for name, _ in network.named_children()]
    if names[:3] != ["conv_stem", "bn1", "blocks"] or "conv_head" not in names or head_name(network) != "classifier":
        return None
    blocks = list(network.get_submodule("blocks").children())
    if len(blocks) <= _LOWER_BLOCKS:
        return None
    below = nn.Sequential(*(network.get_submodule(name) for name in ("conv_stem", "bn1")), *blocks[:_LOWER_BLOCKS]).eval()
    upper = nn.Sequential(*blocks[_LOWER_BLOCKS:], *(network.get_submodule(name) for name in names[3:]))
    with torch.no_grad():
        shape = tuple(below(torch.zeros(1, 3, image_size_px, image_size_px)).shape[1:])
    return Tail(nn.Sequential(below, nn.Flatten()).eval(), upper, (shape[0], shape[1], shape[2]))


def fits_memory(tail: Tail, images: int) -> bool:
    """Whether the activations of the minimum number of views fit into `_MEMORY_BYTES`."""
    return images * _VIEWS[0] * math.prod(tail.shape) * 2 <= _MEMORY_BYTES


class TailTrainer:
    """Trains the upper part. Random numbers depend only on the seed, the epoch and the view, so a resumed training has the same result.

    Args:
        tail: the split network.
        config: batch size, optimizer, augmentation, averaging, loss and seed.
        train: the training images.
        mean: mean of the channels for the normalisation.
        std: standard deviation of the channels for the normalisation.
    """

    def __init__(self, tail: Tail, config: TrainConfig, train: ImageDataset, mean: ChannelValues, std: ChannelValues) -> None:
        self.tail, self.config, self.train = tail, config, train
        precision = Precision.resolve("auto", torch.device("cpu"))
        about = NetworkInput(train.image_size_px, mean, std)
        self._engine, _ = choose(TorchEngine(tail.lower.to(memory_format=torch.channels_last), about, precision), "auto", may_be_exact=True)
        self._views: list[Activations] = []
        self._loss = training_loss(config, train.labels, train.num_classes, torch.device("cpu"))
        weights = training_weights(train.weights)
        self._weights = None if weights is None else torch.from_numpy(weights)
        self.optimizers = create_optimizers(tail.upper, config.optimizer, config.batch_size)
        self.average = WeightAverage(tail.upper, config.averaging)
        self.epoch = 0
        self.learning_rate = 0.0
        self.batch_size = min(config.batch_size, len(train))
        self.steps_per_epoch = len(train) // self.batch_size

    @property
    def num_views(self) -> int:
        """Number of augmented views of each picture."""
        one = len(self.train) * math.prod(self.tail.shape) * 2
        return max(_VIEWS[0], min(_VIEWS[1], _MEMORY_BYTES // one))

    def prepare(self, progress: StartTask) -> None:
        """Compute the activations of all views; the first view is the picture itself."""
        on_done = progress("computing activations", len(self.train) * self.num_views)
        self._views = [self.activations(self.train.images, on_done)]
        self._views += [self._augmented(number, on_done) for number in range(1, self.num_views)]

    def activations(self, images: npt.NDArray[np.uint8], on_done: Callable[[int], None] = lambda _: None) -> Activations:
        """Output of the lower stages, float16 `[N, C, H, W]`, for images, uint8 `[N, S, S, 3]`."""
        result = np.empty((len(images), *self.tail.shape), np.float16)
        for start in range(0, len(images), _ROWS_AT_ONCE):
            part = images[start : start + _ROWS_AT_ONCE]
            result[start : start + len(part)] = self._engine.logits(part).reshape(-1, *self.tail.shape)
            on_done(len(part))
        return result

    def _augmented(self, number: int, on_done: Callable[[int], None]) -> Activations:
        size, count = self.train.image_size_px, len(self.train)
        config = self.config.augmentation.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence((self.config.seed, _DRAW_STREAM, number)).generate_state(1)[0])
        )
        drawn = Augmentation.draw(config, count, size, generator)
        augment = Augmenter(
            config,
            lambda pixels: pixels.permute(0, 3, 1, 2).float(),
            num_classes=self.train.num_classes,
            image_size_px=size,
            generator=generator,
            device=torch.device("cpu"),
        )
        result = np.empty((count, *self.tail.shape), np.float16)
        for start in range(0, count, _PICTURES_AT_ONCE):
            part = slice(start, min(start + _PICTURES_AT_ONCE, count))
            images = torch.from_numpy(np.ascontiguousarray(self.train.images[part]))
            pixels, _ = augment(images, torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images)), drawn[part])
            result[part] = self.activations(pixels.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).numpy(), on_done)
        return result

    def estimate_epoch_s(self, epochs: int) -> float:
        """Estimate the duration of an epoch, seconds, including the time for the activations divided by `epochs`."""
        size = self.batch_size
        started = time.perf_counter()
        values = self.activations(self.train.images[:size])
        prepare_s = (time.perf_counter() - started) / size * len(self.train) * self.num_views
        upper = copy.deepcopy(self.tail.upper).train()
        inputs = torch.from_numpy(values).float().contiguous(memory_format=torch.channels_last)
        for number in range(1 + _TIMED_STEPS):
            started = time.perf_counter() if number == 1 else started  # the first step is slower: it allocates memory
            torch.autograd.backward(upper(inputs).sum())
        return (time.perf_counter() - started) / _TIMED_STEPS * self.steps_per_epoch * _OPTIMIZER_FACTOR + prepare_s / epochs

    def run_epoch(self, epochs: int, on_step: Callable[[int, int], None]) -> tuple[float, float | None]:
        """Train one of `epochs` epochs; return mean loss and accuracy on the augmented views (`None` for several labels per image)."""
        generator = np.random.default_rng((self.config.seed, _STEP_STREAM, self.epoch))
        self.tail.upper.train()
        for norm in (module for module in self.tail.upper.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.eval()  # keep the pretrained statistics, which are better than those of a few pictures
        total = np.zeros(2)
        torch.manual_seed(int(generator.integers(1 << 62)))
        for number, (inputs, labels) in enumerate(self._batches(generator)):
            factor = learning_rate_factor(self.config.schedule, self.epoch + number / self.steps_per_epoch, epochs)
            set_learning_rate(self.optimizers, factor)
            self.learning_rate = factor * peak_learning_rate(self.config.optimizer, self.config.batch_size)
            logits = self.tail.upper(inputs)
            loss = self._loss(logits, labels)
            torch.autograd.backward(loss / len(inputs))
            if self.config.optimizer.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.tail.upper.parameters(), self.config.optimizer.clip_norm)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.average.after_step(self.tail.upper)
            hits = self._loss.hits(logits, labels)
            total += [float(loss.detach()), 0 if hits is None else int(hits)]
            on_step(number + 1, self.steps_per_epoch)
        self.epoch += 1
        loss, accuracy = (total / (self.steps_per_epoch * self.batch_size)).tolist()
        return loss, accuracy if self.train.labels.ndim == 1 else None

    def _batches(self, generator: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches with one random view of each picture; mixup mixes their activations (Verma et al. 2019, arXiv 1806.05236)."""
        order = generator.permutation(len(self.train))
        view = generator.integers(0, len(self._views), len(self.train))
        size, alpha = self.batch_size, self.config.augmentation.mixup
        for step in range(self.steps_per_epoch):
            rows = order[step * size : (step + 1) * size]
            inputs = torch.from_numpy(np.stack([self._views[view[row]][row] for row in rows])).float()
            labels = torch.from_numpy(self.train.labels[rows])
            if alpha or self._weights is not None:
                labels = as_fractions(labels, self.train.num_classes)
            if self._weights is not None:
                labels = torch.cat((labels, self._weights[rows, None]), 1)
            if alpha:
                share = float(generator.beta(alpha, alpha))
                other = torch.from_numpy(generator.permutation(len(rows)))
                inputs, labels = torch.lerp(inputs[other], inputs, share), torch.lerp(labels[other], labels, share)
            yield inputs.contiguous(memory_format=torch.channels_last), labels

    @torch.no_grad()
    def outputs(self, activations: Activations) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Logits, float32 `[N, C]`, and features, float32 `[N, D]`, of the averaged network for activations, float16 `[N, C, H, W]`."""
        network = WithFeatures(self.average.network.eval())
        parts = (torch.from_numpy(activations[start : start + 64]).float() for start in range(0, len(activations), 64))
        logits, features = zip(*(network(part.contiguous(memory_format=torch.channels_last)) for part in parts), strict=True)
        return torch.cat(logits).numpy(), torch.cat(features).numpy()

    def weights(self) -> dict[str, Tensor]:
        """A copy of the averaged weights of the upper part."""
        return copy.deepcopy(self.average.network.state_dict())
