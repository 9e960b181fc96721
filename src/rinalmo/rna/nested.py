"""The heaviest nested set of pairs: no two share a nucleotide, no two cross.

    best[e, i] = weight of the heaviest set within i ≤ position < e
               = max(best[e-1, i],  max over pairs (k, e-1), i ≤ k, of  best[k, i] + inside(k))
    inside(k)  = weight(k, e-1) + best[e-1, k+1]

This is Nussinov's recursion for a sparse set of candidates: row e is filled for all i at once, candidate by candidate,
so that the cost is length × candidates instead of length³. Candidates come with k falling. One that does not improve
best[e, k] improves no best[e, i], as these are at least best[k, i] + best[e, k]; most are passed over so. Memory is
8 length² bytes: 128 MB for 4,000 nt.

References: Nussinov & Jacobson 1980 (PNAS 77:6309); Wexler, Zilberstein & Ziv-Ukelson 2007 (J Comput Biol 14:856).
"""

from __future__ import annotations

import numpy as np


def heaviest_nested(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, length: int) -> list[tuple[int, int]]:
    """The chosen of the candidate pairs `(rows, columns)`, `rows < columns < length`, in order of `rows`.

    `weights` are above zero. Of sets of equal weight it is one whose pairs close early.
    """
    order = np.lexsort((-rows, columns))
    rows, weights = rows[order], weights[order].astype(np.float64)
    starts = np.searchsorted(columns[order], np.arange(length + 1)).tolist()
    best = np.zeros((length + 1, length + 1))
    inside = np.empty(len(rows))
    for j in range(length):
        row, here = best[j + 1], slice(starts[j], starts[j + 1])
        row[: j + 1] = best[j, : j + 1]
        inside[here] = weights[here] + best[j, rows[here] + 1]
        for k, weight in zip(rows[here].tolist(), inside[here].tolist(), strict=True):
            if weight > row[k]:
                np.maximum(row[: k + 1], best[k, : k + 1] + weight, out=row[: k + 1])
    return _traced(best, rows, starts, inside)


def _traced(best: np.ndarray, rows: np.ndarray, starts: list[int], inside: np.ndarray) -> list[tuple[int, int]]:
    """The pairs behind best[length, 0], by asking again what each maximum came from."""
    pairs = []
    stretches = [(0, len(best) - 1)]
    while stretches:
        i, e = stretches.pop()
        while e > i and best[e, i] == best[e - 1, i]:
            e -= 1
        if e > i:
            here = slice(starts[e - 1], starts[e])
            ks = rows[here]
            came = (ks >= i) & (best[ks, i] + inside[here] == best[e, i])
            k = int(ks[came.argmax()])
            pairs.append((k, e - 1))
            stretches += [(i, k), (k + 1, e - 1)]
    return sorted(pairs)
