"""How much the page takes, and what a visitor pasted as records.

The command line has no such limits: whatever is too much here is told which command takes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rinalmo.errors import InputError, SequenceError
from rinalmo.rna.fasta import Record, make_record, parse_fasta
from rinalmo.rna.reading import read_chunks

TEXT = 500_000
"""Characters of a pasted text, and bytes of an uploaded file, unpacked."""

REQUEST = 4_000_000
"""Bytes of any request; more is refused before it is read."""

FILL_MASK, LOGO, FOLD, VARIANTS, ONE_PASS = 1000, 200, 500, 200, 1000
"""Nucleotides: of a masked RNA, its logo, a fold, and variants with masks or in one pass."""

MASKS = 20
SEQUENCES, EMBED, EMBED_TOGETHER = 500, 2000, 100_000
"""Sequences to embed, nucleotides of each, nucleotides together."""

_PASTED = "pasted text"
_NAME = "RNA"


def one_record(text: str, longest: int, command: str, *, allow_mask: bool = False) -> Record:
    """The one RNA of a text: a sequence, or FASTA with one record. `command` takes what is longer.

    Raises InputError for everything else.
    """
    found = list(_pasted(text, allow_mask)) if text.lstrip().startswith(">") else [_bare(text, allow_mask)]
    if len(found) > 1:
        raise InputError(f"the {_PASTED} has {len(found):,} sequences, and this takes one; use `rinalmo {command}`")
    return _checked(found[0], longest, command)


def many_records(text: str, upload: Path | None) -> list[Record]:
    """The sequences of FASTA, pasted or in an uploaded file (plain, gzip or zstd), or one pasted sequence a line.

    Raises InputError for what is neither or more than the page takes.
    """
    if upload is not None and text.strip():
        raise InputError("there are a pasted text and an uploaded file; remove one of them")
    if upload is not None:
        records = parse_fasta(_limited(read_chunks(upload), upload.name), upload.name)
    elif text.lstrip().startswith(">"):
        records = _pasted(text, allow_mask=False)
    else:
        lines = _measured(text).split()
        records = (make_record(line, str(number), number=number) for number, line in enumerate(lines, 1))
    return _within(records)


def letters_of(record: Record) -> str:
    """The sequence with one character a nucleotide; `?` is a mask."""
    return record.sequence.replace("<mask>", "?")


def _within(records: Iterable[Record]) -> list[Record]:
    found, total = [], 0
    for record in records:
        found.append(_checked(record, EMBED, "embed"))
        total += len(record.sequence)
        if len(found) > SEQUENCES or total > EMBED_TOGETHER:
            more = f"{SEQUENCES:,} sequences and {EMBED_TOGETHER:,} nt together"
            raise InputError(f"the page embeds up to {more}, and here are more; use `rinalmo embed`")
    return found


def _checked(record: Record, longest: int, command: str) -> Record:
    if (length := len(letters_of(record))) > longest:
        remedy = f"this takes up to {longest:,}; give a part of it, or use `rinalmo {command}`"
        raise SequenceError(f"has {length:,} nt, and {remedy}", record=record.id[:60])
    return record


def _bare(text: str, allow_mask: bool) -> Record:
    return make_record(_measured(text), _NAME, allow_mask=allow_mask)


def _pasted(text: str, allow_mask: bool) -> Iterator[Record]:
    return parse_fasta([_measured(text).encode("utf-8", "surrogatepass")], _PASTED, allow_mask=allow_mask)


def _measured(text: str) -> str:
    if not text.strip():
        raise InputError("there is no sequence yet; paste an RNA")
    if len(text) > TEXT:
        raise InputError(f"the text has {len(text):,} characters, and the page takes up to {TEXT:,}; use the commands")
    return text


def _limited(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """What a small compressed file unpacks to may be very large: it is not unpacked to its end."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > TEXT:
            raise InputError(f"{name} holds more than {TEXT:,} bytes, and the page takes no more; use `rinalmo embed`")
        yield chunk
