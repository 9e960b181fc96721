"""Metrics of predictions: base pairs, numbers, classes, and bootstrap intervals; numpy in, floats out.

The definitions are scikit-learn's and scipy's, and the tests compare with them. They are not imported: that takes 3 s,
and a call on 60 examples up to 75 times as long as here, which a bootstrap repeats a thousand times (docs/log.md).

NaN is refused with an InputError: leave missing values out first.
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
    "ClassScores",
    "PairScores",
    "RegressionScores",
    "binary_scores",
    "bootstrap_interval",
    "canonical_nested_scores",
    "class_scores",
    "pair_scores",
    "regression_scores",
]

Pair = tuple[int, int]


class PairScores(NamedTuple):
    """Base-pair metrics of one structure."""

    precision: float
    recall: float
    f1: float


def pair_scores(target: Iterable[Pair], predicted: Iterable[Pair], *, tolerance: int = 0) -> PairScores:
    """Precision, recall and F1 of predicted base pairs.

    The relaxed count is not symmetric: precision is the share of predicted pairs near a true one, recall the share of
    true pairs near a predicted one, and one pair may serve several.

    Args:
        target: True pairs `(i, j)`, i < j; a position may be in several of them.
        predicted: Predicted pairs.
        tolerance: 0: exact. 1: a pair is right if one of its ends is off by one, as the paper counts; both ends off by
            one is wrong.

    Returns:
        The three metrics from 0 to 1; 0 without pairs.

    Examples:
        >>> from rinalmo.metrics import pair_scores
        >>> pair_scores([(0, 8), (1, 7)], [(0, 8), (2, 7)])
        PairScores(precision=0.5, recall=0.5, f1=0.5)
        >>> pair_scores([(0, 8), (1, 7)], [(0, 8), (2, 7)], tolerance=1).f1
        1.0
    """
    true_pairs, predicted_pairs = set(target), set(predicted)
    near_true, near_predicted = true_pairs, predicted_pairs
    if tolerance:
        near_true, near_predicted = (
            pairs | {near for i, j in pairs for near in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))}
            for pairs in (true_pairs, predicted_pairs)
        )
    precision = len(predicted_pairs & near_true) / len(predicted_pairs) if predicted_pairs else 0.0
    recall = len(true_pairs & near_predicted) / len(true_pairs) if true_pairs else 0.0
    total = precision + recall
    return PairScores(precision, recall, 2 * precision * recall / total if total >= 1e-5 else 0.0)


def canonical_nested_scores(target: Structure, predicted: Iterable[Pair]) -> PairScores:
    """Exact metrics against the target's AU, GC and GU pairs outside pseudoknots; all predicted pairs count.

    This reproduces the 1,305 F1 values published for RiNALMo on bpRNA TS0 (github.com/sinc-lab/rna-llm-folding). There
    pseudoknots are taken out first, by keeping the round brackets of bpRNA's own dot-bracket text, then pairs that are
    not canonical; there is no minimum loop length. Predictions count as they are, although 4 in 5 have nucleotides with
    two partners. `Structure.nested` keeps as many pairs as bpRNA's round brackets in all of its 13,419 structures, and
    the same pairs in 99.2 %; the others are ties.

    Args:
        target: The true structure.
        predicted: Predicted pairs `(i, j)`, i < j.

    Returns:
        As `pair_scores`.

    Examples:
        >>> from rinalmo.metrics import canonical_nested_scores
        >>> from rinalmo.rna.structure import Structure
        >>> hairpin = Structure.from_dot_bracket("hairpin", "GGAAAAAAC", "((.....))")  # G-C and G-A
        >>> canonical_nested_scores(hairpin, [(0, 8)]).f1
        1.0
    """
    return pair_scores(target.nested().canonical().pairs, predicted)


_DRAWN_AT_ONCE = 1 << 22  # values, 32 MB


def bootstrap_interval(
    values: ArrayLike, seed: int = 0, samples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """The bootstrap percentile interval of a mean. The same values and seed give the same interval.

    Args:
        values: One value for each example.
        seed: Random seed.
        samples: Number of resampled sets.
        level: Share of the resampled means that the interval holds.

    Returns:
        Lower and upper end.

    Raises:
        InputError: There are no values, some are NaN, or the level is not between 0 and 1.

    Examples:
        >>> from rinalmo.metrics import bootstrap_interval
        >>> low, high = bootstrap_interval([0.5, 0.7, 0.9, 1.0])
        >>> low < 0.775 < high
        True
    """
    array = _numbers("the values", values)
    if not 0 < level < 1 or samples < 1:
        raise InputError(f"{samples} samples are too few for an interval at level {level}; use a level such as 0.95")
    generator, step = np.random.default_rng(seed), max(1, _DRAWN_AT_ONCE // len(array))
    means = []
    for done in range(0, samples, step):
        drawn = generator.integers(0, len(array), (min(step, samples - done), len(array)))
        means.append(array[drawn].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class RegressionScores(NamedTuple):
    """Metrics of predicted numbers: the coefficient of determination, the rank correlation, and two errors."""

    r2: float
    spearman: float
    mse: float
    mae: float


def regression_scores(target: ArrayLike, predicted: ArrayLike) -> RegressionScores:
    """Metrics of predicted numbers.

    Args:
        target: True values.
        predicted: Predicted values, as many.

    Returns:
        R² of a constant target is 1 if all predictions are right, otherwise 0. Spearman's correlation, in which ties
        have their average rank, is NaN if one side is constant.

    Raises:
        InputError: The numbers differ, or there are none, NaN or infinite ones.

    Examples:
        >>> from rinalmo.metrics import regression_scores
        >>> regression_scores([1, 2, 3], [1, 2, 4])
        RegressionScores(r2=0.5, spearman=1.0, mse=0.3333333333333333, mae=0.3333333333333333)
    """
    true, values = _paired(target, predicted)
    errors, around = true - values, true - true.mean()
    residual, total = (errors**2).sum(), (around**2).sum()
    spearman = float("nan")
    if np.ptp(true) and np.ptp(values):
        x, y = _ranks(true) - (len(true) + 1) / 2, _ranks(values) - (len(true) + 1) / 2
        spearman = float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))
    return RegressionScores(
        r2=float(residual == 0) if total == 0 else float(1 - residual / total),
        spearman=spearman,
        mse=float((errors**2).mean()),
        mae=float(np.abs(errors).mean()),
    )


class BinaryScores(NamedTuple):
    """Metrics of a yes or no; `roc_auc` is the chance that a positive scores higher than a negative."""

    accuracy: float
    precision: float
    recall: float
    specificity: float
    f1: float
    mcc: float
    roc_auc: float


def binary_scores(target: ArrayLike, predicted: ArrayLike) -> BinaryScores:
    """Metrics of predicted probabilities, or of predicted classes 0 and 1.

    Args:
        target: True classes, 0 or 1.
        predicted: Probabilities of class 1, as many; those above 0.5 predict it.

    Returns:
        0 where a metric's denominator is 0; ROC-AUC counts ties half, and is NaN unless there are both classes.

    Raises:
        InputError: The target has other classes, or the numbers differ.

    Examples:
        >>> from rinalmo.metrics import binary_scores
        >>> scores = binary_scores([1, 1, 0, 0], [0.9, 0.3, 0.4, 0.1])
        >>> scores.recall, scores.roc_auc
        (0.5, 0.75)
    """
    true, values = _paired(target, predicted)
    if not np.isin(true, (0, 1)).all():
        raise InputError("the target must contain only the classes 0 and 1; use class_scores for others")
    positive, chosen = true == 1, values > 0.5
    tp, fp = int((positive & chosen).sum()), int((~positive & chosen).sum())
    fn, tn = int((positive & ~chosen).sum()), int((~positive & ~chosen).sum())
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    pairs = (tp + fn) * (tn + fp)
    above = _ranks(values)[positive].sum() - (tp + fn) * (tp + fn + 1) / 2
    return BinaryScores(
        accuracy=(tp + tn) / len(true),
        precision=tp / (tp + fp) if tp else 0.0,
        recall=tp / (tp + fn) if tp else 0.0,
        specificity=tn / (tn + fp) if tn else 0.0,
        f1=2 * tp / (2 * tp + fp + fn) if tp else 0.0,
        mcc=(tp * tn - fp * fn) / sqrt(product) if product else 0.0,
        roc_auc=float(above / pairs) if pairs else float("nan"),
    )


class ClassScores(NamedTuple):
    """Metrics of several classes; F1 with equal weights, and weighted by the number of each class in the target."""

    accuracy: float
    macro_f1: float
    weighted_f1: float


def class_scores(target: ArrayLike, predicted: ArrayLike) -> ClassScores:
    """Metrics of predicted classes. Classes that are neither in the target nor predicted do not count.

    Args:
        target: True classes as integers from 0.
        predicted: Predicted classes, as many.

    Raises:
        InputError: A class is no such integer, or the numbers differ.

    Examples:
        >>> from rinalmo.metrics import class_scores
        >>> class_scores([0, 1, 2, 2], [0, 1, 2, 0]).accuracy
        0.75
    """
    classes = []
    for name, values in zip(("target", "prediction"), _paired(target, predicted), strict=True):
        if (values != np.floor(values)).any() or values.min() < 0:
            raise InputError(f"the {name} must be class numbers: whole numbers from 0")
        classes.append(values.astype(np.int64))
    size = int(max(map(np.max, classes))) + 1
    matrix = np.bincount(classes[0] * size + classes[1], minlength=size * size).reshape(size, size)
    hits, true, positive = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    present = true + positive > 0
    f1 = 2 * hits[present] / (true + positive)[present]
    weighted = float(np.average(f1, weights=true[present]))
    return ClassScores(float(hits.sum() / matrix.sum()), float(f1.mean()), weighted)


def _paired(target: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as flat arrays of float64."""
    true, values = _numbers("the target", target), _numbers("the prediction", predicted)
    if len(true) != len(values):
        raise InputError(f"{len(true):,} targets do not fit {len(values):,} predictions")
    return true, values


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(array):
        raise InputError(f"{name} is empty; there is nothing to score")
    if bad := len(array) - np.count_nonzero(np.isfinite(array)):
        raise InputError(f"{name} has {bad:,} NaN or infinite values of {len(array):,}; remove them first")
    return array


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values have the average of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
