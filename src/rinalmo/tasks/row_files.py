"""Rows of a table into a file: CSV, TSV, JSON lines or Parquet by its ending, or CSV to standard output for `-`.

Rows are written as they come; the file has its name once it is complete.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from rinalmo.durable import check_path, replacing
from rinalmo.errors import InputError

Row = dict[str, Any]
Writer = Callable[[IO[bytes], Iterable[Row], list[str]], None]
_BATCH = 4096


def check_rows_output(path: str | Path) -> None:
    """Raise InputError now for what could not be written in the end."""
    if str(path) != "-":
        check_path(Path(path), _WRITERS)


def write_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows that all have the keys of the first."""
    check_rows_output(path)
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        raise InputError(f"nothing to write to {path}")
    rows, header = chain((first,), iterator), list(first)
    if str(path) == "-":
        _csv(sys.stdout, rows, header, ",")
        return
    with replacing(Path(path)) as file:
        _WRITERS[Path(path).suffix](file, rows, header)


def _delimited(separator: str) -> Writer:
    def write(file: IO[bytes], rows: Iterable[Row], header: list[str]) -> None:
        with _text(file) as text:
            _csv(text, rows, header, separator)

    return write


def _csv(text: IO[str], rows: Iterable[Row], header: list[str], delimiter: str) -> None:
    writer = csv.DictWriter(text, header, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _json(file: IO[bytes], rows: Iterable[Row], header: list[str]) -> None:
    file.writelines(json.dumps(row).encode() + b"\n" for row in rows)


def _parquet(file: IO[bytes], rows: Iterable[Row], header: list[str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    iterator, writer = iter(rows), None
    while batch := list(islice(iterator, _BATCH)):
        table = pa.Table.from_pylist(batch, schema=writer.schema if writer else None)
        writer = writer or parquet.ParquetWriter(file, table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()


@contextmanager
def _text(file: IO[bytes]) -> Iterator[IO[str]]:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    yield text
    text.flush()
    text.detach()


_WRITERS: dict[str, Writer] = {
    ".csv": _delimited(","),
    ".tsv": _delimited("\t"),
    ".jsonl": _json,
    ".parquet": _parquet,
}
