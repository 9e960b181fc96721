"""Random numbers that depend on nothing but what they are for: a seed and counters such as epoch and item.

No generator is carried along. Whoever asks for number `index` of a key gets the same one in any order, on any rank
and in any process, and thousands at once. This is SplitMix64 read as a function of its counter.

The surprise is that numpy's Philox is not used: a generator for each item costs more than masking the item, and
numpy does not promise the same numbers from one version to the next (NEP 19), which a resumed run needs.

Reference: Steele, Lea, Flood 2014 (doi:10.1145/2660193.2660195); the mixing constants are Stafford's variant 13.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_WORD = (1 << 64) - 1
_ROUNDS = 6


def key(seed: int, *counters: ArrayLike) -> Keys:
    """A 64-bit key for a seed and non-negative counters; arrays of counters give arrays of keys."""
    state = _mix(np.asarray(seed & _WORD, dtype=np.uint64))
    for counter in counters:
        state = _mix(_mix(state) ^ _mix(np.asarray(counter).astype(np.uint64)))
    return state


def bits(keys: Keys, index: ArrayLike = 0) -> Keys:
    """The 64 random bits with this index under each key."""
    with np.errstate(over="ignore"):
        return _mix(keys + np.asarray(index).astype(np.uint64) * _GOLDEN)


def uniform(keys: Keys, index: ArrayLike = 0) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each key and index."""
    return (bits(keys, index) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(places: NDArray[np.int64], size: int, keys: Keys) -> NDArray[np.int64]:
    """Where a random permutation of 0 … size − 1 takes each place, without ever making the permutation.

    A Feistel network permutes the next larger power of four; whatever it takes beyond `size` is sent through it again.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    values = _feistel(places.astype(np.uint64), half, keys)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: Keys, half: np.uint64, keys: Keys) -> Keys:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & low
    for turn in range(_ROUNDS):
        left, right = right, left ^ (_mix(right ^ bits(keys, turn)) & low)
    return (left << half) | right


def _mix(x: Keys) -> Keys:
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _FIRST
        x = (x ^ (x >> np.uint64(27))) * _SECOND
        return x ^ (x >> np.uint64(31))
