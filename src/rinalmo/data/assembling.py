"""The last step: choose the validation clusters, put everything in order, and write the store.

Which clusters validate depends on the seed and the letters of each cluster's first sequence, so that a source more
or less moves few of them from one side to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rinalmo.data import draws
from rinalmo.data.clustering import DUPLICATE
from rinalmo.data.reading import Staged
from rinalmo.data.recipe import SplitRecipe
from rinalmo.data.store import SPLITS
from rinalmo.data.store_writer import StoreWriter

DUPLICATES = "duplicates.parquet"
_SCHEMA = pa.schema([("sequence", pa.int64()), ("source", pa.string()), ("name", pa.string())])
_CHUNK = 1 << 16
_EVERY = 10_000

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """The staged sequences, the first equal of each, and the cluster of each that is to be stored."""

    staged: Staged
    first: Numbers
    clusters: Numbers


def split(chosen: Selection, recipe: SplitRecipe) -> NDArray[np.bool_]:
    """For each cluster whether it validates: the recipe's share of them, at least one of several if not zero."""
    kept = np.flatnonzero(chosen.clusters >= 0)
    _, firsts = np.unique(chosen.clusters[kept], return_index=True)
    digests = [blake2b(chosen.staged.letters(index), digest_size=8).digest() for index in kept[firsts].tolist()]
    keys = draws.key(recipe.seed, np.frombuffer(b"".join(digests), dtype="<u8"))
    count = round(recipe.validation_fraction * len(keys))
    if recipe.validation_fraction > 0 and len(keys) > 1:
        count = max(count, 1)
    validates = np.zeros(len(keys), dtype=bool)
    validates[np.argsort(keys, kind="stable")[:count]] = True
    return validates


def assemble(
    chosen: Selection,
    validates: NDArray[np.bool_],
    target: Path,
    provenance: dict[str, Any],
    tell: Callable[[int], Any],
) -> None:
    """Write the store, and beside it which sequences of which sources were equal to those that stayed."""
    kept = np.flatnonzero(chosen.clusters >= 0)
    numbers = chosen.clusters[kept]
    order = kept[np.lexsort((numbers, validates[numbers]))]  # stable: within a cluster as they came
    sources, source_ids = _used(*chosen.staged.labels("sources"), order)
    families, family_ids = _used(*chosen.staged.labels("families"), order, always=1)
    with StoreWriter(target, sources=sources, families=families, provenance=provenance) as writer:
        last = -1
        for done, index in enumerate(order.tolist()):
            if (number := int(chosen.clusters[index])) != last:
                writer.start_cluster(SPLITS[int(validates[number])])
                last = number
            store, place = chosen.staged.find(index)
            letters = store[place].tobytes()
            writer.add(store.name(place), letters, int(source_ids[index]), int(family_ids[index]))
            if done % _EVERY == 0:
                tell(done)
        _write_duplicates(chosen, order, writer.folder / DUPLICATES)
    tell(len(order))


def duplicate_pairs(staged: Staged, first: Numbers, excluded: int) -> list[list[Any]]:
    """How many sequences equal an earlier one: [source of the one kept, source of the others, number], most first."""
    labels, ids = staged.labels("sources")
    others = np.flatnonzero((first != np.arange(len(first))) & (np.arange(len(first)) >= excluded))
    pairs, counts = np.unique(ids[first[others]] * len(labels) + ids[others], return_counts=True)
    rows = [
        [labels[pair // len(labels)], labels[pair % len(labels)], int(n)] for pair, n in zip(pairs, counts, strict=True)
    ]
    return sorted(rows, key=lambda row: -row[2])


def _used(labels: list[str], ids: Numbers, order: Numbers, always: int = 0) -> tuple[list[str], Numbers]:
    """The labels that occur in the store (and the first `always`), and the ids renumbered to them."""
    occur = np.zeros(len(labels), dtype=bool)
    occur[ids[order]] = True
    occur[:always] = True
    new = np.cumsum(occur) - 1
    return [label for label, used in zip(labels, occur, strict=True) if used], new[ids]


def _write_duplicates(chosen: Selection, order: Numbers, path: Path) -> None:
    place = np.full(len(chosen.first), -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    others = np.flatnonzero((chosen.clusters == DUPLICATE) & (place[chosen.first] >= 0))
    others = others[np.argsort(place[chosen.first[others]], kind="stable")]
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for start in range(0, len(others), _CHUNK):
            part = others[start : start + _CHUNK]
            rows = list(_named(chosen.staged, part))
            columns = [place[chosen.first[part]], [source for source, _ in rows], [name for _, name in rows]]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))


def _named(staged: Staged, indices: Numbers) -> Iterator[tuple[str, str]]:
    for index in indices.tolist():
        store, place = staged.find(index)
        yield store.sources[int(store.source_ids[place])], store.name(place)
