"""Scores of predictions; numpy in, floats out.

    pairs            base pairs: precision, recall, F1 and MCC; exact, ±1, canonical nested
    regression       R², Spearman, Pearson, mean squared and absolute error
    classification   accuracy, precision, recall, specificity, F1, MCC, ROC-AUC, top-k
    bootstrap        the interval of a mean

NaN is refused everywhere with an InputError: a missing value must be left out by whoever knows why it is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rinalmo.errors import InputError
from rinalmo.rna.structure import Structure

__all__ = [
    "BinaryScores",
    "PairScores",
    "accuracy",
    "binary_scores",
    "bootstrap_interval",
    "canonical_nested_scores",
    "class_f1",
    "confusion_matrix",
    "matthews",
    "mean_absolute_error",
    "mean_squared_error",
    "pair_matthews",
    "pair_scores",
    "pearson",
    "r2",
    "ranks",
    "roc_auc",
    "spearman",
    "top_k_accuracy",
]


def numbers(name: str, values: ArrayLike) -> np.ndarray:
    """Values as a flat array of float64. Raises InputError if there are none, or some are NaN or infinite."""
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(array):
        raise InputError(f"{name} is empty; there is nothing to score")
    bad = ~np.isfinite(array)
    if bad.any():
        raise InputError(f"{name} has {bad.sum():,} NaN or infinite of {len(array):,} values; leave them out first")
    return array


def two(target: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Targets and predictions of the same number."""
    truth, found = numbers("the target", target), numbers("the prediction", predicted)
    same_number(truth, found)
    return truth, found


def same_number(truth: np.ndarray, found: np.ndarray) -> None:
    if len(truth) != len(found):
        raise InputError(f"{len(truth):,} targets do not fit {len(found):,} predictions")


def labels(name: str, values: ArrayLike) -> np.ndarray:
    """Class labels as a flat array of integers, from 0."""
    array = numbers(name, values)
    whole = array.astype(np.int64)
    if (whole != array).any() or whole.min() < 0:
        raise InputError(f"{name} must hold class numbers, whole and from 0")
    return whole


_ENTRIES = 1 << 22  # drawn at once, 32 MB


def bootstrap_interval(
    values: ArrayLike, seed: int = 0, samples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """The interval of the mean of `values` that holds the share `level` of the means of `samples` redrawn sets.

    The same values and seed give the same interval. Raises InputError for no values, NaN, or a level outside 0 to 1.
    """
    array = numbers("the values", values)
    if not 0 < level < 1 or samples < 1:
        raise InputError(f"a level of {level} of {samples} samples is no interval; use a level such as 0.95")
    draw = np.random.default_rng(seed)
    step = max(1, _ENTRIES // len(array))
    means = np.concatenate(
        [
            array[draw.integers(0, len(array), (min(step, samples - done), len(array)))].mean(axis=1)
            for done in range(0, samples, step)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class BinaryScores(NamedTuple):
    """What a confusion matrix of two classes tells."""

    accuracy: float
    precision: float
    recall: float
    specificity: float
    f1: float
    mcc: float


def accuracy(target: ArrayLike, predicted: ArrayLike) -> float:
    """The share of right classes."""
    matrix = confusion_matrix(target, predicted)
    return float(np.trace(matrix) / matrix.sum())


def confusion_matrix(target: ArrayLike, predicted: ArrayLike, classes: int = 0) -> np.ndarray:
    """How often each class (row) was predicted as each (column); at least `classes` of them."""
    truth, found = labels("the target", target), labels("the prediction", predicted)
    same_number(truth, found)
    size = max(classes, int(truth.max()) + 1, int(found.max()) + 1)
    return np.bincount(truth * size + found, minlength=size * size).reshape(size, size)


def binary_scores(target: ArrayLike, predicted: ArrayLike) -> BinaryScores:
    """Scores of 0/1 predictions against 0/1 targets."""
    matrix = confusion_matrix(target, predicted, 2)
    if len(matrix) > 2:
        raise InputError(f"there are {len(matrix)} classes; use class_f1 for more than two")
    (tn, fp), (fn, tp) = matrix.tolist()
    return BinaryScores(
        accuracy=(tp + tn) / (tp + tn + fp + fn),
        precision=_share(tp, tp + fp),
        recall=_share(tp, tp + fn),
        specificity=_share(tn, tn + fp),
        f1=_share(2 * tp, 2 * tp + fp + fn),
        mcc=matthews(tp, fp, fn, tn),
    )


def class_f1(target: ArrayLike, predicted: ArrayLike, average: str = "macro") -> float:
    """The mean of the classes' F1: equal weights (macro), or by their number in the target (weighted).

    Classes that are neither in the target nor predicted do not count.
    """
    if average not in ("macro", "weighted"):
        raise InputError(f"there is no average {average!r} of F1; use macro or weighted")
    matrix = confusion_matrix(target, predicted)
    hits, truth, found = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    seen = truth + found > 0
    f1 = 2 * hits[seen] / (truth + found)[seen]
    return float(np.average(f1, weights=truth[seen] if average == "weighted" else None))


def matthews(tp: int, fp: int, fn: int, tn: int) -> float:
    """Matthews' correlation coefficient from counts; 0 if a row or a column of the confusion matrix is empty."""
    return _share(tp * tn - fp * fn, sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def roc_auc(target: ArrayLike, scores: ArrayLike) -> float:
    """The chance that a positive scores higher than a negative, ties counted half; NaN without both."""
    truth, found = labels("the target", target), numbers("the scores", scores)
    same_number(truth, found)
    if truth.max() > 1:
        raise InputError("ROC-AUC is for the classes 0 and 1")
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    above = ranks(found)[truth == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def top_k_accuracy(target: ArrayLike, scores: np.ndarray, k: int) -> float:
    """The share of targets among the `k` classes of highest score, `(examples, classes)`; ties go to later classes.

    Raises InputError if the shapes do not fit or k is not from 1 to the number of classes.
    """
    truth = labels("the target", target)
    numbers("the scores", scores)
    same_number(truth, scores)
    if not 1 <= k <= scores.shape[1]:
        raise InputError(f"top {k} of {scores.shape[1]} classes cannot be taken")
    if truth.max() >= scores.shape[1]:
        raise InputError(f"the target has class {truth.max()}, but there are scores of {scores.shape[1]} classes")
    best = np.argsort(scores, axis=1, kind="stable")[:, -k:]
    return float((best == truth[:, None]).any(axis=1).mean())


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def r2(target: ArrayLike, predicted: ArrayLike) -> float:
    """The share of the target's variance that is explained; below 0 if its mean would be the better prediction."""
    truth, found = two(target, predicted)
    residual, total = ((truth - found) ** 2).sum(), ((truth - truth.mean()) ** 2).sum()
    if total == 0:
        return float(residual == 0)
    return float(1 - residual / total)


def spearman(target: ArrayLike, predicted: ArrayLike) -> float:
    """The correlation of ranks, ties with their average rank; NaN if one side does not vary."""
    truth, found = two(target, predicted)
    return pearson(ranks(truth), ranks(found))


def pearson(target: ArrayLike, predicted: ArrayLike) -> float:
    """The linear correlation; NaN if one side does not vary."""
    truth, found = two(target, predicted)
    if np.ptp(truth) == 0 or np.ptp(found) == 0:
        return float("nan")
    truth, found = truth - truth.mean(), found - found.mean()
    return float(np.clip(truth @ found / np.sqrt((truth @ truth) * (found @ found)), -1, 1))


def mean_squared_error(target: ArrayLike, predicted: ArrayLike) -> float:
    truth, found = two(target, predicted)
    return float(((truth - found) ** 2).mean())


def mean_absolute_error(target: ArrayLike, predicted: ArrayLike) -> float:
    truth, found = two(target, predicted)
    return float(np.abs(truth - found).mean())


def ranks(values: ArrayLike) -> np.ndarray:
    """Ranks from 1, equal values with the average of theirs."""
    _, which, counts = np.unique(numbers("the values", values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]


Pair = tuple[int, int]


class PairScores(NamedTuple):
    """Base-pair scores of one structure."""

    precision: float
    recall: float
    f1: float


def pair_scores(target: Iterable[Pair], predicted: Iterable[Pair], *, tolerance: int = 0) -> PairScores:
    """Precision, recall and F1 of predicted pairs `(i, j)`, i < j; a position may be in several of them.

    With `tolerance` 1 a pair is right if one of its ends is off by one, as the paper counts; both ends off by one is
    wrong. The count is not symmetric: precision is the share of predicted pairs near a true one, recall the share of
    true pairs near a predicted one, and one pair may serve several.
    """
    truth, found = set(target), set(predicted)
    near_truth, near_found = (_relaxed(truth), _relaxed(found)) if tolerance else (truth, found)
    precision = len(found & near_truth) / len(found) if found else 0.0
    recall = len(truth & near_found) / len(truth) if truth else 0.0
    total = precision + recall
    return PairScores(precision, recall, 2 * precision * recall / total if total >= 1e-5 else 0.0)


def _relaxed(pairs: set[Pair]) -> set[Pair]:
    """The pairs and their shifts by one at one end."""
    return pairs | {near for i, j in pairs for near in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))}


def canonical_nested_scores(target: Structure, predicted: Iterable[Pair]) -> PairScores:
    """Exact scores against the target's AU, GC and GU pairs that are not in pseudoknots; of `predicted`, all count.

    This reproduces the 1,305 F1 values published for RiNALMo on bpRNA TS0 (github.com/sinc-lab/rna-llm-folding). Found
    by comparing: there the pseudoknots are taken out first, by keeping the round brackets of bpRNA's own dot-bracket
    text, then pairs that are not canonical in either case of letters; no minimum loop is asked for. The predictions are
    counted as they are, although 4 in 5 have nucleotides with two partners. `Structure.nested` keeps as many pairs as
    bpRNA's round brackets in all of its 13,419 structures, and the very same in 99.2 %; the others are ties.
    """
    return pair_scores(target.nested().canonical().pairs, predicted)


def pair_matthews(target: Iterable[Pair], predicted: Iterable[Pair], length: int) -> float:
    """Matthews' correlation over all pairs of positions i < j of a sequence of `length` nt, exact."""
    truth, found = set(target), set(predicted)
    hits = len(truth & found)
    rest = length * (length - 1) // 2 - len(truth | found)
    return matthews(hits, len(found) - hits, len(truth) - hits, rest)
