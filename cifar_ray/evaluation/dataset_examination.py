"""Examine a data set: class counts, balance, files, channel statistics and duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from cifar_ray.config import printable
from cifar_ray.data import DatasetSplits, channel_mean_std
from cifar_ray.data.bursts import count_bursts
from cifar_ray.data.decoding.picture_files import counted
from cifar_ray.data.listing.layouts import Listing
from cifar_ray.data.survey.picture_facts import BrokenFile, FileFacts, count_by, find_broken, find_unlike, read_headers
from cifar_ray.evaluation.measures.leakage import Duplicate, describe_duplicate, find_duplicates
from cifar_ray.evaluation.model_evaluation import Progress

# From this ratio of the largest class to the smallest, predictions are biased towards the largest class.
_IMBALANCED = 2.0
_MAX_LISTED_BROKEN = 5

# Limits for the advice before a training
_UNEVEN = 10.0  # images of the largest class ÷ images of a small class
_FEW_IMAGES = 5
_LONG = 3.0  # longer side ÷ shorter side
_MAX_NAMED = 5


@dataclass(frozen=True)
class FoundDuplicates:
    """Near-duplicates within one split or between two.

    Attributes:
        split: split of the first image of each pair.
        searched: split of the second image; equal to `split` for pairs within one split.
        pairs: rows of both images.
    """

    split: str
    searched: str
    pairs: list[Duplicate]


@dataclass(frozen=True, eq=False)
class DatasetExamination:
    """Everything measured about a data set.

    Attributes:
        splits: the images, as training uses them.
        files: files of all splits; `None` if the data set is not a folder of files.
        broken: unreadable files, which training skips.
        duplicates: near-duplicates within and between splits; `None` if they were not searched.
        unlike: pictures unlike the rest: name in the data set, reason, and image, uint8 `[S, S, 3]`, of each.
    """

    splits: DatasetSplits
    files: list[FileFacts] | None
    broken: list[BrokenFile]
    duplicates: list[FoundDuplicates] | None
    unlike: list[tuple[str, str, npt.NDArray[np.uint8]]]


def examine(splits: DatasetSplits, listing: Listing | None, progress: Progress, *, look_for_duplicates: bool = True) -> DatasetExamination:
    """Read the file headers, find unreadable files, and search for near-duplicates.

    Args:
        splits: result of `load_splits`.
        listing: the files of the splits; `None` if the data set is not a folder of files.
        progress: progress display.
        look_for_duplicates: whether to search for near-duplicates, which takes minutes for 50,000 images.
    """
    files, broken, unlike = None, [], []
    if listing is not None:
        pictures = listing.pictures
        files = read_headers(pictures, progress("reading headers", len(pictures)))
        used = np.concatenate([part.files for _, part in splits if part.files is not None])
        broken = find_broken(pictures.take(~np.isin(pictures.names, used)))
        unlike = _unlike(splits, {one.name: one for one in files})
    return DatasetExamination(splits, files, broken, _all_duplicates(splits, progress) if look_for_duplicates else None, unlike)


def _unlike(splits: DatasetSplits, files: dict[str, FileFacts]) -> list[tuple[str, str, npt.NDArray[np.uint8]]]:
    names = [part.name_of(row) for _, part in splits for row in range(len(part))]
    images = np.concatenate([part.images for _, part in splits])
    return [(names[one.row], one.reason, images[one.row]) for one in find_unlike(images, [files[name] for name in names])]


def to_json(examination: DatasetExamination) -> dict[str, Any]:
    """All figures by name; fractions are 0–1."""
    splits, train = examination.splits, examination.splits.train
    mean, std = channel_mean_std(train)
    counts = {name: part.class_counts().tolist() for name, part in splits}
    return {
        "format_version": 1,
        "name": splits.name,
        "fingerprint": splits.fingerprint,
        "image_size_px": train.image_size_px,
        "images": {name: len(part) for name, part in splits},
        "classes": [{"name": name, **{split: row[label] for split, row in counts.items()}} for label, name in enumerate(train.class_names)],
        "imbalance": max(counts["train"]) / max(1, min(counts["train"])),
        "channel_mean": mean,
        "channel_std": std,
        "files": None if examination.files is None else _files(examination.files),
        "broken": [{"file": one.where, "reason": printable(one.reason)} for one in examination.broken],
        "duplicates": None if examination.duplicates is None else [_duplicates(splits, found) for found in examination.duplicates],
        "unlike": [{"file": name, "reason": reason} for name, reason, _ in examination.unlike],
        "advice": advise(examination),
    }


def advise(examination: DatasetExamination) -> list[str]:
    """Advice for the user before a training, one line for each problem; empty without problems."""
    splits, broken = examination.splits, examination.broken
    names = splits.train.class_names
    counts = np.sum([part.class_counts() for _, part in splits], axis=0)
    order = np.argsort(counts, kind="stable")
    largest = order[-1]
    lines = []
    if small := [f"{names[label]} ({counts[label]:,})" for label in order if counts[label] * _UNEVEN < counts[largest]]:
        lines.append(f"uneven: {_some(small)} below a tenth of {names[largest]} ({counts[largest]:,}); add images of the small classes")
    if few := [f"{names[label]} ({counts[label]:,})" for label in order if counts[label] < _FEW_IMAGES]:
        lines.append(f"few images: {_some(few)} below {_FEW_IMAGES}; add more, 50 and more a class are better")
    searched = [part.bursts for _, part in splits if part.bursts is not None]
    pictures, bursts = count_bursts(np.concatenate(searched)) if searched else (0, 0)
    if bursts:
        lines.append(f"bursts: {pictures:,} near-duplicates in {bursts:,} group{'s' * (bursts != 1)}; they count as few different images")
    if broken:
        lines.append(f"broken: training leaves out {counted(len(broken), 'unreadable file')}; repair or replace each")
    long = [
        one for one in examination.files or () if one.format and max(one.width_px, one.height_px) > _LONG * min(one.width_px, one.height_px)
    ]
    if long:
        shapes = _some([f"{one.where} ({one.width_px}×{one.height_px})" for one in long])
        lines.append(f"odd shapes: {shapes} longer than {_LONG:g}:1; crop them, or choose --resize-policy")
    if examination.unlike:
        lines.append(f"unlike the rest: {_some([name for name, _, _ in examination.unlike])}; look at each, and remove what is no picture")
    return lines


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def summarize(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the summary table, each as `(name, text)`.

    Args:
        figures: result of `to_json`.
    """
    rows = [
        (
            "data",
            f"{figures['name']}: {', '.join(f'{count:,} {split}' for split, count in figures['images'].items())}, "
            f"{len(figures['classes'])} classes, examined at {figures['image_size_px']} px",
        ),
        ("balance", _balance(figures)),
        ("mean", " ".join(f"{value:.4f}" for value in figures["channel_mean"])),
        ("std", " ".join(f"{value:.4f}" for value in figures["channel_std"])),
    ]
    if (files := figures["files"]) is not None:
        sides = files["shorter_side_px"]
        rows += [
            ("files", f"{files['count']:,}, {files['bytes'] / 1e6:,.1f} MB; {_counts(files['formats'])}; {_counts(files['modes'])}"),
            (
                "sizes",
                f"shorter side {sides['smallest']}–{sides['largest']} px, median {sides['median']:g} px; "
                f"{files['sizes']:,} different sizes",
            ),
            ("broken", f"{len(figures['broken']):,} unreadable file{'s' * (len(figures['broken']) != 1)}"),
            *(("broken", f"{one['file']}: {one['reason']}") for one in figures["broken"][:_MAX_LISTED_BROKEN]),
        ]
    return [*rows, *_duplicate_rows(figures["duplicates"] or []), *(("advice", line) for line in figures["advice"])]


def list_broken(listing: Listing, progress: Progress) -> list[BrokenFile]:
    """Decode all files of a folder, which training has rejected, and return the unreadable files."""
    return find_broken(listing.pictures, progress("decoding", len(listing)))


def _all_duplicates(splits: DatasetSplits, progress: Progress) -> list[FoundDuplicates]:
    parts = dict(splits)
    found = []
    for name, part in parts.items():
        advance = progress(f"duplicates within {name}", len(part))
        found.append(FoundDuplicates(name, name, find_duplicates(part.images, on_progress=advance)))
    for searched, name in combinations(parts, 2):
        advance = progress(f"duplicates of {name} in {searched}", len(parts[name]))
        found.append(FoundDuplicates(name, searched, find_duplicates(parts[name].images, parts[searched].images, on_progress=advance)))
    return found


def _duplicates(splits: DatasetSplits, found: FoundDuplicates) -> dict[str, Any]:
    parts = dict(splits)
    ours, theirs = parts[found.split], parts[found.searched]
    return {
        "split": found.split,
        "searched": found.searched,
        "count": len(found.pairs),
        "share": len(found.pairs) / len(ours),
        "identical": sum(pair.identical for pair in found.pairs),
        "pairs": [describe_duplicate(pair, ours, theirs) for pair in found.pairs],
    }


def _duplicate_rows(duplicates: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    rows, without = [], []
    for found in duplicates:
        where = f"within {found['split']}" if found["split"] == found["searched"] else f"between {found['split']} and {found['searched']}"
        if found["count"]:
            rows.append(
                ("duplicates", f"{where}: {found['count']:,} ({100 * found['share']:.2f} %), {found['identical']:,} of them identical")
            )
        else:
            without.append(where)
    return [*rows, ("duplicates", f"none {', '.join(without)}")] if without else rows


def _files(files: Sequence[FileFacts]) -> dict[str, Any]:
    readable = [one for one in files if one.format]
    sides = np.array([min(one.width_px, one.height_px) for one in readable] or [0])
    return {
        "count": len(files),
        "bytes": sum(one.num_bytes for one in files),
        "formats": count_by(one.format or "unreadable" for one in files),
        "modes": count_by(one.mode for one in readable),
        "sizes": len({(one.width_px, one.height_px) for one in readable}),
        "shorter_side_px": {"smallest": int(sides.min()), "median": float(np.median(sides)), "largest": int(sides.max())},
    }


def _balance(figures: dict[str, Any]) -> str:
    counts = {one["name"]: one["train"] for one in figures["classes"]}
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[least] == counts[most]:
        return f"balanced: {counts[most]:,} training images per class"
    kind = "imbalanced" if figures["imbalance"] >= _IMBALANCED else "nearly balanced"
    return f"{kind}: {counts[least]:,} ({least}) to {counts[most]:,} ({most}) training images per class, ratio {figures['imbalance']:.2f}"


def _counts(values: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in values.items())
