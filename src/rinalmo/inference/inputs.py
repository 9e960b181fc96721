"""What the Python functions accept as sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from rinalmo.alphabet import Alphabet
from rinalmo.errors import InputError, SequenceError
from rinalmo.rna.fasta import Record, make_record, read_fasta

Sequences = str | Path | Iterable[str | Record]


def as_records(sequences: Sequences, *, allow_mask: bool = False) -> Iterator[Record]:
    """Records from a FASTA path, one sequence, or an iterable of sequences or records.

    A `Path` is a file; a `str` is a sequence. Sequences without names are called by their number from 1 on.
    """
    if isinstance(sequences, Path):
        yield from read_fasta(sequences, allow_mask=allow_mask)
        return
    if isinstance(sequences, Mapping):
        raise InputError("sequences came as a mapping; give a list of sequences or of rinalmo.rna.Record(name, …)")
    items = (sequences,) if isinstance(sequences, str) else sequences
    for number, item in enumerate(items, start=1):
        if not isinstance(item, str | Record):
            raise InputError(f"sequence {number} is a {type(item).__name__}; expected text or a FASTA record")
        yield item if isinstance(item, Record) else _from_text(item, number, allow_mask)


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


def encode(record: Record, alphabet: Alphabet) -> np.ndarray:
    """Ids with CLS and EOS, strict: an unknown character raises and is named."""
    try:
        return alphabet.encode(record.sequence, strict=True)
    except SequenceError as error:
        raise SequenceError(str(error), record=record.id) from None


def peeked(records: Iterable[Record]) -> Iterator[Record]:
    """The records, once it is known that there is at least one."""
    iterator = iter(records)
    first = next(iterator, None)
    if first is None:
        raise InputError("no sequences given")
    return chain((first,), iterator)
