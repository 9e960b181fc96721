"""From pair probabilities to a structure. Three decoders, one set of candidates.

    greedy     the paper's: the most probable pair first, each nucleotide in at most one pair; may cross
    nested     the heaviest set of pairs without pseudoknots, by dynamic programming (`rinalmo.rna.nested`)
    matching   the heaviest set of pairs, crossing or not: a maximum-weight matching

A candidate is a pair above the threshold, far enough apart and, unless told otherwise, canonical. The last two maximise
the sum of probability - threshold, so that every pair above the threshold gains. For nested structures this is the
γ-centroid estimator, with threshold = 1 / (γ + 1).

Without a threshold each RNA gets its own: that of `THRESHOLDS` whose structure has the highest expected F1 if the
probabilities are right, counted with one end off by one allowed.

References: Penić et al. 2025 (arXiv:2403.00043) for greedy; Hamada et al. 2009 (Bioinformatics 25:465) for the sum;
Hamada, Sato & Asai 2010 (BMC Bioinformatics 11:586) for the expected F1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.rna.nested import heaviest_nested
from rinalmo.rna.pair_list import PairList
from rinalmo.rna.pairing import can_pair, canonical_mask

MIN_DISTANCE = 4  # a hairpin loop has at least three nucleotides
THRESHOLDS = (0.1, 0.15, 0.2, 0.25)  # of which one is chosen where none is given
_WEIGHT_STEPS = 2**40  # matching computes in integers

Pairs = list[tuple[int, int]]
Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, columns, probabilities; in order of rows, then columns


def decode(
    probabilities: np.ndarray | PairList,
    sequence: str,
    method: str = "greedy",
    *,
    threshold: float | None = 0.5,
    canonical: bool = True,
    min_distance: int = MIN_DISTANCE,
) -> Pairs:
    """Pairs `(i, j)`, i < j, counted from 0, in order of i; no nucleotide is in two.

    `probabilities` is symmetric, `(length, length)`, its upper triangle is read and nothing is changed; or it is a list
    of pairs, which needs no such square. A pair is a candidate if its probability is above `threshold`, j - i is at
    least `min_distance` and, with `canonical`, it is AU, GC or GU (T reads as U, in either case). `method` is greedy,
    nested or matching, which needs the extra `fold`. Equal probabilities: greedy takes them in order of i, then j; the
    others give the same answer every time.

    Raises InputError if the shapes do not fit or the method is unknown.
    """
    if method not in METHODS:
        raise InputError(f"there is no decoding method {method!r}; use {', '.join(METHODS)}")
    if threshold is None:
        each = [
            decode(probabilities, sequence, method, threshold=t, canonical=canonical, min_distance=min_distance)
            for t in THRESHOLDS
        ]
        return max(each, key=partial(expected_f1, probabilities))
    if math.isnan(threshold):
        raise InputError("the threshold is nan; give a probability")
    length = len(sequence)
    if probabilities.shape != (length, length):
        raise InputError(f"probabilities of shape {probabilities.shape} do not fit a sequence of {length} nt")
    found = _listed if isinstance(probabilities, PairList) else _in_matrix
    rows, columns, values = found(probabilities, sequence, threshold, canonical, min_distance)  # type: ignore[arg-type]
    # In double precision, where a value above the threshold stays above it.
    return METHODS[method](
        rows, columns, values if method == "greedy" else values.astype(np.float64) - threshold, length
    )


def expected_f1(probabilities: np.ndarray | PairList, pairs: Pairs) -> float:
    """The expected F1 of a structure if these probabilities are right; 0 for one without pairs.

    A pair counts as right if it or its shift by one at one end is real. It is the ratio of expectations, which is close
    to the expectation of the ratio and costs nothing.
    """
    if not pairs:
        return 0.0
    i, j = np.array(pairs).T
    if isinstance(probabilities, PairList):
        at, total = probabilities.at, float(probabilities.values.sum())
    else:
        around = np.pad(probabilities, 1)
        total = float(np.triu(probabilities).sum())

        def at(i: np.ndarray, j: np.ndarray) -> np.ndarray:
            return np.asarray(around[i + 1, j + 1])

    near = at(i, j) + at(i - 1, j) + at(i + 1, j) + at(i, j - 1) + at(i, j + 1)
    return 2 * float(np.minimum(near, 1).sum()) / (len(pairs) + total)


def _in_matrix(
    probabilities: np.ndarray, sequence: str, threshold: float, canonical: bool, min_distance: int
) -> Candidates:
    position = np.arange(len(sequence), dtype=np.int32)
    allowed = probabilities > threshold
    allowed &= position >= position[:, None] + min_distance
    if canonical:
        allowed &= canonical_mask(sequence)
    rows, columns = np.divmod(np.flatnonzero(allowed), max(len(sequence), 1))
    return rows, columns, probabilities[rows, columns]


def _listed(of: PairList, sequence: str, threshold: float, canonical: bool, min_distance: int) -> Candidates:
    allowed = (of.values > threshold) & (of.j - of.i >= min_distance)
    if canonical:
        allowed &= can_pair(sequence, of.i, of.j)
    return of.i[allowed], of.j[allowed], of.values[allowed]


def decode_greedy(
    probabilities: np.ndarray,
    sequence: str,
    threshold: float = 0.5,
    *,
    canonical: bool = True,
    min_distance: int = MIN_DISTANCE,
) -> Pairs:
    """`decode` with the paper's method."""
    return decode(probabilities, sequence, threshold=threshold, canonical=canonical, min_distance=min_distance)


def _greedy(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, length: int) -> Pairs:
    """In rounds: a candidate that comes first at both its ends is one that the search for maxima would take."""
    order = _descending(values)
    rows, columns = rows[order], columns[order]
    partner = np.full(length, -1)
    while len(rows):
        rank = np.arange(len(rows))
        first = np.full((2, length), len(rows))
        first[0, rows[::-1]] = first[1, columns[::-1]] = rank[::-1]  # of several, the last to be written stays
        first = first.min(axis=0)
        wins = (first[rows] == rank) & (first[columns] == rank)
        partner[rows[wins]], partner[columns[wins]] = columns[wins], rows[wins]
        free = (partner[rows] < 0) & (partner[columns] < 0)
        rows, columns = rows[free], columns[free]
    return [(i, j) for i, j in enumerate(partner.tolist()) if i < j]


def _descending(values: np.ndarray) -> np.ndarray:
    """The order of falling values, equal ones as they come. A stable sort is five times as slow, and ties are rare."""
    order = np.argsort(-values)
    ordered = values[order]
    return order if (ordered[1:] != ordered[:-1]).all() else np.argsort(-values, kind="stable")


def _matching(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, length: int) -> Pairs:
    try:
        import rustworkx
    except ImportError:
        raise MissingExtraError("rustworkx", "fold", "decoding by matching") from None
    graph = rustworkx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(length))
    steps = np.maximum(np.rint(weights * _WEIGHT_STEPS), 1).astype(np.int64)
    graph.add_edges_from(list(zip(rows.tolist(), columns.tolist(), steps.tolist(), strict=True)))
    return sorted((min(pair), max(pair)) for pair in rustworkx.max_weight_matching(graph, weight_fn=int))


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, int], Pairs]] = {
    "greedy": _greedy,
    "nested": lambda rows, columns, weights, length: heaviest_nested(rows, columns, weights),
    "matching": _matching,
}
