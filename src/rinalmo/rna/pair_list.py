"""The pair probabilities of an RNA that is too long for a square of them: the pairs that are likely at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

RECORD = np.dtype([("i", "<i4"), ("j", "<i4"), ("probability", "<f2")])
"""How a pair lies in an `.npz` file: positions from 0, i < j."""


@dataclass(frozen=True)
class PairList:
    """Pairs with their probabilities, in order of `i`, then `j`; any other pair counts as 0.

    length  nucleotides of the RNA
    i, j    (pairs,) positions from 0, i < j
    values  (pairs,) probabilities
    """

    length: int
    i: np.ndarray
    j: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, length: int, parts: Iterable[Sequence[np.ndarray]]) -> PairList:
        """From parts `(i, j, values)` in any order. No pair may be in two."""
        i, j, values = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.lexsort((j, i))
        return cls(length, i[order], j[order], values[order])

    @classmethod
    def from_records(cls, length: int, records: np.ndarray) -> PairList:
        """From an array of `RECORD`."""
        return cls(length, records["i"], records["j"], records["probability"])

    def records(self) -> np.ndarray:
        """As an array of `RECORD`, which `numpy.save` writes and `numpy.load` reads."""
        records = np.empty(len(self.values), RECORD)
        records["i"], records["j"], records["probability"] = self.i, self.j, self.values
        return records

    @property
    def shape(self) -> tuple[int, int]:
        """That of the square."""
        return self.length, self.length

    def matrix(self) -> np.ndarray:
        """The square `(length, length)`, symmetric; for RNAs short enough to be looked at."""
        matrix = np.zeros(self.shape, self.values.dtype)
        matrix[self.i, self.j] = matrix[self.j, self.i] = self.values
        return matrix

    def at(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The probabilities of pairs, i < j; 0 for those that are not in the list."""
        keys, wanted = (np.asarray(a, np.int64) * self.length + b for a, b in ((self.i, self.j), (i, j)))
        places = np.searchsorted(keys, wanted)
        found = places < len(keys)
        found[found] = keys[places[found]] == wanted[found]
        values = np.zeros(len(wanted), self.values.dtype)
        values[found] = self.values[places[found]]
        return values
