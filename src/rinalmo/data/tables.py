"""Facts about sequences from a table beside a FASTA file: CSV or TSV, plain or gzip, one row an id.

The rows are kept in memory, about 300 bytes each; a database with its facts in the header lines needs no table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rinalmo.data.recipe import Column, SourceRecipe, TableRecipe
from rinalmo.delimited import column_index, opened_table
from rinalmo.errors import InputError
from rinalmo.rna.headers import Header

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
        with opened_table(self.path) as (header, rows):
            key = column_index(self.path, header, id_column)
            places = [column_index(self.path, header, columns[name].column) for name in self._names]
            patterns = [pattern for _, pattern in picked]
            for _, row in rows:
                if row[key] in self._rows:
                    raise InputError(f"{self.path}: the id {row[key]!r} stands twice")
                self._rows[row[key]] = tuple(
                    _picked(row[place], pattern) for place, pattern in zip(places, patterns, strict=True)
                )


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
