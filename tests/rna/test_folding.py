"""Decoding: greedy against the authors' numbers, exactly; the others against all possible structures."""

import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.rna.decoding import METHODS, THRESHOLDS, decode, expected_f1
from rinalmo.rna.structure import CANONICAL_PAIRS, PairList, Structure, can_pair, canonical_mask, heaviest_nested


def symmetric(length, seed, levels=0):
    """Random probabilities; with levels, so few different ones that many are equal."""
    draw = np.random.default_rng(seed)
    values = draw.integers(0, levels + 1, (length, length)) / levels if levels else draw.random((length, length))
    return np.triu(values, 1) + np.triu(values, 1).T


@pytest.mark.parametrize("n", [0, 1])
def test_official_decoding(golden, n):
    expected = np.load(golden / "official" / "official_tiny.npz")
    probabilities, sequence = expected[f"fold_probs_{n}"], str(expected[f"fold_seq_{n}"])
    before = probabilities.copy()
    for text in (sequence, sequence.lower(), sequence.replace("U", "T")):
        pairs = decode(probabilities, text, threshold=0.13)
        np.testing.assert_array_equal(Structure("", sequence, pairs).matrix(), expected[f"fold_pred_{n}"])
    np.testing.assert_array_equal(probabilities, before)


def test_canonical_mask_is_the_rule_letter_by_letter():
    sequence = "ACGUTNacgutnRX-"
    mask = canonical_mask(sequence)
    allowed = {frozenset(pair) for pair in CANONICAL_PAIRS}
    for i, first in enumerate(sequence.upper().replace("T", "U")):
        for j, second in enumerate(sequence.upper().replace("T", "U")):
            assert mask[i, j] == (frozenset((first, second)) in allowed)
            assert can_pair(sequence, np.array([i]), np.array([j]))[0] == mask[i, j]


def repeated_maximum(probabilities, sequence, threshold, canonical=True, min_distance=4):
    """The definition: the largest allowed probability, its row and column cleared, and again."""
    length = len(sequence)
    mask = canonical_mask(sequence) if canonical else np.ones((length, length), dtype=bool)
    scores = np.where(mask & (probabilities > threshold), probabilities, 0.0)
    apart = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    scores[apart < min_distance] = 0.0
    pairs = []
    while scores.max(initial=0.0) > 0:
        i, j = np.unravel_index(scores.argmax(), scores.shape)
        pairs.append((int(min(i, j)), int(max(i, j))))
        scores[[i, j]] = 0.0
        scores[:, [i, j]] = 0.0
    return sorted(pairs)


@settings(max_examples=60, deadline=None)
@given(st.text("ACGUacgutN", min_size=1, max_size=40), st.integers(0, 1000), st.integers(0, 6), st.booleans())
def test_rounds_equal_repeated_maxima(sequence, seed, levels, canonical):
    matrix = symmetric(len(sequence), seed, levels)
    for kind in (np.float64, np.float32):
        found = decode(matrix.astype(kind), sequence, threshold=0.1, canonical=canonical)
        assert found == repeated_maximum(matrix.astype(kind), sequence, 0.1, canonical)


def all_structures(candidates):
    """Every set of pairs that share no position."""
    for size in range(len(candidates) + 1):
        for chosen in combinations(candidates, size):
            if len({end for pair in chosen for end in pair}) == 2 * size:
                yield chosen


def crosses(one, other):
    (i, j), (k, m) = sorted([one, other])
    return i < k < j < m


def gain(pairs, probabilities, threshold):
    return sum(probabilities[pair] - threshold for pair in pairs)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_nested_and_matching_are_the_best_there_are(seed, levels):
    sequence = "".join(np.random.default_rng(seed).choice(list("ACGU"), 11))
    probabilities, threshold = symmetric(11, seed, levels), 0.6
    candidates = [(i, j) for i, j in zip(*np.nonzero(np.triu(probabilities > threshold, 4)), strict=True)]
    candidates = [pair for pair in candidates if canonical_mask(sequence)[pair]][:14]
    allowed = np.zeros_like(probabilities)
    for pair in candidates:
        allowed[pair] = probabilities[pair]
    everything = list(all_structures(candidates))
    nested = [pairs for pairs in everything if not any(crosses(*two) for two in combinations(pairs, 2))]
    for method, possible in (("nested", nested), ("matching", everything)):
        found = decode(allowed, sequence, method, threshold=threshold)
        assert tuple(found) in {tuple((int(i), int(j)) for i, j in pairs) for pairs in possible}
        best = max(gain(pairs, allowed, threshold) for pairs in possible)
        assert gain(found, allowed, threshold) == pytest.approx(best, abs=1e-9)
        assert found == decode(allowed, sequence, method, threshold=threshold)


def nussinov(weights):
    """The textbook recursion, three loops."""
    length = len(weights)
    best = np.zeros((length + 1, length + 1))
    for size in range(2, length + 1):
        for i in range(length - size + 1):
            e = i + size
            options = [
                best[i, k] + best[k + 1, e - 1] + weights[k, e - 1] for k in range(i, e - 1) if weights[k, e - 1]
            ]
            best[i, e] = max([best[i, e - 1], *options])
    return best[0, length]


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_nested_equals_the_textbook(density):
    for seed in range(3):
        draw = np.random.default_rng(seed)
        weights = np.triu(draw.random((50, 50)) * (draw.random((50, 50)) < density), 1)
        rows, columns = np.nonzero(weights)
        pairs = heaviest_nested(rows, columns, weights[rows, columns])
        assert sum(weights[pair] for pair in pairs) == pytest.approx(nussinov(weights), abs=1e-9)
        assert len({end for pair in pairs for end in pair}) == 2 * len(pairs)
        assert not any(crosses(*two) for two in combinations(pairs, 2))
        # In any order of the candidates.
        mixed = draw.permutation(len(rows))
        assert pairs == heaviest_nested(rows[mixed], columns[mixed], weights[rows, columns][mixed])


@pytest.mark.parametrize("method", METHODS)
def test_known_structures_are_decoded(known, method):
    """A clear picture of a structure gives it back; without crossings for nested."""
    for structure in known.values():
        probabilities = np.where(structure.matrix(), 0.9, 0.1).astype(np.float32)
        expected = structure.nested() if method == "nested" else structure
        assert decode(probabilities, structure.sequence, method) == list(expected.pairs)


@pytest.mark.parametrize("method", METHODS)
def test_switches(method):
    probabilities = np.zeros((6, 6))
    probabilities[0, 5] = probabilities[5, 0] = 0.9
    assert decode(probabilities, "GAAAAC", method) == [(0, 5)]
    assert decode(probabilities, "gaaaac", method) == [(0, 5)]
    assert decode(probabilities, "GAAAAG", method) == []
    assert decode(probabilities, "GAAAAG", method, canonical=False) == [(0, 5)]
    assert decode(probabilities, "GAAAAC", method, threshold=0.9) == []
    assert decode(probabilities, "GAAAAC", method, min_distance=6) == []
    assert decode(probabilities, "GAAAAC", method, min_distance=5) == [(0, 5)]
    assert decode(np.full((6, 6), np.nan), "GAAAAC", method) == []
    assert decode(np.zeros((0, 0)), "", method) == []
    with pytest.raises(InputError, match="do not fit a sequence of 4 nt"):
        decode(probabilities, "GAAC", method)


def test_a_value_just_above_the_threshold_still_gains():
    """0.13 is rounded down in single precision, and its successor must not have a negative weight."""
    threshold = 0.13
    probabilities = np.zeros((6, 6), dtype=np.float32)
    probabilities[0, 5] = np.nextafter(np.float32(threshold), np.float32(1))
    for method in METHODS:
        assert decode(probabilities, "GAAAAC", method, threshold=threshold) == [(0, 5)]


def test_methods_differ_where_they_should():
    """One pair of .9 in the way of two of .8: greedy takes the one, the sum is larger for the two."""
    probabilities = np.zeros((12, 12))
    for pair, value in {(2, 9): 0.9, (0, 9): 0.8, (2, 7): 0.8}.items():
        probabilities[pair] = value
    options = {"threshold": 0.5, "canonical": False}
    assert decode(probabilities, "N" * 12, "greedy", **options) == [(2, 9)]
    assert decode(probabilities, "N" * 12, "nested", **options) == [(0, 9), (2, 7)]
    assert decode(probabilities, "N" * 12, "matching", **options) == [(0, 9), (2, 7)]


def test_errors_name_what_there_is(monkeypatch):
    with pytest.raises(InputError, match="unknown decoding method 'mea'; use greedy, nested, matching"):
        decode(np.zeros((1, 1)), "A", "mea")
    monkeypatch.setitem(sys.modules, "rustworkx", None)
    with pytest.raises(MissingExtraError, match=r"rinalmo\[fold\]"):
        decode(np.zeros((1, 1)), "A", "matching")


def test_without_a_threshold_the_best_expected_f1_is_chosen():
    sequence = "GGGGGAAAACCCCC"
    helix = [(k, 13 - k) for k in range(5)]
    doubtful = np.zeros((14, 14), dtype=np.float32)
    for (i, j), value in zip(helix, (0.22, 0.9, 0.9, 0.9, 0.12), strict=True):
        doubtful[i, j] = doubtful[j, i] = value
    by_threshold = [decode(doubtful, sequence, "nested", threshold=t) for t in THRESHOLDS]
    chosen = decode(doubtful, sequence, "nested", threshold=None)
    scores = [expected_f1(doubtful, pairs) for pairs in by_threshold]
    assert expected_f1(doubtful, chosen) == max(scores)
    assert chosen == by_threshold[scores.index(max(scores))]
    listed = PairList.of(14, [(*np.triu(doubtful).nonzero(), doubtful[np.triu(doubtful).nonzero()])])
    assert decode(listed, sequence, "nested", threshold=None) == chosen
    # Of three pairs that are certain and one that is not, by hand: hits over the mean of both sums.
    certain = np.zeros((14, 14))
    for i, j in helix[:3]:
        certain[i, j] = certain[j, i] = 1.0
    assert expected_f1(certain, helix[:3]) == pytest.approx(1)
    assert expected_f1(certain, helix[:2]) == pytest.approx(2 * 2 / (2 + 3))
    assert expected_f1(certain, []) == 0
