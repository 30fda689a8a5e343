"""Is the augmentation of whole batches ten times as fast as that of single images?

    python benchmarks/augmentation.py --data-dir DIR --rounds 5

DIR holds the CIFAR-10 images as train/<class>/… and test/<class>/…. Three contenders make normalised float32 batches of 250 from the
same images, in turn in each round: our loader; torchvision's v2 transforms on one PIL image at a time; albumentations on one array at a
time. The last two run in a `DataLoader`, as their manuals show, and leave out augmentations that their library lacks. One process, two
threads.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cifar_ray import cli
from cifar_ray.config import AugmentationConfig, TrainConfig, parse_config
from cifar_ray.data import load_splits
from cifar_ray.data.batches.loader import Normalization, TrainLoader
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import ImageDataset

BATCH_SIZE = 250
IMAGES_A_ROUND = {"ours": 40_000, "torchvision": 2_500, "albumentations": 2_500}
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
BASE: dict[str, Any] = {"flip": "random", "translate_px": 2}
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
CASES: dict[str, dict[str, Any]] = {
    "crop, flip": {},
    "+ colour jitter": JITTER,
    "+ rotation": {"rotate_deg": 15.0},
    "+ noise": {"noise_std": 0.05},
    "+ erasing": {"erase": 0.5},
    "+ mixup": {"mixup": 1.0},
    "+ cutmix": {"cutmix": 1.0},
    "+ all these": JITTER | {"rotate_deg": 15.0, "noise_std": 0.05, "erase": 0.5, "mixup": 1.0},
    "+ RandAugment": {"policy": "randaugment"},
    "+ AutoAugment": {"policy": "autoaugment"},
}


class PerImage(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """One image at a time, as `torchvision.datasets.CIFAR10` gives it."""

    def __init__(self, dataset: ImageDataset, transform: Callable[[Image.Image], Tensor]) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.dataset.images[index])), int(self.dataset.labels[index])


def ours(dataset: ImageDataset, config: AugmentationConfig) -> Iterable[Any]:
    """Our loader: batches of 2,000 in micro-batches of 250, as on a CPU."""
    loader = TrainLoader(
        dataset,
        batch_size=2000,
        micro_batch_size=BATCH_SIZE,
        augmentation=config,
        normalization=Normalization(MEAN, STD, torch.float32),
        shard=Shard(),
        seed=0,
        device=torch.device("cpu"),
    )
    return (piece for step in loader.epoch(0) for piece in step.pieces)


def torchvision(dataset: ImageDataset, config: AugmentationConfig) -> Iterable[Any]:
    """Transforms v2 on PIL images, mixup on the batch."""
    steps: list[Any] = [v2.RandomCrop(32, padding=config.translate_px, padding_mode="reflect"), v2.RandomHorizontalFlip()]
    if config.rotate_deg:
        steps.append(v2.RandomRotation(config.rotate_deg, v2.InterpolationMode.BILINEAR))
    if config.policy != "none":
        steps.append(v2.RandAugment() if config.policy == "randaugment" else v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10))
    if config.brightness:
        steps.append(v2.ColorJitter(config.brightness, config.contrast, config.saturation))
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    if config.noise_std:
        steps.append(v2.GaussianNoise(sigma=config.noise_std))
    steps.append(v2.Normalize(MEAN, STD))
    if config.erase:
        steps.append(v2.RandomErasing(config.erase))
    batches = DataLoader(PerImage(dataset, v2.Compose(steps)), batch_size=BATCH_SIZE, shuffle=True)
    return _mixed(batches, config)


def _mixed(batches: Iterable[Any], config: AugmentationConfig) -> Iterable[Any]:
    """Torchvision's mixup or cutmix, on the batch, as its manual shows it."""
    if not (config.mixup or config.cutmix):
        return batches
    mix: Any = v2.MixUp(alpha=config.mixup, num_classes=10) if config.mixup else v2.CutMix(alpha=config.cutmix, num_classes=10)
    return (mix(*batch) for batch in batches)


def albumentations(dataset: ImageDataset, config: AugmentationConfig) -> Iterable[Any]:
    """Albumentations on arrays; torchvision's mixup on the batch."""
    import albumentations as albu
    import cv2
    from albumentations.pytorch import ToTensorV2

    side = 32 + 2 * config.translate_px
    reflect = cv2.BORDER_REFLECT_101
    steps: list[Any] = [albu.PadIfNeeded(side, side, border_mode=reflect), albu.RandomCrop(32, 32), albu.HorizontalFlip()]
    if config.rotate_deg:
        steps.append(albu.Rotate(limit=config.rotate_deg, border_mode=reflect, p=1))
    if config.brightness:
        factors = {name: (1 - reach, 1 + reach) for name, reach in JITTER.items()}
        steps.append(albu.ColorJitter(**factors, hue=0, p=1))
    if config.noise_std:
        steps.append(albu.GaussNoise(std_range=(config.noise_std, config.noise_std), p=1))
    steps.append(albu.Normalize(MEAN, STD))
    if config.erase:
        steps.append(albu.Erasing(p=config.erase))
    pipeline = albu.Compose([*steps, ToTensorV2()])
    data = PerImage(dataset, lambda image: pipeline(image=np.asarray(image))["image"])
    batches = DataLoader(data, batch_size=BATCH_SIZE, shuffle=True)
    return _mixed(batches, config)


SIDES: dict[str, Callable[[ImageDataset, AugmentationConfig], Iterable[Any]]] = {
    "ours": ours,
    "torchvision": torchvision,
    "albumentations": albumentations,
}


def images_per_s(side: str, dataset: ImageDataset, config: AugmentationConfig) -> float:
    """Images per second of a contender in one round."""
    count = IMAGES_A_ROUND[side]
    part = ImageDataset(dataset.images[:count], dataset.labels[:count], dataset.class_names)
    begun = time.perf_counter()
    made = sum(len(labels) for _, labels in SIDES[side](part, config))
    assert made == count
    return count / (time.perf_counter() - begun)


def main(data_dir: str, rounds: int = 5, cases: tuple[str, ...] = tuple(CASES)) -> int:
    """Print one table: images per second of each contender, and our speed-up, as means and standard deviations over rounds."""
    torch.set_num_threads(2)
    train = load_splits(parse_config(TrainConfig, {"dataset": "folder", "data_dir": data_dir})).train
    print("| | ours, images/s | torchvision | albumentations | ours : torchvision | ours : albumentations |\n|---|---|---|---|---|---|")
    for case in cases:
        config = AugmentationConfig(**BASE | CASES[case])
        sides = [side for side in SIDES if side != "albumentations" or config.policy == "none"]
        for side in sides:
            images_per_s(side, train, config)
        rates = {side: [] for side in sides}
        for _ in range(rounds):
            for side in sides:
                rates[side].append(images_per_s(side, train, config))
        cells = [_figure(rates[side], ",.0f") if side in rates else "–" for side in SIDES]
        ratios = [[a / b for a, b in zip(rates["ours"], rates[side], strict=True)] for side in sides[1:]]
        print(f"| {case} | {' | '.join([*cells, *(_figure(ratio, '.1f') for ratio in ratios), *['–'] * (3 - len(sides))])} |", flush=True)
    return 0


def _figure(values: list[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} (sd {statistics.stdev(values):{form}})"


if __name__ == "__main__":
    sys.exit(cli.run(lambda: tyro.cli(main)))
