"""What is known of an RNA's structure before it is folded: a constraint, reactivities, the largest span of a pair.

A constraint is a text as long as the sequence, as for ViennaRNA's `-C`:

    ( )  [ ]  { }   paired with each other; brackets of different types may cross
    |  <  >         paired: with any nucleotide, with a later one, with an earlier one
    x               unpaired
    .               not constrained

Reactivities (SHAPE, DMS) have one value per nucleotide, or none. `read_reactivities` lists the formats of files.

References: Deigan et al. 2009 (PNAS 106:97) and Zarringhalam et al. 2012 (PLoS ONE 7:e45160) for pseudo-energies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.files import read_lines, record_name, source_name, uncompressed_name
from rinalmo.io.tables import is_missing, open_table, table_format
from rinalmo.rna.structure import PairList, Pairs, Structure, can_pair, pairs_of

CONSTRAINT_CHARACTERS = ".|x<>()[]{}"
_NOT_A_BRACKET = str.maketrans("|x<>", "....")
MISSING = -500.0  # RNAstructure: a value below this, such as -999, is none


@dataclass(frozen=True, slots=True)
class Constraint:
    """A structure constraint.

    Args:
        text: One character for each nucleotide.

    Raises:
        SequenceError: A character is unknown, or a bracket has no partner.

    Examples:
        >>> from rinalmo.rna.constraints import Constraint
        >>> Constraint("((x...))").pairs
        ((0, 7), (1, 6))
    """

    text: str

    def __post_init__(self) -> None:
        for position, character in enumerate(self.text, 1):
            if character not in CONSTRAINT_CHARACTERS:
                problem = f"{character!r} is not a constraint; allowed are {' '.join(CONSTRAINT_CHARACTERS)}"
                raise SequenceError(problem, position=position)
        pairs_of(self.text.translate(_NOT_A_BRACKET))

    @property
    def pairs(self) -> Pairs:
        """The pairs that are given, in order, counted from 0."""
        return pairs_of(self.text.translate(_NOT_A_BRACKET))

    def required(self) -> np.ndarray:
        """Whether each nucleotide has to be paired with one that is not given, bool `(length,)`."""
        return self._is("|<>")

    def may_open(self) -> np.ndarray:
        """Whether each nucleotide may be the 5' end of a pair that is not given, bool `(length,)`."""
        return self._is(".|<")

    def may_close(self) -> np.ndarray:
        """The same for the 3' end."""
        return self._is(".|>")

    def _is(self, characters: str) -> np.ndarray:
        return np.isin(np.array(list(self.text), dtype="U1"), list(characters))

    def regions(self) -> np.ndarray:
        """A number for each nucleotide; a pair of two with different numbers would cross a given pair."""
        open_, regions, pairs = [0], np.zeros(len(self.text), np.int64), dict(self.pairs)
        closing = set(pairs.values())
        for position in range(len(regions)):
            if position in closing:
                open_.pop()
            elif position in pairs:
                open_.append(position + 1)
            regions[position] = open_[-1]
        return regions

    def part(self, start: int, stop: int) -> Constraint:
        """The constraint of `start:stop`; what a partner outside could fulfil is not required there."""
        inside = {end for pair in self.pairs if start <= pair[0] and pair[1] < stop for end in pair}
        text = self.text.translate(str.maketrans("|<>", "..."))
        letters = [c if c in ".x" or place in inside else "x" for place, c in enumerate(text)]
        return Constraint("".join(letters[start:stop]))

    def for_vienna(self) -> str:
        """The text for ViennaRNA, whose pairs never cross and enclose at least three nucleotides."""
        nested = Structure("", "N" * len(self.text), self.pairs).nested().pairs if self.text else ()
        letters = [c if c in ".|x<>" else "x" for c in self.text]
        for i, j in nested:
            if j - i > 3:
                letters[i], letters[j] = "(", ")"
        return "".join(letters)

    def check(self, sequence: str, *, canonical: bool, min_distance: int, max_span: int | None, crossing: bool) -> None:
        """Raise SequenceError if a nucleotide cannot be as it should under these rules of `decode`."""
        length, given = len(sequence), self.pairs
        if len(self.text) != length:
            raise SequenceError(
                f"the constraint has {len(self.text):,} characters, but the sequence has {length:,}; they must be equal"
            )
        furthest = length if max_span is None else max_span - 1
        for i, j in given:
            letters = f"{sequence[i]} and {sequence[j]}"
            if canonical and not can_pair(sequence, np.array([i]), np.array([j]))[0]:
                problem = f"{letters} (position {j + 1}) are not a canonical pair; correct it, or use --all-pairs"
            elif j - i < min_distance:
                problem = f"is paired with {j + 1}, which encloses {j - i - 1} nt, less than --min-loop"
            elif j - i > furthest:
                problem = f"is paired with {j + 1}, which spans {j - i + 1:,} nt, more than --max-bp-span"
            else:
                continue
            raise SequenceError(problem, position=i + 1)
        if not crossing and (knots := sorted(set(given) - set(Structure("", sequence, given).nested().pairs))):
            problem = "is in a pseudoknot, which nested structures cannot have; use --decoder matching"
            raise SequenceError(problem, position=knots[0][0] + 1)
        opens, closes = self.may_open(), self.may_close()
        regions = self.regions() if not crossing else np.zeros(length, np.int64)
        everywhere = np.arange(length)
        for r in np.flatnonzero(self.required()).tolist():
            distance = np.abs(everywhere - r)
            later = (everywhere > r) & opens[r] & closes
            earlier = (everywhere < r) & closes[r] & opens
            possible = (later | earlier) & (distance >= min_distance) & (distance <= furthest)
            possible &= regions == regions[r]
            if canonical:
                possible &= can_pair(sequence, np.full(length, r), everywhere)
            if not possible.any():
                problem = f"{sequence[r]} must be paired ({self.text[r]!r}), but no nucleotide is left for it to "
                raise SequenceError(f"{problem}pair with; relax the constraint", position=r + 1)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What an RNA is folded with.

    Attributes:
        constraint: The structure constraint.
        reactivities: One value for each nucleotide, None where there is none.
        shape_method: How reactivities become pseudo-energies, as `shape_parameters` reads it.
        max_span: The largest number of nucleotides from one end of a pair to the other, both counted.
    """

    constraint: Constraint | None = None
    reactivities: tuple[float | None, ...] | None = None
    shape_method: str = "deigan"
    max_span: int | None = None

    def part(self, start: int, stop: int) -> Conditions:
        """The conditions of the nucleotides `start:stop`."""
        constraint = None if self.constraint is None else self.constraint.part(start, stop)
        reactivities = None if self.reactivities is None else self.reactivities[start:stop]
        return Conditions(constraint, reactivities, self.shape_method, self.max_span)

    def allowed(self, length: int) -> np.ndarray:
        """Whether two nucleotides may pair, symmetric bool `(length, length)`; given pairs may."""
        position = np.arange(length)
        distance = position - position[:, None]
        upper: np.ndarray = distance > 0
        if self.max_span is not None:
            upper &= distance < self.max_span
        if self.constraint is not None:
            upper &= self.constraint.may_open()[:, None] & self.constraint.may_close()
            for pair in self.constraint.pairs:
                upper[pair] = True
        return upper | upper.T

    def applied(self, probabilities: np.ndarray | PairList) -> np.ndarray | PairList:
        """Pair probabilities with 1 for given pairs and 0 for those that are not allowed."""
        if self.constraint is None and self.max_span is None:
            return probabilities
        given = () if self.constraint is None else self.constraint.pairs
        if isinstance(probabilities, np.ndarray):
            matrix = np.where(self.allowed(len(probabilities)), probabilities, np.float32(0))
            for a, b in given:
                matrix[a, b] = matrix[b, a] = 1
            return matrix
        i, j = probabilities.i, probabilities.j
        keep = np.ones(len(i), bool) if self.max_span is None else j - i < self.max_span
        if self.constraint is not None:
            keep &= self.constraint.may_open()[i] & self.constraint.may_close()[j]
        first, second = np.array(given, np.int32).reshape(-1, 2).T
        ones = np.ones(len(first), probabilities.values.dtype)
        return PairList.of(
            probabilities.length, [(i[keep], j[keep], probabilities.values[keep]), (first, second, ones)]
        )


_SHAPE_METHOD = re.compile(r"(D|Z)((?:[mb][-+]?\d*\.?\d+)*)")
_SHAPE_WORDS = {"deigan": "D", "zarringhalam": "Z"}
_SHAPE_DEFAULTS = {"D": {"m": 1.8, "b": -0.6}, "Z": {"b": 0.89}}


def shape_parameters(method: str) -> tuple[str, dict[str, float]]:
    """The letter and the parameters of a method.

    Args:
        method: "deigan" or "zarringhalam", or as RNAfold's `--shapeMethod`: "D", "Dm1.8b-0.6" (slope and intercept in
            kcal/mol), "Z", "Zb0.89".

    Raises:
        InputError: There is no such method.

    Examples:
        >>> from rinalmo.rna.constraints import shape_parameters
        >>> shape_parameters("Dm2.6")
        ('D', {'m': 2.6, 'b': -0.6})
    """
    match = _SHAPE_METHOD.fullmatch(_SHAPE_WORDS.get(method.lower(), method))
    given = re.findall(r"([mb])([-+\d.]+)", match[2]) if match else []
    letter = match[1] if match else ""
    if match is None or not {name for name, _ in given} <= _SHAPE_DEFAULTS[letter].keys():
        raise InputError(
            f"unknown SHAPE method {method!r}; use deigan or zarringhalam, or as in RNAfold Dm1.8b-0.6 or Zb0.89"
        )
    return letter, {**_SHAPE_DEFAULTS[letter], **{name: float(value) for name, value in given}}


# Files

Source = str | PathLike[str]


@dataclass(frozen=True)
class _Entry:
    """Lines of a file about one RNA."""

    name: str
    line: int
    sequence: str
    values: Any  # a constraint's text, or positions (from 1) with reactivity and nucleotide
    length: int | None = None  # of a list of reactivities


class KnownFile:
    """A file with a value for each of several RNAs, by name, or for a single one.

    Attributes:
        used: Names that records had.
    """

    def __init__(self, path: Source, noun: str, entries: Iterator[_Entry], read: Callable[[_Entry, str], Any]) -> None:
        self.file, self._noun, self._read = source_name(path), noun, read
        self._entries: dict[str, _Entry] = {}
        for entry in entries:
            if entry.name in self._entries:
                raise self._error(entry, "this name occurs twice; keep one")
            self._entries[entry.name] = entry
        if not self._entries:
            raise InputError(f"{self.file}: contains no {noun}")
        self.used: set[str] = set()

    def _error(self, entry: _Entry, problem: str) -> SequenceError:
        return SequenceError(problem, file=self.file, line=entry.line, record=record_name(entry.name))

    def of(self, name: str, sequence: str, *, alone: bool) -> Any:
        """The value of a record, None if there is none; a nameless one, or the only one, is that of an `alone` record.

        Raises:
            SequenceError: It does not fit the sequence.
        """
        entry = self._entries.get(name)
        if entry is None and alone and len(self._entries) == 1:
            (entry,) = self._entries.values()
        if entry is None:
            if "" in self._entries:
                raise self._error(
                    self._entries[""],
                    f"has no name, so it is unclear which RNA these {self._noun} belong to; write '>name' before them",
                )
            return None
        self.used.add(entry.name)
        if entry.sequence and _rna(entry.sequence) != _rna(sequence):
            raise self._error(entry, "its sequence differs from the record's; they must be equal")
        try:
            return self._read(entry, sequence)
        except SequenceError as error:
            raise error.with_location(self.file, None, record_name(entry.name or name)) from None

    def unused(self) -> list[str]:
        """Names that no record had."""
        return [name for name in self._entries if name not in self.used]


def _rna(sequence: str) -> str:
    return sequence.upper().replace("T", "U")


def read_constraints(path: Source) -> KnownFile:
    """Constraints from a file.

    The file holds, for each RNA, a header, maybe the sequence, and the constraint; for a single RNA the header may be
    missing. Or it is a table with the columns `id` and `constraint`.
    """
    entries = _constraint_rows(path) if _is_table(path) else _constraint_entries(path)
    return KnownFile(path, "constraints", entries, lambda entry, sequence: entry.values)


def is_constraint_line(line: str) -> bool:
    """Whether a line of a record is one of its constraint; a line of X alone, in upper case, is sequence."""
    return bool(line) and set(line) <= set(CONSTRAINT_CHARACTERS)


def _constraint_entries(path: Source) -> Iterator[_Entry]:
    file, name, start, sequence, text = source_name(path), "", 0, "", ""
    for number, raw in enumerate(read_lines(path), start=1):
        line = raw.strip()
        if line.startswith(">") and not ((sequence or text) and is_constraint_line(line)):
            if start and text:
                yield _Entry(name, start, sequence, text)
            elif start:
                raise SequenceError("has no constraint; add it", file=file, line=start, record=name)
            name, start, sequence, text = next(iter(line[1:].split()), ""), number, "", ""
        elif is_constraint_line(line):
            start, text = start or number, text + line
        elif line.isalpha() and not text:
            start, sequence = start or number, sequence + line
        elif line and not line.startswith("#"):
            raise SequenceError(f"{line[:30]!r} is not a constraint", file=file, line=number, record=record_name(name))
    if start:
        if not text:
            raise SequenceError("has no constraint; add it", file=file, line=start, record=record_name(name))
        yield _Entry(name, start, sequence, text)


def _is_table(path: Source) -> bool:
    return table_format(path) is not None and not uncompressed_name(path).endswith(".txt")


def _constraint_rows(path: Source) -> Iterator[_Entry]:
    table = open_table(path)
    table.require("id", "constraint")
    for line, row in table.rows:
        if not is_missing(row["constraint"]):
            text = str(row["constraint"]).strip()
            yield _Entry(str(row["id"]), line, str(row.get("sequence") or ""), text)


_Values = list[tuple[int, float | None, str]]


def read_reactivities(path: Source) -> KnownFile:
    """Reactivities from a file.

    One nucleotide per line: position (from 1) and value; position, nucleotide and value (ViennaRNA); position, value
    and error; or position, value, error and nucleotide (a `.map` file). A missing value is NA, left out, or below -500
    (RNAstructure's -999). Lines `>name` begin the next RNA; without them the file is of a single one.

    Or it is a table (.csv, .tsv, .jsonl, .parquet) with the columns `id` and `reactivity`: a list with one value per
    nucleotide, as JSON or separated by blanks or commas; or, with a third column `position`, one nucleotide per row.
    """
    entries = _reactivity_rows(path) if _is_table(path) else _reactivity_lines(path)
    return KnownFile(path, "reactivities", entries, _profile)


def _number(text: Any) -> float | None:
    if is_missing(text):
        return None
    value = float(text)
    if math.isinf(value):
        raise ValueError
    return None if math.isnan(value) or value < MISSING else value


def _reactivity_lines(path: Source) -> Iterator[_Entry]:
    file, name, start, values = source_name(path), "", 0, _Values()
    for number, raw in enumerate(read_lines(path), start=1):
        words = raw.split()
        if not words or words[0].startswith(("#", ";")):
            continue
        if words[0].startswith(">"):
            if start:
                yield _Entry(name, start, "", values)
            name, start, values = next(iter(raw.strip()[1:].split()), ""), number, []
            continue
        letter, cells = "", words[1:]
        if cells and len(cells[0]) == 1 and cells[0].isalpha():
            letter, *cells = cells
        elif len(cells) == 3:
            letter = cells[2]
        try:
            value = _number(cells[0]) if cells else None
            position = int(words[0])
        except ValueError:
            problem = f"{raw.strip()[:30]!r} is not a position and a reactivity"
            raise SequenceError(problem, file=file, line=number, record=record_name(name)) from None
        start = start or number
        values.append((position, value, letter))
    if start:
        yield _Entry(name, start, "", values)


def _reactivity_rows(path: Source) -> Iterator[_Entry]:
    table = open_table(path)
    table.require("id", "reactivity")
    by_name: dict[str, _Entry] = {}
    for line, row in table.rows:
        name, cell = str(row["id"]), row["reactivity"]
        try:
            if "position" in row:
                entry = by_name.setdefault(name, _Entry(name, line, str(row.get("sequence") or ""), []))
                entry.values.append((int(row["position"]), _number(cell), str(row.get("nucleotide") or "")))
                continue
            if isinstance(cell, str):
                cell = re.split(r"[\s,;]+", re.sub(r"[\[\]]", " ", cell).strip())
            values = [(n, _number(value), "") for n, value in enumerate(cell, 1)]
        except (TypeError, ValueError):
            problem = (
                "its reactivities are not numbers; give a list of numbers, or one number per row with its position"
            )
            raise SequenceError(problem, file=table.name, line=line, record=record_name(name)) from None
        yield _Entry(name, line, str(row.get("sequence") or ""), values, len(values))
    yield from by_name.values()


def _profile(entry: _Entry, sequence: str) -> tuple[float | None, ...]:
    """The values of a record, one for each nucleotide."""
    length = len(sequence)
    if entry.length not in (None, length):
        raise SequenceError(f"has {entry.length:,} reactivities for {length:,} nt; write NA for missing values")
    profile: dict[int, float | None] = {}
    for position, value, letter in entry.values:
        if not 1 <= position <= length:
            raise SequenceError(f"is not in the sequence, which has {length:,} nt", position=position)
        if position in profile:
            raise SequenceError("has two reactivities; keep one", position=position)
        if letter and _rna(letter) != _rna(sequence[position - 1]):
            problem = f"is {letter} in the file but {sequence[position - 1]} in the sequence; check the numbering"
            raise SequenceError(problem, position=position)
        profile[position] = value
    return tuple(profile.get(position) for position in range(1, length + 1))


def reactivities_of(values: Sequence[float | None], sequence: str) -> tuple[float | None, ...]:
    """Reactivities from Python, one for each nucleotide; raises SequenceError if they do not fit the sequence."""
    try:
        numbers = [(n, _number(value), "") for n, value in enumerate(values, 1)]
    except (TypeError, ValueError):
        raise SequenceError("its reactivities are not numbers") from None
    return _profile(_Entry("", 0, "", numbers, len(numbers)), sequence)
