"""Observations of a trial: counts for the version on trial and for production, which add up over servers and replicas."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from cifar_ray.metrics.intervals import accuracy_interval
from cifar_ray.storage import FileTree

Counts = npt.NDArray[np.int64]

# Edges of the latency histogram: 0.1 ms to 2 min, 5 % apart
_FIRST_MS, _STEP, _BINS = 0.1, 1.05, 287
_EDGES_MS = _FIRST_MS * _STEP ** np.arange(_BINS + 1)
_RESAMPLES = 400
_Z95 = 1.96


class _SideInFile(BaseModel):
    requests: int = 0
    failed: int = 0
    pictures: int = 0
    abstained: int = 0
    confidence_sum: float = 0.0
    confidence_squares: float = 0.0
    latency: dict[int, int] = {}


class _TallyInFile(BaseModel):
    production: _SideInFile
    staged: _SideInFile
    compared: int = 0
    agreed: int = 0
    dropped: int = 0
    not_ready: int = 0


@dataclass
class Side:
    """Counts for one version.

    Attributes:
        requests: number of requests, including failed ones.
        failed: requests that it could not answer.
        pictures: number of classified pictures.
        abstained: number of these pictures from which it abstained ("none of these").
        confidence_sum: sum of the highest probability of each picture.
        confidence_squares: sum of the squares of these probabilities.
        latency: histogram of the latency of answered requests, int64 `[287]`; bin edges are 5 % apart, from 0.1 ms.
    """

    requests: int = 0
    failed: int = 0
    pictures: int = 0
    abstained: int = 0
    confidence_sum: float = 0.0
    confidence_squares: float = 0.0
    latency: Counts = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    def answered(self, confidences: Sequence[float], abstained: int, latency_ms: float) -> None:
        """Count an answered request.

        Args:
            confidences: highest probability of each picture.
            abstained: number of pictures from which the version abstained.
            latency_ms: latency of the request.
        """
        self.requests += 1
        self.pictures += len(confidences)
        self.abstained += abstained
        self.confidence_sum += sum(confidences)
        self.confidence_squares += sum(one * one for one in confidences)
        place = math.log(max(latency_ms, _FIRST_MS) / _FIRST_MS) / math.log(_STEP)
        self.latency[min(int(place), _BINS - 1)] += 1

    def could_not_answer(self) -> None:
        """Count a request without an answer."""
        self.requests += 1
        self.failed += 1

    def quantile_ms(self, share: float) -> float:
        """Quantile of the latency in ms; `share` is 0–1. 0 without answers."""
        return float(_quantiles(self.latency[None], share)[0])

    def __add__(self, other: Self) -> Side:
        return Side(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass
class Tally:
    """Observations of a trial.

    Attributes:
        production: counts for the production version during the trial.
        staged: counts for the version on trial.
        compared: number of pictures that both versions classified.
        agreed: number of these pictures for which both gave the same class, or the same labels.
        dropped: requests that were not compared, because the server was busy.
        not_ready: requests that production answered, because a replica had not loaded the version yet.
    """

    production: Side = field(default_factory=Side)
    staged: Side = field(default_factory=Side)
    compared: int = 0
    agreed: int = 0
    dropped: int = 0
    not_ready: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def to_json(self) -> bytes:
        """Encode as the content of a file; `from_json` decodes it."""
        sides = {name: _side_in_file(getattr(self, name)) for name in ("production", "staged")}
        rest = {name: getattr(self, name) for name in ("compared", "agreed", "dropped", "not_ready")}
        return _TallyInFile(**sides, **rest).model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes) -> Tally:
        """Decode the content of a file; a damaged file gives an empty tally."""
        try:
            found = _TallyInFile.model_validate_json(data)
        except ValidationError:
            return cls()
        return cls(_side(found.production), _side(found.staged), found.compared, found.agreed, found.dropped, found.not_ready)


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval; the value is NaN if nothing was observed."""

    value: float
    low: float
    high: float


def share(part: int, whole: int) -> Figure:
    """A fraction with its interval (Wilson 1927)."""
    return Figure(part / whole if whole else math.nan, *accuracy_interval(part, whole))


def mean_confidence(side: Side) -> Figure:
    """Mean of the highest probability, with its interval from the standard error."""
    if not side.pictures:
        return Figure(math.nan, 0.0, 1.0)
    mean = side.confidence_sum / side.pictures
    variance = max(0.0, side.confidence_squares / side.pictures - mean * mean)
    reach = _Z95 * math.sqrt(variance / side.pictures)
    return Figure(mean, mean - reach, mean + reach)


def latency_ms(side: Side, quantile: float) -> Figure:
    """A quantile of the latency in ms, with its bootstrap interval."""
    return _interval(side.quantile_ms(quantile), _quantiles(_resampled(side.latency), quantile))


def latency_ratio(tally: Tally, quantile: float) -> Figure:
    """A quantile of the latency of the version on trial divided by that of production, with its bootstrap interval."""
    production, staged = (_quantiles(_resampled(side.latency), quantile) for side in (tally.production, tally.staged))
    base = tally.production.quantile_ms(quantile)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = staged / production
    return _interval(tally.staged.quantile_ms(quantile) / base if base else math.nan, ratios)


def write_tally(files: FileTree, folder: str, writer: str, tally: Tally) -> None:
    """Write the observations of one process; they replace those that it wrote before."""
    files.replace(f"{folder}/{writer}.json", tally.to_json())


def read_tallies(files: FileTree, folder: str, without: Iterable[str] = ()) -> Tally:
    """Sum of the observations of all processes.

    Args:
        files: tree of the folder of all trials.
        folder: folder of the trial.
        without: names of the processes to leave out.
    """
    left_out = {f"{folder}/{writer}.json" for writer in without}
    paths = [path for path in files.files(allow_not_found=True) if path.startswith(f"{folder}/") and path not in left_out]
    return sum((Tally.from_json(data) for data in map(files.read, paths) if data), Tally())


def _side_in_file(side: Side) -> _SideInFile:
    values = {name: getattr(side, name) for name in side.__dataclass_fields__ if name != "latency"}
    return _SideInFile(**values, latency={place: int(side.latency[place]) for place in np.flatnonzero(side.latency).tolist()})


def _side(found: _SideInFile) -> Side:
    latency = np.zeros(_BINS, np.int64)
    for place, count in found.latency.items():
        latency[min(max(place, 0), _BINS - 1)] += count
    return Side(**found.model_dump(exclude={"latency"}), latency=latency)


def _resampled(latency: Counts) -> Counts:
    """Bootstrap samples of a histogram, int64 `[400, 287]` (Efron 1979); the same histogram always gives the same samples."""
    count = int(latency.sum())
    if not count:
        return np.zeros((_RESAMPLES, _BINS), np.int64)
    return np.random.default_rng(0).multinomial(count, latency / count, _RESAMPLES)


def _quantiles(histograms: Counts, quantile: float) -> npt.NDArray[np.float64]:
    """Quantile of each histogram in ms, float64 `[N]`, interpolated within its bin; 0 for an empty one."""
    below = np.cumsum(histograms, axis=1)
    wanted = quantile * below[:, -1]
    place = np.minimum((below < wanted[:, None]).sum(axis=1), _BINS - 1)
    rows = np.arange(len(histograms))
    inside = histograms[rows, place]
    part = np.clip((wanted - (below[rows, place] - inside)) / np.maximum(inside, 1), 0, 1)
    return np.where(below[:, -1] > 0, _EDGES_MS[place] * _STEP**part, 0.0)


def _interval(value: float, resampled: npt.NDArray[np.float64]) -> Figure:
    known = resampled[np.isfinite(resampled)]
    if not len(known) or not math.isfinite(value):
        return Figure(value, 0.0, math.inf)
    low, high = np.quantile(known, [0.025, 0.975])
    return Figure(value, float(low), float(high))
