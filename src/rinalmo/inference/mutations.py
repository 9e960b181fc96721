"""Variants of a sequence, and how they are written.

`A12G` puts G in the place of the twelfth letter, which is A; several are joined, `A12G:C13U` (a comma does too). T and
U are one letter, in either case. `WT` is the wild type itself. Insertions and deletions have no notation here: they
are given as whole sequences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rinalmo.errors import SequenceError
from rinalmo.inference.nucleotides import LETTERS

_SUBSTITUTION = re.compile(r"([A-Za-z])([0-9]{1,12})([A-Za-z])")
_SEPARATOR = re.compile(r"[:,]")
WILD_TYPE = "WT"

Change = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Variant:
    """A changed sequence.

    `changes` are places, counted from 0, and the letters that are there now; where the length is another they say
    nothing, and `other` is the whole sequence. `cells` is what a table says of it, for the output.
    """

    wild_type: str
    changes: tuple[Change, ...] = ()
    other: str | None = None
    cells: tuple[str | int, ...] = ()

    @property
    def places(self) -> tuple[int, ...]:
        """Where it is changed."""
        return tuple(place for place, _ in self.changes)

    @property
    def sequence(self) -> str:
        """The whole changed sequence."""
        if self.other is not None:
            return self.other
        letters = list(self.wild_type)
        for place, letter in self.changes:
            letters[place] = letter
        return "".join(letters)

    @property
    def name(self) -> str:
        """In the notation of this file; empty where there is none."""
        if self.other is not None:
            return ""
        return ":".join(f"{self.wild_type[place]}{place + 1}{letter}" for place, letter in self.changes) or WILD_TYPE


def parse(wild_type: str, mutant: str, *, where: str | None = None) -> tuple[Change, ...]:
    """The changes of a mutant as written, in the order of their places; those that change nothing are left out.

    `where` is said first in an error. Raises SequenceError for what is no substitution, a place that the sequence does
    not have or that is named twice, and a letter that is not the wild type's.
    """
    if mutant.strip().upper() == WILD_TYPE:
        return ()
    changes: dict[int, str] = {}
    for part in _SEPARATOR.split(mutant):
        place, letter = _change(wild_type, part.strip(), where)
        if place in changes:
            raise SequenceError(f"is changed twice in {mutant!r}", file=where, position=place + 1)
        changes[place] = letter
    return tuple(sorted((place, letter) for place, letter in changes.items() if letter != wild_type[place]))


def _change(wild_type: str, part: str, where: str | None) -> Change:
    found = _SUBSTITUTION.fullmatch(part)
    if not found:
        problem = f"{part!r} is no substitution; write A12G, several as A12G:C13U"
        raise SequenceError(f"{problem}; give insertions and deletions as whole sequences", file=where)
    before, after = (found[n].upper().replace("T", "U") for n in (1, 3))
    position = int(found[2])
    for letter in (before, after):
        if letter not in LETTERS:
            problem = f"{part} has {letter}; only A, C, G and U (or T) are exchanged"
            raise SequenceError(problem, file=where, position=position)
    if not 1 <= position <= len(wild_type):
        raise SequenceError(
            f"{part} is outside of the sequence, which has {len(wild_type)} nt", file=where, position=position
        )
    if wild_type[position - 1] != before:
        problem = f"the sequence has {wild_type[position - 1]} here, not {before} ({part})"
        raise SequenceError(problem, file=where, position=position)
    return position - 1, after


def compare(wild_type: str, sequence: str, *, file: str | None = None, record: str | None = None) -> Variant:
    """The variant that a whole sequence is.

    N and other codes may stand in both, at the same places, or with insertions and deletions in the same order: they
    have no probability. Raises SequenceError where only one of the two has them.
    """
    if len(sequence) != len(wild_type):
        if _codes(sequence) != _codes(wild_type):
            raise SequenceError(
                "has other letters than A, C, G, U, not those of the wild type", file=file, record=record
            )
        return Variant(wild_type, other=sequence)
    changes = tuple((n, new) for n, (old, new) in enumerate(zip(wild_type, sequence, strict=True)) if old != new)
    for place, letter in changes:
        if letter not in LETTERS or wild_type[place] not in LETTERS:
            problem = f"has {letter} where the wild type has {wild_type[place]}; only A, C, G and U can be compared"
            raise SequenceError(problem, file=file, record=record, position=place + 1)
    return Variant(wild_type, changes)


def _codes(sequence: str) -> str:
    return "".join(letter for letter in sequence if letter not in LETTERS)


def single(wild_type: str) -> Iterator[Variant]:
    """Every exchange of one letter: three for each A, C, G and U, place by place."""
    for place, old in enumerate(wild_type):
        if old in LETTERS:
            yield from (Variant(wild_type, ((place, new),)) for new in LETTERS if new != old)
