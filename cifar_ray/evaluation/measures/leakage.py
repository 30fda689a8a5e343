"""Find near-duplicates between two splits or within one split. Test images that are also training images inflate the accuracy.

Barz & Denzler 2020 ("Do We Train on Test Data?", arXiv 1902.00423) select candidates by distance in a network's feature space,
and people decide. Here candidates come from embeddings and from thumbnails, and the pixels decide: one image is shifted and
mirrored until its details correlate best with the details of the other. Details are pixels minus their local mean, so that neither a
similar sky nor a change of colours matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_ray.data import ImageDataset

Images = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]
OnProgress = Callable[[int], None]

# Two photos are near-duplicates if their details have at least this correlation.
THRESHOLD = 0.75

_COMPARED_PX = 32  # larger pictures are compared at this size
_COARSE_PX, _COARSE_THRESHOLD = 16, 0.6  # a fast test that rules out most pairs
_REACH = 1 / 8  # largest shift, and radius of the local mean, as a fraction of a side
_MARGIN = 1 / 16  # border that is ignored, as a fraction of a side; otherwise pictures with the same white frame would match

_OUTLIER_STD = 4.0  # a pair stands out if it is this many standard deviations above the usual similarity
_MAD_TO_STD = 1.4826  # from the median absolute deviation to the standard deviation of a normal distribution
_MAX_CORRELATION = 0.9999  # atanh(1) is infinite

_THUMBNAIL_PX = 8
_NEIGHBOURS = 3  # candidates per image from thumbnails, and as many from embeddings
_BLOCK = 500  # images that are compared with all references at once; needs 100 MB for 50,000 references
_PAIRS_AT_ONCE = 1000
_CHUNK_PIXELS = 1 << 20
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Duplicate:
    """A pair of near-duplicates.

    Attributes:
        query: row in the query split, for example test.
        reference: row in the searched split, for example train.
        similarity: correlation of the details at the best alignment, from `THRESHOLD` to 1.
        mirrored: whether one image is the mirror image of the other.
        identical: whether all pixels are equal.
    """

    query: int
    reference: int
    similarity: float
    mirrored: bool
    identical: bool


def describe_duplicate(found: Duplicate, queries: ImageDataset, references: ImageDataset) -> dict[str, Any]:
    """Names, classes and similarity of both images, for JSON."""
    return {
        "image": queries.name_of(found.query),
        "other": references.name_of(found.reference),
        "class": queries.label_of(found.query),
        "other_class": references.label_of(found.reference),
        "similarity": found.similarity,
        "mirrored": found.mirrored,
        "identical": found.identical,
    }


def find_duplicates(
    queries: Images,
    references: Images | None = None,
    embeddings: tuple[Embeddings, Embeddings] | None = None,
    on_progress: OnProgress = lambda _: None,
) -> list[Duplicate]:
    """Find the near-duplicate of each query image among the reference images.

    Args:
        queries: uint8 `[N, S, S, 3]`.
        references: uint8 `[M, S, S, 3]`; `None` searches the queries themselves and returns each pair once, the later image first.
        embeddings: embeddings of queries and references, float32 `[N, D]` and `[M, D]`, rows of norm 1. Without them, candidates come
            only from thumbnails, which miss pairs that were shifted far or edited.
        on_progress: receives the number of newly finished queries.

    Returns:
        At most one pair per query: identical pairs, then the most similar first.
    """
    same = references is None
    searched = queries if references is None else references
    pairs = _candidates(thumbnails(queries), thumbnails(searched), same, mirrored=thumbnails(queries[:, :, ::-1]), on_progress=on_progress)
    if embeddings is not None:
        pairs = torch.cat((pairs, _candidates(torch.from_numpy(embeddings[0]), torch.from_numpy(embeddings[1]), same)))
    if same:
        pairs = torch.stack((pairs.amax(1), pairs.amin(1)), dim=1)
    pairs = torch.unique(pairs, dim=0)
    similarity, mirrored = _similarities(queries, searched, pairs)
    found = _identical(queries, None if same else searched)
    threshold = _threshold(pairs[:, 0], similarity)
    for index in similarity.argsort(descending=True).tolist():
        if similarity[index] < threshold:
            break
        query, reference = pairs[index].tolist()
        found.setdefault(query, Duplicate(query, reference, float(similarity[index]), bool(mirrored[index]), identical=False))
    return list(found.values())


def _identical(queries: Images, references: Images | None) -> dict[int, Duplicate]:
    """Pairs of a query and a reference, or an earlier query if there are no references, with equal pixels; by row of the query."""
    row_of: dict[bytes, int] = {}
    for row, image in enumerate(references if references is not None else ()):
        row_of.setdefault(_digest(image), row)
    found = {}
    for row, image in enumerate(queries):
        digest = _digest(image)
        if digest in row_of:
            found[row] = Duplicate(row, row_of[digest], similarity=1.0, mirrored=False, identical=True)
        elif references is None:
            row_of[digest] = row
    return found


def _digest(image: Images) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def _threshold(queries: Tensor, similarity: Tensor) -> float:
    """The similarity above which a pair stands out from the usual similarity of neighbours in this data set.

    For photos this is `THRESHOLD`, because the details of photos differ; for handwritten digits it is higher. The usual similarity is
    estimated from all candidates except the best of each query, after Fisher's z-transform, which makes the spread uniform.
    """
    order = torch.from_numpy(np.lexsort((-similarity.numpy(), queries.numpy())))
    is_best = torch.ones(len(order), dtype=torch.bool)
    is_best[1:] = queries[order][1:] != queries[order][:-1]
    usual = torch.atanh(similarity[order][~is_best].clamp(0, _MAX_CORRELATION))
    if not len(usual):
        return THRESHOLD
    spread = _MAD_TO_STD * (usual - usual.median()).abs().median()
    return max(THRESHOLD, float(torch.tanh(usual.median() + _OUTLIER_STD * spread)))


def thumbnails(images: Images) -> Tensor:
    """Thumbnails of 8×8 px, normalised for brightness and contrast: float32 `[N, 192]`, rows of norm 1."""
    flat = _reduced(images, _THUMBNAIL_PX).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True))


def _candidates(
    queries: Tensor, references: Tensor, same: bool, mirrored: Tensor | None = None, on_progress: OnProgress = lambda _: None
) -> Tensor:
    """Pairs of each query and its nearest references by cosine similarity, int64 `[P, 2]`, computed in blocks."""
    count = min(_NEIGHBOURS, len(references) - same)
    found = []
    for start in range(0, len(queries) if count > 0 else 0, _BLOCK):
        rows = torch.arange(start, min(start + _BLOCK, len(queries)))
        cosines = queries[rows] @ references.T
        if mirrored is not None:
            cosines = torch.maximum(cosines, mirrored[rows] @ references.T)
        if same:
            cosines[torch.arange(len(rows)), rows] = -torch.inf
        nearest = cosines.topk(count, sorted=False).indices
        found.append(torch.stack((rows[:, None].expand_as(nearest), nearest), dim=2).flatten(0, 1))
        on_progress(len(rows))
    return torch.cat(found) if found else torch.zeros(0, 2, dtype=torch.int64)


def _similarities(queries: Images, references: Images, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Best correlation of each pair over shifts and mirroring, float32 `[P]`, and whether it is mirrored, bool `[P]`.

    Pairs that differ clearly at 16 px get the similarity 0.
    """
    similarity, mirrored = torch.zeros(len(pairs)), torch.zeros(len(pairs), dtype=torch.bool)
    for part in torch.split(torch.arange(len(pairs)), _PAIRS_AT_ONCE):
        ours, theirs = queries[pairs[part, 0].numpy()], references[pairs[part, 1].numpy()]
        coarse, _ = _aligned(_reduced(ours, _COARSE_PX), _reduced(theirs, _COARSE_PX))
        close = (coarse >= _COARSE_THRESHOLD).numpy()
        if close.any():
            similarity[part[close]], mirrored[part[close]] = _aligned(_details(ours[close]), _details(theirs[close]))
    return similarity, mirrored


def _aligned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Best correlation of `a`, mirrored or not, with `b`, and whether the mirrored one is better."""
    straight, mirrored = _best_correlation(a, b), _best_correlation(a.flip(3), b)
    return torch.maximum(straight, mirrored), mirrored > straight


def _best_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Best correlation of the overlap of `a` and `b`, `[P, C, s, s]`, over shifts along both axes."""
    size = a.shape[2]
    reach_px = round(size * _REACH)
    best = torch.full((len(a),), -1.0)
    for down in range(-reach_px, reach_px + 1):
        for right in range(-reach_px, reach_px + 1):
            ours = a[:, :, max(0, down) : size + min(0, down), max(0, right) : size + min(0, right)]
            theirs = b[:, :, max(0, -down) : size + min(0, -down), max(0, -right) : size + min(0, -right)]
            best = torch.maximum(best, _correlation(ours.flatten(1), theirs.flatten(1)))
    return best


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return F.cosine_similarity(a, b, eps=1e-6)


def _details(images: Images) -> Tensor:
    """Luma minus its local mean, without the margin, float32 `[N, 1, s, s]`."""
    luma = (_reduced(images, _COMPARED_PX) * _LUMA).sum(1, keepdim=True)
    size = luma.shape[2]
    reach, margin = round(size * _REACH), round(size * _MARGIN)
    local_mean = F.avg_pool2d(F.pad(luma, [reach] * 4, "reflect"), 2 * reach + 1, stride=1)
    return (luma - local_mean)[:, :, margin : size - margin, margin : size - margin]


def _reduced(images: Images, side_px: int) -> Tensor:
    """Images reduced to at most `side_px` by averaging areas: float32 `[N, 3, s, s]`, 0–1."""
    side_px = min(side_px, images.shape[1])
    chunk = max(1, _CHUNK_PIXELS // images.shape[1] ** 2)
    parts = [torch.zeros(0, 3, side_px, side_px)]
    for start in range(0, len(images), chunk):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + chunk])).permute(0, 3, 1, 2).float() / 255
        parts.append(F.interpolate(pixels, size=(side_px, side_px), mode="area"))
    return torch.cat(parts)
