"""Near-duplicates between two splits, or within one: a test image that was learnt from measures memory, not skill.

Barz & Denzler 2020 ("Do We Train on Test Data?", arXiv 1902.00423) take candidates by distance in a network's feature space
and let people judge. Here candidates come from embeddings and from small pictures, and pixels judge: one image is laid over the
other, moved and mirrored, until their details agree best. Details are what is left without the local mean, so that neither a common
sky nor a change of colours decides.
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

# From this correlation of details on two photos count as showing the same.
THRESHOLD = 0.75

_COMPARED_PX = 32  # larger pictures are compared at this size
_COARSE_PX, _COARSE_THRESHOLD = 16, 0.6  # the quick look that spares most pairs the long one
_REACH = 1 / 8  # of a side: moves in all directions, and the distance over which the local mean is taken
_MARGIN = 1 / 16  # of a side, left out: else pictures in a white frame look alike

_OUTSTANDING = 4.0  # standard deviations
_NORMAL_MAD = 1.4826  # from the median of absolute deviations to a standard deviation
_LARGEST = 0.9999

_THUMBNAIL_PX = 8
_NEIGHBOURS = 3  # candidates of each kind for each image
_BLOCK = 500  # images compared with all others at once: 100 MB for 50,000
_PAIRS_AT_ONCE = 1000
_CHUNK_PIXELS = 1 << 20
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Duplicate:
    """Two images that show the same.

    Attributes:
        query: row in the split that was asked about, e.g. test.
        reference: row in the split that was searched, e.g. train.
        similarity: correlation of their details where they agree best, `THRESHOLD`…1.
        mirrored: one is the mirror image of the other.
        identical: all pixels are equal.
    """

    query: int
    reference: int
    similarity: float
    mirrored: bool
    identical: bool


def describe_duplicate(found: Duplicate, queries: ImageDataset, references: ImageDataset) -> dict[str, Any]:
    """Names and classes of both images, and how alike they are, for JSON."""
    return {
        "image": queries.name_of(found.query),
        "other": references.name_of(found.reference),
        "class": queries.class_names[queries.labels[found.query]],
        "other_class": references.class_names[references.labels[found.reference]],
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
    """Finds for each query the reference that shows the same, if there is one.

    Args:
        queries: uint8 `[N, S, S, 3]`.
        references: uint8 `[M, S, S, 3]`; `None` looks among the queries themselves and names each pair once, the later one first.
        embeddings: of queries and references, float32 `[N, D]` and `[M, D]`, rows of length 1; without them small pictures alone
            give the candidates, which misses pairs that were moved or retouched.
        on_progress: told how many queries are done, as they are.

    Returns:
        At most one a query, the most alike first.
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
    """Queries all of whose pixels are those of a reference, or of an earlier query."""
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
    """From which similarity on a pair stands out of what neighbours in this data set have in common anyway.

    Photos differ in their details, so for them this is `THRESHOLD`; handwritten digits of one class hardly do. What is usual is seen
    from all candidates but the best of each query, on Fisher's scale, where correlations spread evenly.
    """
    order = torch.from_numpy(np.lexsort((-similarity.numpy(), queries.numpy())))
    is_best = torch.ones(len(order), dtype=torch.bool)
    is_best[1:] = queries[order][1:] != queries[order][:-1]
    usual = torch.atanh(similarity[order][~is_best].clamp(0, _LARGEST))
    if not len(usual):
        return THRESHOLD
    spread = _NORMAL_MAD * (usual - usual.median()).abs().median()
    return max(THRESHOLD, float(torch.tanh(usual.median() + _OUTSTANDING * spread)))


def thumbnails(images: Images) -> Tensor:
    """Pictures of 8×8 px without their brightness and contrast: float32 `[N, 192]`, rows of length 1."""
    flat = _reduced(images, _THUMBNAIL_PX).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True))


def _candidates(
    queries: Tensor, references: Tensor, same: bool, mirrored: Tensor | None = None, on_progress: OnProgress = lambda _: None
) -> Tensor:
    """The nearest references of each query, by blocks of a matrix product: int64 `[P, 2]`."""
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
    """Largest correlation of each pair over moves and mirroring, float32 `[P]`, and whether it took the mirror image, bool `[P]`.

    Pairs that do not agree as small pictures get 0.
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
    """The best correlation of `a`, as it is or mirrored, with `b`; and whether mirrored is better."""
    straight, turned = _best_correlation(a, b), _best_correlation(a.flip(3), b)
    return torch.maximum(straight, turned), turned > straight


def _best_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Largest correlation of the overlapping parts of `a` and `b`, `[P, C, s, s]`, over moves along both axes."""
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
    """Luma without its local mean and without the margin, float32 `[N, 1, s, s]`."""
    luma = (_reduced(images, _COMPARED_PX) * _LUMA).sum(1, keepdim=True)
    size = luma.shape[2]
    reach, margin = round(size * _REACH), round(size * _MARGIN)
    local_mean = F.avg_pool2d(F.pad(luma, [reach] * 4, "reflect"), 2 * reach + 1, stride=1)
    return (luma - local_mean)[:, :, margin : size - margin, margin : size - margin]


def _reduced(images: Images, side_px: int) -> Tensor:
    """Images at a size, or at their own where that is smaller: float32 `[N, 3, s, s]`, 0…1, areas averaged."""
    side_px = min(side_px, images.shape[1])
    chunk = max(1, _CHUNK_PIXELS // images.shape[1] ** 2)
    parts = [torch.zeros(0, 3, side_px, side_px)]
    for start in range(0, len(images), chunk):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + chunk])).permute(0, 3, 1, 2).float() / 255
        parts.append(F.interpolate(pixels, size=(side_px, side_px), mode="area"))
    return torch.cat(parts)
