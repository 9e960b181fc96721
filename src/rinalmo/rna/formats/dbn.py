"""DBN, also called dot-bracket or Vienna format.

    >tRNA-Phe            optional
    GCGGAUUUAGCUC...     the sequence, on one or more lines
    (((((((..((((...     the structure, as long as the sequence

Lines that start with "#" are comments, but "#Name: x" names the next record, as in bpRNA's files. An energy after the
structure, as ViennaRNA writes it, is read past. A record ends with the line that makes its structure as long as its
sequence, so that headers are not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rinalmo.errors import SequenceError
from rinalmo.rna.reading import record_name
from rinalmo.rna.structure import OPENING, Structure

_ENERGY = re.compile(r"[(\[{]\s*[-+]?\d+(\.\d+)?[^()\[\]{}]*[)\]}]")
_BRACKETS = tuple(OPENING[:4] + ".")


class _Text:
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
        self.sequence, self.structure = _Text(), _Text()

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


def read(lines: Iterable[str], file: str) -> Iterator[Structure]:
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


def write(structures: Iterable[Structure]) -> Iterator[str]:
    """Yield the text of each record: a header if it has a name, the sequence, the structure."""
    for structure in structures:
        header = f">{structure.name}\n" if structure.name else ""
        yield f"{header}{structure.sequence}\n{structure.dot_bracket}\n"
