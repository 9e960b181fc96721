"""Structures: nucleotides that can pair, the best nested set of pairs, dot-bracket notation, lists of probable pairs.

AU, GC and GU pair, in either case, T for U. Any other letter, N included, pairs with nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import numpy as np

from rinalmo.errors import SequenceError
from rinalmo.io.files import record_name

CANONICAL_PAIRS = ("AU", "GC", "GU")

_RULE = np.zeros((256, 256), dtype=bool)  # indexed by the ASCII codes of two letters
for _pair in CANONICAL_PAIRS:
    _first, _second = _pair.encode()
    _RULE[_first, _second] = _RULE[_second, _first] = True


def can_pair(sequence: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Whether the nucleotides at `rows` can pair with those at `columns` (0-based): bool, one for each."""
    codes = _codes(sequence)
    return _RULE[codes[rows], codes[columns]]


def canonical_mask(sequence: str) -> np.ndarray:
    """`can_pair` for all pairs of positions, bool `(length, length)`."""
    codes = _codes(sequence)
    letters, letter_at = np.unique(codes, return_inverse=True)
    # One row per distinct letter, then copied: indexing the rule by both positions takes 30 times as long.
    return _RULE[letters][:, codes][letter_at]


def _codes(sequence: str) -> np.ndarray:
    return np.frombuffer(sequence.upper().replace("T", "U").encode("ascii", "replace"), dtype=np.uint8)


def heaviest_nested(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray) -> list[tuple[int, int]]:
    """The nested set of the candidate pairs `(rows, columns)`, `rows < columns`, with the greatest total weight.

    Weights are above zero. The pairs are returned in order; of sets of equal weight it is one whose pairs close early.
    """
    positions, places = np.unique(np.stack([rows, columns]), return_inverse=True)
    rows, columns = places.reshape(2, -1)
    length = len(positions)
    order = np.lexsort((-rows, columns))
    rows, columns, weights = rows[order], columns[order], weights[order].astype(np.float64)
    starts = np.searchsorted(columns, np.arange(length + 1)).tolist()
    longest = int((columns - rows).max(initial=0)) + 1

    # The greatest weight within [start, end) is band[end, end - start] for stretches up to `longest`, and whole[end]
    # for start 0. inside[n] is the weight of pair n with the best pairs that it encloses.
    band, whole, inside = np.zeros((length + 1, longest + 1)), np.zeros(length + 1), np.empty(len(rows))
    for j in range(length):
        here, end = slice(starts[j], starts[j + 1]), j + 1
        inside[here] = weights[here] + band[j, j - rows[here] - 1]
        band[end, 1:], whole[end] = band[j, :-1], whole[j]
        for i, weight in zip(rows[here].tolist(), inside[here].tolist(), strict=True):
            stretch = end - i
            if weight > band[end, stretch]:
                whole[end] = max(whole[end], whole[i] + weight)
                longer = band[end, stretch : stretch + i + 1]
                np.maximum(longer, band[i, : len(longer)] + weight, out=longer)

    def best(start: int, end: Any) -> Any:
        return band[end, end - start] if start else whole[end]

    # Trace back: find the pair that each maximum came from.
    pairs = []
    stretches = [(0, length)]
    while stretches:
        start, end = stretches.pop()
        while end > start and best(start, end) == best(start, end - 1):
            end -= 1
        if end > start:
            here = slice(starts[end - 1], starts[end])
            within = rows[here] >= start
            candidates, weights = rows[here][within], inside[here][within]
            i = int(candidates[(best(start, candidates) + weights == best(start, end)).argmax()])
            pairs.append((int(positions[i]), int(positions[end - 1])))
            stretches += [(start, i), (i + 1, end - 1)]
    return sorted(pairs)


Pairs = tuple[tuple[int, int], ...]

OPENING, CLOSING = "([{<" + ascii_uppercase, ")]}>" + ascii_lowercase
UNPAIRED = ".:,-_~"
"""The characters for an unpaired position; "." is written, the others are Stockholm's (WUSS)."""

_MAX_ENTRIES = 5 * 10**7  # of the table of `heaviest_nested` where pairs cross: 400 MB


@dataclass(frozen=True, slots=True, eq=False)
class Structure:
    """A named sequence with its base pairs.

    Args:
        name: One line of text, or empty.
        sequence: Letters as the user wrote them, in either case.
        pairs: Pairs `(i, j)`, i < j, counted from 0, in any order and as any integers. They are kept in order of i.

    Raises:
        SequenceError: The name is not one line, a letter is not a letter, a pair does not fit the sequence, or a
            position has two partners.

    Examples:
        >>> from rinalmo.rna.structure import Structure
        >>> structure = Structure("hairpin", "GGGAAAUCCC", [(0, 9), (1, 8), (2, 7)])
        >>> structure.dot_bracket
        '(((....)))'
        >>> Structure.from_dot_bracket("hairpin", "GGGAAAUCCC", "(((....)))") == structure
        True
    """

    name: str
    sequence: str
    pairs: Pairs = ()

    def __post_init__(self) -> None:
        name, sequence, length = self.name, self.sequence, len(self.sequence)
        if name != name.strip() or set("\r\n\0") & set(name):
            raise SequenceError(f"the name {name!r} must be one line without leading or trailing spaces; rename it")
        record = record_name(name)
        if not sequence:
            raise SequenceError("has no sequence; remove it, or copy the file again if it is truncated", record=record)
        if not (sequence.isascii() and sequence.isalpha()):
            place = next(n for n, letter in enumerate(sequence) if not (letter.isascii() and letter.isalpha()))
            problem = f"{sequence[place]!r} is not a letter; remove gaps and spaces, and their columns of the structure"
            raise _problem(problem, place, record)
        pairs = tuple(sorted((int(i), int(j)) for i, j in self.pairs))
        paired: set[int] = set()
        for i, j in pairs:
            if not 0 <= i < length or not 0 <= j < length:
                outside = j if 0 <= i < length else i
                problem = f"has the partner {outside + 1}, but the sequence has {length} nt; correct the pair"
                raise _problem(problem, i + j - outside, record)
            if i >= j:
                problem = "is paired with itself; remove the pair" if i == j else "write pairs with i < j"
                raise _problem(problem, i, record)
            for end in (i, j):
                if end in paired:
                    raise _problem("has two partners; keep one", end, record)
                paired.add(end)
        object.__setattr__(self, "pairs", pairs)

    @classmethod
    def from_dot_bracket(cls, name: str, sequence: str, text: str) -> Structure:
        """A structure from dot-bracket notation; brackets of different types may cross.

        Raises:
            SequenceError: As for the class, or the brackets are not balanced, or the lengths differ.
        """
        if len(text) != len(sequence):
            raise SequenceError(
                f"the structure has {len(text):,} characters, the sequence {len(sequence):,}; make them equal",
                record=record_name(name),
            )
        return cls(name, sequence, pairs_of(text))

    @classmethod
    def from_matrix(cls, name: str, sequence: str, matrix: np.ndarray) -> Structure:
        """A structure from a symmetric matrix `(length, length)`, zero where there is no pair."""
        if matrix.shape != (len(sequence),) * 2 or (matrix != matrix.T).any():
            raise SequenceError(
                f"a pair matrix of shape {matrix.shape} must be symmetric and fit {len(sequence)} nt",
                record=record_name(name),
            )
        i, j = np.nonzero(matrix)
        return cls(name, sequence, tuple(zip(i[i <= j].tolist(), j[i <= j].tolist(), strict=True)))

    def __len__(self) -> int:
        return len(self.sequence)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Structure):
            return NotImplemented
        return (self.name, self.sequence, self.pairs) == (other.name, other.sequence, other.pairs)

    def __hash__(self) -> int:
        return hash((self.name, self.sequence, self.pairs))

    @property
    def dot_bracket(self) -> str:
        """Dot-bracket notation. Raises SequenceError if the 30 types of brackets are not enough."""
        text = ["."] * len(self.sequence)
        for level, pairs in enumerate(_levels(self.pairs)):
            if level == len(OPENING):
                raise SequenceError(f"pseudoknots need more than {len(OPENING)} types of brackets; write CT or BPSEQ")
            for i, j in pairs:
                text[i], text[j] = OPENING[level], CLOSING[level]
        return "".join(text)

    def matrix(self) -> np.ndarray:
        """The pairs as a symmetric matrix `(length, length)` of bool."""
        matrix = np.zeros((len(self), len(self)), dtype=bool)
        for i, j in self.pairs:
            matrix[i, j] = matrix[j, i] = True
        return matrix

    def partners(self) -> list[int]:
        """The partner of each position, -1 if it has none."""
        partner = [-1] * len(self)
        for i, j in self.pairs:
            partner[i], partner[j] = j, i
        return partner

    def nested(self) -> Structure:
        """The structure without pseudoknots: the pairs that are written in round brackets."""
        return Structure(self.name, self.sequence, next(_levels(self.pairs), ()))

    def canonical(self) -> Structure:
        """The structure with AU, GC and GU pairs only."""
        rows, columns = np.array(self.pairs, dtype=np.int64).reshape(-1, 2).T
        return Structure(self.name, self.sequence, tuple(compress(self.pairs, can_pair(self.sequence, rows, columns))))


@dataclass(frozen=True, slots=True, eq=False)
class PredictedStructure(Structure):
    """A structure with the numbers of its prediction; equal to any `Structure` of the same name, sequence and pairs.

    Args:
        pairing_probabilities: Probability of each nucleotide to be paired, fp32 `(length,)`.
        confidence: Expected share of the pairs that are right, the mean of their probabilities; None without pairs.
        energy: Free energy in kcal/mol; None without ViennaRNA. Pseudoknots are left out, as by `RNAeval`.
        mfe_structure: ViennaRNA's structure of minimum free energy. This and the next two are only there if the whole
            RNA was folded with thermodynamics.
        mfe: Its free energy.
        ensemble_energy: Free energy of the thermodynamic ensemble.
    """

    pairing_probabilities: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32), repr=False)
    confidence: float | None = None
    energy: float | None = None
    mfe_structure: str | None = None
    mfe: float | None = None
    ensemble_energy: float | None = None


def pairs_of(text: str) -> Pairs:
    """The pairs of dot-bracket notation; brackets of different types may cross.

    Raises SequenceError for an unknown character, and for a bracket without its partner.
    """
    open_: dict[str, list[int]] = {}
    opening = dict(zip(CLOSING, OPENING, strict=True))
    pairs = []
    for position, character in enumerate(text):
        if character in UNPAIRED:
            continue
        if character in OPENING:
            open_.setdefault(character, []).append(position)
        elif character not in CLOSING:
            raise _problem(f"{character!r} is not dot-bracket; allowed are . ( ) [ ] {{ }} < > and letters", position)
        elif not (stack := open_.get(opening[character])):
            raise _problem(f"{character!r} closes nothing; add its {opening[character]!r} or put a '.'", position)
        else:
            pairs.append((stack.pop(), position))
    if any(open_.values()):
        position = min(stack[-1] for stack in open_.values() if stack)
        raise _problem(f"{text[position]!r} is never closed; add its bracket or put a '.'", position)
    return tuple(sorted(pairs))


def _levels(pairs: Pairs) -> Iterator[Pairs]:
    """Split pairs into nested sets: the largest one, the largest of the others, and so on."""
    while pairs:
        crossing = _crossing(pairs)
        level = set(pairs).difference(crossing)
        if crossing:
            level.update(_largest_nested(crossing))
        yield tuple(sorted(level))
        pairs = tuple(sorted(set(pairs) - level))


def _largest_nested(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The cost grows with the number of pairs and their span: only pairs that cross others are given to it."""
    rows, columns = np.array(pairs, dtype=np.int64).T
    positions = np.unique(np.array(pairs, dtype=np.int64))
    span = int((np.searchsorted(positions, columns) - np.searchsorted(positions, rows)).max())
    if len(positions) * span > _MAX_ENTRIES:
        raise SequenceError(f"{len(pairs):,} pairs cross others, which is too many for dot-bracket; write CT or BPSEQ")
    return heaviest_nested(rows, columns, np.ones(len(pairs)))


def _crossing(pairs: Pairs) -> list[tuple[int, int]]:
    """The pairs that cross another one, in order."""
    partner: dict[int, int] = {}
    for i, j in pairs:
        partner[i], partner[j] = j, i
    open_: list[int] = []
    crossing: set[tuple[int, int]] = set()
    for position in sorted(partner):
        start = partner[position]
        if start > position:
            open_.append(position)
        elif open_[-1] == start:
            open_.pop()
        else:  # this pair and those that were opened after it and are still open cross
            place = len(open_) - 1 - open_[::-1].index(start)
            for i in open_[place:]:
                crossing.add((i, partner[i]))
            del open_[place]
    return sorted(crossing)


def _problem(message: str, position: int, record: str | None = None) -> SequenceError:
    return SequenceError(message, record=record, position=position + 1)


RECORD = np.dtype([("i", "<i4"), ("j", "<i4"), ("probability", "<f2")])
"""The record of a pair in an `.npz` file: positions from 0, i < j."""


@dataclass(frozen=True)
class PairList:
    """Probable pairs, in order of `i`, then `j`; any other pair has the probability 0.

    Attributes:
        length: Nucleotides of the RNA.
        i: 5' positions, from 0, shape `(pairs,)`.
        j: 3' positions, shape `(pairs,)`.
        values: Probabilities, shape `(pairs,)`.
    """

    length: int
    i: np.ndarray
    j: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, length: int, parts: Iterable[Sequence[np.ndarray]]) -> PairList:
        """Join parts `(i, j, values)`, in any order; no pair may be in two."""
        i, j, values = map(np.concatenate, zip(*parts, strict=True))
        order = np.lexsort((j, i))
        return cls(length, i[order], j[order], values[order])

    @classmethod
    def from_records(cls, length: int, records: np.ndarray) -> PairList:
        """A list from an array of `RECORD`."""
        return cls(length, records["i"], records["j"], records["probability"])

    def records(self) -> np.ndarray:
        """The pairs as an array of `RECORD`."""
        records = np.empty(len(self.values), RECORD)
        records["i"], records["j"], records["probability"] = self.i, self.j, self.values
        return records

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of `matrix`."""
        return self.length, self.length

    def matrix(self) -> np.ndarray:
        """The symmetric matrix `(length, length)`; only for short RNAs."""
        matrix = np.zeros(self.shape, self.values.dtype)
        matrix[self.i, self.j] = matrix[self.j, self.i] = self.values
        return matrix

    def at(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The probabilities of pairs, i < j; 0 for those that are not in the list."""
        keys = self.i.astype(np.int64) * self.length + self.j
        wanted = np.asarray(i, np.int64) * self.length + j
        places = np.searchsorted(keys, wanted)
        is_listed = places < len(keys)
        is_listed[is_listed] = keys[places[is_listed]] == wanted[is_listed]
        values = np.zeros(len(wanted), self.values.dtype)
        values[is_listed] = self.values[places[is_listed]]
        return values
