"""Random numbers from keys: known values, uniform, independent of order, and permutations that are permutations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rinalmo.data import sampling


def test_the_numbers_are_splitmix64():
    """The first outputs of the published generator from seed 1234567 (prng.di.unimi.it/splitmix64.c)."""
    key = np.asarray(1234567, dtype=np.uint64)
    assert sampling.random_bits(key, np.arange(3)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_keys_differ_in_every_counter():
    keys = {int(sampling.random_key(seed, a, b)) for seed in (0, 1, -1) for a in range(5) for b in range(5)}
    assert len(keys) == 75


def test_arrays_give_what_single_counters_give():
    together = sampling.random_key(3, 2, np.arange(10))
    assert together.tolist() == [int(sampling.random_key(3, 2, i)) for i in range(10)]


def test_uniform_numbers_are_uniform():
    values = sampling.random_uniform(sampling.random_key(0, np.arange(200_000)), 3)
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, 20, (0, 1))[0]
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 44  # chi square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size, seed):
    values = sampling.random_permutation(np.arange(size), size, sampling.random_key(seed))
    assert sorted(values.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [5, 12, 40])
def test_every_place_is_as_likely_for_every_value(size):
    rounds = 2000
    counts = np.zeros((size, size))
    for epoch in range(rounds):
        counts[np.arange(size), sampling.random_permutation(np.arange(size), size, sampling.random_key(1, epoch))] += 1
    expected = rounds / size
    freedom = (size - 1) ** 2
    # The cells of a permutation matrix exclude each other, which widens their spread by size / (size - 1).
    chi_square = ((counts - expected) ** 2 / expected).sum() * (size - 1) / size
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_permute_does_not_change_its_argument():
    places = np.arange(10)
    sampling.random_permutation(places, 10, sampling.random_key(0))
    assert places.tolist() == list(range(10))
