"""Scores of sequence variants.

`A12G` is the substitution of the twelfth nucleotide, A, by G; several are joined, `A12G:C13U` (or with commas). T is
read as U, in either case. `WT` is the wild type itself. HGVS is read as well, as MaveDB's score sets have it:
`n.12A>G`, `c.[12A>G;13C>T]`, `n.12del`, `n.12_13insAC`, `n.=`; positions count from the start of the sequence.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, groupby, repeat, zip_longest
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

import numpy as np

from rinalmo.engine.devices import DeviceLike
from rinalmo.engine.engine import Advance, Engine, as_engine
from rinalmo.engine.jobs import Arrays, Job, JobOptions, cumulative, opened, take_shard
from rinalmo.engine.ray import EngineLike
from rinalmo.errors import InputError, SequenceError
from rinalmo.inference.fill_mask import NucleotideScorer
from rinalmo.io.files import atomic_write_path, check_path, counted, escape_controls
from rinalmo.io.sequences import InputFile, Record, as_records, plain_item, plain_rows, read_fasta
from rinalmo.io.tables import Row, TableReader, is_missing, open_table, table_format, table_lines, write_parquet
from rinalmo.model.packing import chunked
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.plots.positions import check_heat_map, draw_heat_map
from rinalmo.rna.alphabet import NUCLEOTIDES

logger = logging.getLogger(__name__)

WILD_TYPE = "WT"
SCORE, MUTANT, RECORD = "score", "mutant", "record"
_MUTANTS = (MUTANT, "hgvs_nt", "hgvs", "mutation", "variant")  # usual names of the column
_HGVS = re.compile(r"(?:[^:\s]+:)?[cgmnr]\.(?:\[(.+)\]|(.+))")
_HGVS_CHANGE = re.compile(
    r"(?P<first>\d{1,12})(?:_(?P<last>\d{1,12}))?"
    r"(?:(?P<old>[A-Z]+)>(?P<new>[A-Z]+)|(?P<same>=)|del(?P<deleted>[A-Z]*?)ins(?P<inserted>[A-Z]+)"
    r"|(?P<kind>del|ins|dup)(?P<letters>[A-Z]*))",
    re.IGNORECASE,
)
_SUBSTITUTION = re.compile(r"([A-Za-z])([0-9]{1,12})([A-Za-z])")

Change = tuple[int, str]
"""A position, counted from 0, and its new nucleotide."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A changed sequence.

    `changes` are empty where the length differs from the wild type's, and `other` is the whole sequence. `cells` are
    its row of the output, without the score.
    """

    wild_type: str
    changes: tuple[Change, ...] = ()
    other: str | None = None
    cells: tuple[str | int, ...] = ()

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of the changes, counted from 0."""
        return tuple(position for position, _ in self.changes)

    @property
    def sequence(self) -> str:
        """The whole changed sequence."""
        if self.other is not None:
            return self.other
        letters = list(self.wild_type)
        for position, letter in self.changes:
            letters[position] = letter
        return "".join(letters)

    @property
    def name(self) -> str:
        """In the notation of this module; empty for insertions and deletions."""
        if self.other is not None:
            return ""
        return ":".join(f"{self.wild_type[n]}{n + 1}{letter}" for n, letter in self.changes) or WILD_TYPE


def parse(wild_type: str, mutant: str, *, where: str | None = None) -> tuple[Change, ...]:
    """The changes of a mutant as written, in order of position; those that change nothing are left out.

    `where` starts an error message. Raises SequenceError for anything but substitutions, a position that the sequence
    does not have or that is named twice, and a letter that is not the wild type's.
    """
    if mutant.strip().upper() == WILD_TYPE:
        return ()
    changes: dict[int, str] = {}
    for part in map(str.strip, re.split("[:,]", mutant)):
        match = _SUBSTITUTION.fullmatch(part)
        if not match:
            problem = f"{part!r} is not a substitution; write A12G, or several as A12G:C13U"
            raise SequenceError(f"{problem}; give insertions and deletions in HGVS, or as whole sequences", file=where)
        old, new = (match[n].upper().replace("T", "U") for n in (1, 3))
        position = int(match[2])
        problem = ""
        for letter in (old, new):
            if letter not in NUCLEOTIDES:
                problem = problem or f"{part} has {letter}; only A, C, G and U (or T) can be substituted"
        if not problem and not 1 <= position <= len(wild_type):
            problem = f"{part} is outside of the sequence, which has {len(wild_type)} nt"
        if not problem and wild_type[position - 1] != old:
            problem = f"the sequence has {wild_type[position - 1]} here, not {old} ({part})"
        if not problem and position - 1 in changes:
            problem = f"is changed twice in {mutant!r}"
        if problem:
            raise SequenceError(problem, file=where, position=position)
        changes[position - 1] = new
    return tuple(sorted((n, letter) for n, letter in changes.items() if letter != wild_type[n]))


def read_variant(wild_type: str, text: str, *, where: str | None = None) -> Variant:
    """The variant that a notation of this module stands for; raises SequenceError as `parse`."""
    match = _HGVS.fullmatch(text.strip())
    if match is None:
        is_wild_type = text.strip() in ("_wt", "=")
        return Variant(wild_type, () if is_wild_type else parse(wild_type, text, where=where))
    edits: list[tuple[int, int, str]] = []  # of what is replaced: start, stop; by what
    for part in map(str.strip, (match[1] or match[2]).split(";")):
        if part.strip("()") == "=":
            continue
        change = _HGVS_CHANGE.fullmatch(part)
        if change is None:
            problem = f"{part!r} is not a change of this sequence; write, for example, n.12A>G or n.12_14del"
            raise SequenceError(problem, file=where)
        first, last = int(change["first"]), int(change["last"] or change["first"])
        kind, letters = (change["kind"] or "").lower(), change["letters"] or ""
        old = change["old"] or change["deleted"] or (letters if kind in ("del", "dup") else "")
        new = change["new"] or change["inserted"] or (letters if kind == "ins" else "")
        old, new = (each.upper().replace("T", "U") for each in (old, new))
        start, stop = first - 1, last
        if not 1 <= first <= last <= len(wild_type):
            problem = f"{part} is outside of the sequence, which has {len(wild_type)} nt"
            raise SequenceError(problem, file=where)
        if old and old != wild_type[start:stop]:
            raise SequenceError(f"the sequence has {wild_type[start:stop]} here, not {old} ({part})", file=where)
        if kind == "ins":
            if last != first + 1 or not new:
                raise SequenceError(f"{part} is not a complete insertion; write it as n.12_13insAC", file=where)
            start, stop = first, first
        elif kind == "dup":
            start, stop, new = last, last, wild_type[start:stop]
        elif change["same"]:
            continue
        if set(new) - set(NUCLEOTIDES):
            raise SequenceError(f"{part} has characters other than A, C, G and U (or T)", file=where)
        edits.append((start, stop, new))
    sequence, end = wild_type, len(wild_type) + 1
    for start, stop, new in sorted(edits, reverse=True):
        if stop > end or (start, stop) == (end, end):
            raise SequenceError(f"two changes in {text!r} overlap", file=where)
        sequence, end = sequence[:start] + new + sequence[stop:], start
    if not sequence:
        raise SequenceError(f"{text!r} deletes the whole sequence", file=where)
    return compare(wild_type, sequence, file=where)


def compare(wild_type: str, sequence: str, *, file: str | None = None, record: str | None = None) -> Variant:
    """The variant that a whole sequence is.

    N and other codes may occur in both, at the same positions, or with insertions and deletions in the same order: they
    have no probability. Raises SequenceError where only one of the two has them.
    """
    if len(sequence) != len(wild_type):
        codes, own_codes = (re.sub(f"[{NUCLEOTIDES}]", "", each) for each in (sequence, wild_type))
        if codes != own_codes:
            problem = "has characters other than A, C, G, U where the wild type does not"
            raise SequenceError(problem, file=file, record=record)
        return Variant(wild_type, other=sequence)
    changes = tuple((n, new) for n, (old, new) in enumerate(zip(wild_type, sequence, strict=True)) if old != new)
    for position, letter in changes:
        if letter not in NUCLEOTIDES or wild_type[position] not in NUCLEOTIDES:
            problem = f"has {letter} where the wild type has {wild_type[position]}; only A, C, G and U can be compared"
            raise SequenceError(problem, file=file, record=record, position=position + 1)
    return Variant(wild_type, changes)


def single(wild_type: str) -> Iterator[Variant]:
    """Every single-nucleotide substitution: three for each A, C, G and U, position by position."""
    for position, old in enumerate(wild_type):
        if old in NUCLEOTIDES:
            for new in NUCLEOTIDES:
                if new != old:
                    yield Variant(wild_type, ((position, new),))


Method = Literal["masked-marginals", "wild-type-marginals", "pll", "length-corrected-pll"]

ANY_LENGTH = ("pll", "length-corrected-pll")
"""The methods that score insertions and deletions."""

# A multiple of three, so that the three substitutions of a position, which share a pass, stay together.
BLOCK_VARIANTS = 3 * 1024
BLOCK_TOKENS = 1 << 20


def score(
    wild_type: str | Record,
    variants: str | Iterable[str | Mapping[str, Any]],
    model: str | Path | RiNALMo | Engine = "nano",
    *,
    method: Method = "masked-marginals",
    device: DeviceLike = None,
) -> np.ndarray:
    """Score variants of a sequence by their likelihood relative to the wild type.

    Args:
        wild_type: A sequence.
        variants: Each is `A12G`, `A12G:C13U` (positions from 1, T or U), `WT`, HGVS such as `n.12A>G`, or a whole
            sequence; also a column of them, or rows with a column `mutant` or `hgvs_nt`.
        model: A name, folder, file or loaded model, computed in fp32; an `Engine` for other precisions.
        method: "masked-marginals" masks the changed positions; "wild-type-marginals" takes one pass over the wild type;
            "pll" compares pseudo-log-likelihoods (PLL) of the whole sequences; "length-corrected-pll" does the same
            after scaling the wild type's PLL to the variant's length.
        device: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; None: where a loaded model is.

    Returns:
        Log-likelihood ratios `(variants,)` in nats, fp64: 0 means as likely as the wild type, more means more likely.

    Raises:
        SequenceError: A nucleotide differs from the wild type's, a position does not exist, or a sequence has another
            length and the method is neither "pll" nor "length-corrected-pll".

    Source:
        Meier et al. 2021 (10.1101/2021.07.09.450648) for the marginals, Salazar et al. 2020 (arXiv:1910.14659) for the
        pseudo-log-likelihood.

    Examples:
        >>> import rinalmo
        >>> rinalmo.score("GGUCUCUCUGGUUAGACC", ["WT", "G2A", "G2A:C17U"]).shape
        (3,)
    """
    check_method(method)
    (record,) = as_records([wild_type])
    read = []
    rows = plain_rows(variants)
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise InputError(f"variants is a {type(variants).__name__}; give a variant, or a list, column or table of them")
    for number, item in enumerate([rows] if isinstance(rows, str) else rows, start=1):
        row = plain_item(item)
        text = plain_item(row[mutant_column(row, f"variant {number}")]) if isinstance(row, Mapping) else row
        if is_missing(text):
            raise InputError(f"variant {number} is {text!r}, a missing value; leave it out")
        if not isinstance(text, str):
            raise InputError(f"variant {number} is a {type(text).__name__}; expected text")
        if text.strip().upper() == WILD_TYPE or text.startswith("_") or not text.strip().isalpha():
            read.append(read_variant(record.sequence, text, where=f"variant {number}"))
        else:
            (sequence,) = as_records([text])
            read.append(compare(record.sequence, sequence.sequence, record=str(number)))
    for number, variant in enumerate(read, start=1):
        check(variant, method, record=str(number))
    return np.array(list(score_variants(read, NucleotideScorer(as_engine(model, device)), method)), dtype=np.float64)


def saturation(
    wild_type: str | Record,
    model: str | Path | RiNALMo | Engine = "nano",
    *,
    method: Method = "masked-marginals",
    device: DeviceLike = None,
) -> np.ndarray:
    """Score every single-nucleotide substitution of a sequence.

    Args:
        wild_type: A sequence.
        model: See `rinalmo.score`.
        method: See `rinalmo.score`.
        device: See `rinalmo.score`.

    Returns:
        Log-likelihood ratios `(length, 4)` for A, C, G, U, in nats: 0 for the wild type's own nucleotide, NaN at
        positions where it has another letter, such as N.

    Raises:
        SequenceError: The sequence is empty or has other letters than RNA.

    Examples:
        >>> from rinalmo.inference.variants import saturation
        >>> saturation("GGNC").shape
        (4, 4)
    """
    check_method(method)
    (record,) = as_records([wild_type])
    changed = list(single(record.sequence))
    scores = score_variants(changed, NucleotideScorer(as_engine(model, device)), method)
    return as_map(record.sequence, zip(changed, scores, strict=True))


def as_map(wild_type: str, scored: Iterable[tuple[Variant, float]]) -> np.ndarray:
    """Scores of single substitutions as the array of `saturation`."""
    scores = np.full((len(wild_type), len(NUCLEOTIDES)), np.nan)
    for variant, value in scored:
        (position, letter), *_ = variant.changes
        scores[position, [NUCLEOTIDES.index(letter), NUCLEOTIDES.index(wild_type[position])]] = value, 0.0
    return scores


def score_variants(variants: Iterable[Variant], model: NucleotideScorer, method: Method) -> Iterator[float]:
    """Score after score, for streams of any length; those of a block are computed together."""
    for block in blocks(variants, method):
        yield from _METHODS[method](block, model)


def blocks(variants: Iterable[Variant], method: Method) -> Iterator[list[Variant]]:
    """Consecutive variants that take little memory and, with "pll" and a small model, about a minute."""

    def tokens(variant: Variant) -> int:
        return len(variant.wild_type) ** 2 if method in ANY_LENGTH else 0

    return chunked(variants, tokens, BLOCK_TOKENS, BLOCK_VARIANTS)


def check_method(method: str) -> None:
    """Raise InputError for an unknown method."""
    if method not in get_args(Method):
        raise InputError(f"method {method!r} is unknown; use one of {', '.join(get_args(Method))}")


def check(variant: Variant, method: Method, *, file: str | None = None, record: str | None = None) -> None:
    """Raise SequenceError for an insertion or deletion, if the method cannot score it."""
    if variant.other is not None and method not in ANY_LENGTH:
        sizes = f"has {len(variant.other)} nt, but the wild type has {len(variant.wild_type)}"
        problem = f"{sizes}; marginals need equal lengths; use --method pll"
        raise SequenceError(problem, file=file, record=record)


def _masked_marginals(block: Sequence[Variant], model: NucleotideScorer) -> list[float]:
    masked = dict.fromkeys((variant.wild_type, variant.positions) for variant in block if variant.changes)
    rows = dict(zip(masked, model.masked(masked), strict=True))
    return [_sum(v, rows[v.wild_type, v.positions]) if v.changes else 0.0 for v in block]


def _wild_type_marginals(block: Sequence[Variant], model: NucleotideScorer) -> list[float]:
    scores = [0.0] * len(block)
    members: dict[str, list[int]] = {}
    for number, variant in enumerate(block):
        members.setdefault(variant.wild_type, []).append(number)
    for wild_type, numbers in members.items():
        rows = model.unmasked(wild_type)
        for number in numbers:
            scores[number] = _sum(block[number], rows[list(block[number].positions)])
    return scores


def _pll(block: Sequence[Variant], model: NucleotideScorer, length_corrected: bool = False) -> list[float]:
    pairs = [(variant.wild_type, variant.sequence) for variant in block]
    changed = dict.fromkeys(new for old, new in pairs if new != old)
    totals = dict(zip(changed, model.pseudo_log_likelihoods(changed), strict=True))
    before = {old: model.pseudo_log_likelihood(old) for old in dict.fromkeys(old for old, new in pairs if new != old)}
    scores = []
    for old, new in pairs:
        # A sum over positions grows with their number: the wild type's is scaled to as many as the variant has.
        scale = _scored_length(new) / max(1, _scored_length(old)) if length_corrected else 1.0
        scores.append(totals[new] - scale * before[old] if new != old else 0.0)
    return scores


def _scored_length(sequence: str) -> int:
    return sum(map(sequence.count, NUCLEOTIDES))


_METHODS: dict[str, Callable[[Sequence[Variant], NucleotideScorer], list[float]]] = {
    "masked-marginals": _masked_marginals,
    "wild-type-marginals": _wild_type_marginals,
    "pll": _pll,
    "length-corrected-pll": partial(_pll, length_corrected=True),
}


def _sum(variant: Variant, rows: np.ndarray) -> float:
    """The sum of log p(new) - log p(old), from the log-probabilities `(changes, 4)` at the changed positions."""
    total = 0.0
    for row, (position, new) in zip(rows, variant.changes, strict=True):
        total += float(row[NUCLEOTIDES.index(new)] - row[NUCLEOTIDES.index(variant.wild_type[position])])
    return total


def score_text(score: float) -> str:
    """A score in a table or a VCF file."""
    return f"{round(score, 6) + 0.0:.6f}"  # adding 0 turns -0.0 into 0.0


class VariantSource(InputFile):
    """Variants with their rows of the output, and how these are written.

    Args:
        wild_types: The sequences that are changed.
        columns: Names and types of the cells of each variant.
        read: Reads the variants; called several times.
        path: The file that they are read from, if any.
        left_out: Number of positions without a variant, since they are not A, C, G or U.
    """

    endings: tuple[str, ...] = (".csv", ".tsv", ".parquet")
    """Of the files that `write` writes."""

    def __init__(
        self,
        wild_types: Sequence[Record],
        columns: Mapping[str, type],
        read: Callable[[], Iterator[Variant]],
        path: Path | None = None,
        left_out: int = 0,
    ) -> None:
        super().__init__(path)
        self.wild_types, self.columns, self.read, self.left_out = wild_types, columns, read, left_out
        self.remarks: list[str] = []

    def take_shard(self, shard: str | None) -> VariantSource:
        """The variants of every n-th position, from the i-th on, for `shard` "i/n"; all for None.

        Variants of one position follow each other, and share a pass of the model.
        """

        def of_shard() -> Iterator[Variant]:
            groups = groupby(self.read(), key=lambda variant: (variant.wild_type, variant.positions))
            return (variant for _, group in take_shard(groups, shard, "position") for variant in group)

        sharded = copy(self)
        sharded.read = of_shard
        return sharded

    def fingerprint(self) -> str:
        """A hash of the wild types and the file."""
        digest = hashlib.sha256(repr([(record.id, record.sequence) for record in self.wild_types]).encode())
        digest.update((super().fingerprint() if self.path else "").encode())
        return digest.hexdigest()

    def checked(self, method: Method, shard: str | None = None) -> int:
        """Read all variants, and return their number. Raises for the first that cannot be scored."""
        count = 0
        for variant in self.read():
            if variant.other is not None:
                check(variant, method, file=str(self.path), record=str(variant.cells[min(1, len(variant.cells) - 1)]))
            count += 1
        if count == 0:
            where, missing = (
                self.path or f"record {self.wild_types[0].id}",
                "rows with a variant" if self.path else "A, C, G or U",
            )
            raise InputError(f"{where}: has no {missing}; there is nothing to score")
        return count

    def summary(self, count: int) -> str:
        """What was scored, in words."""
        return f"{counted(count, 'variant')} of {counted(len(self.wild_types), 'wild type')}"

    def notes(self) -> Iterator[str]:
        """What was left out, in sentences."""
        yield from self.remarks
        if self.left_out:
            yield f"skipped {counted(self.left_out, 'position')} with a character other than A, C, G, U"

    def lines(self, scores: Iterable[float], format: str = "csv") -> Iterator[str]:
        """The lines of the output as text; `scores` are those of `read`, in order."""

        def rows() -> Iterator[Row]:
            for variant, score in zip(self.read(), scores, strict=True):
                row = dict(zip(self.columns, variant.cells, strict=True))
                row[self.score_column] = score_text(score)
                yield row

        return table_lines(rows(), format, [*self.columns, self.score_column])

    @property
    def score_column(self) -> str:
        """The column of the scores: `score`, or another name if the table has that."""
        names = chain((SCORE, f"rinalmo_{SCORE}"), (f"rinalmo_{SCORE}_{n}" for n in count(2)))
        return next(name for name in names if name not in self.columns)

    def write(self, unfinished: Path, scores: Iterable[float], ending: str) -> None:
        """Write the output under a temporary name, in the format of this ending."""
        if ending != ".parquet":
            with unfinished.open("w", encoding="utf-8", newline="") as file:
                file.writelines(self.lines(scores, ending[1:]))
            return
        import pyarrow as pa

        types, names = {str: pa.string(), int: pa.int64()}, [*self.columns, self.score_column]
        fields: list[Any] = [(name, types[kind]) for name, kind in self.columns.items()]
        scored = zip(self.read(), scores, strict=True)
        rows = (dict(zip(names, (*variant.cells, score), strict=True)) for variant, score in scored)
        with unfinished.open("wb") as file:
            write_parquet(file, rows, names, pa.schema([*fields, (self.score_column, pa.float64())]))

    def finish(self, output: Path) -> None:
        """What is done when the output has its name."""


def all_single(wild_types: Iterable[Record]) -> VariantSource:
    """Every single-nucleotide substitution in every sequence."""
    records = list(wild_types)

    def read() -> Iterator[Variant]:
        for record in records:
            for variant in single(record.sequence):
                ((n, letter),) = variant.changes
                yield replace(variant, cells=(record.id, variant.name, n + 1, record.sequence[n], letter))

    columns = {RECORD: str, MUTANT: str, "position": int, "wild_type": str, "letter": str}
    left_out = sum(len(record.sequence) - sum(map(record.sequence.count, NUCLEOTIDES)) for record in records)
    return VariantSource(records, columns, read, left_out=left_out)


def from_fasta(wild_types: Iterable[Record], path: Path) -> VariantSource:
    """The sequences of a FASTA file: all against the only wild type, or each against the wild type at its number."""
    records = list(wild_types)

    def read() -> Iterator[Variant]:
        variants = read_fasta(path)
        pairs = zip(repeat(records[0]), variants) if len(records) == 1 else zip_longest(records, variants)
        for number, (wild_type, record) in enumerate(pairs, start=1):
            if wild_type is None or record is None:
                more, fewer = ("variants", "wild types") if wild_type is None else ("wild types", "variants")
                raise InputError(
                    f"{path}: there are more {more} than {fewer} ({number - 1}); "
                    "give one wild type for all variants, or one for each in the same order"
                )
            variant = compare(wild_type.sequence, record.sequence, file=str(path), record=record.id)
            yield replace(variant, cells=(wild_type.id, record.id, variant.name))

    return VariantSource(records, {RECORD: str, "variant": str, MUTANT: str}, read, path)


def from_table(wild_types: Iterable[Record], path: Path) -> VariantSource:
    """The rows of a table: `mutant` or `hgvs_nt`, and `record`, the id of the wild type, where there are several.

    All columns are copied to the output. Rows without a variant are left out, and counted.
    """
    records = list(wild_types)
    records_by_id: dict[str, Record] = {}
    for record in records:
        if record.id in records_by_id:
            raise InputError(
                f"two wild types are called {record.id!r}, so the table's column record is ambiguous; rename one"
            )
        records_by_id[record.id] = record

    def open_checked() -> TableReader:
        return open_table(path, table_format(path) or "csv")

    def read() -> Iterator[Variant]:
        table = open_checked()
        has_record = RECORD in table.columns or len(records) > 1
        table.require(*[RECORD] * has_record)
        column = mutant_column(table.columns, str(path))
        for line, row in table.rows:
            where = table.place(line)
            if is_missing(row[column]):
                continue
            cells = {name: "" if cell is None else str(cell) for name, cell in row.items()}
            record = records_by_id.get(cells[RECORD]) if has_record else records[0]
            if record is None:
                names = ", ".join([*records_by_id][:5]) + (", …" if len(records_by_id) > 5 else "")
                raise SequenceError(f"there is no wild type {cells[RECORD]!r}; there are {names}", file=where)
            yield replace(read_variant(record.sequence, cells[column], where=where), cells=tuple(cells.values()))

    table = open_checked()
    column = mutant_column(table.columns, str(path))
    missing = sum(is_missing(row[column]) for _, row in table.rows)
    source = VariantSource(records, dict.fromkeys(table.columns, str), read, path)
    if missing:
        source.remarks.append(f"{path}: skipped {counted(missing, 'row')} without a variant in {column!r}")
    return source


def mutant_column(columns: Iterable[str], where: str) -> str:
    """The column of the variants; raises InputError if there is none of a usual name."""
    given = list(columns)
    for name in _MUTANTS:
        if name in given:
            return name
    near = difflib.get_close_matches(MUTANT, given, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, given))}"
    raise InputError(f"{where}: has no column {MUTANT!r}; {hint}")


def score_file(
    source: VariantSource,
    output: str | Path,
    engine: EngineLike,
    *,
    method: Method = "masked-marginals",
    plot: Path | None = None,
    shard: str | None = None,
    note: Callable[[str], Any] = lambda text: None,
    **job: Unpack[JobOptions],
) -> int:
    """Score all variants of a source; see `rinalmo.engine.jobs` for interrupted runs.

    Args:
        source: The variants.
        output: .csv, .tsv or .parquet, for a VCF file also .vcf or .vcf.gz; "-" writes CSV, or VCF, to standard
            output, row by row.
        engine: An `Engine` or `RayEngine`, or a context manager that makes one once the options are known to be valid.
        method: See `score`.
        plot: A heat map to draw as well, of all substitutions in one sequence.
        shard: "i/n" takes the variants of every n-th position, from the i-th on; no score depends on it.
        note: Called with a sentence about what was left out.
        job: See `JobOptions`; `progress` is in variants.

    Returns:
        The number of variants.

    Raises:
        InputError: Input or options cannot be used, or differ from those of the interrupted run.
    """
    to_stdout = str(output) == "-"
    output = Path(output)
    if not to_stdout:
        check_path(output, () if output.name.endswith(source.endings) else source.endings)
    if plot is not None:
        check_heat_map(plot, [len(record.sequence) for record in source.wild_types])
        if shard is not None:
            raise InputError("--plot draws all substitutions; leave out --shard or --plot")
    source = source.take_shard(shard)
    count = source.checked(method, shard)
    scores: Iterable[float]
    with opened(engine, to_stdout) as engine:
        if isinstance(engine, Engine) and to_stdout:
            compute = _score_blocks(engine, cumulative(job.get("progress", lambda count: None)), method=method)
            scores = chain.from_iterable(compute(block)["scores"].tolist() for block in blocks(source.read(), method))
            if plot is not None:
                scores = list(scores)
            sys.stdout.writelines(map(escape_controls, source.lines(scores)))
        else:
            done, chunks = Job(output, "variant"), blocks(source.read(), method)
            run = partial(_score_blocks, method=method)
            with done.run(engine, run, chunks, source, {"method": method, "shard": shard}, **job):
                scores = chain.from_iterable(chunk["scores"].tolist() for chunk in done.results("scores"))
                if plot is not None:
                    scores = list(scores)
                with atomic_write_path(output, done.folder) as unfinished:
                    source.write(unfinished, scores, next(end for end in source.endings if output.name.endswith(end)))
            source.finish(output)
            logger.info("%s: %s", output, source.summary(count))
    if plot is not None:
        record = source.wild_types[0]
        map_ = as_map(record.sequence, zip(source.read(), scores, strict=True))
        draw_heat_map(map_, record.sequence, f"{record.id}, {method}", plot)
    for text in source.notes():
        note(text)
    return count


def _score_blocks(engine: Engine, advance: Advance, *, method: Method) -> Callable[[list[Variant]], Arrays]:
    size = reported = passes = expected = 0

    def on_pass(_: int) -> None:
        """Each pass of the model is an equal share of the block's variants."""
        nonlocal reported, passes
        passes += 1
        done = min(size, size * passes // max(1, expected))
        advance(done - reported)
        reported = done

    model = NucleotideScorer(engine, on_pass)

    def compute(block: list[Variant]) -> Arrays:
        nonlocal size, reported, passes, expected
        size, reported, passes = len(block), 0, 0
        expected = (
            sum(len(variant.sequence) for variant in block)
            if method.endswith("pll")
            else len({(variant.wild_type, variant.positions) for variant in block})
        )
        scores = np.array(_METHODS[method](block, model))
        advance(size - reported)
        return {"lengths": np.array([len(variant.wild_type) for variant in block]), "scores": scores}

    return compute
