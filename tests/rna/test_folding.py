"""Decoding and pair scores against the authors' numbers, exactly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rinalmo.errors import InputError
from rinalmo.metrics import pair_scores
from rinalmo.rna.folding import canonical_mask, decode_greedy, pair_matrix


@pytest.fixture(scope="module")
def expected(golden):
    return np.load(golden / "official" / "official_tiny.npz")


@pytest.mark.parametrize("n", [0, 1])
def test_official_decoding(expected, n):
    probabilities, sequence = expected[f"fold_probs_{n}"], str(expected[f"fold_seq_{n}"])
    before = probabilities.copy()
    for text in (sequence, sequence.lower(), sequence.replace("U", "T")):
        pairs = decode_greedy(probabilities, text, 0.13)
        np.testing.assert_array_equal(pair_matrix(pairs, len(sequence)), expected[f"fold_pred_{n}"])
    np.testing.assert_array_equal(probabilities, before)


@pytest.mark.parametrize("n", [0, 1])
def test_official_scores(expected, n):
    target, predicted = expected[f"fold_target_{n}"], expected[f"fold_pred_{n}"]
    found = (*pair_scores(target, predicted, tolerance=1), *pair_scores(target, predicted))
    np.testing.assert_allclose(found, expected[f"fold_metrics_{n}"], atol=1e-12)


def repeated_maximum(probabilities, sequence, threshold):
    """The definition: the largest allowed probability, its row and column cleared, and again."""
    length = len(sequence)
    scores = np.where(canonical_mask(sequence) & (probabilities > threshold), probabilities, 0.0)
    for i in range(length):
        scores[i, max(0, i - 3) : i + 4] = 0.0
    pairs = []
    while scores.max(initial=0.0) > 0:
        i, j = np.unravel_index(scores.argmax(), scores.shape)
        pairs.append((int(min(i, j)), int(max(i, j))))
        scores[[i, j]] = 0.0
        scores[:, [i, j]] = 0.0
    return sorted(pairs)


@settings(max_examples=60, deadline=None)
@given(st.text("ACGU", min_size=1, max_size=24), st.integers(0, 1000), st.integers(1, 6))
def test_one_pass_equals_repeated_maxima(sequence, seed, levels):
    """Ties included: few levels make many of them."""
    matrix = np.random.default_rng(seed).integers(0, levels + 1, (len(sequence),) * 2) / levels
    symmetric = np.triu(matrix, 1) + np.triu(matrix, 1).T
    assert decode_greedy(symmetric, sequence, 0.1) == repeated_maximum(symmetric, sequence, 0.1)


def test_switches():
    probabilities = np.zeros((6, 6))
    probabilities[0, 5] = probabilities[5, 0] = 0.9
    assert decode_greedy(probabilities, "GAAAAC") == [(0, 5)]
    assert decode_greedy(probabilities, "GAAAAG") == []
    assert decode_greedy(probabilities, "GAAAAG", canonical=False) == [(0, 5)]
    assert decode_greedy(probabilities, "GAAAAC", 0.9) == []
    assert decode_greedy(probabilities, "GAAAAC", min_distance=6) == []
    with pytest.raises(InputError, match="do not fit"):
        decode_greedy(probabilities, "GAAC")


def test_scores_of_nothing():
    empty = np.zeros((5, 5), dtype=int)
    assert pair_scores(empty, empty) == (0.0, 0.0, 0.0)
