"""Rows of a table of text: CSV, or TSV if the name says so (.tsv, .tab, .txt), plain, gzip or zstd.

Whatever is wrong with the file is one InputError that names it, and the line where there is one.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rinalmo.errors import InputError

_ADVICE = "save it as CSV in UTF-8 with commas, or with tabs as .tsv"

Rows = Iterator[tuple[int, list[str]]]


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


def fields(lines: Iterable[str], delimiter: str) -> Any:
    """A `csv.reader` that takes a long RNA, or values of each of its nucleotides, for one field."""
    csv.field_size_limit(1 << 30)
    return csv.reader(lines, delimiter=delimiter)


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


def _of_one_width(path: Path, reader: Any, width: int) -> Rows:
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
