"""Rules that end a trial: the conditions for promotion, and when a version is withdrawn."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from cifar_ray.errors import ConfigError
from cifar_ray.metrics.intervals import wilson_interval
from cifar_ray.store.staging.tallies import Figure, Side, Tally, latency_ms, latency_ratio, mean_confidence, share

Unit = Literal["%", "x", "ms"]

# A version is withdrawn if the lower bound of its failure rate is above this and above the failure rate of production.
_MAX_FAILED = 0.01
_MIN_FAILURES = 2
# Of 80 good versions that fail for 0.5 % of requests, this bound withdraws one within 1,000 requests. A version that fails for 10 % is
# withdrawn after 17 requests (median).
_Z_FAILED = 3.0
# A version is withdrawn if the lower bound of its median latency, divided by that of production, is above this.
_MAX_SLOWER = 2.0
_MIN_TIMED = 20

_FORM = re.compile(r"([a-z0-9]+)\s*(<=|>=)\s*([0-9]+(?:\.[0-9]+)?)\s*(%|x|ms)")
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}
_SHARES: Mapping[str, Callable[[Side], Figure]] = {
    "errors": lambda side: share(side.failed, side.requests),
    "abstentions": lambda side: share(side.abstained, side.pictures),
    "confidence": mean_confidence,
}
_QUANTILES = {"p50": 0.5, "p99": 0.99}
_EXAMPLES = '"errors <= 0.1 %", "agreement >= 98 %" or "p99 <= 1.2x"'


@dataclass(frozen=True)
class Condition:
    """A condition on the observations of a trial, such as `p99 <= 1.2x`.

    Attributes:
        figure: `errors`, `abstentions` or `confidence`, as fractions; `agreement` with production; `p50` or `p99` of the latency.
        sign: `<=` or `>=`.
        limit: limit in `unit`.
        unit: `%`; `ms`; or `x`, a multiple of the same figure of production.
    """

    figure: str
    sign: str
    limit: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a condition.

        Raises:
            ConfigError: if the text is not a condition.
        """
        match = _FORM.fullmatch(text.strip().lower())
        if match is None:
            raise ConfigError(f"condition {text[:50]!r}: expected one like {_EXAMPLES}")
        figure, sign, limit, unit = match.groups()
        allowed = _units(figure)
        if not allowed:
            known = ", ".join((*_SHARES, "agreement", *_QUANTILES))
            raise ConfigError(f"condition {text[:50]!r}: unknown figure {figure}. Available: {known}")
        if unit not in allowed:
            raise ConfigError(f"condition {text[:50]!r}: {figure} has the unit {' or '.join(allowed)}")
        return cls(figure, sign, float(limit), unit)  # type: ignore[arg-type]

    def observed(self, tally: Tally) -> float:
        """The observed value, in the condition's unit; NaN if nothing was observed."""
        if self.figure == "agreement":
            return 100 * share(tally.agreed, tally.compared).value
        if self.figure in _QUANTILES:
            quantile = _QUANTILES[self.figure]
            return latency_ratio(tally, quantile).value if self.unit == "x" else tally.staged.quantile_ms(quantile)
        staged, production = (_SHARES[self.figure](side).value for side in (tally.staged, tally.production))
        if self.unit == "%":
            return 100 * staged
        return staged / production if production else (1.0 if staged == 0 else math.inf)

    def holds(self, tally: Tally) -> bool:
        """Whether the observed value meets the condition; `False` without observations."""
        return _OPERATORS[self.sign](self.observed(tally), self.limit)

    def __str__(self) -> str:
        return f"{self.figure} {self.sign} {self.limit:g}{'' if self.unit == 'x' else ' '}{self.unit}"


def _units(figure: str) -> tuple[str, ...]:
    if figure in _QUANTILES:
        return ("x", "ms")
    return ("%", "x") if figure in _SHARES else ("%",) if figure == "agreement" else ()


def reason_to_withdraw(tally: Tally) -> str:
    """Why a version must be withdrawn: it fails too often, or it is too slow. Empty if it may stay."""
    staged, production = tally.staged, tally.production
    if staged.failed >= _MIN_FAILURES:
        surely = wilson_interval(staged.failed, staged.requests, _Z_FAILED)[0]
        usual = production.failed / production.requests if production.requests else 0.0
        if surely > max(_MAX_FAILED, usual):
            theirs = f"production in {production.failed:,} of {production.requests:,}"
            return f"it failed in {staged.failed:,} of {staged.requests:,} requests, {theirs}"
    if min(staged.latency.sum(), production.latency.sum()) >= _MIN_TIMED:
        ratio = latency_ratio(tally, 0.5)
        if ratio.low > _MAX_SLOWER:
            took = f"it took {staged.quantile_ms(0.5):.3g} ms per request (median of {staged.requests:,})"
            return f"{took}, {ratio.value:.2g} times as long as production"
    return ""


def unmet(conditions: Sequence[Condition], tally: Tally) -> str:
    """The first condition that does not hold, with what was observed; empty if all hold."""
    for condition in conditions:
        if not condition.holds(tally):
            observed = condition.observed(tally)
            return f"{condition} does not hold: " + ("nothing was observed" if math.isnan(observed) else f"{observed:.3g}{condition.unit}")
    return ""


def describe(tally: Tally) -> dict[str, tuple[str, str]]:
    """Each figure of production and of the version on trial, with 95 % intervals, as text for the user."""
    sides = (tally.production, tally.staged)
    rows = {"requests": tuple(f"{side.requests:,}" for side in sides)}
    for name, of in _SHARES.items():
        rows[name] = tuple(_percent(of(side)) for side in sides)
    for name, quantile in _QUANTILES.items():
        rows[name] = tuple(_ms(latency_ms(side, quantile)) for side in sides)
    agreement = f"{_percent(share(tally.agreed, tally.compared))} of {tally.compared:,} pictures" if tally.compared else "–"
    rows["agreement"] = ("", agreement)
    return rows  # type: ignore[return-value]


def figures_for_log(tally: Tally) -> dict[str, str]:
    """The figures of `describe` as one text each."""
    rows = describe(tally).items()
    return {name: f"{staged} (production {production})" if production else staged for name, (production, staged) in rows}


def _percent(figure: Figure) -> str:
    return "–" if math.isnan(figure.value) else f"{100 * figure.value:.3g} % ({100 * figure.low:.3g}–{100 * figure.high:.3g})"


def _ms(figure: Figure) -> str:
    return f"{figure.value:.3g} ms ({figure.low:.3g}–{figure.high:.3g})" if figure.value else "–"
