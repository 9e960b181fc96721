"""Formats with one line a nucleotide, which names its partner: CT and BPSEQ.

    CT                                          BPSEQ
    76 ENERGY = -21.6  tRNA-Phe                 #Name: tRNA-Phe
    1  G  0  2  72  1                           1 G 72
    2  C  1  3  71  2                           2 C 71

CT's columns are the position, the letter, the neighbours before and after, the partner (0 for none) and a number in
the user's own counting; only position, letter and partner are read. Its title starts with the length; an energy after
it, as RNAstructure, mfold and ViennaRNA write it, is read past, and so is the start of a name that looks like one.
Written are the neighbours, 0 for the one after the last nucleotide, and the position again as own number.

BPSEQ has no title: lines that start with "#", and any before the first row, are comments, of which the first names the
RNA that follows unless there is a "#Name: x". A position of 1 starts the next RNA.

Both say every pair twice, and both must agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rinalmo.errors import SequenceError
from rinalmo.rna.reading import record_name
from rinalmo.rna.structure import Structure

_ENERGY = re.compile(r"^(dG|ENERGY|Energy|energy)\s*=?\s*[-+]?\d+(\.\d+)?(\s*kcal/mol)?\s*")
_CT_COLUMNS, _BPSEQ_COLUMNS = (5, 4), (3, 2)  # least number, index of the partner


class _Row(NamedTuple):
    line: int
    letter: str
    partner: int


class _Rows:
    """The rows of one RNA so far, each checked as it comes."""

    def __init__(self, file: str, line: int, name: str, record: int) -> None:
        self.file, self.line, self.name, self.record = file, line, name, record_name(name, record)
        self.rows: list[_Row] = []

    def add(self, line: int, text: str, least: int, at: int) -> None:
        words = text.split()
        expected = len(self.rows) + 1
        if len(words) < least or not (_is_number(words[0]) and _is_number(words[at])):
            self.fail(f"{text.strip()[:30]!r} is not a row of position, letter and partner", line, expected)
        if int(words[0]) != expected:
            self.fail(f"this row has the position {words[0]}; the file lacks rows or has them twice", line, expected)
        if len(words[1]) != 1:
            self.fail(f"{words[1][:20]!r} is not one letter", line, expected)
        self.rows.append(_Row(line, words[1], int(words[at])))

    def structure(self) -> Structure:
        length = len(self.rows)
        for position, (line, _, partner) in enumerate(self.rows, start=1):
            if partner > length:
                self.fail(f"has the partner {partner}, but there are {length} rows; correct the pair", line, position)
            if partner == position:
                self.fail("is paired with itself; write 0 for no partner", line, position)
            if partner and self.rows[partner - 1].partner != position:
                back = self.rows[partner - 1].partner
                self.fail(f"has the partner {partner}, whose own is {back}; make both rows agree", line, position)
        try:
            pairs = ((i, row.partner - 1) for i, row in enumerate(self.rows) if row.partner > i + 1)
            return Structure(self.name, "".join(row.letter for row in self.rows), tuple(pairs))
        except SequenceError as error:
            line = self.rows[error.position - 1].line if error.position else self.line
            raise error.found_in(self.file, line, self.record) from None

    def fail(self, problem: str, line: int, position: int | None = None) -> None:
        raise SequenceError(problem, file=self.file, line=line, record=self.record, position=position)


def read_ct(lines: Iterable[str], file: str) -> Iterator[Structure]:
    """Yield the structures of a CT file; `file` is what errors call it."""
    rows, expected, records = _Rows(file, 0, "", 0), 0, 0
    for number, text in enumerate(lines, start=1):
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        if len(rows.rows) < expected:
            rows.add(number, text, *_CT_COLUMNS)
        else:
            length, name = _title(text, file, number, records := records + 1)
            rows, expected = _Rows(file, number, name, records), length
        if rows.rows and len(rows.rows) == expected:
            yield rows.structure()
    if len(rows.rows) < expected:
        rows.fail(f"the title says {expected} nt, but there are {len(rows.rows)} rows; copy the file again", rows.line)


def _title(text: str, file: str, line: int, record: int) -> tuple[int, str]:
    length, *name = text.strip().split(None, 1)
    if not _is_number(length) or int(length) < 1:
        problem = f"{text.strip()[:30]!r} is no title, which starts with the number of rows that follow"
        raise SequenceError(problem, file=file, line=line, record=str(record))
    return int(length), _ENERGY.sub("", name[0], count=1) if name else ""


def _is_number(word: str) -> bool:
    return word.isdecimal() and len(word) < 10


def write_ct(structures: Iterable[Structure]) -> Iterator[str]:
    """Yield the text of each RNA."""
    for structure in structures:
        yield f"{len(structure)} {structure.name}".rstrip() + "\n"
        after = [*range(2, len(structure) + 1), 0]
        for i, (letter, partner) in enumerate(zip(structure.sequence, structure.partners(), strict=True)):
            yield f"{i + 1} {letter} {i} {after[i]} {partner + 1} {i + 1}\n"


def read_bpseq(lines: Iterable[str], file: str) -> Iterator[Structure]:
    """Yield the structures of a BPSEQ file; `file` is what errors call it."""
    rows, records, comments = _Rows(file, 0, "", 0), 0, list[str]()
    for number, text in enumerate(lines, start=1):
        first = next(iter(text.split(None, 1)), "")
        if first.startswith("#") or (first and not rows.rows and not _is_number(first)):
            comments.append(text.strip().removeprefix("#"))
        elif first:
            if not rows.rows or first == "1":
                if rows.rows:
                    yield rows.structure()
                rows = _Rows(file, number, _name(comments), records := records + 1)
                comments.clear()
            rows.add(number, text, *_BPSEQ_COLUMNS)
    if rows.rows:
        yield rows.structure()


def _name(comments: list[str]) -> str:
    named = [text.strip().removeprefix("Name:") for text in comments if text.strip().startswith("Name:")]
    return next(iter(named or comments), "").strip()


def write_bpseq(structures: Iterable[Structure]) -> Iterator[str]:
    """Yield the text of each RNA, after a comment with its name if it has one."""
    for structure in structures:
        if structure.name:
            yield f"#Name: {structure.name}\n"
        for i, (letter, partner) in enumerate(zip(structure.sequence, structure.partners(), strict=True)):
            yield f"{i + 1} {letter} {partner + 1}\n"
