"""Sequences as users give them: text, FASTA files, tables, data frames, records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.fasta import Record, make_record, read_fasta
from rinalmo.io.files import (
    BYTE_ORDER_MARK,
    file_sha256,
    is_stream,
    one_line,
    read_chunks,
    source_name,
    uncompressed_name,
)
from rinalmo.io.tables import is_missing, read_rows, table_format
from rinalmo.rna.alphabet import Alphabet

Sequences = str | Path | Iterable[str | Record | Mapping[str, Any]]
"""One sequence, the `Path` of a FASTA file or table, sequences, records or rows, or a data frame or column of them."""

# Usual names of columns, in any case.
SEQUENCE = ("sequence", "seq", "rna", "utr", "rna_sequence")
NAME = ("id", "name", "identifier", "transcript", "seq_id")


class JobSource:
    """An input of a job: whether it can be read again, and whether it is still the same."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rereadable = path is None or (str(path) != "-" and path.is_file())
        self._version = self._current_version()

    def _current_version(self) -> tuple[int, int] | None:
        if self.path is None or not self.rereadable:
            return None
        state = self.path.stat()
        return state.st_size, state.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raise InputError if the file has been written to since it was opened."""
        if self._current_version() != self._version:
            raise InputError(f"{self.path}: was changed while it was read; run the command again")

    def fingerprint(self) -> str:
        """The sha256 of the file."""
        assert self.path is not None
        self.check_unchanged()
        return file_sha256(self.path)


class SequenceFile(JobSource):
    """The records of a FASTA file or a table, opened once and read once; "-" is FASTA on standard input.

    Raises:
        InputError: The file cannot be opened, or its first record cannot be used.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path))
        self.is_table = is_sequence_table(path)
        self._records = read_sequences(path)
        if str(path) != "-" and not is_stream(Path(path)):
            self._records = require_nonempty(self._records)

    def __iter__(self) -> Iterator[Record]:
        return self._records


def as_records(sequences: Sequences, *, allow_mask: bool = False) -> Iterator[Record]:
    """Records from a file, one sequence, or an iterable of sequences, records or rows.

    A `Path` is a FASTA file or a table; a `str` is a sequence. A row is a mapping with a column of one of the usual
    names, such as those of a `datasets.Dataset`, a pandas or polars DataFrame or a pyarrow Table. Sequences without
    names are numbered from 1.
    """
    if isinstance(sequences, Path):
        yield from read_sequences(sequences, allow_mask=allow_mask)
        return
    sequences = sequences if isinstance(sequences, str) else plain_rows(sequences)
    if isinstance(sequences, Mapping):
        raise InputError(
            f"sequences came as a mapping of {', '.join(map(str, list(sequences)[:3]))}; give one of its values "
            "(such as the train split of a DatasetDict), or a list of sequences or of rinalmo.rna.Record(name, …)"
        )
    if not isinstance(sequences, Iterable):
        raise InputError(f"sequences came as {type(sequences).__name__}; give a sequence, a list of them or a Path")
    items = (sequences,) if isinstance(sequences, str) else sequences
    for number, item in enumerate(items, start=1):
        if isinstance(item, Mapping):
            yield _record_of_row(item, number, allow_mask)
        elif isinstance(item, Record):
            yield item
        elif isinstance(item, str):
            yield _record_of_text(item, number, allow_mask)
        elif is_missing(item):
            raise InputError(f"sequence {number} is {item!r}, a missing value; leave it out")
        else:
            raise InputError(f"sequence {number} is a {type(item).__name__}; expected text, a FASTA record or a row")


def plain_rows(data: Any) -> Any:
    """The rows of a data frame as mappings, and the values of one of its columns as Python's own.

    Args:
        data: A pandas or polars DataFrame or Series, a pyarrow Table, RecordBatch or array; anything else is returned
            unchanged. A named index of a pandas DataFrame is a column.

    Raises:
        InputError: Two columns have the same name.
    """
    frame: Any = data
    match type(data).__module__.partition(".")[0]:
        case "pandas" if hasattr(frame, "columns"):
            if any(name is not None and name not in frame.columns for name in frame.index.names):
                frame = frame.reset_index()
            names = [str(name) for name in frame.columns]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(f"the DataFrame has two columns named {twice!r}; rename one")
            return (dict(zip(names, row, strict=True)) for row in frame.itertuples(index=False, name=None))
        case "polars" if hasattr(frame, "collect_schema") or hasattr(frame, "iter_rows"):
            frame = frame if hasattr(frame, "iter_rows") else frame.collect()
            return frame.iter_rows(named=True)
        case "pyarrow" if hasattr(frame, "to_batches"):  # without a copy of all rows
            return (row for batch in frame.to_batches(max_chunksize=4096) for row in batch.to_pylist())
        case "pyarrow" if hasattr(frame, "to_pylist"):
            return frame.to_pylist()
        case _:
            return data


def read_sequences(source: str | Path, *, allow_mask: bool = False) -> Iterator[Record]:
    """The records of a FASTA file, or of a table with a column of sequences; "-" is FASTA on standard input.

    A table is recognised by its name (.csv, .tsv, .tab, .jsonl, .ndjson, .parquet; compressed or not), unless it starts
    as FASTA.

    Raises:
        InputError: The file cannot be used; the message names it, and the line or record.
    """
    if is_sequence_table(source):
        return (record for record, _ in read_table_records(Path(source), allow_mask=allow_mask))
    return read_fasta(source, allow_mask=allow_mask)


def is_sequence_table(source: str | Path) -> bool:
    """Whether sequences are read from this file as from a table."""
    path = Path(source)
    format = table_format(path)
    if str(source) == "-" or format is None or uncompressed_name(path).endswith(".txt"):
        return False
    if format == "parquet" or not path.is_file():
        return True
    try:
        return not next(read_chunks(path), b"").removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b">")
    except InputError:
        return True  # reading the table reports the error


def read_table_records(path: Path, *, allow_mask: bool = False) -> Iterator[tuple[Record, dict[str, Any]]]:
    """The record and all cells of each row of a table."""
    number = 0
    for number, (where, row) in enumerate(read_rows(path), start=1):
        try:
            yield _record_of_row(row, number, allow_mask), row
        except SequenceError as error:
            raise InputError(f"{where}: {error}") from None
        except InputError as error:
            raise InputError(f"{where}: {str(error).removeprefix(f'row {number}: ')}") from None
    if not number:
        raise InputError(f"{path}: holds no rows")


def _record_of_row(row: Mapping[str, Any], number: int, allow_mask: bool) -> Record:
    columns = {str(column).lower(): value for column, value in row.items()}
    column = next((name for name in SEQUENCE if name in columns), None)
    if column is None:
        raise InputError(
            f"row {number} has the columns {', '.join(map(str, row))}, none of which is called {', '.join(SEQUENCE)}; "
            'give the column itself, such as dataset["transcript"], or rename it'
        )
    text = columns[column]
    if is_missing(text):
        raise InputError(f"row {number}: {column} is empty; leave the row out")
    if not isinstance(text, str):
        raise InputError(f"row {number}: {column} is a {type(text).__name__}, not text")
    name = next((str(columns[name]) for name in NAME if not is_missing(columns.get(name))), str(number))
    return make_record(text, one_line(name), number=number, allow_mask=allow_mask)


def _record_of_text(sequence: str, number: int, allow_mask: bool) -> Record:
    try:
        return make_record(sequence, str(number), number=number, allow_mask=allow_mask)
    except SequenceError:
        try:
            is_file_name = "." in sequence and Path(sequence).exists()
        except (OSError, ValueError):  # too long for a name, or it holds a NUL
            is_file_name = False
        if is_file_name:
            raise InputError(f"{sequence!r} is the name of a file; give Path({sequence!r}) to read it") from None
        raise


@contextmanager
def name_source_in_errors(source: object) -> Iterator[None]:
    """Add the file, if `source` is a `Path`, to errors of records that do not name one."""
    try:
        yield
    except SequenceError as error:
        if error.file is not None or not isinstance(source, Path):
            raise
        raise error.with_location(source_name(str(source)), error.line, error.record) from None


def encode(record: Record, alphabet: Alphabet) -> np.ndarray:
    """Token ids with CLS and EOS; an empty sequence and unknown characters raise an error that names the record."""
    if not record.sequence:
        raise SequenceError("is empty; leave it out", record=record.id)
    try:
        return alphabet.encode(record.sequence, strict=True)
    except SequenceError as error:
        raise error.with_location(None, None, record.id) from None


def check_positive_int(name: str, value: object) -> None:
    """Raise InputError unless the value is a whole number of at least 1."""
    if not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name} is {value!r}; give a whole number from 1 on")


def require_nonempty(records: Iterable[Record]) -> Iterator[Record]:
    """The records; raises InputError now if there is none, or if the first one cannot be used."""
    iterator = iter(records)
    first = next(iterator, None)
    if first is None:
        raise InputError("no sequences given")
    return chain((first,), iterator)
