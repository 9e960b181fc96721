"""Long RNAs in windows: what is computed of each window, put together into one list of pair probabilities.

    |------- window 0 -------|                     Windows overlap by half. Each pair is taken from the window whose
                |------- window 1 -------|         middle its own middle is nearest to: there both ends see as much
                           |------- window 2 -------|          of their surroundings as they can.

A pair whose ends are farther apart than a window is in none; one that spans more than half of a window may be in none.
Memory grows with the length times the window, and with the pairs that are likely at all.

RNAplfold, whose windows are one nucleotide apart, takes the mean over all that hold a pair (Bernhart, Hofacker &
Stadler 2006, Bioinformatics 22:614).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rinalmo.errors import InputError
from rinalmo.rna.pair_list import PairList
from rinalmo.rna.reading import one_line

WINDOW = 4096
"""Nucleotides that a model without a window of its own folds as a whole; longer RNAs it folds in windows of so many."""

SMALLEST = 32
LEAST = 0.001
"""Pairs of long RNAs that are less probable are not kept."""


@dataclass(frozen=True)
class Window:
    """Nucleotides `start:stop` of an RNA, and which pairs are taken from there: `first <= i + j < last`."""

    start: int
    stop: int
    first: int
    last: int

    def pairs(self, probabilities: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs of its own above `least`: `i`, `j`, values, with positions in the whole RNA."""
        i, j = np.divmod(np.flatnonzero(probabilities > least), len(probabilities))
        own = (i < j) & (i + j >= self.first - 2 * self.start) & (i + j < self.last - 2 * self.start)
        i, j = i[own], j[own]
        return (i + self.start).astype(np.int32), (j + self.start).astype(np.int32), probabilities[i, j]


def check_size(size: int) -> None:
    """Raise InputError for windows too small to hold a hairpin and what is around it."""
    if size < SMALLEST:
        raise InputError(f"a window of {size} nt is too small to fold; use {SMALLEST} or more")


def windows_of(length: int, size: int) -> list[Window]:
    """The windows of an RNA: one, if it is not longer than `size`."""
    count = 1 + -(-max(0, length - size) // max(1, size // 2))
    starts = [n * (length - size) // max(1, count - 1) for n in range(count)] if count > 1 else [0]
    stops = [min(length, start + size) for start in starts]
    middles = [start + stop - 1 for start, stop in zip(starts, stops, strict=True)]  # twice, as i + j is
    borders = [0, *(-(-(a + b) // 2) for a, b in itertools.pairwise(middles)), 2 * length]
    return [Window(*each) for each in zip(starts, stops, borders[:-1], borders[1:], strict=True)]


def joined(length: int, windows: Iterable[Window], found: Iterator[np.ndarray], least: float = LEAST) -> PairList:
    """The pairs of all windows, from the probabilities `(size, size)` of each, taken one after the other."""
    return PairList.of(length, [window.pairs(next(found), least) for window in windows])


def remark(name: str, length: int, window: int) -> str:
    """What a reader of the structure of an RNA has to know; nothing if it was folded as a whole."""
    if length <= window:
        return ""
    return (
        f"record {one_line(name)} of {length:,} nt is folded in windows of {window:,}: pairs farther apart are not "
        f"found, and those more than {window // 2:,} apart may be missed"
    )
