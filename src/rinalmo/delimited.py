"""Rows of a table of text: CSV, or TSV if the name says so (.tsv, .tab, .txt), plain or gzip.

Whatever is wrong with the file is one InputError that names it, and the line where there is one.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rinalmo.errors import InputError

Rows = Iterator[tuple[int, list[str]]]


@contextmanager
def opened_table(path: Path) -> Iterator[tuple[list[str], Rows]]:
    """The names of the columns, and the rows with the number of the line each ends on; blank lines are passed over."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(_without_nul(text), delimiter=delimiter(path))
            header = next(reader, None)
            if not header:
                raise InputError(f"{path}: is empty; a table starts with the names of its columns")
            yield header, _of_one_width(path, reader, len(header))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read as a table ({reason})") from None


def delimiter(path: Path) -> str:
    """What stands between the fields of a table of this name."""
    return "\t" if path.name.removesuffix(".gz").endswith((".tsv", ".tab", ".txt")) else ","


def column_index(path: Path, header: list[str], name: str) -> int:
    """Where the column of this name is."""
    if name not in header:
        near = difflib.get_close_matches(name, header, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(header)}"
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
