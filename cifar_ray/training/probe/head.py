"""Fit a linear head on features with L-BFGS; cross-validation within the training images chooses the regularisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cifar_ray.data.stratification import stratify
from cifar_ray.metrics.accuracy import Labels
from cifar_ray.metrics.label_rules import sigmoid
from cifar_ray.metrics.trust import Trust

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
_Link = Callable[[Floats], Floats]  # logits `[N, F, C]` → losses `[N, F]`; overwrites the logits with the gradient of the losses

FOLDS = 5
# L2 regularisation: the objective is the mean cross-entropy + strength / 2 · squared norm of the weights. From strong to weak, because
# each solution is the start of the next.
_STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
_MUCH_WORSE = 1.1  # stop at this multiple of the best held-out loss: the loss has only one minimum along the strengths
_MAX_ITERATIONS = 100
_MAX_FOLD_LOGITS = 30_000_000  # rows × folds × classes; more would need more memory than the features themselves


@dataclass(frozen=True)
class LinearHead:
    """Head of a network: logits are `features @ weight.T + bias`.

    Attributes:
        weight: float32 `[C, D]`.
        bias: float32 `[C]`.
    """

    weight: Floats
    bias: Floats

    def logits(self, features: Floats) -> Floats:
        """Logits, float32 `[N, C]`, of features, float32 `[N, D]`."""
        result: Floats = features @ self.weight.T + self.bias
        return result


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A head and its cross-validation.

    Attributes:
        head: fitted on all rows.
        strength: the regularisation that cross-validation chose.
        held_out: float32 `[R, C]`: logits of each row from a head that was not fitted on its fold.
        rows: int64 `[R]`: the rows of the features that `held_out` covers: all rows, or only one fold if there are too many.
        loss: mean cross-entropy of `held_out`, nats; for several labels per image binary, summed over the classes.
        score: accuracy of `held_out`, or its mAP for several labels per image, 0–1.
        mean: float64 `[D]`, mean of the features before standardisation.
        std: float64 `[D]`, standard deviation of the features before standardisation.
    """

    head: LinearHead
    strength: float
    held_out: Floats
    rows: Integers
    loss: float
    score: float
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


def assign_folds(labels: Labels, groups: Integers, seed: int, folds: int = FOLDS) -> Integers:
    """Assign each row to a fold, int64 `[N]`, stratified by class; rows of one group (near-duplicates) share a fold.

    Args:
        labels: int64 `[N]`, or uint8 `[N, C]`, see `stratify`.
        groups: int64 `[N]`; equal numbers mark rows that belong together.
        seed: seed of the assignment.
        folds: number of folds.
    """
    generator = np.random.default_rng((seed, 7))
    if labels.ndim == 2:
        return stratify(labels, groups, [1 / folds] * folds, generator)
    names, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    label_of = labels[first]  # of the first row of each group
    fold_of = np.zeros(len(names), np.int64)
    start = 0
    for label in np.unique(label_of):
        members = generator.permutation(np.flatnonzero(label_of == label))
        fold_of[members] = (start + np.arange(len(members))) % folds
        start += len(members)
    result: Integers = fold_of[group_of]
    return result


def fit_head(
    features: Floats,
    labels: Labels,
    num_classes: int,
    fold_of: Integers,
    weights: Floats | None = None,
    on_step: Callable[[int], None] = lambda _: None,
    of_positives: Floats | None = None,
) -> FittedHead:
    """Fit logistic regression on standardised features: multinomial, or for several labels per image one regression per label.

    The regularisation with the smallest cross-entropy on held-out folds is chosen; the head is then fitted on all rows.

    Args:
        features: float32 `[N, D]`; they are standardised in place.
        labels: int64 `[N]`, or uint8 `[N, C]`.
        num_classes: C.
        fold_of: int64 `[N]`, from `assign_folds`.
        weights: float32 `[N]`, weight of each image in the loss; `None` for equal weights.
        on_step: called with 1 after each fit.
        of_positives: for several labels, weight of the positives of each class, float32 `[C]`; `None` for equal weights.
    """
    mean, std = _standardise(features)
    each = np.ones(len(labels), np.float32) if weights is None else weights
    link = _softmax(labels) if labels.ndim == 1 else _sigmoid(labels, of_positives)
    folds = int(fold_of.max()) + 1
    held = range(folds if len(labels) * folds * num_classes <= _MAX_FOLD_LOGITS else 1)
    kept = np.stack([(fold_of != fold) * each for fold in held], axis=1)
    tested = np.flatnonzero(fold_of < len(held))
    trust, solution = Trust.plain(labels), None
    best = (np.inf, 0.0, np.zeros((0, num_classes), np.float32))
    for strength in _STRENGTHS:
        solution = _solve(features, link, kept, strength, num_classes, solution)
        logits = _held_out(features, fold_of, solution, tested)
        on_step(1)
        loss = trust.evaluate(logits, labels[tested]).loss
        if loss < best[0]:
            best = (loss, strength, logits)
        elif loss > _MUCH_WORSE * best[0]:
            break
    loss, strength, logits = best
    start = None if solution is None else solution.mean(axis=1, keepdims=True)
    final = _solve(features, link, each[:, None], strength, num_classes, start)
    weight = (final[:-1, 0] / std[:, None]).T
    head = LinearHead(np.ascontiguousarray(weight, np.float32), (final[-1, 0] - weight @ mean).astype(np.float32))
    score = trust.evaluate(logits, labels[tested]).score
    return FittedHead(head, strength, logits, tested, loss, score, mean, std)


def cross_validate(
    features: Floats,
    labels: Integers,
    num_classes: int,
    fold_of: Integers,
    weights: Floats | None = None,
    on_step: Callable[[int], None] = lambda _: None,
) -> Floats:
    """Logits of each row, float32 `[N, C]`, from a head that was not fitted on the row's fold.

    Unlike `FittedHead.held_out`, they cover all rows, however many there are. Arguments are those of `fit_head`; labels are int64 `[N]`.
    """
    fitted = fit_head(features, labels, num_classes, fold_of, weights, on_step)
    each = np.ones(len(labels), np.float32) if weights is None else weights
    logits = np.empty((len(labels), num_classes), np.float32)
    logits[fitted.rows] = fitted.held_out
    for fold in sorted(set(fold_of.tolist()) - set(fold_of[fitted.rows].tolist())):
        kept = ((fold_of != fold) * each)[:, None]
        solution = _solve(features, _softmax(labels), kept, fitted.strength, num_classes, None)
        rows = np.flatnonzero(fold_of == fold)
        logits[rows] = features[rows] @ solution[:-1, 0] + solution[-1, 0]
        on_step(1)
    return logits


def _standardise(features: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Subtract the mean and divide by the standard deviation of each column, in place; return both."""
    mean = features.mean(axis=0, dtype=np.float64)
    features -= mean.astype(np.float32)
    std = np.sqrt(np.einsum("nd,nd->d", features, features, dtype=np.float64) / len(features)) + 1e-6
    features /= std.astype(np.float32)
    return mean, std


def _solve(rows: Floats, link: _Link, kept: Floats, strength: float, num_classes: int, start: Floats | None) -> Floats:
    """Weights, float32 `[D + 1, F, C]`, of one regression per column of `kept`; the last row is the bias.

    The regressions are independent, but one run of L-BFGS (Liu & Nocedal 1989) on the sum of their objectives needs only one matrix
    product for all of them.
    """
    from scipy.optimize import minimize

    width, problems = rows.shape[1], kept.shape[1]
    shares = kept / kept.sum(axis=0)

    def objective(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        parameters = flat.reshape(width + 1, -1).astype(np.float32)
        logits = (rows @ parameters[:-1] + parameters[-1]).reshape(len(rows), problems, num_classes)
        value = float((link(logits) * shares).sum()) + 0.5 * strength * float((parameters[:-1] ** 2).sum())
        logits *= shares[:, :, None]
        slopes = logits.reshape(len(rows), -1)
        gradient = np.concatenate((rows.T @ slopes + strength * parameters[:-1], slopes.sum(axis=0, keepdims=True)))
        return value, gradient.ravel().astype(np.float64)

    first = np.zeros((width + 1) * problems * num_classes) if start is None else start.ravel().astype(np.float64)
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options={"maxiter": _MAX_ITERATIONS, "gtol": 1e-4, "ftol": 1e-9})
    solution: Floats = found.x.reshape(width + 1, problems, num_classes).astype(np.float32)
    return solution


def _softmax(labels: Integers) -> _Link:
    """Softmax cross-entropy, for one class per image."""
    at = np.arange(len(labels))

    def link(logits: Floats) -> Floats:
        logits -= logits.max(axis=2, keepdims=True)
        true = logits[at, :, labels].copy()
        np.exp(logits, out=logits)
        sums = logits.sum(axis=2)
        logits /= sums[:, :, None]
        logits[at, :, labels] -= 1
        losses: Floats = np.log(sums) - true
        return losses

    return link


def _sigmoid(labels: npt.NDArray[np.uint8], positive_weights: Floats | None) -> _Link:
    """Binary cross-entropy, summed over the classes, for several labels per image."""
    true = labels[:, None].astype(np.float32)
    weights = np.float32(1) if positive_weights is None else 1 + true * (positive_weights - 1)

    def link(logits: Floats) -> Floats:
        losses: Floats = (weights * (np.logaddexp(0, logits) - true * logits)).sum(axis=2)
        logits[:] = weights * (sigmoid(logits) - true)
        return losses

    return link


def _held_out(features: Floats, fold_of: Integers, solution: Floats, tested: Integers) -> Floats:
    logits = np.empty((len(tested), solution.shape[2]), np.float32)
    for fold in range(solution.shape[1]):
        here = fold_of[tested] == fold
        logits[here] = features[tested[here]] @ solution[:-1, fold] + solution[-1, fold]
    return logits
