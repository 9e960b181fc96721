"""Facts about sequences from a table beside a FASTA file: CSV or TSV, plain or gzip, one row an id.

The rows are kept in memory, about 300 bytes each; a database with its facts in the header lines needs no table.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rinalmo.data.headers import Header
from rinalmo.data.recipe import Column, SourceRecipe, TableRecipe
from rinalmo.errors import InputError

Facts = dict[str, str]
_FACTS = ("source", "family", "type", "taxon", "cluster")


class Table:
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
        picked = [(column, re.compile(given.pattern) if given.pattern else None) for column, given in columns.items()]
        with _rows(self.path) as (header, rows):
            key = self._place(header, id_column)
            places = [self._place(header, columns[name].column) for name in self._names]
            patterns = [pattern for _, pattern in picked]
            for row in rows:
                if len(row) != len(header):
                    raise InputError(f"{self.path}: row {len(self._rows) + 2} has {len(row)} fields, not {len(header)}")
                if row[key] in self._rows:
                    raise InputError(f"{self.path}: the id {row[key]!r} stands twice")
                self._rows[row[key]] = tuple(
                    _picked(row[place], pattern) for place, pattern in zip(places, patterns, strict=True)
                )

    def _place(self, header: list[str], name: str) -> int:
        if name not in header:
            near = difflib.get_close_matches(name, header, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(header)}"
            raise InputError(f"{self.path}: has no column {name!r}; {hint}")
        return header.index(name)


def known(header: Header, table: Table | None, label: str, id: str) -> Facts:
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


def _picked(value: str, pattern: re.Pattern[str] | None) -> str:
    if pattern is None:
        return value
    found = pattern.search(value)
    return "" if found is None else found[1 if pattern.groups else 0] or ""


@contextmanager
def _rows(path: Path) -> Iterator[tuple[list[str], Iterator[list[str]]]]:
    """The first line of a table, and its rows."""
    opener = gzip.open if path.suffix == ".gz" else open
    inner = path.name.removesuffix(".gz")
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as text:
            rows = csv.reader(_without_nul(text), delimiter="\t" if inner.endswith((".tsv", ".tab", ".txt")) else ",")
            header = next(rows, None)
            if not header:
                raise InputError(f"{path}: is empty; a table starts with the names of its columns")
            yield header, rows
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read as a table ({reason})") from None


def _without_nul(text: IO[str]) -> Iterator[str]:
    for line in text:
        if "\0" in line:
            raise csv.Error("it has a NUL byte")
        yield line
