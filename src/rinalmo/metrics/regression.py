"""Scores of predicted numbers. Definitions and edge cases are scikit-learn's for R² and scipy's for correlations.

A target that does not vary has R² 1 if it is met exactly, else 0, and no correlation (NaN).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rinalmo.metrics.checks import numbers, two


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
