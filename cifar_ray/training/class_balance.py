"""Messages for the user: advice for imbalanced classes, and the accuracy of a finished run."""

from __future__ import annotations

from collections.abc import Mapping

from cifar_ray.config import TrainConfig
from cifar_ray.data.streamed import TrainingSplits
from cifar_ray.metrics.label_sets import count_labels
from cifar_ray.metrics.score import Score

_RARE = 0.1  # a class with less than this fraction of the largest class's pictures is rare
_SHOWN = 5
_SPLITS = {"cv": "cross-validated", "val": "validation", "test": "test"}


def advise(config: TrainConfig, splits: TrainingSplits) -> str:
    """Name the rare classes and the flag that helps them, in one line; empty if no class is rare, or if such a flag is set."""
    if config.class_weights != "none" or config.sampling != "natural":
        return ""
    names, counts = splits.train.class_names, count_labels(splits.train.labels, splits.train.num_classes)
    rare = sorted((int(count), name) for name, count in zip(names, counts, strict=True) if count < _RARE * counts.max())
    if not rare:
        return ""
    listed = [f"class {name!r} has {count:,} training pictures" for count, name in rare[:_SHOWN]]
    more = [f"{len(rare) - _SHOWN} more classes have few"] if len(rare) > _SHOWN else []
    remedy = "try --class-weights balanced" + (" or --sampling balanced" if splits.train.labels.ndim == 1 else "")
    return f"{', '.join([*listed, *more])}, the largest ({names[counts.argmax()]!r}) has {int(counts.max()):,}: {remedy}"


def describe_figures(metrics: Mapping[str, float], image_counts: Mapping[str, int]) -> str:
    """Accuracies or mAPs of a run in one line; further lines follow for several labels per image, and for uneven classes.

    A figure from fewer than 2,000 pictures has its 95 % interval.

    Args:
        metrics: metrics of the run.
        image_counts: number of images by split.
    """
    scores = {label: score for split, label in _SPLITS.items() if (score := Score.find(metrics, split, image_counts.get(split)))}
    for key in ("accuracy", "map"):
        if (value := metrics.get(f"test_{key}_tta")) is not None:
            scores["test, views averaged"] = Score(key, value, image_counts.get("test") if key == "accuracy" else None)
    name = next((score.name for score in scores.values()), "accuracy")
    lines = [f"{name}  {', '.join(f'{label} {score}' for label, score in scores.items()) or 'no validation or test images'}"]
    if "test_micro_f1" in metrics:
        f1 = f"micro-F1 {100 * metrics['test_micro_f1']:.2f} %, macro-F1 {100 * metrics['test_macro_f1']:.2f} %"
        lines.append(f"labels  test {f1}; the {metrics['test_coverage']:.1f} most probable labels hold all true ones on average")
    over_classes = [
        f"{_SPLITS[split]} balanced accuracy {100 * metrics[key]:.2f} %, macro-F1 {100 * metrics[f'{split}_macro_f1']:.2f} %"
        for split in ("val", "test")
        if (key := f"{split}_balanced_accuracy") in metrics
    ]
    if over_classes:
        lines.append(f"uneven classes  {'; '.join(over_classes)}")
    return "\n".join(lines)
