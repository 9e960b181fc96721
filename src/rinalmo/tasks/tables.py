"""Tables of labelled sequences: CSV, TSV, Parquet or JSON lines, plain, gzip or zstd, one row an example.

A row is named by its line in messages (Parquet: by its number), so that it can be found in an editor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rinalmo.delimited import column_index, is_missing, read_rows
from rinalmo.errors import InputError, SequenceError
from rinalmo.inference.inputs import NAME, SEQUENCE
from rinalmo.rna.fasta import make_record
from rinalmo.tasks.base import Columns, Example
from rinalmo.tasks.cells import PLAIN, NumberFormat

LARGEST = 1e30
"""The largest number to learn: squares of larger ones do not fit into fp32."""

GROUP = ("family", "group", "type", "set")


def read_table(path: Path, columns: Columns, target: Sequence[str]) -> list[Example]:
    """The examples of a table; the target of each is its cells of the target columns, by name.

    `target` are the usual names of the target column, for a table whose `columns` do not name it.
    """
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path}: holds no rows")
    header = list(first[1])
    sequence = _column(path, header, columns.sequence, SEQUENCE, "sequence")
    wanted = list(columns.target) or [_column(path, header, None, target, "target")]
    for column in wanted:
        _column(path, header, column, (), "target")
    name = _optional(path, header, columns.name, NAME)
    group = _optional(path, header, columns.group, tuple(g for g in GROUP if g not in wanted))

    def example(number: int, where: str, row: dict[str, Any]) -> Example:
        cells = {column: row[column] for column in wanted}
        label = str(row[name]) if name and not is_missing(row[name]) else str(number)
        text = _sequence(row[sequence], label, where)
        return Example(label, text, cells, str(row[group]) if group and not is_missing(row[group]) else "", where)

    examples = [example(1, *first)]
    examples.extend(example(number, *row) for number, row in enumerate(rows, start=2))
    return examples


def read_single(path: Path, columns: Columns, target: Sequence[str], task: str) -> list[Example]:
    """As `read_table`, for a task with one target, which then is the bare cell."""
    if len(columns.target) > 1:
        raise InputError(
            f"{path}: {task} predicts one column, not {len(columns.target)}; the task `table` takes several"
        )
    return [replace(e, target=next(iter(e.target.values()))) for e in read_table(path, columns, target)]


def number(value: Any, where: str, column: str, written: NumberFormat = PLAIN, *, missing: bool = False) -> float:
    """The number of a cell.

    Args:
        value: The cell.
        where: File and line, for messages.
        column: Name of the column, for messages.
        written: How the column writes its numbers.
        missing: Whether a cell may hold none; such a cell gives NaN.

    Raises:
        InputError: The cell holds no finite number, or one that is too large to learn.
    """
    if missing and is_missing(value):
        return math.nan
    found = written.parse(value)
    hint = "leave the cell empty if it was not measured" if missing else "drop the row if it was not measured"
    if found is None or not math.isfinite(found):
        unit = f" with {written.unit!r}, as others have it" if written.unit else ""
        raise InputError(f"{where}: {column} is {value!r}, not a number{unit}; {hint}")
    if abs(found) > LARGEST:
        raise InputError(f"{where}: {column} is {value!r}, too large to learn; give it in a larger unit, or {hint}")
    return found


def _sequence(value: Any, name: str, where: str) -> str:
    try:
        return make_record("" if is_missing(value) else str(value), name or "?").sequence
    except SequenceError as error:
        raise InputError(f"{where}: {error}") from None


def _column(path: Path, header: list[str], given: str | None, usual: Sequence[str], what: str) -> str:
    if given is not None:
        return header[column_index(path, header, given)]
    lower = {column.lower(): column for column in reversed(header)}
    for name in usual:
        if name in lower:
            return lower[name]
    there = ", ".join(map(repr, header))
    raise InputError(f"{path}: which column holds the {what}? There are {there}; say --set data.columns.{what}=NAME")


def _optional(path: Path, header: list[str], given: str | None, usual: Sequence[str]) -> str | None:
    lower = {column.lower(): column for column in reversed(header)}
    if given is not None:
        return _column(path, header, given, (), "")
    return next((lower[name] for name in usual if name in lower), None)
