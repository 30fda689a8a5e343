"""How well, and how fast, does a network learn several labels per picture, compared with a plain PyTorch loop?

    python -m benchmarks.labels mosaics --data-dir DIR [--images 5000] [--epochs 8] [--seeds 1]

DIR holds the original files of CIFAR-10. A mosaic shows four pictures, 64 px; its labels are their classes. Both sides train the same
network (airnet) for the same number of epochs on the same mosaics: ours by the default recipe with its own loss, precision and
augmentation; the plain loop with AdamW, one-cycle learning rate and BCEWithLogitsLoss, pictures one by one through torchvision, fp32. Both
train on all training mosaics; scikit-learn computes the mAP on test mosaics. Times are without evaluation. Processor seconds include
worker processes, and hardly depend on other programs on the machine.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cifar_ray.cluster.process import prepare_process
from cifar_ray.config import TrainConfig
from cifar_ray.data import load_splits
from cifar_ray.data.batches.shares import Shard
from cifar_ray.data.dataset import DatasetSplits, ImageDataset
from cifar_ray.models import create_model
from cifar_ray.recipes import get_recipe
from cifar_ray.training.loop.trainer import Trainer

BATCH_SIZE, SIZE_PX = 250, 64
SHIFT_PX, TEST_MOSAICS = 4, 2000
PEAK_RATE = 1e-2  # the best of 3e-4, 1e-3, 3e-3 and 1e-2 for 6 epochs of 3,000 mosaics


def compare(data_dir: str, images: int = 5000, epochs: int = 8, seeds: int = 1, threads: int = 2) -> None:
    """Train both sides in turn, once per seed; print mAP and times."""
    prepare_process(threads)
    found = load_splits(TrainConfig(dataset="cifar10", data_dir=data_dir, val_fraction=0))
    assert found.test is not None
    train, test = mosaics(found.train, images, 0), mosaics(found.test, TEST_MOSAICS, 1)
    rows: dict[str, list[tuple[float, float, float]]] = {"ours": [], "plain": []}
    for seed in range(seeds):
        for name, run in (("ours", ours), ("plain", plain)):
            rows[name].append(measured(run, train, test, epochs, seed))
            score, wall_s, cpu_s = rows[name][-1]
            print(f"seed {seed}: {name:5} mAP {100 * score:.2f} %, {wall_s:.0f} s, {cpu_s:.0f} processor seconds", flush=True)
    for column, label in enumerate(("mAP", "wall", "processor")):
        values = {name: [row[column] for row in found] for name, found in rows.items()}
        ratios = [second / first for first, second in zip(values["ours"], values["plain"], strict=True)]
        means = ", ".join(f"{name} {statistics.mean(one):.4g}" for name, one in values.items())
        print(f"{label:9} {means}, plain ÷ ours {statistics.mean(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}), n = {seeds}")


def mosaics(pictures: ImageDataset, count: int, seed: int) -> ImageDataset:
    """Mosaics of four pictures, uint8 `[count, 64, 64, 3]`; each picture is used once before one is used again."""
    rng = np.random.default_rng(seed)
    rounds = -(-4 * count // len(pictures))
    rows = np.concatenate([rng.permutation(len(pictures)) for _ in range(rounds)])[: 4 * count].reshape(count, 2, 2)
    images = pictures.images[rows].transpose(0, 1, 3, 2, 4, 5).reshape(count, SIZE_PX, SIZE_PX, 3)
    labels = np.zeros((count, pictures.num_classes), np.uint8)
    labels[np.arange(count)[:, None], pictures.labels[rows].reshape(count, 4)] = 1
    return ImageDataset(np.ascontiguousarray(images), labels, pictures.class_names)


Run = Callable[[ImageDataset, int, int], Callable[[ImageDataset], npt.NDArray[np.float32]]]


def measured(run: Run, train: ImageDataset, test: ImageDataset, epochs: int, seed: int) -> tuple[float, float, float]:
    """Score on the test mosaics (mAP), seconds, and processor seconds of a training."""
    started, before_s = time.perf_counter(), processor_s()
    logits = run(train, epochs, seed)
    wall_s, cpu_s = time.perf_counter() - started, processor_s() - before_s
    return float(average_precision_score(test.labels, logits(test))), wall_s, cpu_s


def processor_s() -> float:
    """Processor seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def ours(train: ImageDataset, epochs: int, seed: int) -> Callable[[ImageDataset], npt.NDArray[np.float32]]:
    """The default recipe."""
    config = get_recipe("airbench94").model_copy(update={"epochs": epochs, "batch_size": BATCH_SIZE, "seed": seed, "image_size": SIZE_PX})
    trainer = Trainer(config, DatasetSplits("mosaics", train, None, None), torch.device("cpu"), Shard())
    for epoch in range(epochs):
        loss, _ = trainer.train_epoch(epoch, lambda *_: None)
        print(f"  ours  epoch {epoch + 1}: loss {loss:.3f}", flush=True)
    return lambda test: trainer.outputs(test)[0]


class PerImage(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pictures one by one, changed as torchvision's own examples do it."""

    def __init__(self, images: ImageDataset, *, augmented: bool) -> None:
        changes = [v2.RandomCrop(SIZE_PX, padding=SHIFT_PX, padding_mode="reflect"), v2.RandomHorizontalFlip()] if augmented else []
        self._images = images
        self._change = v2.Compose([*changes, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.25,) * 3)])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._change(Image.fromarray(self._images.images[index])), torch.from_numpy(self._images.labels[index]).float()


def plain(train: ImageDataset, epochs: int, seed: int) -> Callable[[ImageDataset], npt.NDArray[np.float32]]:
    """The loop that most projects write."""
    torch.manual_seed(seed)
    model = create_model("airnet", train.num_classes, SIZE_PX)
    loader = DataLoader(PerImage(train, augmented=True), BATCH_SIZE, shuffle=True, drop_last=True, num_workers=2)
    model.initialize_from(torch.cat([inputs for _, (inputs, _) in zip(range(4), loader, strict=False)]))  # type: ignore[operator]
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, epochs=epochs, steps_per_epoch=len(loader))
    criterion = nn.BCEWithLogitsLoss()
    for epoch in range(epochs):
        model.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"  plain epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)

    @torch.inference_mode()
    def logits(test: ImageDataset) -> npt.NDArray[np.float32]:
        model.eval()
        return torch.cat([model(inputs) for inputs, _ in DataLoader(PerImage(test, augmented=False), BATCH_SIZE)]).numpy()

    return logits
