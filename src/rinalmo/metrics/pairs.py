"""Scores of one structure's base pairs, in the two ways of counting that the literature has.

    paper              `pair_scores(target, predicted, tolerance=1)`: all pairs, one end may be off by one
    canonical nested   `canonical_nested_scores(target, predicted)`: AU, GC and GU pairs without pseudoknots, exact

They are not comparable: on bpRNA TS0 the same predictions differ by several points of F1. Both give a score to each
structure, and a table reports their mean. A score without anything to count is 0, so that a structure without pairs
scores 0 whatever is predicted, no pairs included.

References: Penić et al. 2025 (arXiv:2403.00043), after Mathews 2019 (Methods 162:60), for the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rinalmo.metrics.classification import matthews
from rinalmo.rna.structure import Structure

Pair = tuple[int, int]


class PairScores(NamedTuple):
    """Base-pair scores of one structure."""

    precision: float
    recall: float
    f1: float


def pair_scores(target: Iterable[Pair], predicted: Iterable[Pair], *, tolerance: int = 0) -> PairScores:
    """Precision, recall and F1 of predicted pairs `(i, j)`, i < j; a position may be in several of them.

    With `tolerance` 1 a pair is right if one of its ends is off by one, as the paper counts; both ends off by one is
    wrong. The count is not symmetric: precision is the share of predicted pairs near a true one, recall the share of
    true pairs near a predicted one, and one pair may serve several.
    """
    truth, found = set(target), set(predicted)
    near_truth, near_found = (_relaxed(truth), _relaxed(found)) if tolerance else (truth, found)
    precision = len(found & near_truth) / len(found) if found else 0.0
    recall = len(truth & near_found) / len(truth) if truth else 0.0
    total = precision + recall
    return PairScores(precision, recall, 2 * precision * recall / total if total >= 1e-5 else 0.0)


def _relaxed(pairs: set[Pair]) -> set[Pair]:
    """The pairs and their shifts by one at one end."""
    return pairs | {near for i, j in pairs for near in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))}


def canonical_nested_scores(target: Structure, predicted: Iterable[Pair]) -> PairScores:
    """Exact scores against the target's AU, GC and GU pairs that are not in pseudoknots; of `predicted`, all count.

    This reproduces the 1,305 F1 values published for RiNALMo on bpRNA TS0 (github.com/sinc-lab/rna-llm-folding). Found
    by comparing: there the pseudoknots are taken out first, by keeping the round brackets of bpRNA's own dot-bracket
    text, then pairs that are not canonical in either case of letters; no minimum loop is asked for. The predictions are
    counted as they are, although 4 in 5 have nucleotides with two partners. `Structure.nested` keeps as many pairs as
    bpRNA's round brackets in all of its 13,419 structures, and the very same in 99.2 %; the others are ties.
    """
    return pair_scores(target.nested().canonical().pairs, predicted)


def pair_matthews(target: Iterable[Pair], predicted: Iterable[Pair], length: int) -> float:
    """Matthews' correlation over all pairs of positions i < j of a sequence of `length` nt, exact."""
    truth, found = set(target), set(predicted)
    hits = len(truth & found)
    rest = length * (length - 1) // 2 - len(truth | found)
    return matthews(hits, len(found) - hits, len(truth) - hits, rest)
