"""Pair probabilities of ViennaRNA, beside what its own commands' interface says."""

import sys

import numpy as np
import pytest

from rinalmo.errors import MissingExtraError
from rinalmo.rna.thermodynamics import MIN_PROBABILITY, pair_probabilities

RNA = pytest.importorskip("RNA")
TRNA = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"


def test_they_are_viennas():
    compound = RNA.fold_compound(TRNA)
    compound.pf()
    expected = np.array(compound.bpp())[1:, 1:]
    found = pair_probabilities(TRNA)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(np.triu(found), expected, atol=MIN_PROBABILITY)
    assert found.sum(axis=1).max() <= 1.001


def test_letters():
    np.testing.assert_array_equal(pair_probabilities(TRNA.lower().replace("u", "t")), pair_probabilities(TRNA))
    found = pair_probabilities("GGGGCCNAAIAGGCCCC")
    assert found.shape == (17, 17)
    assert found[0, 16] > 0.5
    assert not found[[6, 9]].any()
    assert pair_probabilities("A").tolist() == [[0]]


def test_without_viennarna(monkeypatch):
    monkeypatch.setitem(sys.modules, "RNA", None)
    with pytest.raises(MissingExtraError, match=r"thermodynamics.*rinalmo\[fold\]"):
        pair_probabilities(TRNA)
