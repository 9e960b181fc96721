"""Rows of tables: CSV, or TSV if the name says so (.tsv, .tab, .txt), JSON lines and Parquet; text plain, gzip or zstd.

Whatever is wrong with the file is one InputError that names it, and the line where there is one.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from rinalmo.errors import InputError
from rinalmo.io.files import check_path, replacing

_ADVICE = "save it as CSV in UTF-8 with commas, or with tabs as .tsv"

Rows = Iterator[tuple[int, list[str]]]

_ENDINGS = (".csv", ".tsv", ".tab", ".txt", ".parquet", ".jsonl", ".ndjson")

# What pandas reads as missing, and what R, SQL and JSON write; compared in lower case.
_MISSING = frozenset(
    ("", "na", "n/a", "nan", "-nan", "none", "null", "<na>", "nat", "#n/a", "#n/a n/a", "#na", "#null!")
).union(("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"))


@contextmanager
def opened_table(path: Path) -> Iterator[tuple[list[str], Rows]]:
    """The names of the columns, and the rows with the number of the line each ends on; blank lines are passed over."""
    try:
        with opened_text(path) as text:
            reader = fields(_without_nul(text), delimiter(path))
            header = next(reader, None)
            if not header:
                raise InputError(f"{path}: is empty; a table starts with the names of its columns")
            if len(header) == 1 and (other := next((sign for sign in ";\t," if sign in header[0]), None)):
                raise InputError(f"{path}: its fields are separated by {other!r}; {_ADVICE}")
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise InputError(f"{path}: has two columns named {twice!r}; rename one")
            yield header, _of_one_width(path, reader, len(header))
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no text in UTF-8; {_ADVICE}") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read as a table ({reason})") from None


@contextmanager
def opened_text(path: Path) -> Iterator[IO[str]]:
    """A text file, decompressed if its name ends in .gz or .zst, without a byte order mark."""
    if path.suffix == ".zst":
        import pyarrow as pa

        with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
            yield io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        return
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as text:
        yield text


class FieldReader:
    """A `csv.reader` that takes a long RNA, or values of each of its nucleotides, for one field.

    The limit on the size of a field is one for the whole process. It is raised only while a row is read: by the first
    of the threads that read one, until the last has it.
    """

    _LIMIT = 1 << 30
    _lock = threading.Lock()
    _reading = 0
    _before = 0

    def __init__(self, lines: Iterable[str], delimiter: str) -> None:
        self._reader = csv.reader(lines, delimiter=delimiter)

    @property
    def line_num(self) -> int:
        """The number of the line that the last row ended on."""
        return self._reader.line_num

    def __iter__(self) -> FieldReader:
        return self

    def __next__(self) -> list[str]:
        cls = FieldReader
        with cls._lock:
            if not cls._reading:
                cls._before = csv.field_size_limit(max(self._LIMIT, csv.field_size_limit()))
            cls._reading += 1
        try:
            return next(self._reader)
        finally:
            with cls._lock:
                cls._reading -= 1
                if not cls._reading:
                    csv.field_size_limit(cls._before)


def fields(lines: Iterable[str], delimiter: str) -> FieldReader:
    """The rows of delimited text as lists of fields, however long."""
    return FieldReader(lines, delimiter)


def delimiter(path: Path) -> str:
    """What stands between the fields of a table of this name."""
    return "\t" if path.name.removesuffix(".gz").removesuffix(".zst").endswith((".tsv", ".tab", ".txt")) else ","


def column_index(path: Path, header: list[str], name: str) -> int:
    """Where the column of this name is."""
    if name not in header:
        near = difflib.get_close_matches(name, header, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, header))}"
        raise InputError(f"{path}: has no column {name!r}; {hint}")
    return header.index(name)


def _of_one_width(path: Path, reader: FieldReader, width: int) -> Rows:
    for row in reader:
        if row and len(row) != width:
            raise InputError(f"{path}, line {reader.line_num}: has {len(row)} fields, not {width}")
        if row:
            yield reader.line_num, row


def _without_nul(text: IO[str]) -> Iterator[str]:
    for line in text:
        if "\0" in line:
            raise csv.Error("it has a NUL byte")
        yield line


# Tables in any format


def is_table(path: Path) -> bool:
    """Whether a file of this name is a table."""
    return _ending(path) in _ENDINGS


def _ending(path: Path) -> str:
    return Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix.lower()


def is_missing(value: Any) -> bool:
    """Whether a cell holds no value: None, NaN, pandas' NA, nothing, or a word that stands for it."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
        return True
    if isinstance(value, str | list | tuple | dict | bool | int):
        return False
    try:
        return bool(value != value)
    except (TypeError, ValueError):
        return type(value).__name__ in ("NAType", "NaTType")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table in any of its formats, each with its file and line (Parquet: number), for messages."""
    if not is_table(path):
        raise InputError(f"{path}: is no table; its name should end in one of {', '.join(_ENDINGS)} (.gz, .zst)")
    ending = _ending(path)
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


def _write_json(file: IO[bytes], rows: Iterable[Row], header: list[str]) -> None:
    file.writelines(json.dumps(row).encode() + b"\n" for row in rows)


def _write_parquet(file: IO[bytes], rows: Iterable[Row], header: list[str]) -> None:
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
    ".jsonl": _write_json,
    ".parquet": _write_parquet,
}
