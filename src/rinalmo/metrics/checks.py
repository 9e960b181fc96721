"""What every metric asks of its arrays: equal lengths, something to count, no NaN."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rinalmo.errors import InputError


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
