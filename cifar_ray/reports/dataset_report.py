"""A data set as files: figures as JSON, contact sheets, and a page with the pictures inside."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cifar_ray.config import AugmentationConfig
from cifar_ray.data import DatasetSplits, ImageDataset, channel_mean_std
from cifar_ray.data.batches.loader import Normalization, TrainLoader
from cifar_ray.data.batches.shares import Shard
from cifar_ray.evaluation.dataset_examination import DatasetExamination, FoundDuplicates, summarize, to_json
from cifar_ray.reports import plots
from cifar_ray.reports.contact_sheet import Cell, sheet
from cifar_ray.reports.renderer import Picture, Section, Table, render

_IMAGES_PER_CLASS = 40
_MAX_CLASS_SHEETS = 50
_SHOWN_DUPLICATES = 40
_AUGMENTED_IMAGES = 10
_AUGMENTED_EPOCHS = 8


def to_files(examination: DatasetExamination, augmentation: AugmentationConfig, seed: int) -> dict[str, bytes]:
    """`stats.json`, the pictures, and `stats.html` with all pictures inside, by file name.

    Args:
        examination: examination of the data set.
        augmentation: settings of the augmentation to show.
        seed: random seed for the choice of images and for the augmentation.
    """
    figures = to_json(examination)
    splits = examination.splits
    counts = {name: part.class_counts().tolist() for name, part in splits}
    pictures = {
        "classes": Picture(plots.class_counts(counts, splits.train.class_names), "Number of images per class and split."),
        "augmented": Picture(
            augmented_sheet(splits.train, augmentation, seed),
            f"Left: original. Then the augmented image in epochs 1–{_AUGMENTED_EPOCHS}: {_describe(augmentation)}.",
        ),
    }
    if (sizes := _sizes(examination)) is not None:
        pictures["sizes"] = sizes
    if examination.unlike:
        cells = [Cell((image,), (name,)) for name, _, image in examination.unlike]
        pictures["unlike"] = Picture(sheet(cells, columns=5), "Pictures unlike the rest, the least usual first.")
    for label, png in class_sheets(splits, seed).items():
        pictures[f"class-{label:03}"] = Picture(
            png, f"{splits.train.class_names[label]}: a random sample of at most {_IMAGES_PER_CLASS} training images."
        )
    for found in examination.duplicates or ():
        if found.pairs:
            pictures[f"duplicates-{found.split}-{found.searched}"] = _duplicates(splits, found)
    files = {f"{name}.png": picture.png for name, picture in pictures.items()}
    page = _page(figures, pictures)
    return {"stats.json": json.dumps(figures, indent=1, ensure_ascii=False).encode(), **files, "stats.html": page}


def class_sheets(splits: DatasetSplits, seed: int) -> dict[int, bytes]:
    """A contact sheet of training images for each of the first 50 classes, by label."""
    generator = np.random.default_rng(seed)
    sheets = {}
    for label in range(min(splits.train.num_classes, _MAX_CLASS_SHEETS)):
        members = splits.train.members(label)
        if len(members):
            chosen = np.sort(generator.choice(members, min(_IMAGES_PER_CLASS, len(members)), replace=False))
            sheets[label] = sheet([Cell((splits.train.images[row],)) for row in chosen], columns=10, side_px=80)
    return sheets


def augmented_sheet(train: ImageDataset, augmentation: AugmentationConfig, seed: int) -> bytes:
    """A row per image: the original, then what the training loader gives the network in each epoch."""
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(len(train), min(_AUGMENTED_IMAGES, len(train)), replace=False))
    seen = augmented(train.images[chosen], augmentation, channel_mean_std(train), seed)
    rows = [[train.images[row], *versions] for row, versions in zip(chosen, seen, strict=True)]
    return sheet([Cell((image,)) for row in rows for image in row], columns=1 + _AUGMENTED_EPOCHS, side_px=80)


def augmented(
    images: npt.NDArray[np.uint8],
    augmentation: AugmentationConfig,
    mean_std: tuple[tuple[float, float, float], tuple[float, float, float]],
    seed: int,
) -> npt.NDArray[np.uint8]:
    """Images as the training loader augments them in each epoch, converted back from normalised values: uint8 `[N, epochs, S, S, 3]`."""
    # Each image gets its own label, which identifies it in the shuffled batch.
    numbered = ImageDataset(images, np.arange(len(images)), tuple(map(str, range(len(images)))))
    loader, unmixed = (
        TrainLoader(
            numbered,
            batch_size=len(images),
            micro_batch_size=None,
            augmentation=changes,
            normalization=Normalization(*mean_std, torch.float32),
            shard=Shard(),
            seed=seed,
            device=torch.device("cpu"),
        )
        for changes in (augmentation, AugmentationConfig())
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in mean_std)
    seen = np.empty((len(images), _AUGMENTED_EPOCHS, *images.shape[1:]), np.uint8)
    for epoch in range(_AUGMENTED_EPOCHS):
        for step, same_step in zip(loader.epoch(epoch), unmixed.epoch(epoch), strict=True):
            for (inputs, _), (_, labels) in zip(step.pieces, same_step.pieces, strict=True):
                pixels = ((inputs * std + mean) * 255).round().clamp(0, 255).byte()
                seen[labels.numpy(), epoch] = pixels.permute(0, 2, 3, 1).numpy()
    return seen


def _describe(augmentation: AugmentationConfig) -> str:
    flip = {"none": "no flip", "random": "random horizontal flip", "alternating": "horizontal flip every other epoch"}[augmentation.flip]
    shift = f"shift up to {augmentation.translate_px} px" if augmentation.translate_px else "no shift"
    cutout = f"cutout {augmentation.cutout_px} px" if augmentation.cutout_px else "no cutout"
    policy = "RandAugment" if augmentation.policy == "randaugment" else "AutoAugment"
    more = (
        (augmentation.rotate_deg, f"rotation up to {augmentation.rotate_deg:g}°"),
        (augmentation.policy != "none", policy),
        (augmentation.brightness, f"brightness ± {100 * augmentation.brightness:.0f} %"),
        (augmentation.contrast, f"contrast ± {100 * augmentation.contrast:.0f} %"),
        (augmentation.saturation, f"saturation ± {100 * augmentation.saturation:.0f} %"),
        (augmentation.hue, f"hue ± {360 * augmentation.hue:.0f}°"),
        (augmentation.noise_std, f"noise with standard deviation {augmentation.noise_std:g}"),
        (augmentation.erase, f"random erasing of a rectangle in {100 * augmentation.erase:.0f} % of the images"),
        (augmentation.mixup, "mixup"),
        (augmentation.cutmix, "cutmix"),
    )
    return ", ".join((flip, shift, cutout, *(words for is_on, words in more if is_on)))


def _sizes(examination: DatasetExamination) -> Picture | None:
    readable = [one for one in examination.files or () if one.format]
    if not readable:
        return None
    widths_px, heights_px = (np.array(sides, np.int64) for sides in zip(*((one.width_px, one.height_px) for one in readable), strict=True))
    png = plots.file_sizes(widths_px, heights_px, examination.splits.train.image_size_px)
    return Picture(png, "Width and height of the files; larger dots are more common. Dotted: input size of the network.")


def _duplicates(splits: DatasetSplits, found: FoundDuplicates) -> Picture:
    parts = dict(splits)
    ours, theirs = parts[found.split], parts[found.searched]
    cells = [
        Cell(
            (ours.images[pair.query], theirs.images[pair.reference]),
            (
                "identical" if pair.identical else f"{pair.similarity:.2f}{' mirrored' if pair.mirrored else ''}",
                ours.name_of(pair.query),
                theirs.name_of(pair.reference),
            ),
        )
        for pair in found.pairs[:_SHOWN_DUPLICATES]
    ]
    where = f"Within {found.split}" if found.split == found.searched else f"Left {found.split}, right {found.searched}"
    shown = f", the first {_SHOWN_DUPLICATES} shown" if len(found.pairs) > _SHOWN_DUPLICATES else ""
    return Picture(sheet(cells, columns=5), f"{where}: {len(found.pairs):,} pairs, most similar first{shown}.")


def _page(figures: dict[str, Any], pictures: dict[str, Picture]) -> bytes:
    splits = list(figures["images"])
    classes = Table(("class", *splits), [(one["name"], *(f"{one[split]:,}" for split in splits)) for one in figures["classes"]])
    sections = [
        Section("Summary", [Table((), summarize(figures))]),
        Section("Classes", [pictures["classes"], classes]),
        *([Section("File sizes", [pictures["sizes"]])] if "sizes" in pictures else []),
        Section("Augmented images", [pictures["augmented"]]),
        Section(
            "Near-duplicates", _starting("duplicates", pictures) or ["Not searched." if figures["duplicates"] is None else "None found."]
        ),
        Section("Contact sheets", _starting("class-", pictures)),
    ]
    if figures["unlike"]:
        reasons = Table(("file", "colours and compression"), [(one["file"], one["reason"]) for one in figures["unlike"]])
        sections.insert(1, Section("Unlike the rest", [pictures["unlike"], reasons]))
    if figures["broken"]:
        rows = [(one["file"], one["reason"]) for one in figures["broken"]]
        sections.insert(1, Section("Broken files", [Table(("file", "reason"), rows)]))
    return render(f"Data set {figures['name']}", f"fingerprint {figures['fingerprint'][:12]}", sections)


def _starting(prefix: str, pictures: dict[str, Picture]) -> list[str | Table | Picture]:
    return [picture for name, picture in pictures.items() if name.startswith(prefix)]
