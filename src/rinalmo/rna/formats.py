"""Structures in and out of files: DBN, CT, BPSEQ, ST, and CSV, TSV or Parquet tables, told by the file's ending.

    .dbn .db .dot .vienna   sequence and dot-bracket on two lines, with or without a FASTA header
    .ct                     one line a nucleotide with its partner, several RNAs in one file
    .bpseq                  the same in three columns
    .st                     bpRNA's: dot-bracket and the kind of loop of every nucleotide
    .csv .tsv .parquet      columns id, sequence, structure

Each format has a file here that turns lines into `Structure`s and back. Letters stay as the user wrote them. What a
format holds beyond name, sequence and pairs (energies, numbering, loops) is read past.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeVar

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.files import (
    COMPRESSED,
    check_path,
    read_lines,
    record_name,
    replacing,
    replacing_compressed,
    source_name,
    uncompressed_name,
)
from rinalmo.io.tables import Format, open_table, table_lines, write_parquet
from rinalmo.rna.structure import OPENING, Structure

_ENERGY = re.compile(r"[(\[{]\s*[-+]?\d+(\.\d+)?[^()\[\]{}]*[)\]}]")
_BRACKETS = tuple(OPENING[:4] + ".")

T = TypeVar("T")


class _DbnText:
    """Text of one or more lines that knows which line each character came from."""

    def __init__(self) -> None:
        self.text = ""
        self._ends: list[tuple[int, int]] = []  # line, characters up to its end

    def __len__(self) -> int:
        return len(self.text)

    def add(self, line: int, text: str) -> None:
        self.text += text
        self._ends.append((line, len(self.text)))

    def line(self, position: int | None) -> int:
        """Of a 1-based position; the last line for None."""
        return next((line for line, end in self._ends if position and position <= end), self._ends[-1][0])


class _Entry:
    """The lines of one record so far."""

    def __init__(self, file: str, number: int) -> None:
        self.file, self.number = file, number
        self.name, self.line = "", 0
        self.sequence, self.structure = _DbnText(), _DbnText()

    @property
    def is_complete(self) -> bool:
        return 0 < len(self.sequence) <= len(self.structure)

    def start(self, line: int, name: str) -> None:
        self.line, self.name = line, name

    def add(self, line: int, text: str) -> None:
        self.line = self.line or line
        if not self.sequence and text.startswith(_BRACKETS):
            self.fail("this structure has no sequence before it; give each structure its own sequence line", line)
        if not self.sequence or (not self.structure and text.isalpha()):
            self.sequence.add(line, text)
            return
        structure, *rest = text.split(None, 1)
        if rest and not _ENERGY.fullmatch(rest[0]):
            self.fail(f"{rest[0][:20]!r} follows the structure; only an energy may, such as (-3.40)", line)
        self.structure.add(line, structure)

    def finish(self) -> Structure:
        if not self.sequence:
            self.fail("has a header and no sequence; remove it, or copy the file again if it is cut off", self.line)
        if not self.structure:
            self.fail("has no structure line; add one", self.line)
        lines = self.sequence
        try:
            Structure(self.name, self.sequence.text)
            lines = self.structure
            return Structure.from_dot_bracket(self.name, self.sequence.text, self.structure.text)
        except SequenceError as error:
            raise error.found_in(self.file, lines.line(error.position), self._record) from None

    def fail(self, problem: str, line: int) -> None:
        raise SequenceError(problem, file=self.file, line=line, record=self._record)

    @property
    def _record(self) -> str | None:
        return record_name(self.name, self.number)


def read_dbn(lines: Iterable[str], file: str) -> Iterator[Structure]:
    """Yield the structures of a DBN file; `file` is what errors call it."""
    entry = _Entry(file, 1)
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        is_header = line.startswith((">", "#Name:"))
        if not line or (line.startswith("#") and not is_header):
            continue
        if entry.is_complete or (entry.line and is_header):
            yield entry.finish()
            entry = _Entry(file, entry.number + 1)
        if is_header:
            entry.start(number, re.sub("^(>|#Name:)", "", line).strip())
        else:
            entry.add(number, line)
    if entry.line:
        yield entry.finish()


def write_dbn(structures: Iterable[Structure]) -> Iterator[str]:
    """Yield the text of each record: a header if it has a name, the sequence, the structure."""
    for structure in structures:
        header = f">{structure.name}\n" if structure.name else ""
        yield f"{header}{structure.sequence}\n{structure.dot_bracket}\n"


_TITLE_ENERGY = re.compile(r"^(dG|ENERGY|Energy|energy)\s*=?\s*[-+]?\d+(\.\d+)?(\s*kcal/mol)?\s*")
_CT_COLUMNS, _BPSEQ_COLUMNS = (5, 4), (3, 2)  # least number, index of the partner


class _Row(NamedTuple):
    line: int
    letter: str
    partner: int


class _PartnerRows:
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
    rows, expected, records = _PartnerRows(file, 0, "", 0), 0, 0
    for number, text in enumerate(lines, start=1):
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        if len(rows.rows) < expected:
            rows.add(number, text, *_CT_COLUMNS)
        else:
            length, name = _title(text, file, number, records := records + 1)
            rows, expected = _PartnerRows(file, number, name, records), length
        if rows.rows and len(rows.rows) == expected:
            yield rows.structure()
    if len(rows.rows) < expected:
        rows.fail(f"the title says {expected} nt, but there are {len(rows.rows)} rows; copy the file again", rows.line)


def _title(text: str, file: str, line: int, record: int) -> tuple[int, str]:
    length, *name = text.strip().split(None, 1)
    if not _is_number(length) or int(length) < 1:
        problem = f"{text.strip()[:30]!r} is no title, which starts with the number of rows that follow"
        raise SequenceError(problem, file=file, line=line, record=str(record))
    return int(length), _TITLE_ENERGY.sub("", name[0], count=1) if name else ""


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
    rows, records, comments = _PartnerRows(file, 0, "", 0), 0, list[str]()
    for number, text in enumerate(lines, start=1):
        first = next(iter(text.split(None, 1)), "")
        if first.startswith("#") or (first and not rows.rows and not _is_number(first)):
            comments.append(text.strip().removeprefix("#"))
        elif first:
            if not rows.rows or first == "1":
                if rows.rows:
                    yield rows.structure()
                rows = _PartnerRows(file, number, _name(comments), records := records + 1)
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


_LINES = ("sequence", "structure", "loops", "knots")


def read_st(lines: Iterable[str], file: str) -> Iterator[Structure]:
    """Yield the structures of an ST file; `file` is what errors call it."""
    name, start, records = "", 0, 0
    found: list[tuple[int, str]] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if line.startswith("#Name:"):
            if start:
                yield _structure(name, start, found, file, records)
            name, start, found, records = line.removeprefix("#Name:").strip(), number, [], records + 1
        elif line and not line.startswith("#"):
            if not start:
                raise SequenceError("comes before a line '#Name: ...'; this is not an ST file", file=file, line=number)
            if len(found) < len(_LINES):
                found.append((number, line))
    if start:
        yield _structure(name, start, found, file, records)


def _structure(name: str, start: int, found: list[tuple[int, str]], file: str, record: int) -> Structure:
    where = record_name(name, record)
    if len(found) < 2:
        raise SequenceError(f"has no {_LINES[len(found)]} line; add it", file=file, line=start, record=where)
    (sequence_line, sequence), (structure_line, structure), *rest = found
    for (line, text), what in zip(rest, _LINES[2:], strict=False):
        if len(text) != len(sequence):
            problem = (
                f"the line of {what} has {len(text):,} characters and the sequence {len(sequence):,}; both must fit"
            )
            raise SequenceError(problem, file=file, line=line, record=where)
    line = sequence_line
    try:
        Structure(name, sequence)
        line = structure_line
        return Structure.from_dot_bracket(name, sequence, structure)
    except SequenceError as error:
        raise error.found_in(file, line, where) from None


def write_st(structures: Iterable[Structure]) -> Iterator[str]:
    """Yield the text of each RNA."""
    for structure in structures:
        nested = structure.nested()
        knotted = {end for pair in set(structure.pairs) - set(nested.pairs) for end in pair}
        yield f"#Name: {structure.name}".rstrip() + f"\n#Length: {len(structure)}\n#PageNumber: {_pages(structure)}\n"
        yield f"{structure.sequence}\n{structure.dot_bracket}\n{loops(nested)}\n"
        yield "".join("K" if i in knotted else "N" for i in range(len(structure))) + "\n"


def _pages(structure: Structure) -> int:
    return max(1, len(set(structure.dot_bracket) - {"."}) // 2)


def loops(structure: Structure) -> str:
    """The kind of loop of each nucleotide of a structure without pseudoknots, one letter each."""
    letters = ["S" if partner >= 0 else "" for partner in structure.partners()]
    for stretches, is_closed in _loops(structure):
        kind = _kind(stretches) if is_closed else "X"
        for stretch in stretches:
            for i in stretch:
                letters[i] = kind
    length = len(structure)
    first, last = (structure.pairs[0][0], max(j for _, j in structure.pairs)) if structure.pairs else (length, length)
    return "".join(["E" * first, *letters[first : last + 1], "E" * (length - last - 1)])


def _kind(stretches: list[range]) -> str:
    """A closed loop has a stretch of unpaired nucleotides, maybe empty, before each of its stems and one at its end."""
    if len(stretches) == 2:
        return "I" if all(stretches) else "B"
    return "H" if len(stretches) == 1 else "M"


def _loops(structure: Structure) -> Iterator[tuple[list[range], bool]]:
    """The unpaired stretches of each loop, and whether a pair closes it: all but the outermost."""
    outer: list[range] = []
    open_, start = [outer], 0
    for position, partner in enumerate(structure.partners()):
        if partner < 0:
            continue
        open_[-1].append(range(start, position))
        if partner > position:
            open_.append([])
        else:
            yield open_.pop(), True
        start = position + 1
    yield [*outer, range(start, len(structure))], False


Source = str | PathLike[str]

_ENDINGS = {"db": "dbn", "dot": "dbn", "vienna": "dbn"}
_COLUMNS = ("id", "sequence", "structure")


class _Text(NamedTuple):
    """A format of lines."""

    read: Callable[[Iterable[str], str], Iterator[Structure]]
    write: Callable[[Iterable[Structure]], Iterator[str]]


_TEXTS = {
    "dbn": _Text(read_dbn, write_dbn),
    "ct": _Text(read_ct, write_ct),
    "bpseq": _Text(read_bpseq, write_bpseq),
    "st": _Text(read_st, write_st),
}
_TABLES: tuple[Format, ...] = ("csv", "tsv", "parquet")
FORMATS = (*_TEXTS, *_TABLES)


def format_of(path: Source, format: str | None = None) -> str:
    """The format of a file by its ending, or `format` if that is given. Raises InputError for an unknown one."""
    kind = format or uncompressed_name(path).rpartition(".")[2]
    kind = _ENDINGS.get(kind, kind)
    if kind not in FORMATS:
        problem = f"there is no structure format {format!r}" if format else "its ending is that of no structure format"
        raise InputError(f"{source_name(path)}: {problem}; use one of {', '.join(FORMATS)}")
    if kind == "parquet" and str(path).endswith(COMPRESSED):
        raise InputError(f"{source_name(path)}: Parquet is compressed inside; use the ending .parquet")
    return kind


def read_structures(path: Source, format: str | None = None, *, column: str = "structure") -> Iterator[Structure]:
    """Yield the structures of a file in order.

    Args:
        path: The file; "-" is standard input and needs a `format`.
        format: One of `FORMATS`; None for that of the ending.
        column: The column of a table that holds the dot-bracket text.

    Raises:
        SequenceError: A record is wrong; the message has file, line, record and position.
        InputError: The file is missing, unreadable, empty, of an unknown format or lacks a column.
    """
    return (structure for structure, _ in read_rows(path, format, column=column))


def read_rows(
    path: Source, format: str | None = None, *, column: str = "structure"
) -> Iterator[tuple[Structure, dict[str, str]]]:
    """As `read_structures`, each structure with all columns of its row of the table; none if it is not a table."""
    kind, file = format_of(path, format), source_name(path)
    if kind in _TEXTS:
        text_rows = ((structure, dict[str, str]()) for structure in _TEXTS[kind].read(read_lines(path), file))
        return _require_nonempty(text_rows, file)
    return _require_nonempty(_table_rows(path, kind, file, column), file)  # type: ignore[arg-type]


def _require_nonempty(rows: Iterator[T], file: str) -> Iterator[T]:
    first = next(rows, None)
    if first is None:
        raise InputError(f"{file} holds no structure; it should hold at least one")
    yield first
    yield from rows


def _table_rows(path: Source, kind: Format, file: str, column: str) -> Iterator[tuple[Structure, dict[str, str]]]:
    table = open_table(path, kind)
    table.require("sequence", column)
    for number, (line, cells) in enumerate(table.rows, start=1):
        row = {name: "" if cell is None else str(cell) for name, cell in cells.items()}
        name = row.get("id", "").strip()
        try:
            yield Structure.from_dot_bracket(name, row["sequence"].strip(), row[column].strip()), row
        except SequenceError as error:
            if kind == "parquet":
                raise error.found_in(file, None, f"{record_name(name) or ''} (row {number})".strip()) from None
            raise error.found_in(file, line, record_name(name, number)) from None


def write_structures(path: Source, structures: Iterable[Structure], format: str | None = None) -> None:
    """Write structures one by one; the file appears under its name when it is complete and on the disk.

    Args:
        path: The file; its ending gives the format and, for text, the compression (.gz, .zst, .bz2, .xz).
        structures: The structures.
        format: One of `FORMATS`; None for that of the ending.

    Raises:
        InputError: There is no such folder, or the format is unknown.
    """
    path, kind = Path(path), format_of(path, format)
    check_path(path)
    if kind == "parquet":
        with replacing(path) as file:
            write_parquet(file, map(_as_row, structures), _COLUMNS)
        return
    with replacing_compressed(path) as file:
        for text in structure_text(structures, kind):
            file.write(text.encode())


def structure_text(structures: Iterable[Structure], format: str) -> Iterator[str]:
    """The text of structures in a format, in pieces, as for standard output."""
    if format in _TEXTS:
        return _TEXTS[format].write(structures)
    return table_lines(map(_as_row, structures), format, _COLUMNS)


def _as_row(structure: Structure) -> dict[str, str]:
    return {"id": structure.name, "sequence": structure.sequence, "structure": structure.dot_bracket}
