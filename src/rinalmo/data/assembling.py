"""The last step: choose the validation clusters, put everything in order, and write the store.

Which clusters validate depends on the seed and the letters of each cluster's first sequence, so that a source more
or less moves few of them from one side to the other.
"""

from __future__ import annotations

from collections import Counter
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
from rinalmo.data.reading import Tell
from rinalmo.data.recipe import SplitRecipe
from rinalmo.data.staged import Numbers, Staged
from rinalmo.data.store import SPLITS
from rinalmo.data.store_writer import StoreWriter

DUPLICATES = "duplicates.parquet"
_SCHEMA = pa.schema([("sequence", pa.int64()), ("source", pa.string()), ("name", pa.string())])
_CHUNK = 1 << 16
_EVERY = 10_000


@dataclass(frozen=True)
class Selection:
    """The staged sequences, the first equal of each, and the cluster of each that is to be stored."""

    staged: Staged
    first: Numbers
    clusters: Numbers


def split(chosen: Selection, recipe: SplitRecipe) -> NDArray[np.bool_]:
    """For each cluster whether it validates: the recipe's share of them, at least one of several if not zero."""
    kept = np.flatnonzero(chosen.clusters >= 0)
    # Clusters are numbered as they come, so that each begins where the largest number so far grows.
    firsts = kept[np.diff(np.maximum.accumulate(chosen.clusters[kept]), prepend=-1) > 0]
    keys = np.empty(len(firsts), dtype=np.uint64)
    for number, index in enumerate(firsts):
        keys[number] = int.from_bytes(blake2b(chosen.staged.letters(int(index)), digest_size=8).digest())
    keys = draws.key(recipe.seed, keys)
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
    tell: Tell,
) -> None:
    """Write the store, and beside it which sequences of which sources were equal to those that stayed."""
    staged, clusters = chosen.staged, chosen.clusters
    order = _order(clusters, validates)
    sources, source_tables = staged.labels("sources", clusters >= 0)
    families, family_tables = staged.labels("families", clusters >= 0)
    with StoreWriter(target, sources=sources, families=families, provenance=provenance) as writer:
        last = -1
        for done, index in enumerate(order):  # not as a list, which would take five times the memory
            if (number := int(clusters[index])) != last:
                writer.start_cluster(SPLITS[int(validates[number])])
                last = number
            which, place = staged.find(int(index))
            store = staged.stores[which]
            source = int(source_tables[which][store.source_ids[place]])
            family = int(family_tables[which][store.family_ids[place]])
            writer.add(store.name(place), store[place].tobytes(), source, family)
            if done % _EVERY == 0:
                tell(done)
        _write_duplicates(chosen, order, writer.folder / DUPLICATES)
    tell(len(order))


def _order(clusters: Numbers, validates: NDArray[np.bool_]) -> Numbers:
    """The sequences to store: train first, by cluster, and within a cluster as they came."""
    kept = np.flatnonzero(clusters >= 0)
    numbers = clusters[kept]
    numbers += validates[numbers] * len(validates)
    return kept[np.argsort(numbers, kind="stable")]


def duplicate_pairs(staged: Staged, first: Numbers, excluded: int) -> list[list[Any]]:
    """How many sequences equal an earlier one: [source of the one kept, source of the others, number], most first."""
    pairs: Counter[tuple[str, str]] = Counter()
    for index in np.flatnonzero(first != np.arange(len(first))):
        if index >= excluded:
            pairs[staged.source(int(first[index])), staged.source(int(index))] += 1
    return [[kept, other, count] for (kept, other), count in pairs.most_common()]


def _write_duplicates(chosen: Selection, order: Numbers, path: Path) -> None:
    staged = chosen.staged
    place = np.full(len(chosen.first), -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    others = np.flatnonzero((chosen.clusters == DUPLICATE) & (place[chosen.first] >= 0))
    others = others[np.argsort(place[chosen.first[others]], kind="stable")]
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for start in range(0, len(others), _CHUNK):
            part = others[start : start + _CHUNK]
            names = [staged.name(int(index)) for index in part]
            sources = [staged.source(int(index)) for index in part]
            columns = [place[chosen.first[part]], sources, names]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
