"""The measurements: each takes a job and returns images per second, or prints a table."""

from __future__ import annotations

import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import TrainConfig
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.models import create_model
from cifar_ray.recipes import get_recipe
from cifar_ray.training.loop.optimizers import create_optimizers, learning_rate_factor, set_learning_rate
from cifar_ray.training.loop.trainer import Trainer

SIZE_PX, NUM_CLASSES = 32, 10
CONVOLUTIONS = ("conv", "mkldnn")
# The command `train`, on a Ray cluster with the given number of cores
_TRAIN_WITH_CPUS = """
import sys, ray
from cifar_ray import cli, train
from cifar_ray.cluster.process import prepare_children
prepare_children()
ray.init(num_cpus=int(sys.argv.pop(1)), include_dashboard=False, log_to_driver=False, logging_level="error")
sys.exit(cli.run(train.main))
"""


@dataclass(frozen=True)
class Job:
    """A training to measure: recipe, number of random images, number of epochs (the first is not counted), and number of cores."""

    recipe: str
    images: int
    epochs: int
    cpus: int

    @property
    def config(self) -> TrainConfig:
        """The recipe, with only its length changed."""
        return get_recipe(self.recipe).model_copy(update={"epochs": self.epochs, "stem_epochs": self.epochs})

    def splits(self) -> DatasetSplits:
        """Random images and labels, uint8 `[N, 32, 32, 3]` and int64 `[N]`, all in `train`."""
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (self.images, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
        train = ImageDataset(pixels, rng.integers(0, NUM_CLASSES, self.images), tuple(f"class {i}" for i in range(NUM_CLASSES)))
        return DatasetSplits("made up", train, None, None)

    def rate(self, seconds: list[float]) -> float:
        """Images per second after the first epoch; `seconds` has the time of each epoch."""
        return self.images / statistics.mean(seconds[1:])


def ours(job: Job) -> float:
    """Images per second of our loop, without Ray."""
    prepare_process(job.cpus)
    trainer = Trainer(job.config, job.splits(), torch.device("cpu"), Shard())
    return job.rate([timed(trainer.train_epoch, epoch, _ignore_progress) for epoch in range(job.epochs)])


class PerImage(Dataset[tuple[torch.Tensor, int]]):
    """Images one by one, changed as torchvision's own examples do it."""

    def __init__(self, train: ImageDataset, reach_px: int) -> None:
        self._train = train
        self._change = v2.Compose(
            [
                v2.RandomCrop(SIZE_PX, padding=reach_px, padding_mode="reflect"),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.5,) * 3, (0.25,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self._train)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._change(Image.fromarray(self._train.images[index])), int(self._train.labels[index])


def ordinary(job: Job) -> float:
    """The same network, optimizer and augmentation in the loop that most projects write: PIL, workers, fp32, NCHW, eager."""
    config, train = job.config, job.splits().train
    torch.manual_seed(0)
    model = create_model(config.model, NUM_CLASSES, SIZE_PX)
    optimizers = create_optimizers(model, config.optimizer, config.batch_size)
    loader = DataLoader(
        PerImage(train, config.augmentation.translate_px), config.batch_size, shuffle=True, num_workers=2, persistent_workers=True
    )

    def epoch(number: int) -> None:
        model.train()
        for step, (inputs, labels) in enumerate(loader):
            set_learning_rate(optimizers, learning_rate_factor(config.schedule, number + step / len(loader), config.epochs))
            loss = F.cross_entropy(model(inputs), labels, label_smoothing=config.label_smoothing)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()

    return job.rate([timed(epoch, number) for number in range(job.epochs)])


def command(job: Job, program: list[str], flags: list[str]) -> float:
    """Our loop inside the command `train`, on images in a folder of files that are decoded before it starts.

    Args:
        job: what is trained.
        program: arguments of Python before the flags.
        flags: flags that choose where the command trains.
    """
    with image_folder(job) as folder, tempfile.TemporaryDirectory() as storage:
        flags = [*flags, "--dataset", "folder", "--data-dir", str(folder), "--val-fraction", "0", "--test-fraction", "0.01"]
        flags += ["--storage", storage, "--name", "speed"]
        flags += ["--recipe", job.recipe, "--epochs", str(job.epochs), "--stem-epochs", str(job.epochs)]
        subprocess.run([sys.executable, *program, *flags], check=True, stdout=sys.stderr)
        history = np.genfromtxt(Path(storage, "runs/speed/history.csv"), delimiter=",", names=True)
    return float(statistics.mean(history["images_per_s"][1:]))


def on_ray(job: Job, num_workers: int) -> float:
    """Images per second of the command with workers of Ray Train."""
    return command(job, ["-c", _TRAIN_WITH_CPUS, str(job.cpus)], ["--num-workers", str(num_workers)])


def in_process(job: Job) -> float:
    """Images per second of the command if it trains in its own process."""
    return command(job, ["-m", "cifar_ray.train"], ["--cluster", "local"])


@contextmanager
def image_folder(job: Job) -> Iterator[Path]:
    """The same images as PNG."""
    with tempfile.TemporaryDirectory() as root:
        train = job.splits().train
        for number, (pixels, label) in enumerate(zip(train.images, train.labels, strict=True)):
            path = Path(root, f"class {label}", f"{number}.png")
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path, compress_level=0)
        yield Path(root)


def ceiling(job: Job) -> None:
    """Print the rate of training, the rate of the network's convolutions alone, and the operations that take the rest of the time."""
    prepare_process()
    trainer = Trainer(job.config, job.splits(), torch.device("cpu"), Shard())
    trainer.train_epoch(0, _ignore_progress)
    reached = job.images / timed(trainer.train_epoch, 1, _ignore_progress)
    alone, flops = convolutions_alone(trainer)
    print(
        f"{job.recipe}: {reached:,.0f} images/s; its convolutions alone {alone:,.0f}, {alone * flops / 1e12:.2f} TFLOP/s;"
        f" {100 * (reached / alone):.0f} % of that rate reached"
    )
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        trainer.train_epoch(2, _ignore_progress)
    rows = sorted(recorded.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total_us = sum(row.self_cpu_time_total for row in rows)
    convolutions_us = sum(row.self_cpu_time_total for row in rows if any(part in row.key for part in CONVOLUTIONS))
    print(f"  {100 * convolutions_us / total_us:5.1f} %  convolutions, as the profiler sees them, of which and beside which")
    for row in rows[:20]:
        print(f"  {100 * row.self_cpu_time_total / total_us:5.1f} %  {row.count:7,} × {row.key}")


def convolutions_alone(trainer: Trainer, repeats: int = 20) -> tuple[float, float]:
    """Measure only the convolutions of a training, forward and backward, which is an upper bound of its speed.

    Returns:
        Images per second, and floating-point operations per image.
    """
    size, side, dtype = trainer.loader.piece_sizes[0], trainer.loader.image_size_px, trainer.precision.dtype
    shapes: list[tuple[nn.Conv2d, torch.Size]] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, _: shapes.append((module, inputs[0].shape)))
        for module in trainer.model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad(), trainer.precision.autocast():
        trainer.model(torch.zeros(size, 3, side, side, dtype=dtype).to(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    seconds = flops = 0.0
    for place, (module, shape) in enumerate(shapes):
        inputs = torch.randn(shape).to(dtype).to(memory_format=torch.channels_last).requires_grad_(place > 0)
        layer = copy.deepcopy(module).to(dtype).requires_grad_(module.weight.requires_grad)
        outputs = layer(inputs)
        flops += 2 * outputs[0].numel() * layer.weight[0].numel() * (1 + (place > 0) + layer.weight.requires_grad)
        gradient = torch.randn_like(outputs)

        def step(layer: nn.Conv2d = layer, inputs: torch.Tensor = inputs, gradient: torch.Tensor = gradient) -> None:
            result = layer(inputs)
            if result.requires_grad:
                result.backward(gradient)

        step()
        seconds += min(timed(step) for _ in range(repeats))
    return size / seconds, flops


def startup(rounds: int) -> None:
    """Print the duration of the command for a training that itself takes hardly any time."""
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as storage:
            command = [sys.executable, "-m", "cifar_ray.train", "--dataset", "digits", "--epochs", "1", "--storage", storage]
            seconds.append(timed(partial(subprocess.run, command, check=True, capture_output=True)))
    print(f"digits, one epoch: {statistics.mean(seconds):.1f} s ({min(seconds):.1f}–{max(seconds):.1f}), n = {rounds}")


def timed(action: Callable[..., object], *arguments: object) -> float:
    """Seconds that an action takes."""
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


def _ignore_progress(*_: int) -> None:
    """Ignore the progress of steps."""


CONTENDERS: dict[str, Callable[[Job], float]] = {
    "ours": ours,
    "ordinary": ordinary,
    "process": in_process,
    "ray": lambda job: on_ray(job, 1),
    "two": lambda job: on_ray(job, 2),
}
