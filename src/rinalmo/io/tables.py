"""The one reader and writer of tables: CSV, TSV, JSON lines and Parquet, compressed or not.

The ending of the name gives the format (.csv; .tsv, .tab or .txt; .jsonl or .ndjson; .parquet), the content gives the
compression of text. Every fault of a file is one InputError that names it, and the line where there is one.
"""

from __future__ import annotations

import csv
import difflib
import json
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import IO, Any, Literal, cast

from rinalmo.errors import InputError
from rinalmo.io.files import (
    COMPRESSED,
    atomic_write,
    atomic_write_compressed,
    check_path,
    escape_controls,
    open_binary,
    read_lines,
    source_name,
    uncompressed_name,
)

Row = dict[str, Any]
Format = Literal["csv", "tsv", "jsonl", "parquet"]

_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "tsv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_OUTPUT_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
_SEPARATORS: dict[str, str] = {"csv": ",", "tsv": "\t"}
_ADVICE = "save it as CSV in UTF-8 with commas, or with tabs as .tsv"
_BATCH = 4096
_MAX_FIELD = 1 << 30
_field_limit_lock = threading.Lock()

# What pandas reads as missing, and what R, SQL and JSON write; compared in lower case.
_MISSING = frozenset(
    ("", "na", "n/a", "nan", "-nan", "none", "null", "<na>", "nat", "#n/a", "#n/a n/a", "#na", "#null!")
).union(("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"))


def table_format(path: str | PathLike[str]) -> Format | None:
    """The format of a table by the ending of its name; None if it is not the name of a table."""
    return _FORMATS.get(Path(uncompressed_name(path)).suffix)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, pandas' NA, an empty string or a word such as NA."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
        return True
    if isinstance(value, str | list | tuple | dict | bool | int):
        return False
    try:
        return bool(value != value)
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors have no single truth
        return type(value).__name__ in ("NAType", "NaTType")


@dataclass(frozen=True)
class TableReader:
    """A table that is being read.

    Attributes:
        name: The name of the file in messages.
        columns: The names of the columns.
        rows: Each row with the number of the line that it ends on (Parquet: of the row), as a mapping of columns to
            cells. Cells of CSV and TSV are text. Blank lines are skipped.
    """

    name: str
    columns: Sequence[str]
    rows: Iterator[tuple[int, Row]]
    _unit: str = "line"

    def place(self, number: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.name}, {self._unit} {number}"

    def require(self, *columns: str) -> None:
        """Raise InputError if a column is missing."""
        for column in columns:
            if column not in self.columns:
                near = difflib.get_close_matches(column, self.columns, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, self.columns))}"
                raise InputError(f"{self.name}: has no column {column!r}; {hint}")


def open_table(path: str | PathLike[str], format: Format | None = None) -> TableReader:
    """Open a table, or "-" for standard input, and read its header; the ending gives the format if it is None.

    Raises InputError if the file is unreadable, no table, or has no header. Faults of rows are raised as they are read.
    """
    name = source_name(path)
    format = format or table_format(path)
    if format is None:
        raise InputError(
            f"{name}: is not a table; use one of the extensions {', '.join(_FORMATS)} ({', '.join(COMPRESSED)})"
        )
    if format == "parquet":
        return _open_parquet(path, name)
    if format == "jsonl":
        rows = _json_rows(path, name)
        first = next(rows, None)
        return TableReader(name, list(first[1]), chain((first,), rows)) if first else TableReader(name, (), rows)
    lines = _csv_lines(path, name, _SEPARATORS[format])
    _, columns = next(lines, (0, []))
    if not columns:
        raise InputError(f"{name}: is empty; the first line of a table has the column names")
    if len(columns) == 1 and (other := next((sign for sign in ";\t," if sign in columns[0]), None)):
        raise InputError(f"{name}: its fields are separated by {other!r}; {_ADVICE}")
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise InputError(f"{name}: has two columns named {twice!r}; rename one")
    rows = ((number, dict(zip(columns, fields, strict=True))) for number, fields in lines if fields)
    return TableReader(name, columns, rows)


def read_rows(path: str | PathLike[str], format: Format | None = None) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a table, each with its file and line for messages; raises as `open_table`."""
    table = open_table(path, format)
    for number, row in table.rows:
        yield table.place(number), row


def _csv_lines(path: str | PathLike[str], name: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row, as many as in the first, with the number of its last line; none for a blank line.

    A field may hold a long RNA, or a value for each of its nucleotides. The limit on the size of a field belongs to the
    whole process, so it is raised only while a row is read.
    """
    reader, width = csv.reader(read_lines(path, strict=True), delimiter=separator), 0
    while True:
        with _field_limit_lock:
            limit = csv.field_size_limit(_MAX_FIELD)
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise InputError(f"{name}, line {reader.line_num}: cannot be read as a table ({error})") from None
            finally:
                csv.field_size_limit(limit)
        if row is None:
            return
        if not width and row and row[0].startswith("# "):  # comments before the header, as MaveDB writes them
            continue
        width = width or len(row)
        if row and len(row) != width:
            problem = f"has {len(row)} fields, but there are {width} columns; check commas and quotes"
            raise InputError(f"{name}, line {reader.line_num}: {problem}")
        yield reader.line_num, row


def _json_rows(path: str | PathLike[str], name: str) -> Iterator[tuple[int, Row]]:
    keys: set[str] = set()
    for number, line in enumerate(read_lines(path, strict=True), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{name}, line {number}: is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{name}, line {number}: is not a JSON object")
        keys = keys or set(row)
        if lacking := sorted(keys - set(row)):
            raise InputError(f"{name}, line {number}: has no {lacking[0]!r}, which earlier lines have")
        yield number, row


def _open_parquet(path: str | PathLike[str], name: str) -> TableReader:
    import pyarrow as pa
    from pyarrow import parquet

    def rows() -> Iterator[tuple[int, Row]]:
        number = 0
        with file:
            try:
                for batch in file.iter_batches(_BATCH):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
            except (OSError, pa.ArrowException) as error:
                raise InputError.from_os_error(error, name, "cannot be read as Parquet") from None

    with open_binary(path):  # the same message as for other files that cannot be opened
        pass
    try:
        file = parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError.from_os_error(error, name, "cannot be read as Parquet") from None
    return TableReader(name, file.schema_arrow.names, rows(), "row")


def check_rows_output(path: str | Path) -> None:
    """Raise InputError now if `write_rows` could not write to this path in the end."""
    if str(path) != "-":
        name = Path(path)
        is_text = name.suffix in COMPRESSED and name.with_suffix("").suffix != ".parquet"
        check_path(name.with_suffix("") if is_text else name, _OUTPUT_ENDINGS)


def write_rows(path: str | Path, rows: Iterable[Row], *, columns: Sequence[str] = ()) -> None:
    """Write a table, which appears under its name when it is complete; "-" is CSV on standard output.

    The ending gives the format and, for text, the compression. In CSV and TSV numbers have six digits. `columns` are
    needed only where there may be no rows.
    """
    check_rows_output(path)
    rows = iter(rows)
    if not columns:
        first = next(rows, None)
        if first is None:
            raise InputError(f"nothing to write to {path}")
        rows, columns = chain((first,), rows), list(first)
    if str(path) == "-":
        sys.stdout.writelines(map(escape_controls, table_lines(rows, "csv", columns)))
        return
    format = table_format(path)
    if format == "parquet":
        with atomic_write(Path(path)) as file:
            write_parquet(file, rows, columns)
    else:
        with atomic_write_compressed(Path(path)) as file:
            for line in table_lines(rows, format or "csv", columns):
                file.write(line.encode())


class _Echo:
    """A file for `csv.writer`, whose `writerow` returns what `write` does."""

    def write(self, text: str) -> str:
        return text


def table_lines(rows: Iterable[Row], format: str, columns: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a table as CSV, TSV (both with a header) or JSON lines."""
    if format == "jsonl":
        for row in rows:
            yield json.dumps(row) + "\n"
        return
    separator, echo = _SEPARATORS[format], cast(Any, _Echo())
    writer = csv.DictWriter(echo, columns, delimiter=separator, lineterminator="\n")
    yield writer.writeheader()
    for row in rows:
        yield writer.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()})


def write_parquet(file: IO[bytes], rows: Iterable[Row], columns: Sequence[str], schema: Any = None) -> None:
    """Write rows to an open file as Parquet, some thousand at a time; without rows all columns are text."""
    import pyarrow as pa
    from pyarrow import parquet

    rows, writer = iter(rows), None
    while (batch := list(islice(rows, _BATCH))) or writer is None:
        if not batch and schema is None:
            schema = pa.schema([(column, pa.string()) for column in columns])
        table = pa.Table.from_pylist(batch, schema=schema)
        schema = table.schema
        writer = writer or parquet.ParquetWriter(file, schema, compression="zstd")
        if batch:
            writer.write_table(table)
    writer.close()
