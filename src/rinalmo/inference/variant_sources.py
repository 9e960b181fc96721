"""Where the variants to score come from: a table of mutations, a FASTA file of whole sequences, or all exchanges of one
letter. The wild types are held in memory, their variants are streamed, and can be read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat, zip_longest
from pathlib import Path

from rinalmo.delimited import column_index, opened_table
from rinalmo.durable import file_sha256
from rinalmo.errors import InputError, SequenceError
from rinalmo.inference.mutations import Variant, compare, parse, single
from rinalmo.inference.nucleotides import LETTERS
from rinalmo.inference.variants import Method, check
from rinalmo.rna.fasta import Record, read_fasta

SCORE, MUTANT, RECORD = "score", "mutant", "record"


@dataclass(frozen=True)
class Source:
    """Variants with the cells that the output has of each; `columns` names those cells and their types."""

    columns: Mapping[str, type]
    wild_types: Sequence[Record]
    read: Callable[[], Iterator[Variant]]
    file: Path | None = None
    left_out: int = 0  # positions without a variant, since they are not A, C, G or U

    def fingerprint(self) -> str:
        """A hash of all that it reads."""
        digest = hashlib.sha256(repr([(record.id, record.sequence) for record in self.wild_types]).encode())
        digest.update((file_sha256(self.file) if self.file else "").encode())
        return digest.hexdigest()

    def checked(self, method: Method) -> int:
        """The number of variants, once all have been read. Raises for the first that cannot be scored."""
        count = 0
        for variant in self.read():
            if variant.other is not None:
                check(variant, method, file=str(self.file), record=str(variant.cells[1]))
            count += 1
        if count == 0:
            where, rows = self.file or f"record {self.wild_types[0].id}", "rows" if self.file else "A, C, G or U"
            raise InputError(f"{where}: has no {rows}; there is nothing to score")
        return count


def all_single(wild_types: Iterable[Record]) -> Source:
    """Every exchange of one letter in every sequence."""
    records = list(wild_types)

    def read() -> Iterator[Variant]:
        for record in records:
            for variant in single(record.sequence):
                ((place, letter),) = variant.changes
                yield replace(variant, cells=(record.id, variant.name, place + 1, record.sequence[place], letter))

    columns = {RECORD: str, MUTANT: str, "position": int, "wild_type": str, "letter": str}
    left_out = sum(letter not in LETTERS for record in records for letter in record.sequence)
    return Source(columns, records, read, left_out=left_out)


def from_fasta(wild_types: Iterable[Record], path: Path) -> Source:
    """The sequences of a FASTA file: all against the one wild type, or each against the wild type in the same place."""
    records = list(wild_types)

    def read() -> Iterator[Variant]:
        for wild_type, record in _pairs(records, path):
            variant = compare(wild_type.sequence, record.sequence, file=str(path), record=record.id)
            yield replace(variant, cells=(wild_type.id, record.id, variant.name))

    return Source({RECORD: str, "variant": str, MUTANT: str}, records, read, path)


def _pairs(records: list[Record], path: Path) -> Iterator[tuple[Record, Record]]:
    if len(records) == 1:
        yield from zip(repeat(records[0]), read_fasta(path))
        return
    for number, (wild_type, record) in enumerate(zip_longest(records, read_fasta(path)), start=1):
        if wild_type is None or record is None:
            more, fewer = ("variants", "wild types") if wild_type is None else ("wild types", "variants")
            raise InputError(
                f"{path}: there are more {more} than {fewer}, which end at {number - 1}; "
                "give one wild type for all variants, or one for each in the same order"
            )
        yield wild_type, record


def from_table(wild_types: Iterable[Record], path: Path) -> Source:
    """The rows of a CSV or TSV file: `mutant`, and `record`, the id of the wild type, needed where there are several.

    All columns are passed on as they are.
    """
    records = list(wild_types)

    def read() -> Iterator[Variant]:
        with opened_table(path) as (header, rows):
            mutant = column_index(path, header, MUTANT)
            named = column_index(path, header, RECORD) if RECORD in header or len(records) > 1 else None
            for line, cells in rows:
                where = f"{path}, line {line}"
                record = records[0] if named is None else _found(records_by_id, cells[named], where)
                changes = parse(record.sequence, cells[mutant], where=where)
                yield Variant(record.sequence, changes, cells=tuple(cells))

    records_by_id = _by_id(records)
    return Source(dict.fromkeys(_header(path), str), records, read, path)


def _header(path: Path) -> list[str]:
    with opened_table(path) as (header, _):
        pass
    if SCORE in header:
        raise InputError(f"{path}: has a column {SCORE!r} already; rename it, the scores are added under this name")
    return header


def _by_id(records: Sequence[Record]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for record in records:
        if record.id in found:
            raise InputError(f"two wild types are called {record.id!r}; a table cannot tell them apart, rename one")
        found[record.id] = record
    return found


def _found(records: Mapping[str, Record], name: str, where: str) -> Record:
    if name not in records:
        raise SequenceError(f"there is no wild type {name!r}; there are {_some(records)}", file=where)
    return records[name]


def _some(names: Iterable[str]) -> str:
    first = [*names][:6]
    return ", ".join(first[:5]) + (", …" if len(first) > 5 else "")
