"""Tables of labelled sequences: CSV, TSV, Parquet or JSON lines, plain, gzip or zstd, one row an example.

A row is named by its line in messages (Parquet: by its number), so that it can be found in an editor.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from rinalmo.delimited import column_index, opened_table, opened_text
from rinalmo.errors import InputError, SequenceError
from rinalmo.inference.inputs import NAME, SEQUENCE
from rinalmo.rna.fasta import make_record
from rinalmo.tasks.base import Columns, Example
from rinalmo.tasks.cells import PLAIN, NumberFormat, is_missing

LARGEST = 1e30
"""The largest number to learn: squares of larger ones do not fit into fp32."""

GROUP = ("family", "group", "type", "set")
_ENDINGS = (".csv", ".tsv", ".tab", ".txt", ".parquet", ".jsonl", ".ndjson")


def is_table(path: Path) -> bool:
    """Whether a file of this name is a table."""
    return Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix.lower() in _ENDINGS


def read_table(path: Path, columns: Columns, target: Sequence[str]) -> list[Example]:
    """The examples of a table; the target of each is its cells of the target columns, by name.

    `target` are the usual names of the target column, for a table whose `columns` do not name it.
    """
    rows = _rows(path)
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


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, and the row."""
    if not is_table(path):
        raise InputError(f"{path}: is no table; its name should end in one of {', '.join(_ENDINGS)} (.gz, .zst)")
    ending = Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix.lower()
    with _read(path):
        if ending == ".parquet":
            yield from _parquet(path)
        elif ending in (".jsonl", ".ndjson"):
            with opened_text(path) as text:
                yield from _json(path, text)
        else:
            with opened_table(path) as (header, rows):
                yield from ((f"{path}, line {line}", dict(zip(header, row, strict=True))) for line, row in rows)


def _json(path: Path, text: IO[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    keys: set[str] = set()
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: is no JSON object")
        keys = keys or set(row)
        if lacking := sorted(keys - set(row)):
            raise InputError(f"{where}: has no {lacking[0]!r}, which earlier lines have")
        yield where, row


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from pyarrow import parquet

    count = 0
    for batch in parquet.ParquetFile(path).iter_batches(4096):
        for row in batch.to_pylist():
            count += 1
            yield f"{path}, row {count}", row


@contextmanager
def _read(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read as a table ({reason})") from None
