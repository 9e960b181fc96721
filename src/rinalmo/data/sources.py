"""What `rinalmo data prepare` does with its sources, as a recipe. Paths are not part of it: they are given beside it.

sources:
  core:                             # a label of the command line
    headers: plain                  # how header lines are read (rinalmo.rna.headers); auto recognises them
    table:                          # a table of facts by id, given as --table core=facts.csv.gz
      id: id
      source: source                # replaces the label
      family: {column: source_id, pattern: '^(RF\\d{5})'}
      type: rna_type
      cluster: cluster70            # used with clustering.method: column
    drop: {type: [mRNA], split: [dev]}      # by type, taxon, family, source, or any column of the table
filters: {min_length: 16, max_length: 8192, max_unknown: 0.1}
clustering: {method: mmseqs, min_identity: 0.7, coverage: 0.8}
split: {validation_fraction: 0.01, seed: 0}
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt

from rinalmo.data.store import StoreWriter, TokenStore
from rinalmo.errors import InputError
from rinalmo.io.fasta import IUPAC_LETTERS, read_fasta
from rinalmo.io.files import COMPRESSED
from rinalmo.io.recipe_files import Section, load
from rinalmo.io.tables import open_table, table_format
from rinalmo.rna.headers import Header, read_header

PREFIX = "data-"

Share = Annotated[float, Field(ge=0, le=1)]
Rules = dict[str, list[str]]  # fact → values


def _pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression ({error})") from None
    return pattern


class Column(Section):
    """A column of a table, or the part of it that `pattern` finds: its first group, else the whole match."""

    column: str
    pattern: Annotated[str, AfterValidator(_pattern)] | None = None


def _as_column(value: object) -> object:
    return {"column": value} if isinstance(value, str) else value


ColumnOrName = Annotated[Column, BeforeValidator(_as_column)]


class TableRecipe(Section):
    """Which columns of a source's table say what. Ids are the first words of the header lines."""

    id: str = "id"
    source: ColumnOrName | None = None
    family: ColumnOrName | None = None
    type: ColumnOrName | None = None
    taxon: ColumnOrName | None = None
    cluster: ColumnOrName | None = None


class SourceRecipe(Section):
    """One source. `keep` and `drop` list values by fact (type, taxon, family, source or a column); "" is unknown."""

    headers: Literal["auto", "plain", "rnacentral", "rfam", "ensembl", "ncbi"] = "auto"
    table: TableRecipe | None = None
    keep: Rules = Field(default_factory=dict)
    drop: Rules = Field(default_factory=dict)


class FilterRecipe(Section):
    """Which sequences are usable; `max_unknown` is the largest share of N and X."""

    min_length: PositiveInt = 16
    max_length: PositiveInt = 8192
    max_unknown: Share = 1.0


class ClusteringRecipe(Section):
    """mmseqs: `easy-linclust` with these limits; column: as the tables say; none: each sequence its own cluster."""

    method: Literal["mmseqs", "column", "none"] = "mmseqs"
    min_identity: Share = 0.7
    coverage: Share = 0.8


class SplitRecipe(Section):
    """Share of the clusters that are set apart for validation, and the seed that chooses them."""

    validation_fraction: Share = 0.01
    seed: int = 0


class PrepareRecipe(Section):
    """Everything that decides what is in a store, but for the files."""

    sources: dict[str, SourceRecipe] = Field(default_factory=dict)
    filters: FilterRecipe = FilterRecipe()
    clustering: ClusteringRecipe = ClusteringRecipe()
    split: SplitRecipe = SplitRecipe()


def load_recipe(source: str | Path | None = None, overrides: Sequence[str] = ()) -> PrepareRecipe:
    """A recipe by name or file, or the defaults, with `section.key=value` overrides.

    Raises InputError naming the key, its value and, for an unknown key, the nearest one.
    """
    return load(PrepareRecipe, source, overrides, PREFIX)


ANY_LETTER = "".join(map(chr, range(33, 127)))
"""For `read_fasta`: here a letter that is none drops its sequence, and does not stop the reading of a database."""

_RNA = IUPAC_LETTERS.replace("T", "").encode()


class Filters:
    """The filters of a recipe, with a name for each."""

    def __init__(self, recipe: FilterRecipe) -> None:
        self._recipe = recipe
        self._short = f"shorter than {recipe.min_length} nt"
        self._long = f"longer than {recipe.max_length} nt"
        self._unknown = f"more than {recipe.max_unknown:.0%} N or X"

    def reason(self, letters: bytes) -> str | None:
        """Why a sequence (upper case, U for T) is dropped, or None if it is kept."""
        if len(letters) < self._recipe.min_length:
            return self._short
        if len(letters) > self._recipe.max_length:
            return self._long
        if letters.translate(None, _RNA):
            return "other letters than IUPAC codes"
        unknown = letters.count(b"N") + letters.count(b"X")
        return self._unknown if unknown > self._recipe.max_unknown * len(letters) else None


Facts = dict[str, str]
_FACTS = ("source", "family", "type", "taxon", "cluster")


class MetadataTable:
    """The facts that a recipe asks of a table, by id."""

    def __init__(self, path: Path, recipe: TableRecipe, other: Sequence[str] = ()) -> None:
        """Read the table; `other` are columns wanted besides those of the recipe."""
        self.path = path
        self._names: list[str] = []
        self._rows: dict[str, tuple[str, ...]] = {}
        columns: dict[str, Column] = {fact: given for fact in _FACTS if (given := getattr(recipe, fact)) is not None}
        columns |= {name: Column(column=name) for name in other if name not in columns}
        self._read(recipe.id, columns)

    def facts(self, id: str) -> Facts | None:
        """What the table says of an id, or None if it has no such row."""
        row = self._rows.get(id)
        return None if row is None else dict(zip(self._names, row, strict=True))

    def _read(self, id_column: str, columns: dict[str, Column]) -> None:
        self._names = list(columns)
        picked = [(given.column, re.compile(given.pattern) if given.pattern else None) for given in columns.values()]
        table = open_table(self.path, table_format(self.path) or "csv")
        table.require(id_column, *(column for column, _ in picked))
        for _, row in table.rows:
            id = str(row[id_column])
            if id in self._rows:
                raise InputError(f"{self.path}: the id {id!r} stands twice")
            self._rows[id] = tuple(_picked(row[column], pattern) for column, pattern in picked)


def known(header: Header, table: MetadataTable | None, label: str, id: str) -> Facts:
    """All that is known of a sequence: its header line's facts, replaced by its table's; none if the table lacks it."""
    facts = {"type": header.type, "family": header.family, "taxon": header.taxon, "source": label}
    if table is None:
        return facts
    row = table.facts(id)
    return {} if row is None else facts | row


def refused(facts: Facts, recipe: SourceRecipe) -> str | None:
    """Why a sequence is dropped by a rule, or for want of any facts; None if it is not."""
    if not facts:
        return "not in the table"
    for fact, values in recipe.drop.items():
        if facts.get(fact, "") in values:
            return f"{fact} is {facts.get(fact, '') or 'unknown'}"
    for fact, values in recipe.keep.items():
        if facts.get(fact, "") not in values:
            return f"{fact} is {facts.get(fact, '') or 'unknown'}"
    return None


def _picked(cell: Any, pattern: re.Pattern[str] | None) -> str:
    value = "" if cell is None else str(cell)
    if pattern is None:
        return value
    found = pattern.search(value)
    return "" if found is None else found[1 if pattern.groups else 0] or ""


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


COUNTS, LABELS = "counts.json", "cluster_labels.txt"
_ENDINGS = (".fa", ".fasta", ".fna", ".ffn", ".frn")
_EVERY = 1000

Tell = Callable[[int], Any]
"""Called with the number of sequences done so far."""


@dataclass(frozen=True)
class SequenceSource:
    """A label, its files, and how they are read."""

    label: str
    paths: tuple[Path, ...]
    recipe: SourceRecipe = field(default_factory=SourceRecipe)
    table: Path | None = None

    def files(self) -> list[Path]:
        """The files, those in folders by name. Raises InputError for what is missing or can be read only once."""
        return [file for path in self.paths for file in _files(path)]


def stage(source: SequenceSource, filters: Filters | None, target: Path, tell: Tell) -> None:
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
    source: SequenceSource, filters: Filters | None, counts: _Counts, tell: Tell
) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Name, letters and facts of each sequence that passes the filters and rules; the others are counted."""
    recipe = source.recipe
    other = [fact for fact in (*recipe.keep, *recipe.drop) if fact not in ("source", "family", "type", "taxon")]
    table = MetadataTable(source.table, recipe.table, other) if source.table and recipe.table else None
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
        endings = tuple(ending + packed for ending in _ENDINGS for packed in ("", *COMPRESSED))
        found = sorted(file for file in path.rglob("*") if file.name.endswith(endings) and file.is_file())
        if not found:
            raise InputError(f"{path}: holds no FASTA file ({', '.join(_ENDINGS)}; plain, {', '.join(COMPRESSED)})")
        return found
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: can be read only once, and preparing reads its input again; save it to a file first")
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    return [path]
