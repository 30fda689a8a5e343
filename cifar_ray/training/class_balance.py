"""What the user is told about classes of different sizes, and about the accuracy of a finished run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cifar_ray.config import TrainConfig
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.metrics.intervals import describe_accuracy

_RARE = 0.1  # a class with a smaller fraction of the largest class's pictures brings advice
_SHOWN = 5
_ACCURACIES = {
    "cv": ("cross-validated", "cv_accuracy"),
    "val": ("validation", "val_accuracy"),
    "test": ("test", "test_accuracy"),
    "tta": ("test, views averaged", "test_accuracy_tta"),
}


def advise(config: TrainConfig, splits: TrainingSplits) -> str:
    """One line with the flag that helps rare classes; empty if no class is rare, or if such a flag is set."""
    if config.class_weights != "none" or config.sampling != "natural":
        return ""
    names, counts = splits.train.class_names, np.bincount(splits.train.labels, minlength=splits.train.num_classes)
    rare = sorted((int(count), name) for name, count in zip(names, counts, strict=True) if count < _RARE * counts.max())
    if not rare:
        return ""
    listed = [f"class {name!r} has {count:,} pictures" for count, name in rare[:_SHOWN]]
    more = [f"{len(rare) - _SHOWN} more classes have few"] if len(rare) > _SHOWN else []
    remedy = "try --class-weights balanced or --sampling balanced"
    return f"{', '.join([*listed, *more])}, the largest ({names[counts.argmax()]!r}) has {int(counts.max()):,}: {remedy}"


def describe_figures(metrics: Mapping[str, float], image_counts: Mapping[str, int]) -> str:
    """The accuracies of a run in one line, each of few pictures with its 95 % interval; for uneven classes a second line.

    Args:
        metrics: metrics of the run.
        image_counts: number of images by split.
    """
    figures = [
        f"{label} {describe_accuracy(metrics[key], image_counts.get('test' if split == 'tta' else split))}"
        for split, (label, key) in _ACCURACIES.items()
        if key in metrics
    ]
    lines = [f"accuracy  {', '.join(figures) or 'no validation or test images'}"]
    over_classes = [
        f"{_ACCURACIES[split][0]} balanced accuracy {metrics[key]:.2%}, macro-F1 {metrics[f'{split}_macro_f1']:.2%}"
        for split in ("val", "test")
        if (key := f"{split}_balanced_accuracy") in metrics
    ]
    if over_classes:
        lines.append(f"uneven classes  {'; '.join(over_classes)}")
    return "\n".join(lines)
