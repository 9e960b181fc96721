"""Scores of predictions; numpy in, floats out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class PairScores(NamedTuple):
    """Base-pair scores of one structure."""

    precision: float
    recall: float
    f1: float


def pair_scores(target: np.ndarray, predicted: np.ndarray, *, tolerance: int = 0) -> PairScores:
    """Precision, recall and F1 of predicted pairs, from symmetric 0/1 matrices `(length, length)`.

    With `tolerance` 1 a pair is right if one of its ends is off by one, as the paper counts. Precision relaxes the
    target, recall the prediction. A score without anything to count is 0.

    Reference: Penić et al. 2025 (arXiv:2403.00043), after Mathews 2019.
    """
    upper = np.triu_indices(len(target), 1)
    truth, found = target.astype(bool), predicted.astype(bool)
    near_truth, near_found = (_relaxed(matrix) if tolerance else matrix for matrix in (truth, found))
    precision = _share(near_truth[upper] & found[upper], found[upper])
    recall = _share(truth[upper] & near_found[upper], truth[upper])
    total = precision + recall
    return PairScores(precision, recall, 2 * precision * recall / total if total >= 1e-5 else 0.0)


def _relaxed(matrix: np.ndarray) -> np.ndarray:
    """The matrix and its shifts by one row or one column; no diagonal shifts."""
    wide = np.pad(matrix, 1)
    return wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]


def spearman(target: np.ndarray, predicted: np.ndarray) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks. NaN if one side is constant."""
    first, second = _ranks(np.asarray(target)), _ranks(np.asarray(predicted))
    if first.std() == 0 or second.std() == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


def _share(hits: np.ndarray, all_: np.ndarray) -> float:
    return float(hits.sum() / all_.sum()) if all_.any() else 0.0
