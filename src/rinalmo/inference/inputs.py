"""What the Python functions accept as sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from rinalmo.alphabet import Alphabet
from rinalmo.errors import InputError, SequenceError
from rinalmo.rna.fasta import Record, read_fasta

Sequences = str | Path | Iterable[str | Record]


def as_records(sequences: Sequences, *, allow_mask: bool = False) -> Iterator[Record]:
    """Records from a FASTA path, one sequence, or an iterable of sequences or records.

    A `Path` is a file; a `str` is a sequence. Sequences without names are called by their number from 1 on.
    """
    if isinstance(sequences, Path):
        yield from read_fasta(sequences, allow_mask=allow_mask)
        return
    items = (sequences,) if isinstance(sequences, str) else sequences
    for number, item in enumerate(items, start=1):
        if not isinstance(item, str | Record):
            raise InputError(f"sequence {number} is a {type(item).__name__}; expected text or a FASTA record")
        record = item if isinstance(item, Record) else Record(str(number), "", item, number)
        if not record.sequence:
            raise SequenceError("is empty; leave it out", record=record.id)
        yield record


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
