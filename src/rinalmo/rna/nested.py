"""The heaviest nested set of pairs: no two share a nucleotide, no two cross.

    best[e, i] = weight of the heaviest set within i ≤ position < e
               = max(best[e-1, i],  max over pairs (k, e-1), i ≤ k, of  best[k, i] + inside(k))
    inside(k)  = weight(k, e-1) + best[e-1, k+1]

This is Nussinov's recursion for a sparse set of candidates: row e is filled for all i at once, candidate by candidate,
so that the cost is length × candidates instead of length³. Candidates come with k falling. One that does not improve
best[e, k] improves no best[e, i], as these are at least best[k, i] + best[e, k]; most are passed over so.

What lies inside of a pair is no longer than the longest pair, so only stretches up to that length are kept, and
i = 0, the whole up to e, beside them. Nucleotides without a candidate are left out. Memory is then at most
8 length × (longest pair + 3) bytes: 128 MB for 4,000 nt, and linear in the length where pairs are short (RNALfold's
arrays are cut in the same way).

References: Nussinov & Jacobson 1980 (PNAS 77:6309); Wexler, Zilberstein & Ziv-Ukelson 2007 (J Comput Biol 14:856);
Hofacker, Priwitzer & Stadler 2004 (Bioinformatics 20:186).
"""

from __future__ import annotations

import numpy as np


def heaviest_nested(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray) -> list[tuple[int, int]]:
    """The chosen of the candidate pairs `(rows, columns)`, `rows < columns`, in order of `rows`.

    `weights` are above zero. Of sets of equal weight it is one whose pairs close early.
    """
    positions, places = np.unique(np.stack([rows, columns]), return_inverse=True)
    rows, columns = places.reshape(2, -1)
    length = len(positions)
    order = np.lexsort((-rows, columns))
    rows, columns, weights = rows[order], columns[order], weights[order].astype(np.float64)
    starts = np.searchsorted(columns, np.arange(length + 1)).tolist()
    best = _Best(length, int((columns - rows).max(initial=0)) + 1)
    inside = np.empty(len(rows))
    for j in range(length):
        here = slice(starts[j], starts[j + 1])
        inside[here] = weights[here] + best.within(rows[here] + 1, j)
        best.begin(j + 1)
        for k, weight in zip(rows[here].tolist(), inside[here].tolist(), strict=True):
            best.improve(j + 1, k, weight)
    return [(int(positions[i]), int(positions[j])) for i, j in _traced(best, rows, starts, inside)]


class _Best:
    """`best[e, i]` for stretches `e - i` up to `longest`, and for i = 0; numbered by e and e - i."""

    def __init__(self, length: int, longest: int) -> None:
        self.longest = longest
        self.whole = np.zeros(length + 1)
        self.band = np.zeros((length + 1, longest + 1))

    def begin(self, e: int) -> None:
        """Row e before the pairs that end in it."""
        self.whole[e] = self.whole[e - 1]
        self.band[e, 1:] = self.band[e - 1, :-1]

    def improve(self, e: int, k: int, weight: float) -> None:
        """Take the pair (k, e-1) into account, which has `weight` with what is inside."""
        row, around = self.band[e], e - k
        if weight > row[around]:
            self.whole[e] = max(self.whole[e], self.whole[k] + weight)
            longer = row[around : around + k + 1]
            np.maximum(longer, self.band[k, : len(longer)] + weight, out=longer)

    def within(self, i: np.ndarray, e: int) -> np.ndarray:
        """`best[e, i]` for stretches inside of pairs."""
        return self.band[e, e - i]

    def at(self, e: int, i: int) -> float:
        """One of those that are kept."""
        return float(self.band[e, e - i] if i else self.whole[e])

    def before(self, ks: np.ndarray, i: int) -> np.ndarray:
        """`best[k, i]` for each k."""
        return self.band[ks, ks - i] if i else self.whole[ks]


def _traced(best: _Best, rows: np.ndarray, starts: list[int], inside: np.ndarray) -> list[tuple[int, int]]:
    """The pairs behind best[length, 0], by asking again what each maximum came from."""
    pairs = []
    stretches = [(0, len(best.whole) - 1)]
    while stretches:
        i, e = stretches.pop()
        while e > i and best.at(e, i) == best.at(e - 1, i):
            e -= 1
        if e > i:
            here = slice(starts[e - 1], starts[e])
            ks = rows[here]
            inner = ks >= i
            ks, weights = ks[inner], inside[here][inner]
            k = int(ks[(best.before(ks, i) + weights == best.at(e, i)).argmax()])
            pairs.append((k, e - 1))
            stretches += [(i, k), (k + 1, e - 1)]
    return sorted(pairs)
