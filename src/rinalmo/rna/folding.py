"""From pair probabilities to a structure.

Greedy decoding as in the paper: the most probable pair first, each nucleotide in at most one pair, pseudoknots allowed.
One pass over the sorted candidates gives what repeated searches for the maximum give.

Reference: Penić et al. 2025 (arXiv:2403.00043).
"""

from __future__ import annotations

import numpy as np

from rinalmo.errors import InputError

MIN_DISTANCE = 4  # a hairpin loop has at least three nucleotides
_CANONICAL = (("A", "U"), ("G", "C"), ("G", "U"))

_PAIRS = np.zeros((256, 256), dtype=bool)  # by the letters' codes
for _first, _second in _CANONICAL:
    _PAIRS[ord(_first), ord(_second)] = _PAIRS[ord(_second), ord(_first)] = True

Pairs = list[tuple[int, int]]


def decode_greedy(
    probabilities: np.ndarray,
    sequence: str,
    threshold: float = 0.5,
    *,
    canonical: bool = True,
    min_distance: int = MIN_DISTANCE,
) -> Pairs:
    """Pairs `(i, j)`, i < j, counted from 0, in order of i.

    `probabilities` is symmetric, `(length, length)`; it is not changed. A pair counts if its probability is above
    `threshold`, its ends are at least `min_distance` apart and, with `canonical`, it is AU, GC or GU (T reads as U, in
    either case). Equal probabilities are taken in order of i, then j.

    Raises InputError if the shapes do not fit.
    """
    length = len(sequence)
    if probabilities.shape != (length, length):
        raise InputError(f"probabilities of shape {probabilities.shape} do not fit a sequence of {length} nt")
    # Few of the length² entries pass the threshold; everything else is asked of those only.
    rows, columns = np.divmod(np.flatnonzero(probabilities > threshold), max(length, 1))
    keep = columns - rows >= min_distance
    if canonical:
        codes = _codes(sequence)
        keep &= _PAIRS[codes[rows], codes[columns]]
    rows, columns = rows[keep], columns[keep]
    order = np.argsort(-probabilities[rows, columns], kind="stable")
    partner = [-1] * length
    for i, j in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if partner[i] < 0 and partner[j] < 0:
            partner[i], partner[j] = j, i
    return [(i, j) for i, j in enumerate(partner) if i < j]


def canonical_mask(sequence: str) -> np.ndarray:
    """Which nucleotides could form an AU, GC or GU pair, `(length, length)` of bool."""
    codes = _codes(sequence)
    return _PAIRS[codes[:, None], codes[None, :]]


def _codes(sequence: str) -> np.ndarray:
    return np.frombuffer(sequence.upper().replace("T", "U").encode("ascii", "replace"), dtype=np.uint8)


def pair_matrix(pairs: Pairs, length: int) -> np.ndarray:
    """Pairs as a symmetric 0/1 matrix."""
    matrix = np.zeros((length, length), dtype=np.int64)
    for i, j in pairs:
        matrix[i, j] = matrix[j, i] = 1
    return matrix
