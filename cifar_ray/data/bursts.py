"""Find bursts: near-duplicates within a class, such as ten shots of one object by a phone. A burst must not be divided between splits.

This search takes a second for 5,000 pictures. It computes with integers, so all hosts find the same bursts and draw the same splits.
`evaluation.measures.leakage` takes minutes: it also finds mirrored and edited pictures, and near-duplicates in other classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

MAX_PICTURES = 100_000
MAX_PICTURES_PER_CLASS = 20_000

# Two pictures are near-duplicates if the correlation of their details is at least this.
_THRESHOLD = 0.75
_COARSE_THRESHOLD = 0.6  # a fast test that rules out most pairs

SKETCH_PX = 32
_THUMBNAIL_PX = 8
_REACH = 1 / 8  # of a side: largest shift, and radius of the local mean
_MARGIN = 1 / 16  # of a side, ignored: the local mean is less exact there
_LEAST_COSINE = 0.9  # similarity of the thumbnails of two candidates
_LARGEST_STRETCH = 1.1  # pictures of one burst have the same aspect ratio
_NEIGHBOURS = 5  # candidates per picture; a larger burst is found as a chain of neighbours
_BLOCK = 500  # pictures that are compared with their whole class at once
_PAIRS_AT_ONCE = 500
_LARGEST_SHARE = 0.5  # of a class: a larger group shows that all its pictures look alike; it is not a burst

_USUAL_PAIRS = 300  # random pairs of a class, for the usual similarity
_LEAST_USUAL_PAIRS = 28  # all pairs of eight pictures
_OUTLIER_STD = 6.0  # standard deviations above the usual similarity
_LOW, _QUARTER = 0.10, 0.25  # low quantiles: bursts hardly change them, because pairs within a burst are very similar
_LOW_STD, _QUARTER_STD = -1.2816, -0.6745  # the same quantiles of a standard normal distribution

_LUMA = np.array([299, 587, 114], np.int64)

Sketches = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]
_Integers = npt.NDArray[np.int64]


def sketch(images: npt.NDArray[np.uint8]) -> tuple[Sketches, _Floats]:
    """Reduce pictures to the small images that the search compares, without the black borders that the policy `pad` adds.

    Args:
        images: uint8 `[N, S, S, 3]`.

    Returns:
        Sketches, uint8 `[N, 32, 32, 3]`, and aspect ratios (width / height without borders), float32 `[N]`.
    """
    sketches = np.zeros((len(images), SKETCH_PX, SKETCH_PX, 3), np.uint8)
    aspects = np.ones(len(images), np.float32)
    for row, image in enumerate(images):
        lit = image.any(2)
        rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
        if not len(rows):
            continue
        content = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        aspects[row] = content.shape[1] / content.shape[0]
        sketches[row] = np.asarray(Image.fromarray(content).resize((SKETCH_PX, SKETCH_PX), Image.Resampling.BOX))
    return sketches, aspects


def find_bursts(sketches: Sketches, aspects: _Floats, labels: _Integers) -> _Integers:
    """Group near-duplicates within each class.

    Args:
        sketches: uint8 `[N, 32, 32, 3]`, from `sketch`.
        aspects: float32 `[N]`, from `sketch`.
        labels: int64 `[N]`.

    Returns:
        int64 `[N]`: row of the first picture of the same burst; for a picture without near-duplicates, its own row. Classes with fewer
        than 3 or more than 20,000 pictures are not searched.
    """
    first = np.arange(len(labels))
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if 2 < len(members) <= MAX_PICTURES_PER_CLASS:
            first[members] = members[_find_in_class(sketches[members], aspects[members])]
    return first


def count_bursts(first: _Integers) -> tuple[int, int]:
    """Number of pictures in bursts, and number of bursts; `first` is the result of `find_bursts`."""
    _, sizes = np.unique(first, return_counts=True)
    return int(sizes[sizes > 1].sum()), int((sizes > 1).sum())


def _find_in_class(sketches: Sketches, aspects: _Floats) -> _Integers:
    luma = sketches.astype(np.int64) @ _LUMA // 1000
    pairs = _candidates(_thumbnails(sketches), aspects)
    fine = _details(luma)
    alike = _similarities(_details(_halved(luma)), pairs) >= _COARSE_THRESHOLD
    pairs = pairs[alike]
    similarity = _similarities(fine, pairs)
    pairs = pairs[similarity >= (_threshold(fine) if (similarity >= _THRESHOLD).any() else _THRESHOLD)]
    first = _joined(len(sketches), np.concatenate((pairs, _identical(sketches))))
    sizes = np.bincount(first, minlength=len(first))
    return np.where(sizes[first] > _LARGEST_SHARE * len(first), np.arange(len(first)), first)


def _scaled(values: _Integers) -> _Floats:
    """Scale each row `[N, …]` to integers from -127 to 127: sums of up to 1,000 products are exact in float32, in any order."""
    flat = values.reshape(len(values), -1)
    largest = np.maximum(1, np.abs(flat).max(1, initial=0))[:, None]
    scaled: _Floats = (flat * 127 // largest).astype(np.float32)
    return scaled.reshape(values.shape)


def _halved(luma: _Integers) -> _Integers:
    return luma[:, ::2, ::2] + luma[:, 1::2, ::2] + luma[:, ::2, 1::2] + luma[:, 1::2, 1::2]


def _thumbnails(sketches: Sketches) -> _Floats:
    """Thumbnails of 8×8 px minus their mean: float32 `[N, 192]`."""
    step = SKETCH_PX // _THUMBNAIL_PX
    sums = sketches.reshape(-1, _THUMBNAIL_PX, step, _THUMBNAIL_PX, step, 3).sum((2, 4), dtype=np.int64).reshape(len(sketches), -1)
    return _scaled(sums - sums.mean(1, keepdims=True).astype(np.int64))


def _details(luma: _Integers) -> _Floats:
    """Grey minus its local mean, without the margin: float32 `[N, s, s]`."""
    size = luma.shape[1]
    reach, margin = round(size * _REACH), round(size * _MARGIN)
    width = 2 * reach + 1
    sums = np.pad(luma, ((0, 0), (reach + 1, reach), (reach + 1, reach)), "reflect").cumsum(1).cumsum(2)
    local = sums[:, width:, width:] - sums[:, :-width, width:] - sums[:, width:, :-width] + sums[:, :-width, :-width]
    return _scaled((luma * width**2 - local)[:, margin : size - margin, margin : size - margin])


def _candidates(thumbnails: _Floats, aspects: _Floats) -> _Integers:
    """Pairs of nearest neighbours with similar thumbnails and aspect ratios: int64 `[P, 2]`, each pair once, ascending."""
    norms = np.maximum(1, np.sqrt((thumbnails.astype(np.float64) ** 2).sum(1)))
    count = min(_NEIGHBOURS, len(thumbnails) - 1)
    found = []
    for start in range(0, len(thumbnails), _BLOCK):
        cosines = thumbnails[start : start + _BLOCK] @ thumbnails.T / norms[start : start + _BLOCK, None] / norms
        rows = np.arange(start, start + len(cosines))
        cosines[rows - start, rows] = -1
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(cosines, nearest, 1) >= _LEAST_COSINE
        found.append(np.stack((np.broadcast_to(rows[:, None], nearest.shape)[near], nearest[near]), 1))
    pairs = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    stretch = aspects[pairs[:, 0]] / aspects[pairs[:, 1]]
    alike: _Integers = pairs[np.maximum(stretch, 1 / stretch) <= _LARGEST_STRETCH]
    return alike


def _similarities(details: _Floats, pairs: _Integers) -> npt.NDArray[np.float64]:
    """Best correlation of each pair over shifts along both axes: float64 `[P]`."""
    size = details.shape[1]
    reach = round(size * _REACH)
    best = np.zeros(len(pairs))
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        a, b = details[pairs[part, 0]], details[pairs[part, 1]]
        for down in range(-reach, reach + 1):
            for right in range(-reach, reach + 1):
                ours = a[:, max(0, down) : size + min(0, down), max(0, right) : size + min(0, right)]
                theirs = b[:, max(0, -down) : size + min(0, -down), max(0, -right) : size + min(0, -right)]
                best[part] = np.maximum(best[part], _cosines(ours, theirs))
    return best


def _cosines(a: _Floats, b: _Floats) -> npt.NDArray[np.float64]:
    products, ours, theirs = (np.einsum("nhw,nhw->n", one, other).astype(np.float64) for one, other in ((a, b), (a, a), (b, b)))
    cosines: npt.NDArray[np.float64] = products / np.sqrt(np.maximum(1, ours * theirs))
    return cosines


def _threshold(details: _Floats) -> float:
    """Similarity from which two pictures of this class are near-duplicates: six standard deviations above the usual, or `_THRESHOLD`.

    Photos of a class differ in their details, so `_THRESHOLD` applies; for handwritten digits the result is higher. Fisher's z-transform
    makes the similarities of random pairs roughly normal; their mean and standard deviation are estimated from two low quantiles.
    """
    count = len(details)
    if count * (count - 1) // 2 < _LEAST_USUAL_PAIRS:
        return _THRESHOLD
    generator = np.random.default_rng(0)
    one = generator.integers(0, count, _USUAL_PAIRS)
    pairs = np.stack((one, (one + generator.integers(1, count, _USUAL_PAIRS)) % count), 1)
    usual = np.sort(np.arctanh(np.minimum(_similarities(details, pairs), 0.9999)))
    low, quarter = usual[int(_LOW * _USUAL_PAIRS)], usual[int(_QUARTER * _USUAL_PAIRS)]
    std = (quarter - low) / (_QUARTER_STD - _LOW_STD)
    # Rounded because the last digits may differ between hosts.
    return max(_THRESHOLD, round(float(np.tanh(quarter + (_OUTLIER_STD - _QUARTER_STD) * std)), 4))


def _identical(sketches: Sketches) -> _Integers:
    """Pairs with exactly the same sketch, even if it has no details: int64 `[P, 2]`."""
    row_of: dict[bytes, int] = {}
    pairs = [(row_of.setdefault(image.tobytes(), row), row) for row, image in enumerate(sketches)]
    return np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)


def _joined(count: int, pairs: _Integers) -> _Integers:
    """Join pictures to groups by pairs (union-find); returns the smallest row of each picture's group: int64 `[count]`."""
    first = list(range(count))

    def find(row: int) -> int:
        while first[row] != row:
            first[row] = first[first[row]]
            row = first[row]
        return row

    for one, other in pairs.tolist():
        low, high = sorted((find(one), find(other)))
        first[high] = low
    return np.array([find(row) for row in range(count)], np.int64)
