"""`read_structures` and `write_structures`: which format a file has, and the way to and from the disk.

Text may be compressed with gzip or zstd: on the way in told by its content, on the way out by the ending .gz or .zst.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple

from rinalmo.durable import check_place, replacing
from rinalmo.errors import InputError
from rinalmo.rna.formats import dbn, partners, st, tables
from rinalmo.rna.reading import read_lines, source_name
from rinalmo.rna.structure import Structure

Source = str | PathLike[str]

_ENDINGS = {"db": "dbn", "dot": "dbn", "vienna": "dbn"}
_COMPRESSED = (".gz", ".zst")


class _Text(NamedTuple):
    """A format of lines."""

    read: Callable[[Iterable[str], str], Iterator[Structure]]
    write: Callable[[Iterable[Structure]], Iterator[str]]


_TEXTS = {
    "dbn": _Text(dbn.read, dbn.write),
    "ct": _Text(partners.read_ct, partners.write_ct),
    "bpseq": _Text(partners.read_bpseq, partners.write_bpseq),
    "st": _Text(st.read, st.write),
}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
FORMATS = (*_TEXTS, *_DELIMITERS, "parquet")


def format_of(path: Source, format: str | None = None) -> str:
    """The format of a file by its ending, or `format` if that is given. Raises InputError for one not known."""
    name = Path(path).name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    found = format or name.rpartition(".")[2]
    found = _ENDINGS.get(found, found)
    if found not in FORMATS:
        what = f"there is no structure format {format!r}" if format else "the ending tells no structure format"
        raise InputError(f"{source_name(path)}: {what}; use one of {', '.join(FORMATS)}")
    if found == "parquet" and str(path).endswith(_COMPRESSED):
        raise InputError(f"{source_name(path)}: Parquet is compressed inside; use the ending .parquet")
    return found


def read_structures(path: Source, format: str | None = None, *, column: str = "structure") -> Iterator[Structure]:
    """Yield the structures of a file in order; "-" is standard input and needs a `format`.

    `column` is the one of a table that holds the dot-bracket text.

    Raises:
        SequenceError: a record is wrong; the message has file, line, record and position.
        InputError: the file is missing, unreadable, empty, of an unknown format or lacks a column.
    """
    return (structure for structure, _ in read_rows(path, format, column=column))


def read_rows(
    path: Source, format: str | None = None, *, column: str = "structure"
) -> Iterator[tuple[Structure, tables.Row]]:
    """As `read_structures`, each structure with all columns of its row of the table; none if it is not a table."""
    found = _rows(path, format_of(path, format), source_name(path), column)
    return _at_least_one(found, source_name(path))


def _rows(path: Source, kind: str, file: str, column: str) -> Iterator[tuple[Structure, tables.Row]]:
    if kind == "parquet":
        return tables.structures(tables.parquet_rows(path), file, column)
    if kind in _DELIMITERS:
        return tables.structures(tables.delimited_rows(read_lines(path), file, _DELIMITERS[kind]), file, column)
    return ((structure, {}) for structure in _TEXTS[kind].read(read_lines(path), file))


def _at_least_one(found: Iterator[tuple[Structure, tables.Row]], file: str) -> Iterator[tuple[Structure, tables.Row]]:
    first = next(found, None)
    if first is None:
        raise InputError(f"{file} holds no structure; it should hold at least one")
    yield first
    yield from found


def write_structures(path: Source, structures: Iterable[Structure], format: str | None = None) -> None:
    """Write structures one by one; the file appears under its name when it is complete and on the disk.

    Raises InputError if there is no such folder, or the format is not known.
    """
    path, kind = Path(path), format_of(path, format)
    check_place(path)
    with replacing(path) as file:
        if kind == "parquet":
            tables.write_parquet(structures, file)
            return
        with _compressing(file, path.suffix) as stream:
            for text in structure_text(structures, kind):
                stream.write(text.encode())


def structure_text(structures: Iterable[Structure], format: str) -> Iterator[str]:
    """The pieces of a file of structures in a format of text, as for standard output."""
    if format in _DELIMITERS:
        return tables.write_delimited(structures, _DELIMITERS[format])
    return _TEXTS[format].write(structures)


def _compressing(file: IO[bytes], ending: str) -> AbstractContextManager[Any]:
    if ending == ".gz":
        return gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)  # the same bytes every time
    if ending == ".zst":
        import pyarrow as pa

        return pa.CompressedOutputStream(pa.PythonFile(_Unclosed(file), mode="w"), "zstd")
    return nullcontext(file)


class _Unclosed:
    """A file that pyarrow cannot close: whoever opened it puts it on the disk first."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self.write, self.flush = file.write, file.flush

    def close(self) -> None:
        self.flush()
