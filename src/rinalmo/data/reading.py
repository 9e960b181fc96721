"""Sources as they come: files → usable sequences with what is known of each, staged on disk in the order of the input.

A staged source is itself a token store (one cluster), so that it is whole or absent, checked, and read at random by
the steps that follow. Beside the sequences lie `counts.json` and, if the source's table has clusters, their labels.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rinalmo.data.filters import ANY_LETTER, Filters
from rinalmo.data.headers import read_header
from rinalmo.data.recipe import SourceRecipe
from rinalmo.data.store import TokenStore
from rinalmo.data.store_writer import StoreWriter
from rinalmo.data.tables import Table, known, refused
from rinalmo.errors import InputError
from rinalmo.rna.fasta import read_fasta

COUNTS, LABELS = "counts.json", "cluster_labels.txt"
_ENDINGS = (".fa", ".fasta", ".fna", ".ffn", ".frn")
_COMPRESSED = ("", ".gz", ".zst")
_EVERY = 1000

Tell = Callable[[int], Any]


@dataclass(frozen=True)
class Source:
    """A label, its files, and how they are read."""

    label: str
    paths: tuple[Path, ...]
    recipe: SourceRecipe = field(default_factory=SourceRecipe)
    table: Path | None = None

    def files(self) -> list[Path]:
        """The files, those in folders by name. Raises InputError for what is missing or can be read only once."""
        return [file for path in self.paths for file in _files(path)]


def stage(source: Source, filters: Filters | None, target: Path, tell: Tell) -> None:
    """Read a source into a staged store at `target`; without `filters` every sequence is kept."""
    labels = _Labels()
    counts = _Counts()
    with ExitStack() as stack:
        writer = stack.enter_context(StoreWriter(target, sources=labels.sources, families=labels.families))
        clusters = stack.enter_context((writer.folder / LABELS).open("w", encoding="utf-8"))
        writer.start_cluster()
        for name, letters, facts in _usable(source, filters, counts, tell):
            writer.add(name, letters, labels.source(facts["source"]), labels.family(facts["family"]))
            clusters.write(json.dumps(facts.get("cluster", "")) + "\n")
        if not counts.kept:
            raise InputError(f"{source.label}: no sequence of {counts.records:,} is usable ({counts.reasons()})")
        (writer.folder / COUNTS).write_text(json.dumps(counts.summary(), indent=1), encoding="utf-8")


def _usable(
    source: Source, filters: Filters | None, counts: _Counts, tell: Tell
) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Name, letters and facts of each sequence that passes the filters and rules; the others are counted."""
    recipe = source.recipe
    other = [fact for fact in (*recipe.keep, *recipe.drop) if fact not in ("source", "family", "type", "taxon")]
    table = Table(source.table, recipe.table, other) if source.table and recipe.table else None
    for file in source.files():
        for record in read_fasta(file, letters=ANY_LETTER):
            letters = record.sequence.encode()
            header = read_header(record.id, record.description, recipe.headers, file.name)
            facts = known(header, table, source.label, record.id)
            reason = filters.reason(letters) if filters else None
            if reason is None and facts is None:
                reason = "not in the table"
            if reason is None and facts is not None:
                reason = refused(facts, recipe)
            counts.add(reason, (facts or {}).get("type", ""))
            if counts.records % _EVERY == 0:
                tell(counts.records)
            if reason is None and facts is not None:
                yield header.name, letters, facts
    tell(counts.records)


class _Counts:
    """How many records were read, kept and dropped, and of which RNA types the kept ones are."""

    def __init__(self) -> None:
        self.records = self.kept = 0
        self.dropped: Counter[str] = Counter()
        self.types: Counter[str] = Counter()

    def add(self, reason: str | None, type_: str) -> None:
        self.records += 1
        if reason is None:
            self.kept += 1
            self.types[type_] += 1
        else:
            self.dropped[reason] += 1

    def reasons(self) -> str:
        return ", ".join(f"{reason}: {count:,}" for reason, count in self.dropped.most_common())

    def summary(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "kept": self.kept,
            "dropped": dict(self.dropped.most_common()),
            "types": dict(self.types.most_common()),
        }


class _Labels:
    """Numbers for source and family labels, in the order they are first seen; family 0 is none."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.families: list[str] = [""]
        self._numbers: tuple[dict[str, int], dict[str, int]] = ({}, {"": 0})

    def source(self, label: str) -> int:
        return self._number(0, self.sources, label)

    def family(self, label: str) -> int:
        return self._number(1, self.families, label)

    def _number(self, kind: int, labels: list[str], label: str) -> int:
        number = self._numbers[kind].setdefault(label, len(labels))
        if number == len(labels):
            labels.append(label)
        return number


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


def read_counts(folder: Path) -> dict[str, Any]:
    """What `stage` counted."""
    counts: dict[str, Any] = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
    return counts


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        endings = tuple(ending + packed for ending in _ENDINGS for packed in _COMPRESSED)
        found = sorted(file for file in path.rglob("*") if file.name.endswith(endings) and file.is_file())
        if not found:
            raise InputError(f"{path}: holds no FASTA file ({', '.join(_ENDINGS)}; plain, .gz or .zst)")
        return found
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: can be read only once, and preparing reads its input again; save it to a file first")
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    return [path]
