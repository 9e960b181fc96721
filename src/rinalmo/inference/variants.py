"""Variants of a sequence, and how they are written.

`A12G` puts G in the place of the twelfth letter, which is A; several are joined, `A12G:C13U` (a comma does too). T and
U are one letter, in either case. `WT` is the wild type itself. Insertions and deletions have no notation here: they
are given as whole sequences.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, repeat, zip_longest
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np

from rinalmo.engine.devices import DeviceLike
from rinalmo.engine.engine import Advance, Engine, as_engine
from rinalmo.engine.inputs import as_records
from rinalmo.engine.jobs import Job, adding, chunked
from rinalmo.engine.ray import RayEngine
from rinalmo.errors import InputError, SequenceError
from rinalmo.inference.fill_mask import Nucleotides
from rinalmo.io.fasta import Record, read_fasta
from rinalmo.io.files import check_path, file_sha256, replacing_path
from rinalmo.io.tables import TableReader, open_table, table_format
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.plots.heat_map import check_plot, draw
from rinalmo.rna.alphabet import NUCLEOTIDES

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
        if letter not in NUCLEOTIDES:
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
        if letter not in NUCLEOTIDES or wild_type[place] not in NUCLEOTIDES:
            problem = f"has {letter} where the wild type has {wild_type[place]}; only A, C, G and U can be compared"
            raise SequenceError(problem, file=file, record=record, position=place + 1)
    return Variant(wild_type, changes)


def _codes(sequence: str) -> str:
    return "".join(letter for letter in sequence if letter not in NUCLEOTIDES)


def single(wild_type: str) -> Iterator[Variant]:
    """Every exchange of one letter: three for each A, C, G and U, place by place."""
    for place, old in enumerate(wild_type):
        if old in NUCLEOTIDES:
            yield from (Variant(wild_type, ((place, new),)) for new in NUCLEOTIDES if new != old)


Method = Literal["masked-marginals", "wild-type-marginals", "pll"]

# A multiple of three, so that the three exchanges of a place, which share a pass, stay together.
BLOCK_VARIANTS = 3 * 1024
BLOCK_TOKENS = 1 << 20


def score(
    wild_type: str | Record,
    variants: str | Iterable[str],
    model: str | Path | RiNALMo | Engine = "nano",
    *,
    method: Method = "masked-marginals",
    device: DeviceLike = None,
) -> np.ndarray:
    """Scores of variants of a sequence, `(variants,)` in fp64; 0 is as fit as the wild type, more is fitter.

    A variant is written `A12G`, `A12G:C13U` (positions from 1, T or U) or `WT`, or is a whole sequence.
    `model` is a name, folder, file or loaded model, computed in fp32, or an `Engine` for any other way; `device` is
    "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; None: where a loaded model is.
    Raises SequenceError for a letter that is not the wild type's, a position that it does not have, and for a sequence
    of another length with a method other than "pll".
    """
    check_method(method)
    (record,) = as_records([wild_type])
    written = [variants] if isinstance(variants, str) else list(variants)
    read = [_read(record.sequence, text, number) for number, text in enumerate(written, start=1)]
    for number, variant in enumerate(read, start=1):
        check(variant, method, record=str(number))
    return np.array(list(score_variants(read, Nucleotides(as_engine(model, device)), method)), dtype=np.float64)


def saturation(
    wild_type: str | Record,
    model: str | Path | RiNALMo | Engine = "nano",
    *,
    method: Method = "masked-marginals",
    device: DeviceLike = None,
) -> np.ndarray:
    """As `score`, of every exchange of one letter: `(length, 4)` for A, C, G, U; 0 where it is the wild type's.

    NaN where the wild type has another letter, such as N.
    """
    check_method(method)
    (record,) = as_records([wild_type])
    changed = list(single(record.sequence))
    scores = score_variants(changed, Nucleotides(as_engine(model, device)), method)
    return as_map(record.sequence, zip(changed, scores, strict=True))


def as_map(wild_type: str, scored: Iterable[tuple[Variant, float]]) -> np.ndarray:
    """Scores of single exchanges as the array of `saturation`."""
    found = np.full((len(wild_type), len(NUCLEOTIDES)), np.nan)
    for variant, value in scored:
        (place, letter), *_ = variant.changes
        found[place, [NUCLEOTIDES.index(letter), NUCLEOTIDES.index(wild_type[place])]] = value, 0.0
    return found


def score_variants(variants: Iterable[Variant], model: Nucleotides, method: Method) -> Iterator[float]:
    """Score after score, for streams of any length; those of a block are computed together."""
    for block in blocks(variants, method):
        yield from score_block(block, model, method)


def blocks(variants: Iterable[Variant], method: Method) -> Iterator[list[Variant]]:
    """Consecutive variants, so many as take little memory and, with "pll" and a small model, about a minute."""

    def tokens(variant: Variant) -> int:
        return len(variant.wild_type) ** 2 if method == "pll" else 0

    return chunked(variants, tokens, BLOCK_TOKENS, BLOCK_VARIANTS)


def score_block(block: Sequence[Variant], model: Nucleotides, method: Method) -> list[float]:
    """Scores of some variants; what they share is computed once."""
    return _METHODS[method](block, model)


def check_method(method: str) -> None:
    """Raise InputError for a method that there is not."""
    if method not in get_args(Method):
        raise InputError(f"method {method!r} is unknown; use one of {', '.join(get_args(Method))}")


def check(variant: Variant, method: Method, *, file: str | None = None, record: str | None = None) -> None:
    """Raise SequenceError for an insertion or deletion, if the method cannot score it."""
    if variant.other is not None and method != "pll":
        sizes = f"has {len(variant.other)} nt, the wild type {len(variant.wild_type)}"
        problem = f"{sizes}; marginals compare letters place by place: use the method pll"
        raise SequenceError(problem, file=file, record=record)


def _masked_marginals(block: Sequence[Variant], model: Nucleotides) -> list[float]:
    questions = dict.fromkeys((variant.wild_type, variant.places) for variant in block if variant.changes)
    answers = dict(zip(questions, model.masked(questions), strict=True))
    return [_sum(variant, answers[variant.wild_type, variant.places]) if variant.changes else 0.0 for variant in block]


def _wild_type_marginals(block: Sequence[Variant], model: Nucleotides) -> list[float]:
    scores = [0.0] * len(block)
    members: dict[str, list[int]] = {}
    for number, variant in enumerate(block):
        members.setdefault(variant.wild_type, []).append(number)
    for wild_type, numbers in members.items():
        found = model.unmasked(wild_type)
        for number in numbers:
            scores[number] = _sum(block[number], found[list(block[number].places)])
    return scores


def _pll(block: Sequence[Variant], model: Nucleotides) -> list[float]:
    pairs = [(variant.wild_type, variant.sequence) for variant in block]
    changed = dict.fromkeys(new for old, new in pairs if new != old)
    totals = dict(zip(changed, model.pseudo_log_likelihoods(changed), strict=True))
    before = {old: model.pseudo_log_likelihood(old) for old in dict.fromkeys(old for old, new in pairs if new != old)}
    return [totals[new] - before[old] if new != old else 0.0 for old, new in pairs]


_METHODS: dict[str, Callable[[Sequence[Variant], Nucleotides], list[float]]] = {
    "masked-marginals": _masked_marginals,
    "wild-type-marginals": _wild_type_marginals,
    "pll": _pll,
}


def _sum(variant: Variant, found: np.ndarray) -> float:
    """Of log p(new) − log p(old), from the log-probabilities at the changed places `(changes, 4)`."""
    pairs = ((NUCLEOTIDES.index(new), NUCLEOTIDES.index(variant.wild_type[place])) for place, new in variant.changes)
    return sum((float(row[new] - row[old]) for row, (new, old) in zip(found, pairs, strict=True)), 0.0)


def _read(wild_type: str, text: Any, number: int) -> Variant:
    if not isinstance(text, str):
        raise InputError(f"variant {number} is a {type(text).__name__}; expected text")
    if text.strip().upper() == WILD_TYPE or any(character.isdigit() for character in text):
        return Variant(wild_type, parse(wild_type, text, where=f"variant {number}"))
    (record,) = as_records([text])
    return compare(wild_type, record.sequence, record=str(number))


SCORE, MUTANT, RECORD = "score", "mutant", "record"


@dataclass(frozen=True)
class VariantSource:
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


def all_single(wild_types: Iterable[Record]) -> VariantSource:
    """Every exchange of one letter in every sequence."""
    records = list(wild_types)

    def read() -> Iterator[Variant]:
        for record in records:
            for variant in single(record.sequence):
                ((place, letter),) = variant.changes
                yield replace(variant, cells=(record.id, variant.name, place + 1, record.sequence[place], letter))

    columns = {RECORD: str, MUTANT: str, "position": int, "wild_type": str, "letter": str}
    left_out = sum(letter not in NUCLEOTIDES for record in records for letter in record.sequence)
    return VariantSource(columns, records, read, left_out=left_out)


def from_fasta(wild_types: Iterable[Record], path: Path) -> VariantSource:
    """The sequences of a FASTA file: all against the one wild type, or each against the wild type in the same place."""
    records = list(wild_types)

    def read() -> Iterator[Variant]:
        for wild_type, record in _pairs(records, path):
            variant = compare(wild_type.sequence, record.sequence, file=str(path), record=record.id)
            yield replace(variant, cells=(wild_type.id, record.id, variant.name))

    return VariantSource({RECORD: str, "variant": str, MUTANT: str}, records, read, path)


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


def from_table(wild_types: Iterable[Record], path: Path) -> VariantSource:
    """The rows of a CSV or TSV file: `mutant`, and `record`, the id of the wild type, needed where there are several.

    All columns are passed on as they are.
    """
    records = list(wild_types)

    def read() -> Iterator[Variant]:
        table = _open(path)
        has_record = RECORD in table.columns or len(records) > 1
        table.require(MUTANT, *[RECORD] * has_record)
        for line, row in table.rows:
            where = table.place(line)
            cells = {name: "" if cell is None else str(cell) for name, cell in row.items()}
            record = _found(records_by_id, cells[RECORD], where) if has_record else records[0]
            changes = parse(record.sequence, cells[MUTANT], where=where)
            yield Variant(record.sequence, changes, cells=tuple(cells.values()))

    records_by_id = _by_id(records)
    return VariantSource(dict.fromkeys(_open(path).columns, str), records, read, path)


def _open(path: Path) -> TableReader:
    table = open_table(path, table_format(path) or "csv")
    if SCORE in table.columns:
        raise InputError(f"{path}: has a column {SCORE!r} already; rename it, the scores are added under this name")
    return table


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


ENDINGS = (".csv", ".tsv", ".parquet")
_ROW_GROUP = 1 << 16

Scored = Iterable[tuple[Variant, float]]


def score_file(
    source: VariantSource,
    output: str | Path,
    engine: Engine | RayEngine,
    *,
    method: Method = "masked-marginals",
    resume: bool = False,
    restart: bool = False,
    plot: Path | None = None,
    tell: Callable[[int], Any] = lambda count: None,
) -> int:
    """Score all variants of `source` and write `output`; returns their number. `tell` counts passes of the model,
    with a `RayEngine` finished variants.

    `plot` is a picture to draw as well, of all exchanges in one sequence. An interrupted run keeps what it has finished
    in a hidden folder beside the output. The same call continues it, and the result is the same to the byte; `restart`
    discards what is kept. Raises InputError if input or options are not those that the interrupted run was started
    with.
    """
    output = Path(output)
    count = check_output(source, method, output, plot)
    settings = {
        "input": source.fingerprint(),
        "model": engine.fingerprint,
        "precision": engine.precision,
        "device": engine.device.type,
        "batch_tokens": engine.batch_tokens,
        "method": method,
    }
    run = Job(output, "variants")
    with run.opened(settings, resume=resume, restart=restart):
        found = engine.run(partial(_scoring, method=method), run.missing(blocks(source.read(), method)), adding(tell))
        for number, arrays in found:
            run.save(number, **arrays)
        if source.fingerprint() != settings["input"]:
            raise InputError(f"{source.file}: was changed while it was scored; start anew with --restart")
        map_ = None if plot is None else _map(source, _scored(source, run))
        with replacing_path(output, run.folder) as unfinished:
            if output.suffix == ".parquet":
                _parquet(unfinished, source, _scored(source, run))
            else:
                _text(unfinished, source, _scored(source, run), "\t" if output.suffix == ".tsv" else ",")
        run.remove()
    if plot is not None and map_ is not None:
        _draw(source, map_, plot, method)
    return count


def check_output(source: VariantSource, method: Method, output: Path | None, plot: Path | None) -> int:
    """The number of variants. Raises now for what could not be read, scored or written in the end."""
    if output is not None:
        check_path(output, ENDINGS)
    if plot is not None:
        check_plot(plot, [len(record.sequence) for record in source.wild_types])
    return source.checked(method)


def print_scores(
    source: VariantSource,
    file: IO[str],
    engine: Engine,
    *,
    method: Method = "masked-marginals",
    plot: Path | None = None,
    tell: Callable[[int], Any] = lambda count: None,
) -> int:
    """As `score_file`, but row by row as CSV to an open text file, such as standard output."""
    count = check_output(source, method, None, plot)
    scored = zip(source.read(), score_variants(source.read(), Nucleotides(engine, tell), method), strict=True)
    if plot is None:
        _write_rows(file, source, scored, ",")
    else:
        kept = list(scored)
        _write_rows(file, source, kept, ",")
        _draw(source, _map(source, kept), plot, method)
    return count


def _scoring(engine: Engine, advance: Advance, *, method: Method) -> Callable[[list[Variant]], dict[str, np.ndarray]]:
    model = Nucleotides(engine, lambda count: advance(1))

    def compute(block: list[Variant]) -> dict[str, np.ndarray]:
        lengths = np.array([len(variant.wild_type) for variant in block])
        return {"lengths": lengths, "scores": np.array(score_block(block, model, method))}

    return compute


def _scored(source: VariantSource, run: Job) -> Iterator[tuple[Variant, float]]:
    values = chain.from_iterable(arrays["scores"].tolist() for arrays in run.saved("scores"))
    return zip(source.read(), values, strict=True)


def _map(source: VariantSource, scored: Scored) -> np.ndarray:
    (record,) = source.wild_types
    return as_map(record.sequence, scored)


def _draw(source: VariantSource, scores: np.ndarray, plot: Path, method: Method) -> None:
    (record,) = source.wild_types
    draw(scores, record.sequence, f"{record.id}, {method}", plot)


def _text(path: Path, source: VariantSource, scored: Scored, separator: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        _write_rows(file, source, scored, separator)


def _write_rows(file: IO[str], source: VariantSource, scored: Scored, separator: str) -> None:
    writer = csv.writer(file, delimiter=separator, lineterminator="\n")
    writer.writerow([*source.columns, SCORE])
    # Adding 0 turns -0.0 into 0.0.
    writer.writerows([*variant.cells, f"{round(score, 6) + 0.0:.6f}"] for variant, score in scored)


def _parquet(path: Path, source: VariantSource, scored: Scored) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), int: pa.int64()}
    fields = [*((name, types[kind]) for name, kind in source.columns.items()), (SCORE, pa.float64())]
    schema = pa.schema(fields)
    with pq.ParquetWriter(path, schema) as file:
        for group in _grouped(scored):
            arrays = [pa.array(cells, field.type) for cells, field in zip(group, schema, strict=True)]
            file.write_table(pa.table(arrays, schema=schema))


def _grouped(scored: Scored) -> Iterator[list[tuple[Any, ...]]]:
    """Columns of some rows at a time."""
    rows: list[tuple[Any, ...]] = []
    for variant, score in scored:
        rows.append((*variant.cells, score))
        if len(rows) == _ROW_GROUP:
            yield list(zip(*rows, strict=True))
            rows = []
    if rows:
        yield list(zip(*rows, strict=True))
