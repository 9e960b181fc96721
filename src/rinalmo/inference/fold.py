"""Secondary structures: folding, the output files, and figures."""

from __future__ import annotations

import json
import logging
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from rinalmo.engine.devices import DeviceLike
from rinalmo.engine.engine import Engine, as_engine
from rinalmo.engine.jobs import Arrays, JobOptions, opened, record_job, take_shard
from rinalmo.engine.ray import EngineLike, RayEngine
from rinalmo.errors import CheckpointError, InputError, SequenceError
from rinalmo.inference.contacts import AttentionContacts
from rinalmo.io.files import atomic_write, check_path, counted, escape_controls, file_sha256, one_line
from rinalmo.io.sequences import Record, SequenceFile, Sequences, as_records, name_source_in_errors, require_nonempty
from rinalmo.model.rinalmo import ModelSpec, RiNALMo
from rinalmo.plots.structures import Plot, StructureFigure
from rinalmo.rna.constraints import (
    Conditions,
    Constraint,
    KnownFile,
    reactivities_of,
    read_constraints,
    read_reactivities,
    shape_parameters,
)
from rinalmo.rna.decoding import Decoder, decode, other_processes, pairs_above
from rinalmo.rna.formats import format_of, structure_text, write_structures
from rinalmo.rna.structure import PairList, Pairs, PredictedStructure, Structure
from rinalmo.rna.thermodynamics import Ensemble, ensemble, free_energy, has_vienna, need_vienna
from rinalmo.tasks.base import Example
from rinalmo.tasks.evaluate import Note, note_windows, outputs, task_of
from rinalmo.tasks.secondary_structure import (
    MIN_PROBABILITY,
    SecondaryStructure,
    Weight,
    resolve_thermodynamics,
)

logger = logging.getLogger(__name__)

CHUNK_PAIRS = 1 << 24  # time and memory of folding grow with the square of the length
_NAME = "{name}"  # stands for the name of a record in the name of a file
_PATIENCE = 1.0  # seconds after which other processes help: they take a few tenths to start
GPU_SCALE = 4  # a GPU idles at the end of each chunk, so it gets larger ones

Folded = tuple[PredictedStructure, np.ndarray | PairList]


@dataclass(frozen=True)
class Decoding:
    """How pairs are chosen from their probabilities (`rinalmo.rna.decoding`); None is the model's own.

    Attributes:
        method: A method of `decode`.
        threshold: The minimum probability of a pair.
        canonical: Only AU, GC and GU pairs.
        min_distance: The smallest j - i of a pair.
        thermodynamics: The weight, from 0 to 1, of ViennaRNA's probabilities (`rinalmo.rna.thermodynamics`) in the mean
            with the model's; None takes the model's default, if ViennaRNA is installed.
        max_span: The largest number of nucleotides from one end of a pair to the other; None: any.
        shape_method: How reactivities become pseudo-energies (`rinalmo.rna.constraints.shape_parameters`).
        zero_shot: Pairs are the contacts of the model's attention (`rinalmo.inference.contacts`).
    """

    method: str | None = None
    threshold: float | None = None
    canonical: bool = True
    min_distance: int = 4
    thermodynamics: Weight | None = None
    max_span: int | None = None
    shape_method: str = "deigan"
    zero_shot: bool = False

    def __post_init__(self) -> None:
        if self.shape_method != "deigan":
            shape_parameters(self.shape_method)

    def conditions(self, record: Record, nested: bool = False) -> Conditions | None:
        """The conditions that a record is folded with, if any; raises SequenceError if its constraint cannot be met."""
        if record.constraint is None and record.reactivities is None and self.max_span is None:
            return None
        constraint = None
        try:
            if record.constraint is not None:
                constraint = Constraint(record.constraint)
                constraint.check(
                    record.sequence,
                    canonical=self.canonical,
                    min_distance=self.min_distance,
                    max_span=self.max_span,
                    crossing=not nested,
                )
            reactivities = record.reactivities
            if reactivities is not None:
                reactivities = reactivities_of(reactivities, record.sequence)
        except SequenceError as error:
            raise error.with_location(None, None, record.id) from None
        return Conditions(constraint, reactivities, self.shape_method, self.max_span)

    def task(self, engine: Engine | RayEngine, window: int | None, note: Note = warnings.warn) -> SecondaryStructure:
        """The task that folds so; raises as `folding_task`."""
        if not self.zero_shot:
            return folding_task(engine.spec, window, self.thermodynamics, note=note)
        weight = resolve_thermodynamics(engine.spec, self.thermodynamics or 0.0, note)
        task = AttentionContacts(engine if isinstance(engine, Engine) else None, window)
        return task.with_options(thermodynamics=weight)


MODELS_OWN = Decoding()


def fold(
    sequences: Sequences,
    model: str | Path | RiNALMo | Engine = "nano-fold",
    decoding: Decoding = MODELS_OWN,
    *,
    constraints: Constraints | None = None,
    reactivities: Reactivities | None = None,
    window: int | None = None,
    device: DeviceLike = None,
) -> list[PredictedStructure]:
    """Predict secondary structures.

    Args:
        sequences: One or more sequences, FASTA records, rows, or the `Path` of a FASTA file or table.
        model: A name, folder, file or loaded model, computed in fp32; an `Engine` for other precisions.
        decoding: How pairs are chosen; the model's own by default.
        constraints: Structure constraints (`rinalmo.rna.constraints`): for one RNA a string as long as its sequence;
            for several, one per RNA in order, a mapping by name, or the `Path` of a file.
        reactivities: Normalized SHAPE or DMS reactivities; for one RNA a list with one value per nucleotide, None if
            missing; for several as for `constraints`. They affect ViennaRNA's part of the prediction.
        window: RNAs longer than this are folded in overlapping windows of this many nucleotides, and a warning says so;
            None: the model's own.
        device: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; None: where a loaded model is.

    Returns:
        One structure per sequence, with its confidence, its free energy and each nucleotide's probability of being
        paired.

    Raises:
        InputError: The model was fine-tuned for another task, or the window is smaller than 32 nt.
        SequenceError: A constraint or reactivities do not fit the sequence, or no structure satisfies the constraint.
        CheckpointError: The model was not fine-tuned.

    Examples:
        >>> import rinalmo
        >>> (structure,) = rinalmo.fold("GGGGGAAAACCCCC")
        >>> structure.dot_bracket
        '(((((....)))))'
        >>> (structure,) = rinalmo.fold("GGGGGAAAACCCCC", constraints="xx............")
        >>> structure.dot_bracket, round(structure.energy, 1)
        ('..(((....)))..', -3.1)
    """
    engine = as_engine(model, device)
    task = decoding.task(engine, window)
    with name_source_in_errors(sequences):
        records = require_nonempty(as_records(sequences))
        if sources := known_sources(constraints, reactivities):
            records = with_conditions(records, decoding, sources, note=warnings.warn)
        records = note_windows(records, task, warnings.warn)
        return [structure for structure, _ in fold_records(records, engine, decoding, window=task.window)]


def folding_task(
    spec: ModelSpec,
    window: int | None = None,
    thermodynamics: Weight | None = 0.0,
    *,
    model: str = "",
    note: Note = warnings.warn,
) -> SecondaryStructure:
    """The task of a model that folds, with these options.

    Raises InputError for a model of another task, CheckpointError for one of none; both name it as `model`, if given.
    """
    try:
        task = task_of(spec)
    except CheckpointError as error:
        raise CheckpointError(f"{model}: {error}" if model else str(error)) from None
    if not isinstance(task, SecondaryStructure):
        raise InputError(f"{model or 'the model'} was fine-tuned for {task.name}, not for secondary-structure")
    return task.with_options(window=window, thermodynamics=resolve_thermodynamics(spec, thermodynamics, note))


def fold_records(
    records: Iterable[Record],
    engine: Engine,
    decoding: Decoding = MODELS_OWN,
    *,
    window: int | None = None,
    decoder: Decoder | None = None,
) -> Iterator[Folded]:
    """Each record's structure and its pair probabilities, in the order of the input.

    These are a square `(length, length)`, or a `PairList` for an RNA longer than `window`, the model's own if None.
    Pairs are chosen in this process, or by `decoder`.
    """
    task = decoding.task(engine, window)
    threshold = task.threshold(engine.head_model) if decoding.threshold is None else decoding.threshold
    if threshold is not None:
        task = task.with_options(min_probability=min(MIN_PROBABILITY, threshold))
    options: dict[str, Any] = {
        "method": decoding.method or task.decoder,
        "threshold": threshold,
        "canonical": decoding.canonical,
        "min_distance": decoding.min_distance,
        "max_span": decoding.max_span,
    }
    is_nested, has_energies, decoder = options["method"] == "nested", has_vienna(), decoder or Decoder()

    def examples() -> Iterator[Example]:
        for record in records:
            if record.reactivities is not None and not task.thermodynamics:
                need_vienna()
                problem = "reactivities need ViennaRNA, but its weight is 0; set another with --thermodynamics"
                raise SequenceError(problem, record=record.id)
            yield Example(record.id, record.sequence, conditions=decoding.conditions(record, is_nested))

    def partition_functions() -> Iterator[tuple[Any, Callable[[], Ensemble] | None]]:
        for example, output in outputs(examples(), engine, task):
            needed = task.thermodynamics and not isinstance(output, PairList)  # windows have used their own
            yield (example, output), partial(ensemble, example.sequence, example.conditions) if needed else None

    def decodings() -> Iterator[tuple[Any, Callable[[], Sequence[tuple[int, int]]]]]:
        for (example, output), thermodynamics in decoder.map(partition_functions()):
            probabilities = task.probabilities(output, example.sequence, example.conditions, thermodynamics)
            constraint, sent = example.conditions and example.conditions.constraint, probabilities
            if decoder.processes and isinstance(sent, np.ndarray):
                sent = pairs_above(sent, (threshold or 0.0) if constraint is None else 0.0)
            choose = partial(decode, sent, example.sequence, constraint=constraint, **options)
            yield (example, probabilities, thermodynamics), choose

    for (example, probabilities, thermodynamics), pairs in decoder.map(decodings()):
        yield _predicted(example, tuple(pairs or ()), probabilities, thermodynamics, has_energies), probabilities


def _predicted(
    example: Example,
    pairs: Pairs,
    probabilities: np.ndarray | PairList,
    thermodynamics: Ensemble | None,
    has_energies: bool,
) -> PredictedStructure:
    """A structure with the numbers of its prediction."""
    i, j = np.array(pairs, np.int64).reshape(-1, 2).T
    if isinstance(probabilities, PairList):
        ends, twice = np.concatenate([probabilities.i, probabilities.j]), np.tile(probabilities.values, 2)
        paired, own = np.bincount(ends, twice, len(example.sequence)), probabilities.at(i, j)
    else:
        paired, own = probabilities.sum(axis=1, dtype=np.float64), probabilities[i, j]
    energy = None
    if has_energies:
        with suppress(SequenceError):  # more pairs cross than brackets can show
            dot_bracket = Structure("", example.sequence, pairs).dot_bracket
            energy = free_energy(example.sequence, dot_bracket, example.conditions)
    return PredictedStructure(
        example.name,
        example.sequence,
        pairs,
        np.minimum(paired, 1).astype(np.float32),
        float(own.mean()) if len(own) else None,
        energy,
        *(
            (None,) * 3
            if thermodynamics is None
            else (thermodynamics.mfe_structure, thermodynamics.mfe, thermodynamics.energy)
        ),
    )


Constraints = str | Path | Sequence[str | None] | Mapping[str, str | None]
"""The constraint of one RNA, the `Path` of a file, one for each RNA in order, or those of RNAs by name."""
Reactivities = Path | Sequence[Any] | Mapping[str, Any]
"""The reactivities of one RNA, the `Path` of a file, a list for each RNA in order, or those of RNAs by name."""


def with_conditions(
    records: Iterable[Record],
    decoding: Decoding,
    sources: Mapping[str, KnownValues | None],
    *,
    is_nested: bool = False,
    note: Note | None = None,
) -> Iterator[Record]:
    """The records with what is known of them, all checked.

    Args:
        records: The records.
        decoding: The rules that a constraint has to agree with.
        sources: `known_sources`.
        is_nested: Whether structures have no pseudoknots.
        note: Gets a line about values and records without counterpart; None: nothing is said, as of a shard.

    Raises:
        InputError: A file cannot be used, or no record has a value.
        SequenceError: A value does not fit its record, or cannot be met.
    """
    records = iter(records)
    start = list(islice(records, 2))
    count, with_value, file = 0, dict.fromkeys(sources, 0), (known := sources.get("constraint")) and known.file
    for record in chain(start, records):
        count += 1
        for field, source in sources.items():
            if source is not None:
                record = replace(record, **{field: source.of(record, count, alone=len(start) == 1)})
            with_value[field] += getattr(record, field) is not None
        try:
            decoding.conditions(record, is_nested)
        except SequenceError as error:
            if file:
                raise error.with_location(file, None, error.record) from None
            raise
        yield record
    if note is None:
        return
    for field, source in sources.items():
        num_values = with_value[field]
        name = source.file if source and source.file else "the input"
        if not num_values:
            raise InputError(f"{name}: has no {field} for any of the sequences; the names must match")
        if num_values < count:
            note(f"{name}: no {field} for {count - num_values:,} of {count:,} sequences")
        if source and (unused := source.unused(count)):
            note(f"{name}: {len(unused):,} names match no sequence, such as {one_line(unused[0])}")


def known_sources(
    constraints: Constraints | bool | None, reactivities: Reactivities | None
) -> dict[str, KnownValues | None]:
    """Where records get their fields from; None where they have them already. Raises InputError for unusable files."""
    sources: dict[str, KnownValues | None] = {}
    if constraints is True:
        sources["constraint"] = None
    elif constraints:
        given = [constraints] if isinstance(constraints, str) else constraints
        sources["constraint"] = KnownValues(given, read_constraints)
    if reactivities is not None:
        is_single = not isinstance(reactivities, Path | Mapping) and not any(map(np.ndim, reactivities))
        sources["reactivities"] = KnownValues([reactivities] if is_single else reactivities, read_reactivities)
    return sources


class KnownValues:
    """Constraints or reactivities of records: from a file, in order, or by name."""

    def __init__(self, given: Path | Sequence[Any] | Mapping[str, Any], read: Callable[[Path], KnownFile]) -> None:
        self.file = str(given) if isinstance(given, Path) else ""
        self._given, self._read, self._names = given, read, set[str]()
        self._found = read(given) if isinstance(given, Path) and _NAME not in self.file else None

    def of(self, record: Record, number: int, *, alone: bool) -> Any:
        """The value of the `number`-th record."""
        self._names.add(record.id)
        given = self._given
        if self._found is not None:
            return self._found.of(record.id, record.sequence, alone=alone)
        if isinstance(given, Path):
            path = Path(self.file.replace(_NAME, record.id))
            return self._read(path).of(record.id, record.sequence, alone=True) if path.exists() else None
        if isinstance(given, Mapping):
            return given.get(record.id)
        if number > len(given):
            raise InputError(
                f"{len(given):,} constraints or reactivities, but more sequences; give one per sequence, or None"
            )
        return given[number - 1]

    def unused(self, count: int) -> list[str]:
        """Names or numbers of values that no record had."""
        if self._found is not None:
            return self._found.unused()
        if isinstance(self._given, Mapping):
            return [name for name in self._given if name not in self._names]
        return [] if isinstance(self._given, Path) else [str(n + 1) for n in range(count, len(self._given))]


def fold_file(
    source: str | Path,
    output: str | Path,
    engine: EngineLike,
    decoding: Decoding = MODELS_OWN,
    *,
    constraints: Path | bool | None = None,
    reactivities: Path | None = None,
    window: int | None = None,
    probabilities: Path | None = None,
    plot: Plot | None = None,
    shard: str | None = None,
    note: Note = warnings.warn,
    **job: Unpack[JobOptions],
) -> int:
    """Fold every sequence of a FASTA file or table; see `rinalmo.engine.jobs` for interrupted runs.

    Args:
        source: The input; "-" is FASTA on standard input.
        output: Its ending chooses the format; "-" writes DBN to standard output, record by record.
        engine: An `Engine` or `RayEngine`, or a context manager that makes one once the options are known to be valid.
        decoding: See `fold`.
        constraints: A file of constraints (`rinalmo.rna.constraints.read_constraints`); True where they follow the
            sequences in FASTA, or are in the column `constraint` of the table.
        reactivities: A file of reactivities (`rinalmo.rna.constraints.read_reactivities`), or one for each sequence,
            with its name for `{name}`.
        window: See `fold`.
        probabilities: An .npz file for the pair probabilities of each sequence, fp16, under its name (a repeated name
            gets its number added): a matrix, or of an RNA folded in windows an array with the fields `i`, `j` (from 0)
            and `probability`.
        plot: Figures to draw as well; all sequences are then read before the first is folded.
        shard: "i/n" takes every n-th sequence, from the i-th on.
        note: Called with one line for each RNA that is folded in windows or has no drawing.
        job: See `JobOptions`.

    Returns:
        The number of sequences.

    Raises:
        InputError: Input or options cannot be used, or differ from those of the interrupted run.
    """
    to_stdout = str(output) == "-"
    if not to_stdout:
        format_of(output)
        check_path(Path(output))
    if probabilities is not None:
        if probabilities.suffix != ".npz":
            raise InputError(f"{probabilities}: probabilities can only be written as .npz")
        check_path(probabilities)
    sources = known_sources(constraints, reactivities) if constraints or reactivities else {}
    file = SequenceFile(source, constraints=constraints is True)
    records = take_shard(file, shard)
    figures: list[StructureFigure] = []
    if plot is not None:
        records = iter(listed := list(records))
        figures = plot.figures(listed)
    with opened(engine, to_stdout) as engine, ExitStack() as stack:
        task = decoding.task(engine, window, note)
        # Resolved here, so that every process and every resumed run folds with the same.
        decoding = replace(decoding, thermodynamics=task.thermodynamics)
        stack.enter_context(name_source_in_errors(file.path))
        known: dict[str, Any] = {}
        if sources:
            is_nested = (decoding.method or task.decoder) == "nested"
            own_note = note if shard is None else None
            records = with_conditions(records, decoding, sources, is_nested=is_nested, note=own_note)
            known = {"constraints": _content(constraints), "reactivities": _content(reactivities)}
        records = note_windows(records, task, note)
        decoder = None
        if isinstance(engine, Engine) and (engine.device.type != "cpu" or engine.threads > 1):
            # ViennaRNA has one thread, for which a GPU or the other cores would wait.
            processes = engine.threads if engine.device.type == "cpu" else other_processes()
            decoder = stack.enter_context(Decoder(processes, patience=_PATIENCE))
        keep = probabilities is not None or plot is not None
        stream = partial(_fold_stored, keep=keep, decoding=decoding, window=task.window, decoder=decoder)
        structures: Iterator[Stored]
        if isinstance(engine, Engine) and to_stdout:
            structures = stream(records, engine)
        else:
            options = {
                "decoding": asdict(decoding),
                "window": task.window,
                "probabilities": keep,
                "shard": shard,
                **known,
            }
            scale = 1 if engine.device.type == "cpu" else GPU_SCALE
            size: dict[str, Any] = {"noun": "structure", "power": 2, "max_size": CHUNK_PAIRS, "scale": scale}
            done = record_job(Path(output), engine, file, records, stream, _pack, options, **size, **job)
            structures = chain.from_iterable(map(_unpack, stack.enter_context(done).results()))
        add_matrix = stack.enter_context(_matrix_file(probabilities)) if probabilities else None
        count = 0

        def written() -> Iterator[Structure]:
            nonlocal count
            for structure, matrix in structures:
                if add_matrix:
                    add_matrix(structure.name, matrix)
                if figures:
                    try:
                        figures[count].draw(structure, matrix)
                    except InputError as error:  # no layout; the run goes on
                        note(f"not drawn: {error}")
                count += 1
                if to_stdout and "progress" in job:
                    job["progress"](count)
                yield structure

        if to_stdout:
            sys.stdout.writelines(map(escape_controls, structure_text(written(), "dbn")))
        else:
            write_structures(output, written())
            logger.info("%s: %s", output, counted(count, "structure"))
    return count


def _content(source: Path | bool | None) -> str | bool | None:
    """What identifies a file in a run's settings; where there are many, their name."""
    return file_sha256(source) if isinstance(source, Path) and _NAME not in str(source) else str(source)


_FIELDS = ("name", "sequence", "pairs", "confidence", "energy", "mfe_structure", "mfe", "ensemble_energy")
Stored = tuple[PredictedStructure, np.ndarray | None]
"""A structure and, if they are kept, its probabilities as in a file: a matrix of fp16, or an array of `RECORD`."""


def _fold_stored(records: Iterable[Record], engine: Engine, *, keep: bool, **options: Any) -> Iterator[Stored]:
    for structure, matrix in fold_records(records, engine, **options):
        if not keep:
            yield structure, None
        else:
            yield structure, matrix.records() if isinstance(matrix, PairList) else matrix.astype(np.float16)


def _pack(results: list[Stored]) -> Arrays:
    """A chunk of structures as arrays."""
    structures, matrices = zip(*results, strict=True)
    rows, paired = map(attrgetter(*_FIELDS), structures), list(map(attrgetter("pairing_probabilities"), structures))
    arrays = {
        "lengths": np.array(list(map(len, paired))),
        "rows": np.frombuffer(json.dumps(list(rows)).encode(), np.uint8),
        "paired": np.concatenate(paired),
    }
    for n, matrix in enumerate(matrices):
        if matrix is not None:
            arrays[f"matrix{n}"] = matrix
    return arrays


def _unpack(arrays: Arrays) -> Iterator[Stored]:
    paired = np.split(arrays["paired"], np.cumsum(arrays["lengths"])[:-1])
    for n, row in enumerate(json.loads(arrays["rows"].tobytes())):
        fields = dict(zip(_FIELDS, row, strict=True))
        yield PredictedStructure(**fields, pairing_probabilities=paired[n]), arrays.get(f"matrix{n}")


@contextmanager
def _matrix_file(path: Path) -> Iterator[Callable[[str, Any], None]]:
    """A function to add probabilities to an archive that `numpy.load` reads."""
    names = set[str]()
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, matrix: np.ndarray) -> None:
            number, key = len(names) + 1, name.replace("/", "_")
            while key in names:
                key = f"{key}_{number}"
            names.add(key)
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(matrix), allow_pickle=False)

        yield add
