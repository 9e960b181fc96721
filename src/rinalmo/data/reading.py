"""Sources as they come: files → usable sequences with what is known of each, staged on disk in the order of the input.

A staged source is itself a token store (one cluster), so that it is whole or absent, checked, and read at random by
the steps that follow (`rinalmo.data.staged`). Beside the sequences lie their counts and their cluster labels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rinalmo.data.filters import ANY_LETTER, Filters
from rinalmo.data.recipe import SourceRecipe
from rinalmo.data.store_writer import StoreWriter
from rinalmo.data.tables import Table, known, refused
from rinalmo.errors import InputError
from rinalmo.rna.fasta import read_fasta
from rinalmo.rna.headers import read_header

COUNTS, LABELS = "counts.json", "cluster_labels.txt"
_ENDINGS = (".fa", ".fasta", ".fna", ".ffn", ".frn")
_COMPRESSED = ("", ".gz", ".zst")
_EVERY = 1000

Tell = Callable[[int], Any]
"""Called with the number of sequences done so far."""


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
        clusters = stack.enter_context((writer.folder / LABELS).open("w", encoding="utf-8", newline="\n"))
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
            reason = (filters.reason(letters) if filters else None) or refused(facts, recipe)
            counts.add(reason, facts.get("type", ""))
            if counts.records % _EVERY == 0:
                tell(counts.records)
            if reason is None:
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
