"""Which nucleotides pair: AU, GC and GU, in either case, T for U. Any other letter, N included, pairs with nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase

import numpy as np

from rinalmo.errors import SequenceError
from rinalmo.io.files import record_name

CANONICAL_PAIRS = ("AU", "GC", "GU")

_RULE = np.zeros((256, 256), dtype=bool)  # by the letters' codes
for _pair in CANONICAL_PAIRS:
    _first, _second = _pair.encode()
    _RULE[_first, _second] = _RULE[_second, _first] = True


def can_pair(sequence: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Whether the nucleotides at `rows` pair with those at `columns` (0-based), one answer each."""
    codes = _codes(sequence)
    return _RULE[codes[rows], codes[columns]]


def canonical_mask(sequence: str) -> np.ndarray:
    """The answers for all pairs of positions, `(length, length)` of bool."""
    codes = _codes(sequence)
    kinds, which = np.unique(codes, return_inverse=True)
    # Row by row, one for each kind of letter: a look-up pair by pair takes 30 times as long.
    return _RULE[kinds][:, codes][which]


def _codes(sequence: str) -> np.ndarray:
    return np.frombuffer(sequence.upper().replace("T", "U").encode("ascii", "replace"), dtype=np.uint8)


def heaviest_nested(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray) -> list[tuple[int, int]]:
    """The chosen of the candidate pairs `(rows, columns)`, `rows < columns`, in order of `rows`.

    `weights` are above zero. Of sets of equal weight it is one whose pairs close early.
    """
    positions, places = np.unique(np.stack([rows, columns]), return_inverse=True)
    rows, columns = places.reshape(2, -1)
    length = len(positions)
    order = np.lexsort((-rows, columns))
    rows, columns, weights = rows[order], columns[order], weights[order].astype(np.float64)
    starts = np.searchsorted(columns, np.arange(length + 1)).tolist()
    best = _Best(length, int((columns - rows).max(initial=0)) + 1)
    inside = np.empty(len(rows))
    for j in range(length):
        here = slice(starts[j], starts[j + 1])
        inside[here] = weights[here] + best.within(rows[here] + 1, j)
        best.begin(j + 1)
        for k, weight in zip(rows[here].tolist(), inside[here].tolist(), strict=True):
            best.improve(j + 1, k, weight)
    return [(int(positions[i]), int(positions[j])) for i, j in _traced(best, rows, starts, inside)]


class _Best:
    """`best[e, i]` for stretches `e - i` up to `longest`, and for i = 0; numbered by e and e - i."""

    def __init__(self, length: int, longest: int) -> None:
        self.longest = longest
        self.whole = np.zeros(length + 1)
        self.band = np.zeros((length + 1, longest + 1))

    def begin(self, e: int) -> None:
        """Row e before the pairs that end in it."""
        self.whole[e] = self.whole[e - 1]
        self.band[e, 1:] = self.band[e - 1, :-1]

    def improve(self, e: int, k: int, weight: float) -> None:
        """Take the pair (k, e-1) into account, which has `weight` with what is inside."""
        row, around = self.band[e], e - k
        if weight > row[around]:
            self.whole[e] = max(self.whole[e], self.whole[k] + weight)
            longer = row[around : around + k + 1]
            np.maximum(longer, self.band[k, : len(longer)] + weight, out=longer)

    def within(self, i: np.ndarray, e: int) -> np.ndarray:
        """`best[e, i]` for stretches inside of pairs."""
        return self.band[e, e - i]

    def at(self, e: int, i: int) -> float:
        """One of those that are kept."""
        return float(self.band[e, e - i] if i else self.whole[e])

    def before(self, ks: np.ndarray, i: int) -> np.ndarray:
        """`best[k, i]` for each k."""
        return self.band[ks, ks - i] if i else self.whole[ks]


def _traced(best: _Best, rows: np.ndarray, starts: list[int], inside: np.ndarray) -> list[tuple[int, int]]:
    """The pairs behind best[length, 0], by asking again what each maximum came from."""
    pairs = []
    stretches = [(0, len(best.whole) - 1)]
    while stretches:
        i, e = stretches.pop()
        while e > i and best.at(e, i) == best.at(e - 1, i):
            e -= 1
        if e > i:
            here = slice(starts[e - 1], starts[e])
            ks = rows[here]
            inner = ks >= i
            ks, weights = ks[inner], inside[here][inner]
            k = int(ks[(best.before(ks, i) + weights == best.at(e, i)).argmax()])
            pairs.append((k, e - 1))
            stretches += [(i, k), (k + 1, e - 1)]
    return sorted(pairs)


Pairs = tuple[tuple[int, int], ...]

OPENING, CLOSING = "([{<" + ascii_uppercase, ")]}>" + ascii_lowercase
UNPAIRED = ".:,-_~"
"""What stands for an unpaired position; "." is written, the others are Stockholm's (WUSS)."""

_MOST_ENTRIES = 5 * 10**7  # of the table that is kept to choose among pairs that cross: 400 MB


@dataclass(frozen=True, slots=True)
class Structure:
    """A named sequence, its letters as the user wrote them, and its pairs `(i, j)`, i < j, from 0, in order of i.

    Pairs may be given in any order and as any integers. Raises SequenceError if the name is not one line, a letter is
    not a letter, a pair does not fit the sequence or a position has two partners.
    """

    name: str
    sequence: str
    pairs: Pairs = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", tuple(sorted((int(i), int(j)) for i, j in self.pairs)))
        if self.name != self.name.strip() or set("\r\n\0") & set(self.name):
            raise SequenceError(f"the name {self.name!r} is not one line without outer blanks; rename it")
        record = record_name(self.name)
        _check_letters(self.sequence, record)
        _check_pairs(self.pairs, len(self.sequence), record)

    @classmethod
    def from_dot_bracket(cls, name: str, sequence: str, text: str) -> Structure:
        """Raises SequenceError also if the brackets are not balanced or the lengths differ."""
        if len(text) != len(sequence):
            raise SequenceError(
                f"the structure has {len(text):,} characters and the sequence {len(sequence):,}; both must be as long",
                record=record_name(name),
            )
        return cls(name, sequence, pairs_of(text))

    @classmethod
    def from_matrix(cls, name: str, sequence: str, matrix: np.ndarray) -> Structure:
        """From a symmetric matrix `(length, length)`, zero where there is no pair."""
        if matrix.shape != (len(sequence),) * 2 or (matrix != matrix.T).any():
            raise SequenceError(
                f"a pair matrix of shape {matrix.shape} must be symmetric and fit {len(sequence)} nt",
                record=record_name(name),
            )
        i, j = np.nonzero(matrix)
        return cls(name, sequence, tuple(zip(i[i <= j].tolist(), j[i <= j].tolist(), strict=True)))

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def dot_bracket(self) -> str:
        """One character a nucleotide. Raises SequenceError if the 30 kinds of brackets do not suffice."""
        return dot_bracket_of(self.pairs, len(self))

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
        """Without pseudoknots: the pairs that are written in round brackets."""
        return Structure(self.name, self.sequence, next(_levels(self.pairs), ()))

    def canonical(self) -> Structure:
        """With AU, GC and GU pairs only."""
        rows, columns = np.array(self.pairs, dtype=np.int64).reshape(-1, 2).T
        kept = can_pair(self.sequence, rows, columns)
        return Structure(
            self.name, self.sequence, tuple(pair for pair, keep in zip(self.pairs, kept, strict=True) if keep)
        )


def pairs_of(text: str) -> Pairs:
    """The pairs of a dot-bracket text; brackets of different kinds may cross.

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
    if never_closed := [stack[-1] for stack in open_.values() if stack]:
        position = min(never_closed)
        raise _problem(f"{text[position]!r} is never closed; add its bracket or put a '.'", position)
    return tuple(sorted(pairs))


def dot_bracket_of(pairs: Iterable[tuple[int, int]], length: int) -> str:
    """The text of pairs that share no position. Raises SequenceError if 30 kinds of brackets do not suffice."""
    text = ["."] * length
    for level, chosen in enumerate(_levels(tuple(sorted(pairs)))):
        if level == len(OPENING):
            raise SequenceError(f"pseudoknots need more than {len(OPENING)} kinds of brackets; write CT or BPSEQ")
        for i, j in chosen:
            text[i], text[j] = OPENING[level], CLOSING[level]
    return "".join(text)


def _levels(pairs: Pairs) -> Iterator[Pairs]:
    """Cut pairs into nested sets: the largest, the largest of the rest, and so on."""
    while pairs:
        crossing = _crossing(pairs)
        chosen = set(pairs) - crossing | set(_largest_nested(sorted(crossing)))
        yield tuple(sorted(chosen))
        pairs = tuple(pair for pair in pairs if pair not in chosen)


def _largest_nested(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Its cost grows with their number and their span: only pairs that cross others are given to it."""
    positions = np.unique(np.array(pairs, dtype=np.int64))
    rows, columns = np.searchsorted(positions, np.array(pairs, dtype=np.int64).reshape(-1, 2).T)
    if len(positions) * int((columns - rows).max(initial=0)) > _MOST_ENTRIES:
        raise SequenceError(f"{len(pairs):,} pairs cross others, too many for brackets; write CT or BPSEQ")
    return [(int(positions[i]), int(positions[j])) for i, j in heaviest_nested(rows, columns, np.ones(len(pairs)))]


def _crossing(pairs: Pairs) -> set[tuple[int, int]]:
    """The pairs that cross another one: those that are open above one that closes, and that one."""
    partner = {j: i for i, j in pairs}
    other = dict(pairs)
    open_: list[int] = []
    crossing: set[int] = set()
    for position in sorted([*partner, *other]):
        if position in other:
            open_.append(position)
        elif open_[-1] == partner[position]:
            open_.pop()
        else:
            place = len(open_) - 1 - open_[::-1].index(partner[position])
            crossing.update(open_[place:])
            del open_[place]
    return {(i, other[i]) for i in crossing}


def _check_letters(sequence: str, record: str | None) -> None:
    if not sequence:
        raise SequenceError("has no sequence; remove it, or copy the file again if it is cut off", record=record)
    if not (sequence.isascii() and sequence.isalpha()):
        place = next(n for n, letter in enumerate(sequence) if not (letter.isascii() and letter.isalpha()))
        problem = f"{sequence[place]!r} is not a letter; remove gaps and blanks, with their column of the structure"
        raise _problem(problem, place, record)


def _check_pairs(pairs: Pairs, length: int, record: str | None) -> None:
    seen: set[int] = set()
    for i, j in pairs:
        if not 0 <= i < length or not 0 <= j < length:
            outside = j if 0 <= i < length else i
            problem = f"has the partner {outside + 1}, but the sequence has {length} nt; correct the pair"
            raise _problem(problem, i + j - outside, record)
        if i >= j:
            raise _problem("is paired with itself; remove the pair" if i == j else "write pairs with i < j", i, record)
        for end in (i, j):
            if end in seen:
                raise _problem("has two partners; keep one", end, record)
            seen.add(end)


def _problem(message: str, position: int, record: str | None = None) -> SequenceError:
    return SequenceError(message, record=record, position=position + 1)


RECORD = np.dtype([("i", "<i4"), ("j", "<i4"), ("probability", "<f2")])
"""How a pair lies in an `.npz` file: positions from 0, i < j."""


@dataclass(frozen=True)
class PairList:
    """Pairs with their probabilities, in order of `i`, then `j`; any other pair counts as 0.

    length  nucleotides of the RNA
    i, j    (pairs,) positions from 0, i < j
    values  (pairs,) probabilities
    """

    length: int
    i: np.ndarray
    j: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, length: int, parts: Iterable[Sequence[np.ndarray]]) -> PairList:
        """From parts `(i, j, values)` in any order. No pair may be in two."""
        i, j, values = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.lexsort((j, i))
        return cls(length, i[order], j[order], values[order])

    @classmethod
    def from_records(cls, length: int, records: np.ndarray) -> PairList:
        """From an array of `RECORD`."""
        return cls(length, records["i"], records["j"], records["probability"])

    def records(self) -> np.ndarray:
        """As an array of `RECORD`, which `numpy.save` writes and `numpy.load` reads."""
        records = np.empty(len(self.values), RECORD)
        records["i"], records["j"], records["probability"] = self.i, self.j, self.values
        return records

    @property
    def shape(self) -> tuple[int, int]:
        """That of the square."""
        return self.length, self.length

    def matrix(self) -> np.ndarray:
        """The square `(length, length)`, symmetric; for RNAs short enough to be looked at."""
        matrix = np.zeros(self.shape, self.values.dtype)
        matrix[self.i, self.j] = matrix[self.j, self.i] = self.values
        return matrix

    def at(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The probabilities of pairs, i < j; 0 for those that are not in the list."""
        keys, wanted = (np.asarray(a, np.int64) * self.length + b for a, b in ((self.i, self.j), (i, j)))
        places = np.searchsorted(keys, wanted)
        found = places < len(keys)
        found[found] = keys[places[found]] == wanted[found]
        values = np.zeros(len(wanted), self.values.dtype)
        values[found] = self.values[places[found]]
        return values
