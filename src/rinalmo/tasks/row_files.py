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

from rinalmo.durable import replacing
from rinalmo.errors import InputError

Row = dict[str, Any]
_BATCH = 4096


def check_rows_output(path: str | Path) -> None:
    """Raise InputError if the ending of `path` names no format."""
    if str(path) != "-":
        _writer(Path(path))


def write_rows(path: str | Path, rows: Iterable[Row]) -> int:
    """Write rows that all have the keys of the first; returns their number."""
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        raise InputError(f"nothing to write to {path}")
    counted = _Counted(chain((first,), iterator))
    if str(path) == "-":
        _csv(sys.stdout, counted, list(first), ",")
    else:
        write = _writer(Path(path))
        with replacing(Path(path)) as file:
            write(file, counted, list(first))
    return counted.count


class _Counted:
    def __init__(self, rows: Iterator[Row]) -> None:
        self.rows, self.count = rows, 0

    def __iter__(self) -> Iterator[Row]:
        for row in self.rows:
            self.count += 1
            yield row


def _writer(path: Path) -> Callable[[IO[bytes], Iterable[Row], list[str]], None]:
    writers = {".csv": _commas, ".tsv": _tabs, ".jsonl": _json, ".parquet": _parquet}
    if path.suffix not in writers:
        raise InputError(f"{path}: the ending chooses the format; use one of {', '.join(writers)}")
    return writers[path.suffix]


def _commas(file: IO[bytes], rows: Iterable[Row], header: list[str]) -> None:
    with _text(file) as text:
        _csv(text, rows, header, ",")


def _tabs(file: IO[bytes], rows: Iterable[Row], header: list[str]) -> None:
    with _text(file) as text:
        _csv(text, rows, header, "\t")


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
