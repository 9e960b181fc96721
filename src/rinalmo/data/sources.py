"""Sources of a token store: the recipe of `rinalmo data prepare`, and reading sources into staged stores.

The recipe has no paths; they are given beside it.

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
from rinalmo.io.files import COMPRESSED
from rinalmo.io.recipe_files import Section, Share, load
from rinalmo.io.sequences import IUPAC_LETTERS, read_fasta
from rinalmo.io.tables import open_table, table_format
from rinalmo.rna.headers import Header, read_header

PREFIX = "data-"

Rules = dict[str, list[str]]  # fact → values


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from None
    return pattern


class Column(Section):
    """A column of a table, or the part of it that `pattern` matches: its first group, else the whole match."""

    column: str
    pattern: Annotated[str, AfterValidator(_check_pattern)] | None = None

    def value(self, cell: Any) -> str:
        """The value of a cell; "" if it is empty or does not match."""
        text = "" if cell is None else str(cell)
        if self.pattern is None:
            return text
        match = re.search(self.pattern, text)
        return "" if match is None else match[1 if match.re.groups else 0] or ""


ColumnOrName = Annotated[Column, BeforeValidator(lambda value: {"column": value} if isinstance(value, str) else value)]


class TableRecipe(Section):
    """The columns of a source's table, each by name or as `{column: NAME, pattern: REGEX}`.

    id         column with the sequence ids (first word of the header lines)
    source     column with the source, if a file has several
    family     column with the family
    type       column with the RNA type
    taxon      column with the taxon
    cluster    column with the cluster, for `clustering.method: column`
    """

    id: str = "id"
    source: ColumnOrName | None = None
    family: ColumnOrName | None = None
    type: ColumnOrName | None = None
    taxon: ColumnOrName | None = None
    cluster: ColumnOrName | None = None


class SourceRecipe(Section):
    """Settings of one source.

    headers    format of the FASTA header lines
    table      a table with metadata, in addition to the FASTA file
    keep       values to keep, by type, taxon, family, source or a column; "" is unknown
    drop       values to drop, in the same form
    """

    headers: Literal["auto", "plain", "rnacentral", "rfam", "ensembl", "ncbi"] = "auto"
    table: TableRecipe | None = None
    keep: Rules = Field(default_factory=dict)
    drop: Rules = Field(default_factory=dict)


class FilterRecipe(Section):
    """Which sequences are kept.

    min_length     minimum length in nucleotides
    max_length     maximum length in nucleotides
    max_unknown    maximum fraction of N and X
    """

    min_length: PositiveInt = 16
    max_length: PositiveInt = 8192
    max_unknown: Share = 1.0


class ClusteringRecipe(Section):
    """How sequences are clustered by similarity.

    method          mmseqs: `easy-linclust`; column: clusters from the tables; none: each sequence is its own cluster
    min_identity    for mmseqs: minimum sequence identity within a cluster
    coverage        for mmseqs: minimum fraction of both sequences that is aligned
    """

    method: Literal["mmseqs", "column", "none"] = "mmseqs"
    min_identity: Share = 0.7
    coverage: Share = 0.8


class SplitRecipe(Section):
    """The validation set.

    validation_fraction    fraction of the clusters
    seed                   random seed for the choice of clusters
    """

    validation_fraction: Share = 0.01
    seed: int = 0


class PrepareRecipe(Section):
    """All settings of a store, except its input files.

    sources    settings per source, by the label given on the command line
    """

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
"""For `read_fasta`: an invalid letter drops its sequence and does not stop the reading of a database."""

_RNA = IUPAC_LETTERS.replace("T", "").encode()


def reason_to_drop(letters: bytes, recipe: FilterRecipe) -> str | None:
    """Why a sequence (upper case, U for T) is dropped, or None if it is kept."""
    if len(letters) < recipe.min_length:
        return f"shorter than {recipe.min_length} nt"
    if len(letters) > recipe.max_length:
        return f"longer than {recipe.max_length} nt"
    if letters.translate(None, _RNA):
        return "characters other than IUPAC codes"
    if letters.count(b"N") + letters.count(b"X") > recipe.max_unknown * len(letters):
        return f"more than {recipe.max_unknown:.0%} N or X"
    return None


Facts = dict[str, str]
_FACTS = ("source", "family", "type", "taxon", "cluster")


class MetadataTable:
    """The facts of a table by id."""

    def __init__(self, path: Path, recipe: TableRecipe, other: Sequence[str] = ()) -> None:
        """Read the table; `other` are columns besides those of the recipe."""
        columns: dict[str, Column] = {fact: given for fact in _FACTS if (given := getattr(recipe, fact)) is not None}
        columns |= {name: Column(column=name) for name in other if name not in columns}
        self._names = list(columns)
        self._rows: dict[str, tuple[str, ...]] = {}  # smaller than a dict for each row
        table = open_table(path, table_format(path) or "csv")
        table.require(recipe.id, *(column.column for column in columns.values()))
        for _, row in table.rows:
            id = str(row[recipe.id])
            if id in self._rows:
                raise InputError(f"{path}: the id {id!r} occurs twice")
            self._rows[id] = tuple([column.value(row[column.column]) for column in columns.values()])

    def facts(self, id: str) -> Facts | None:
        """The facts of an id, or None if the table does not have it."""
        row = self._rows.get(id)
        return None if row is None else dict(zip(self._names, row, strict=True))


def facts_of(header: Header, table: MetadataTable | None, label: str, id: str) -> Facts:
    """A sequence's facts: those of its header line, replaced by its table's; none if the table does not have it."""
    facts = {"type": header.type, "family": header.family, "taxon": header.taxon, "source": label}
    row = {} if table is None else table.facts(id)
    return {} if row is None else facts | row


def refused(facts: Facts, recipe: SourceRecipe) -> str | None:
    """The rule that drops a sequence, or that it is missing in the table; None if it is kept."""
    if not facts:
        return "not in the table"
    for rules, drops in ((recipe.drop, True), (recipe.keep, False)):
        for fact, values in rules.items():
            if (facts.get(fact, "") in values) == drops:
                return f"{fact} is {facts.get(fact, '') or 'unknown'}"
    return None


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
        """The number of the store of a sequence, and its index there."""
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

Report = Callable[[int], Any]
"""Called with the number of sequences done so far."""


@dataclass(frozen=True)
class SequenceSource:
    """A label, its files, and how they are read."""

    label: str
    paths: tuple[Path, ...]
    recipe: SourceRecipe = field(default_factory=SourceRecipe)
    table: Path | None = None

    def files(self) -> list[Path]:
        """The files, those in folders by name. Raises InputError for a missing file or a stream."""
        files: list[Path] = []
        for path in self.paths:
            if path.is_dir():
                endings = tuple(ending + packed for ending in _ENDINGS for packed in ("", *COMPRESSED))
                inside = sorted(file for file in path.rglob("*") if file.name.endswith(endings) and file.is_file())
                if not inside:
                    raise InputError(
                        f"{path}: contains no FASTA file ({', '.join(_ENDINGS)}; plain, {', '.join(COMPRESSED)})"
                    )
                files += inside
            elif not path.exists():
                raise InputError(f"{path} does not exist; check the path")
            elif not path.is_file():
                raise InputError(
                    f"{path}: can be read only once, but preparation reads its input twice; save it to a file first"
                )
            else:
                files.append(path)
        return files


def stage(source: SequenceSource, filters: FilterRecipe | None, target: Path, report: Report) -> None:
    """Read a source into a staged store at `target`; without `filters` every sequence is kept."""
    recipe = source.recipe
    other = [fact for fact in (*recipe.keep, *recipe.drop) if fact not in ("source", "family", "type", "taxon")]
    table = MetadataTable(source.table, recipe.table, other) if source.table and recipe.table else None
    # Labels are numbered as they occur; the writer takes them when it ends.
    sources: dict[str, int] = {}
    families: dict[str, int] = {"": 0}
    dropped: Counter[str] = Counter()
    types: Counter[str] = Counter()
    records = 0
    with ExitStack() as stack:
        writer = stack.enter_context(StoreWriter(target, sources=sources, families=families))
        clusters = stack.enter_context((writer.folder / LABELS).open("w", encoding="utf-8", newline="\n"))
        writer.start_cluster()
        for file in source.files():
            for record in read_fasta(file, letters=ANY_LETTER):
                letters = record.sequence.encode()
                header = read_header(record.id, record.description, recipe.headers, file.name)
                facts = facts_of(header, table, source.label, record.id)
                reason = (reason_to_drop(letters, filters) if filters else None) or refused(facts, recipe)
                records += 1
                if records % _EVERY == 0:
                    report(records)
                if reason is not None:
                    dropped[reason] += 1
                    continue
                types[facts.get("type", "")] += 1
                source_id = sources.setdefault(facts["source"], len(sources))
                writer.add(header.name, letters, source_id, families.setdefault(facts["family"], len(families)))
                clusters.write(json.dumps(facts.get("cluster", "")) + "\n")
        report(records)
        kept = records - dropped.total()
        if not kept:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in dropped.most_common())
            raise InputError(f"{source.label}: no sequence of {records:,} is usable ({reasons})")
        counts = {"records": records, "kept": kept, "dropped": dict(dropped.most_common())}
        counts["types"] = dict(types.most_common())
        (writer.folder / COUNTS).write_text(json.dumps(counts, indent=1), encoding="utf-8")
