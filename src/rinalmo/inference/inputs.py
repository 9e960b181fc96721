"""What the Python functions accept as sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.alphabet import Alphabet
from rinalmo.errors import InputError, SequenceError
from rinalmo.rna.fasta import Record, make_record, read_fasta
from rinalmo.rna.reading import one_line, source_name

Sequences = str | Path | Iterable[str | Record | Mapping[str, Any]]

# Usual names of columns, in any case.
SEQUENCE = ("sequence", "seq", "rna", "utr", "rna_sequence")
NAME = ("id", "name", "identifier", "transcript", "seq_id")


def as_records(sequences: Sequences, *, allow_mask: bool = False) -> Iterator[Record]:
    """Records from a FASTA path, one sequence, or an iterable of sequences, records or rows.

    A `Path` is a file; a `str` is a sequence. A row is a mapping with a column of one of the usual names, as those of
    a `datasets.Dataset`. Sequences without names are called by their number from 1 on.
    """
    if isinstance(sequences, Path):
        yield from read_fasta(sequences, allow_mask=allow_mask)
        return
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
            yield _from_row(item, number, allow_mask)
        elif isinstance(item, str | Record):
            yield item if isinstance(item, Record) else _from_text(item, number, allow_mask)
        else:
            raise InputError(f"sequence {number} is a {type(item).__name__}; expected text, a FASTA record or a row")


def _from_row(row: Mapping[str, Any], number: int, allow_mask: bool) -> Record:
    columns = {str(column).lower(): value for column, value in row.items()}
    place = next((name for name in SEQUENCE if name in columns), None)
    if place is None:
        raise InputError(
            f"row {number} has the columns {', '.join(map(str, row))}, none of which is called {', '.join(SEQUENCE)}; "
            'give the column itself, such as dataset["transcript"], or rename it'
        )
    text = columns[place]
    if not isinstance(text, str):
        raise InputError(f"row {number}: {place} is a {type(text).__name__}, not text")
    name = next((str(columns[name]) for name in NAME if columns.get(name) not in (None, "")), str(number))
    return make_record(text, one_line(name), number=number, allow_mask=allow_mask)


def _from_text(sequence: str, number: int, allow_mask: bool) -> Record:
    try:
        return make_record(sequence, str(number), number=number, allow_mask=allow_mask)
    except SequenceError:
        if "." in sequence and _exists(sequence):
            raise InputError(f"{sequence!r} is the name of a file; give Path({sequence!r}) to read it") from None
        raise


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a name, or holding a NUL
        return False


@contextmanager
def read_from(source: object) -> Iterator[None]:
    """Errors of records that name the file, a `Path`, which they were read from."""
    try:
        yield
    except SequenceError as error:
        if error.file is not None or not isinstance(source, Path):
            raise
        raise error.found_in(source_name(str(source)), error.line, error.record) from None


def encode(record: Record, alphabet: Alphabet) -> np.ndarray:
    """Ids with CLS and EOS, strict: no sequence, and an unknown character, raise and are named."""
    if not record.sequence:
        raise SequenceError("is empty; leave it out", record=record.id)
    try:
        return alphabet.encode(record.sequence, strict=True)
    except SequenceError as error:
        raise error.found_in(None, None, record.id) from None


def require_whole(name: str, given: object) -> None:
    """Raise InputError unless this is a whole number of at least 1."""
    if not isinstance(given, Integral) or given < 1:
        raise InputError(f"{name} is {given!r}; give a whole number from 1 on")


def peeked(records: Iterable[Record]) -> Iterator[Record]:
    """The records, once it is known that there is at least one."""
    iterator = iter(records)
    first = next(iterator, None)
    if first is None:
        raise InputError("no sequences given")
    return chain((first,), iterator)
