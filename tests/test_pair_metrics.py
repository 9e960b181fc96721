"""Pair scores: the authors' numbers, the definition written out, and 1,305 published values."""

import csv
import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rinalmo.metrics import canonical_nested_scores, pair_scores
from rinalmo.rna.formats import read_rows, read_structures
from rinalmo.rna.structure import Structure

DATA = Path(os.environ.get("RINALMO_DATA", Path(__file__).parents[2] / "shared" / "data"))
PUBLISHED = DATA / "published-predictions"
TS0 = DATA / "bprna-spot" / "TS0.csv.gz"
needs_data = pytest.mark.skipif(
    not (PUBLISHED.is_dir() and TS0.is_file()),
    reason="needs the folders published-predictions and bprna-spot; RINALMO_DATA tells where they are",
)


def pairs_in(matrix):
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(matrix, 1)), strict=True)]


@pytest.mark.parametrize("n", [0, 1])
def test_official_scores(golden, n):
    expected = np.load(golden / "official" / "official_tiny.npz")
    target, predicted = pairs_in(expected[f"fold_target_{n}"]), pairs_in(expected[f"fold_pred_{n}"])
    found = (*pair_scores(target, predicted, tolerance=1), *pair_scores(target, predicted))
    np.testing.assert_allclose(found, expected[f"fold_metrics_{n}"], atol=1e-12)


def by_matrices(target, predicted):
    """The paper's definition: matrices and their four shifts, counted above the diagonal."""

    def relaxed(matrix):
        wide = np.pad(matrix, 1)
        return wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]

    upper = np.triu_indices(len(target), 1)
    hits_of_predicted = (relaxed(target) & predicted)[upper].sum()
    hits_of_true = (target & relaxed(predicted))[upper].sum()
    precision = hits_of_predicted / max(1, predicted[upper].sum())
    recall = hits_of_true / max(1, target[upper].sum())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total >= 1e-5 else 0.0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10_000), st.floats(0.02, 0.5))
def test_pairs_count_as_matrices_do(length, seed, density):
    """Also where positions have several partners, next to the diagonal and at the ends."""
    draw = np.random.default_rng(seed)
    target, predicted = (np.triu(draw.random((length, length)) < density, 1) for _ in range(2))
    found = pair_scores(pairs_in(target), pairs_in(predicted), tolerance=1)
    np.testing.assert_allclose(found, by_matrices(target | target.T, predicted | predicted.T), atol=1e-12)


def test_one_end_may_be_off_by_one_but_not_both():
    for near in ((4, 20), (6, 20), (5, 19), (5, 21)):
        assert pair_scores([(5, 20)], [near], tolerance=1) == (1.0, 1.0, 1.0)
        assert pair_scores([(5, 20)], [near]) == (0.0, 0.0, 0.0)
    for far in ((4, 19), (4, 21), (7, 20), (5, 22)):
        assert pair_scores([(5, 20)], [far], tolerance=1) == (0.0, 0.0, 0.0)


def test_precision_relaxes_the_target_and_recall_the_prediction():
    """Two predictions near one true pair are both right, and both true pairs near one prediction are found."""
    one, two = [(5, 20)], [(4, 20), (6, 20)]
    assert pair_scores(one, two, tolerance=1) == (1.0, 1.0, 1.0)
    assert pair_scores(two, one, tolerance=1) == (1.0, 1.0, 1.0)
    precision, recall, f1 = pair_scores([(5, 20), (8, 17)], [(4, 20), (6, 20), (10, 15)], tolerance=1)
    assert (precision, recall) == (2 / 3, 1 / 2)
    assert f1 == pytest.approx(4 / 7)


def test_structures_without_pairs_score_nothing():
    assert pair_scores([], []) == (0.0, 0.0, 0.0)
    assert pair_scores([(1, 9)], []) == (0.0, 0.0, 0.0)
    assert pair_scores([], [(1, 9)], tolerance=1) == (0.0, 0.0, 0.0)


def test_canonical_nested_leaves_out_knots_and_odd_pairs():
    """A hairpin of three pairs with one A-C in it, and a smaller stem that crosses."""
    target = Structure.from_dot_bracket("x", "gAGUAGAUCCCAAAAUU", "(((..[[.)))...]].")
    kept = ((0, 10), (2, 8))
    assert canonical_nested_scores(target, kept) == (1.0, 1.0, 1.0)
    assert canonical_nested_scores(target, target.pairs) == (2 / 5, 1.0, pytest.approx(4 / 7))


def published():
    with gzip.open(PUBLISHED / "bpRNA_TS0_RiNALMo_preds.csv.gz", "rt") as file:
        predictions = {
            row["id"]: [tuple(pair) for pair in json.loads(row["base_pairs"])] for row in csv.DictReader(file)
        }
    with gzip.open(PUBLISHED / "bpRNA_TS0_scores.csv.gz", "rt") as file:
        scores = [float(row["F1"]) for row in csv.DictReader(file) if row["LLM"] == "RiNALMo"]
    from_zero = {id_: [(i - 1, j - 1) for i, j in pairs] for id_, pairs in predictions.items()}
    return {id_: (pairs, score) for (id_, pairs), score in zip(from_zero.items(), scores, strict=True)}


@needs_data
def test_all_published_scores():
    expected = published()
    assert len(expected) == 1305
    for target in read_structures(TS0, column="structure_canonical_nested"):
        predicted, f1 = expected[target.name]
        assert pair_scores(target.pairs, predicted).f1 == pytest.approx(f1, abs=1e-12), target.name
        # Such a target is nested and canonical already, so that the metric that makes it so gives the same.
        assert canonical_nested_scores(target, predicted).f1 == pytest.approx(f1, abs=1e-12), target.name


@needs_data
def test_how_the_published_targets_were_made():
    """Round brackets alone, then canonical pairs. Our own rule for what is nested differs in ties."""
    expected = published()
    same, ours = 0, []
    for structure, row in read_rows(TS0):
        rounds = re.sub(r"[^()]", ".", row["structure"])
        made = Structure.from_dot_bracket(structure.name, structure.sequence, rounds)
        target = Structure.from_dot_bracket(structure.name, structure.sequence, row["structure_canonical_nested"])
        assert made.canonical() == target
        assert len(made.pairs) == len(structure.nested().pairs)
        same += structure.nested() == made
        predicted, f1 = expected[structure.name]
        ours.append(canonical_nested_scores(structure, predicted).f1 - f1)
    assert same == 1296
    assert abs(np.mean(ours)) < 0.001
