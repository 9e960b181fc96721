"""Scores of predictions."""

import numpy as np
import pytest

from rinalmo.metrics import spearman


def test_spearman_with_ties_is_the_correlation_of_mean_ranks():
    """The textbook's example of ties, worked by hand: ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4."""
    found = spearman(np.array([1.0, 5, 5, 9]), np.array([20.0, 10, 30, 40]))
    assert found == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [2, 1, 3, 4])[0, 1])
    assert spearman(np.arange(9), np.exp(np.arange(9))) == pytest.approx(1)
    assert spearman(np.arange(9), -np.arange(9)) == pytest.approx(-1)


def test_spearman_of_a_constant():
    assert np.isnan(spearman(np.arange(3), np.ones(3)))
