"""How far a mean of scores would move with other examples: the percentile bootstrap.

It speaks of the examples only: not of the training run's chance, nor of families that are missing from the test set.

Reference: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rinalmo.errors import InputError
from rinalmo.metrics.checks import numbers

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
