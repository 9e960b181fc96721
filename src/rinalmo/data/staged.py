"""All staged sources as one row of sequences, with one running index: what the steps after reading work on."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rinalmo.data.reading import LABELS
from rinalmo.data.store import TokenStore

Numbers = NDArray[np.int64]
"""One number for each staged sequence."""


class Staged:
    """Staged sources one after the other, with one running index."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.stores = [TokenStore.open(folder) for folder in folders]
        self.starts = [0, *accumulate(len(store) for store in self.stores)]

    def __len__(self) -> int:
        return self.starts[-1]

    def find(self, index: int) -> tuple[int, int]:
        """Which store a sequence is in, and its place there."""
        number = bisect_right(self.starts, index) - 1
        return number, index - self.starts[number]

    def letters(self, index: int) -> bytes:
        """The letters of a sequence."""
        number, place = self.find(index)
        return self.stores[number][place].tobytes()

    def name(self, index: int) -> str:
        """The name of a sequence."""
        number, place = self.find(index)
        return self.stores[number].name(place)

    def source(self, index: int) -> str:
        """The source of a sequence."""
        number, place = self.find(index)
        return self.stores[number].sources[int(self.stores[number].source_ids[place])]

    def labels(self, kind: str, wanted: NDArray[np.bool_]) -> tuple[list[str], list[NDArray[np.int64]]]:
        """The `sources` or `families` of the wanted sequences, and a table from each store's numbers to theirs."""
        numbers: dict[str, int] = {"": 0} if kind == "families" else {}
        tables = []
        for store, (start, stop) in zip(self.stores, pairwise(self.starts), strict=True):
            labels, ids = (
                (store.families, store.family_ids) if kind == "families" else (store.sources, store.source_ids)
            )
            occur = np.bincount(ids[wanted[start:stop]], minlength=len(labels)) > 0
            table = [
                numbers.setdefault(label, len(numbers)) if used else -1
                for label, used in zip(labels, occur, strict=True)
            ]
            tables.append(np.array(table, dtype=np.int64))
        return list(numbers), tables

    def cluster_labels(self) -> Iterator[str]:
        """The cluster of each sequence, as the tables say; "" where they do not."""
        for store in self.stores:
            with (store.path / LABELS).open(encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)
