"""Structures in and out of files: DBN, CT, BPSEQ, ST, and tables. The ending gives the format.

    .dbn .db .dot .vienna .fold   sequence and dot-bracket on two lines, with or without a FASTA header
    .ct                           one line per nucleotide with its partner, several RNAs in one file
    .bpseq                        the same in three columns
    .st                           bpRNA's: dot-bracket and the type of loop of every nucleotide
    .csv .tsv .jsonl .parquet     columns id, sequence, structure; of predictions also `PREDICTED_COLUMNS`
    .sto .stk                     Stockholm alignments with SS_cons, read only: the structure of each sequence

Letters stay as the user wrote them. When reading, other content of a format (energies, numbering, loops) is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.files import (
    COMPRESSED,
    atomic_write,
    atomic_write_compressed,
    check_path,
    read_lines,
    record_name,
    source_name,
    uncompressed_name,
)
from rinalmo.io.tables import Format, open_table, table_lines, write_parquet
from rinalmo.rna.structure import OPENING, PredictedStructure, Structure, pairs_of

T = TypeVar("T")

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_TITLE_ENERGY = re.compile(rf"^(dG|ENERGY|Energy|energy)\s*=?\s*{_NUMBER}(\s*kcal/mol)?\s*")
# Behind a structure: ViennaRNA's energy, that of RNAsubopt, RNAstructure's title.
_ENERGY = re.compile(rf"[(\[{{]\s*{_NUMBER}[^()\[\]{{}}]*[)\]}}]|{_NUMBER}|{_TITLE_ENERGY.pattern[1:]}.*")
_BRACKETS = tuple(OPENING[:4] + ".")
# RNAsubopt's first line: the sequence, the lowest energy, the range of energies.
_RANGED_SEQUENCE = re.compile(rf"([A-Za-z]+)\s+{_NUMBER}(?:\s+{_NUMBER})?")
# What `RNAfold -p` prints after the structure of lowest energy: pairs of the ensemble, the centroid, the MEA structure.
_ENSEMBLE = re.compile(rf"[.,|(){{}}]+\s+[\[{{]\s*{_NUMBER}.*")
_REMARK = re.compile(
    r"(minimum free energy|free energy of ensemble|energy|frequency of mfe structure|WARNING)\b.*", re.I
)


class _Text:
    """Text of one or more lines, with the line number of each character."""

    def __init__(self) -> None:
        self.text = ""
        self._ends: list[tuple[int, int]] = []  # line, characters up to its end

    def add(self, line: int, text: str) -> None:
        self.text += text
        self._ends.append((line, len(self.text)))

    def line(self, position: int | None) -> int:
        """The line of a 1-based position; the last line for None."""
        return next((line for line, end in self._ends if position and position <= end), self._ends[-1][0])


def _structure(name: str, sequence: _Text, dot_bracket: _Text, file: str, record: str | None) -> Structure:
    lines = sequence
    try:
        Structure(name, sequence.text)
        lines = dot_bracket
        return Structure.from_dot_bracket(name, sequence.text, dot_bracket.text)
    except SequenceError as error:
        raise error.with_location(file, lines.line(error.position), record) from None


class _DbnRecord:
    """The lines of one record so far."""

    def __init__(self, file: str, number: int) -> None:
        self.file, self.number = file, number
        self.name, self.line = "", 0
        self.sequence, self.structure = _Text(), _Text()

    @property
    def is_complete(self) -> bool:
        return 0 < len(self.sequence.text) <= len(self.structure.text)

    def another(self) -> _DbnRecord:
        """A record for another structure of the same RNA."""
        other = _DbnRecord(self.file, self.number + 1)
        other.name, other.line, other.sequence = self.name, self.line, self.sequence
        return other

    def add(self, line: int, text: str) -> None:
        self.line = self.line or line
        if not self.sequence.text and text.startswith(_BRACKETS):
            problem = "there is no sequence before this structure; give each structure its own sequence line"
            raise self.error(problem, line)
        if "&" in text:
            raise self.error("'&' joins two RNAs; give each sequence and structure separately", line)
        if not self.sequence.text and (ranged := _RANGED_SEQUENCE.fullmatch(text)):
            text, self.name = ranged[1], re.sub(r"\s*\[\d+\]$", "", self.name)
        if not self.sequence.text or (not self.structure.text and text.isalpha()):
            self.sequence.add(line, text)
            return
        structure, *energy = text.split(None, 1)
        if energy and not _ENERGY.fullmatch(energy[0]):
            problem = f"{energy[0][:20]!r} follows the structure; only an energy may, such as (-3.40)"
            raise self.error(problem, line)
        self.structure.add(line, structure)

    def finish(self) -> Structure:
        if not self.sequence.text:
            problem = "has a header but no sequence; remove it, or copy the file again if it is truncated"
            raise self.error(problem, self.line)
        if not self.structure.text:
            raise self.error("has no structure line; add one", self.line)
        return _structure(self.name, self.sequence, self.structure, self.file, record_name(self.name, self.number))

    def error(self, problem: str, line: int) -> SequenceError:
        return SequenceError(problem, file=self.file, line=line, record=record_name(self.name, self.number))


def read_dbn(lines: Iterable[str], file: str) -> Iterator[Structure]:
    """Yield the structures of a DBN file; `file` is its name in messages.

    Several structures may follow one sequence, as RNAsubopt prints them, or each a header with the same title, as
    RNAstructure does. Of `RNAfold -p` the structure of lowest energy is read.
    """
    record, before, has_energy = _DbnRecord(file, 1), None, False
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        is_header = line.startswith((">", "#Name:"))
        if not line or (line.startswith("#") and not is_header) or _REMARK.fullmatch(line):
            continue
        if record.is_complete and _ENSEMBLE.fullmatch(line):
            continue
        if record.is_complete or (record.line and is_header):
            yield record.finish()
            before = record
            record = record.another() if line.startswith(_BRACKETS) else _DbnRecord(file, record.number + 1)
        if is_header:
            title = re.sub("^(>|#Name:)", "", line).strip()
            record.line, record.name = number, _TITLE_ENERGY.sub("", title, count=1)
            has_energy = record.name != title
        else:
            lacks_sequence = not record.sequence.text and line.startswith(_BRACKETS)
            if before and lacks_sequence and has_energy and record.name == before.name:
                record = before.another()
            record.add(number, line)
    if record.line:
        yield record.finish()


def write_dbn(structures: Iterable[Structure]) -> Iterator[str]:
    """Yield the text of each record: a header if it has a name, the sequence, the structure.

    The energy of a predicted structure follows it in parentheses, as RNAfold writes it.
    """
    for structure in structures:
        header = f">{structure.name}\n" if structure.name else ""
        energy = getattr(structure, "energy", None)
        after = "" if energy is None else f" ({energy:6.2f})"
        yield f"{header}{structure.sequence}\n{structure.dot_bracket}{after}\n"


_CT_PARTNER, _BPSEQ_PARTNER = 4, 2  # the index of the column


class _PartnerRows:
    """The rows of one RNA so far, each checked as it comes: position, letter, partner."""

    def __init__(self, file: str, line: int, name: str, record: int) -> None:
        self.file, self.line, self.name, self.record = file, line, name, record_name(name, record)
        self.rows: list[tuple[int, str, int]] = []  # line, letter, partner

    def add(self, line: int, text: str, column: int) -> None:
        words = text.split()
        expected = len(self.rows) + 1
        if len(words) <= column or not (_is_number(words[0]) and _is_number(words[column])):
            problem = f"{text.strip()[:30]!r} is not a row of position, nucleotide and partner"
        elif int(words[0]) != expected:
            problem = f"this row has the position {words[0]}; rows are missing or duplicated"
        elif len(words[1]) != 1:
            problem = f"{words[1][:20]!r} is not one letter"
        else:
            self.rows.append((line, words[1], int(words[column])))
            return
        raise self.error(problem, line, expected)

    def structure(self) -> Structure:
        length, pairs = len(self.rows), []
        for position, (line, _, partner) in enumerate(self.rows, start=1):
            if partner > length:
                problem = f"has the partner {partner}, but there are {length} rows; correct the pair"
                raise self.error(problem, line, position)
            if partner == position:
                raise self.error("is paired with itself; write 0 for no partner", line, position)
            if partner and (back := self.rows[partner - 1][2]) != position:
                problem = f"has the partner {partner}, whose partner is {back}; make both rows agree"
                raise self.error(problem, line, position)
            if partner > position:
                pairs.append((position - 1, partner - 1))
        try:
            return Structure(self.name, "".join(letter for _, letter, _ in self.rows), tuple(pairs))
        except SequenceError as error:
            line = self.rows[error.position - 1][0] if error.position else self.line
            raise error.with_location(self.file, line, self.record) from None

    def error(self, problem: str, line: int, position: int | None = None) -> SequenceError:
        return SequenceError(problem, file=self.file, line=line, record=self.record, position=position)


def _is_number(word: str) -> bool:
    return word.isdecimal() and len(word) < 10


def read_ct(lines: Iterable[str], file: str) -> Iterator[Structure]:
    """Yield the structures of a CT file; `file` is its name in messages."""
    rows, expected, records = _PartnerRows(file, 0, "", 0), 0, 0
    for number, text in enumerate(lines, start=1):
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        if len(rows.rows) < expected:
            rows.add(number, text, _CT_PARTNER)
        else:
            records += 1
            length, *title = text.strip().split(None, 1)
            if not _is_number(length) or int(length) < 1:
                problem = f"{text.strip()[:30]!r} is not a title line, which starts with the number of rows"
                raise SequenceError(problem, file=file, line=number, record=str(records))
            name = _TITLE_ENERGY.sub("", title[0], count=1) if title else ""
            rows, expected = _PartnerRows(file, number, name, records), int(length)
        if rows.rows and len(rows.rows) == expected:
            yield rows.structure()
    if len(rows.rows) < expected:
        problem = f"the title says {expected} nt, but there are {len(rows.rows)} rows; copy the file again"
        raise rows.error(problem, rows.line)


def write_ct(structures: Iterable[Structure]) -> Iterator[str]:
    """Yield the text of each RNA."""
    for structure in structures:
        yield f"{len(structure)} {structure.name}".rstrip() + "\n"
        for i, (letter, partner) in enumerate(zip(structure.sequence, structure.partners(), strict=True)):
            following = (i + 2) % (len(structure) + 1)
            yield f"{i + 1} {letter} {i} {following} {partner + 1} {i + 1}\n"


def read_bpseq(lines: Iterable[str], file: str) -> Iterator[Structure]:
    """Yield the structures of a BPSEQ file; `file` is its name in messages."""
    rows, records, comments = _PartnerRows(file, 0, "", 0), 0, list[str]()
    for number, text in enumerate(lines, start=1):
        first = next(iter(text.split(None, 1)), "")
        if first.startswith("#") or (first and not rows.rows and not _is_number(first)):
            comments.append(text.strip().removeprefix("#").strip())
        elif first:
            if not rows.rows or first == "1":
                if rows.rows:
                    yield rows.structure()
                named = [text.partition("Name:")[2] for text in comments if text.startswith("Name:")]
                names = named or [text.removeprefix("Filename:") for text in comments]
                records += 1
                rows = _PartnerRows(file, number, names[0].strip() if names else "", records)
                comments.clear()
            rows.add(number, text, _BPSEQ_PARTNER)
    if rows.rows:
        yield rows.structure()


def write_bpseq(structures: Iterable[Structure]) -> Iterator[str]:
    """Yield the text of each RNA, after a comment with its name if it has one."""
    for structure in structures:
        if structure.name:
            yield f"#Name: {structure.name}\n"
        for i, (letter, partner) in enumerate(zip(structure.sequence, structure.partners(), strict=True)):
            yield f"{i + 1} {letter} {partner + 1}\n"


_ST_LINES = ("sequence", "structure", "loops", "knots")


def read_st(lines: Iterable[str], file: str) -> Iterator[Structure]:
    """Yield the structures of an ST file; `file` is its name in messages."""
    name, start, records = "", 0, 0
    texts: list[_Text] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if line.startswith("#Name:"):
            if start:
                yield _st_structure(name, start, texts, file, records)
            name, start, texts, records = line.removeprefix("#Name:").strip(), number, [], records + 1
        elif line and not line.startswith("#"):
            if not start:
                raise SequenceError("comes before a line '#Name: ...'; this is not an ST file", file=file, line=number)
            if len(texts) < len(_ST_LINES):
                texts.append(_Text())
                texts[-1].add(number, line)
    if start:
        yield _st_structure(name, start, texts, file, records)


def _st_structure(name: str, start: int, texts: list[_Text], file: str, number: int) -> Structure:
    record = record_name(name, number)
    if len(texts) < 2:
        raise SequenceError(f"has no {_ST_LINES[len(texts)]} line; add it", file=file, line=start, record=record)
    for text, content in zip(texts[2:], _ST_LINES[2:], strict=False):
        lengths = len(text.text), len(texts[0].text)
        if lengths[0] != lengths[1]:
            problem = f"the {content} line has {lengths[0]:,} characters, but the sequence has {lengths[1]:,}"
            raise SequenceError(f"{problem}; they must be equal", file=file, line=text.line(None), record=record)
    return _structure(name, texts[0], texts[1], file, record)


def write_st(structures: Iterable[Structure]) -> Iterator[str]:
    """Yield the text of each RNA."""
    for structure in structures:
        nested, dot_bracket = structure.nested(), structure.dot_bracket
        knotted = {end for pair in set(structure.pairs) - set(nested.pairs) for end in pair}
        pages = max(1, len(set(dot_bracket) - {"."}) // 2)
        yield f"#Name: {structure.name}".rstrip() + f"\n#Length: {len(structure)}\n#PageNumber: {pages}\n"
        yield f"{structure.sequence}\n{dot_bracket}\n{loops(nested)}\n"
        yield "".join("K" if i in knotted else "N" for i in range(len(structure))) + "\n"


def loops(structure: Structure) -> str:
    """The type of loop of each nucleotide of a structure without pseudoknots, one letter each.

    S stem, H hairpin, B bulge, I internal, M multiloop, E end, X external.
    """
    length, partners = len(structure), structure.partners()
    letters = ["X"] * length
    # For each open pair, and the outermost level, the unpaired stretches of the loop that it closes.
    open_: list[list[range]] = [[]]
    start = 0
    for position, partner in enumerate(partners):
        if partner < 0:
            continue
        letters[position] = "S"
        open_[-1].append(range(start, position))
        start = position + 1
        if partner > position:
            open_.append([])
            continue
        # One stretch, maybe empty, before each stem of the loop and one after the last.
        stretches = open_.pop()
        letter = ("H", "I" if all(stretches) else "B", "M")[min(len(stretches), 3) - 1]
        for stretch in stretches:
            letters[stretch.start : stretch.stop] = letter * len(stretch)
    ends = [position for position, partner in enumerate(partners) if partner >= 0] or [length]
    first, last = ends[0], ends[-1] + 1
    return "E" * first + "".join(letters[first:last]) + "E" * (length - last)


_GAPS = ".-_~"


def read_stockholm(lines: Iterable[str], file: str) -> Iterator[Structure]:
    """Yield the structure of each sequence of Stockholm alignments; `file` is its name in messages.

    It is that of the consensus (`#=GC SS_cons`, in WUSS notation) without the columns in which the sequence has a gap,
    and without pairs of which one side is a gap. An alignment without a consensus may have one line for each sequence
    (`#=GR NAME SS`).
    """
    rows, own, consensus, start = dict[str, _Text](), dict[str, _Text](), _Text(), 0
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        start = start or (number if line else 0)
        words = line.split()
        if line == "//":
            yield from _projected(rows, own, consensus, file, start)
            rows, own, consensus, start = {}, {}, _Text(), 0
        elif line.startswith("#=GC SS_cons ") and len(words) == 3:
            consensus.add(number, words[2])
        elif line.startswith("#=GR ") and len(words) == 4 and words[2] == "SS":
            own.setdefault(words[1], _Text()).add(number, words[3])
        elif line and not line.startswith("#"):
            if len(words) != 2:
                problem = f"{line[:30]!r} is not a row of a Stockholm alignment: a name and a sequence"
                raise SequenceError(problem, file=file, line=number)
            rows.setdefault(words[0], _Text()).add(number, words[1])
    if rows or consensus.text:
        problem = "the alignment does not end with //; copy the file again if it is truncated"
        raise SequenceError(problem, file=file, line=start)


def _projected(
    rows: dict[str, _Text], own: dict[str, _Text], consensus: _Text, file: str, start: int
) -> Iterator[Structure]:
    if rows and not consensus.text and rows.keys() - own.keys():
        problem = "the alignment has no structure, a line '#=GC SS_cons'; add it"
        raise SequenceError(problem, file=file, line=start)
    for name, row in rows.items():
        text = consensus if consensus.text else own[name]
        if len(row.text) != len(text.text):
            problem = f"has {len(row.text):,} columns, but the structure has {len(text.text):,}; they must be equal"
            raise SequenceError(problem, file=file, line=row.line(None), record=record_name(name))
        try:
            pairs = pairs_of(text.text)
        except SequenceError as error:
            raise error.with_location(file, text.line(error.position), None) from None
        letters = [column for column, letter in enumerate(row.text) if letter not in _GAPS]
        places = {column: place for place, column in enumerate(letters)}
        kept = tuple((places[i], places[j]) for i, j in pairs if i in places and j in places)
        try:
            yield Structure(name, "".join(row.text[column] for column in letters), kept)
        except SequenceError as error:
            column = letters[error.position - 1] + 1 if error.position else None
            raise error.with_location(file, row.line(column), record_name(name)) from None


Source = str | PathLike[str]

_ENDINGS = {"db": "dbn", "dot": "dbn", "vienna": "dbn", "fold": "dbn", "stk": "sto", "stockholm": "sto"}
_COLUMNS = ("id", "sequence", "structure")
PREDICTED_COLUMNS = ("confidence", "energy", "mfe_structure", "mfe", "ensemble_energy", "pairing_probabilities")
"""Columns of the tables of predicted structures after id, sequence and structure; see `PredictedStructure`."""


class _LineFormat(NamedTuple):
    read: Callable[[Iterable[str], str], Iterator[Structure]]
    write: Callable[[Iterable[Structure]], Iterator[str]]


_LINE_FORMATS = {
    "dbn": _LineFormat(read_dbn, write_dbn),
    "ct": _LineFormat(read_ct, write_ct),
    "bpseq": _LineFormat(read_bpseq, write_bpseq),
    "st": _LineFormat(read_st, write_st),
}
FORMATS = (*_LINE_FORMATS, "csv", "tsv", "jsonl", "parquet")
_READERS = {**{name: each.read for name, each in _LINE_FORMATS.items()}, "sto": read_stockholm}


def format_of(path: Source, format: str | None = None, *, reading: bool = False) -> str:
    """The format of a file by its ending, or `format` if that is given. Raises InputError for an unknown one, and for
    one that can only be read unless it is for `reading`."""
    kind = format or uncompressed_name(path).rpartition(".")[2]
    kind = _ENDINGS.get(kind, kind)
    if kind == "sto" and not reading:
        raise InputError(
            f"{source_name(path)}: Stockholm can only be read, not written; use one of {', '.join(FORMATS)}"
        )
    if kind not in FORMATS and kind != "sto":
        problem = f"unknown structure format {format!r}" if format else "unknown extension for structures"
        raise InputError(f"{source_name(path)}: {problem}; use one of {', '.join(FORMATS)}")
    if kind == "parquet" and str(path).endswith(COMPRESSED):
        raise InputError(f"{source_name(path)}: Parquet is compressed internally; use the extension .parquet")
    return kind


def read_structures(path: Source, format: str | None = None, *, column: str = "structure") -> Iterator[Structure]:
    """Yield the structures of a file in order.

    Args:
        path: The file; "-" is standard input and needs a `format`.
        format: One of `FORMATS` or "sto"; None for that of the ending.
        column: The column of a table that holds the dot-bracket text.

    Raises:
        SequenceError: A record is wrong; the message has file, line, record and position.
        InputError: The file is missing, unreadable, empty, of an unknown format or lacks a column.

    Examples:
        >>> import pathlib, tempfile
        >>> from rinalmo.rna.formats import read_structures
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "hairpin.dbn"
        >>> _ = path.write_text(">hairpin\\nGGGAAAUCCC\\n(((....)))\\n")
        >>> [(structure.name, structure.pairs) for structure in read_structures(path)]
        [('hairpin', ((0, 9), (1, 8), (2, 7)))]
    """
    return (structure for structure, _ in read_rows(path, format, column=column))


def read_rows(
    path: Source, format: str | None = None, *, column: str = "structure"
) -> Iterator[tuple[Structure, dict[str, str]]]:
    """As `read_structures`, each structure with all columns of its row of the table; none if it is not a table."""
    kind, file = format_of(path, format, reading=True), source_name(path)
    if kind in _READERS:
        text_rows = ((structure, dict[str, str]()) for structure in _READERS[kind](read_lines(path), file))
        return _require_nonempty(text_rows, file)
    return _require_nonempty(_table_rows(path, kind, file, column), file)  # type: ignore[arg-type]


def _require_nonempty(rows: Iterator[T], file: str) -> Iterator[T]:
    first = next(rows, None)
    if first is None:
        raise InputError(f"{file} contains no structure; it must contain at least one")
    yield first
    yield from rows


def _table_rows(path: Source, kind: Format, file: str, column: str) -> Iterator[tuple[Structure, dict[str, str]]]:
    table = open_table(path, kind)
    if kind == "jsonl" and not table.columns:
        return
    table.require("sequence", column)
    for number, (line, cells) in enumerate(table.rows, start=1):
        row = {name: "" if cell is None else str(cell) for name, cell in cells.items()}
        name = row.get("id", "").strip()
        try:
            yield Structure.from_dot_bracket(name, row["sequence"].strip(), row[column].strip()), row
        except SequenceError as error:
            if kind == "parquet":
                raise error.with_location(file, None, f"{record_name(name) or ''} (row {number})".strip()) from None
            raise error.with_location(file, line, record_name(name, number)) from None


def write_structures(path: Source, structures: Iterable[Structure], format: str | None = None) -> None:
    """Write structures one by one; the file appears under its name when it is complete and on the disk.

    Args:
        path: The file; its ending gives the format and, for text, the compression (.gz, .zst, .bz2, .xz).
        structures: The structures.
        format: One of `FORMATS`; None for that of the ending.

    Raises:
        InputError: There is no such folder, or the format is unknown.

    Examples:
        >>> import pathlib, tempfile
        >>> from rinalmo.rna.formats import write_structures
        >>> from rinalmo.rna.structure import Structure
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "hairpin.ct"
        >>> write_structures(path, [Structure.from_dot_bracket("hairpin", "GAAAC", "(...)")])
        >>> print(path.read_text().splitlines()[1])
        1 G 0 2 5 1
    """
    path, kind = Path(path), format_of(path, format)
    check_path(path)
    if kind == "parquet":
        rows, columns = _as_rows(structures)
        with atomic_write(path) as file:
            write_parquet(file, rows, columns, _schema(columns))
        return
    with atomic_write_compressed(path) as file:
        for text in structure_text(structures, kind):
            file.write(text.encode())


def structure_text(structures: Iterable[Structure], format: str) -> Iterator[str]:
    """The text of structures in a format, in pieces, as for standard output."""
    if format in _LINE_FORMATS:
        return _LINE_FORMATS[format].write(structures)
    rows, columns = _as_rows(structures)
    return table_lines(rows, format, columns)


def _as_rows(structures: Iterable[Structure]) -> tuple[Iterator[dict[str, Any]], tuple[str, ...]]:
    """The rows and their columns, which are those of the first structure."""
    structures = iter(structures)
    first = next(structures, None)
    columns = _COLUMNS + (PREDICTED_COLUMNS if isinstance(first, PredictedStructure) else ())
    return map(_as_row, structures if first is None else chain((first,), structures)), columns


def _as_row(structure: Structure) -> dict[str, Any]:
    row = {"id": structure.name, "sequence": structure.sequence, "structure": structure.dot_bracket}
    if not isinstance(structure, PredictedStructure):
        return row
    predicted = {name: getattr(structure, name) for name in PREDICTED_COLUMNS}
    for name, digits in (("confidence", 4), ("energy", 2), ("mfe", 2), ("ensemble_energy", 2)):
        predicted[name] = None if predicted[name] is None else round(predicted[name], digits)
    return row | predicted | {"pairing_probabilities": [round(p, 4) for p in structure.pairing_probabilities.tolist()]}


def _schema(columns: Iterable[str]) -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    types = dict.fromkeys(("confidence", "energy", "mfe", "ensemble_energy"), number) | {
        "pairing_probabilities": pa.list_(number)
    }
    return pa.schema([(column, types.get(column, text)) for column in columns])
