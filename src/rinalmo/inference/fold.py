"""Secondary structures: folding, the output files, and figures."""

from __future__ import annotations

import json
import logging
import sys
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from rinalmo.engine.devices import DeviceLike
from rinalmo.engine.engine import Engine, as_engine
from rinalmo.engine.jobs import Arrays, JobOptions, opened, record_job, take_shard
from rinalmo.engine.ray import EngineLike
from rinalmo.errors import CheckpointError, InputError
from rinalmo.io.files import atomic_write, check_path
from rinalmo.io.sequences import Record, SequenceFile, Sequences, as_records, name_source_in_errors, require_nonempty
from rinalmo.model.rinalmo import ModelSpec, RiNALMo
from rinalmo.plots.structures import Plot, StructureFigure
from rinalmo.rna.decoding import Decoder
from rinalmo.rna.formats import format_of, structure_text, write_structures
from rinalmo.rna.structure import RECORD, PairList, Structure
from rinalmo.tasks.base import Example
from rinalmo.tasks.secondary_structure import (
    LEARNED,
    MIN_PROBABILITY,
    SecondaryStructure,
    Weight,
    resolve_thermodynamics,
)
from rinalmo.tasks.trained import Note, note_windows, outputs, task_of

logger = logging.getLogger(__name__)

CHUNK_PAIRS = 1 << 24  # time and memory of folding grow with the square of the length
GPU_SCALE = 4  # a GPU idles at the end of each chunk, so it gets larger ones

Folded = tuple[Structure, np.ndarray | PairList]


@dataclass(frozen=True)
class Decoding:
    """How pairs are chosen from their probabilities (`rinalmo.rna.decoding`); None is the model's own.

    `thermodynamics` is the weight, from 0 to 1, of ViennaRNA's probabilities (`rinalmo.rna.thermodynamics`) in the mean
    with the model's; None takes the model's default, if ViennaRNA is installed.
    """

    method: str | None = None
    threshold: float | None = None
    canonical: bool = True
    min_distance: int = 4
    thermodynamics: Weight | None = None


MODELS_OWN = Decoding()


def fold(
    sequences: Sequences,
    model: str | Path | RiNALMo | Engine = "nano-fold",
    decoding: Decoding = MODELS_OWN,
    *,
    window: int | None = None,
    device: DeviceLike = None,
) -> list[Structure]:
    """Predict secondary structures.

    Args:
        sequences: One or more sequences, FASTA records, rows, or the `Path` of a FASTA file or table.
        model: A name, folder, file or loaded model, computed in fp32; an `Engine` for other precisions.
        decoding: How pairs are chosen; the model's own by default.
        window: RNAs longer than this are folded in overlapping windows of so many nucleotides, and a warning says so;
            None: the model's own.
        device: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; None: where a loaded model is.

    Returns:
        One `Structure` for each sequence.

    Raises:
        InputError: The model was fine-tuned for another task, or the window is smaller than 32 nt.
        CheckpointError: The model was not fine-tuned.

    Examples:
        >>> import rinalmo
        >>> (structure,) = rinalmo.fold("GGGGGAAAACCCCC")
        >>> structure.dot_bracket
        '(((((....)))))'
    """
    engine = as_engine(model, device)
    task = folding_task(engine.spec, window)
    with name_source_in_errors(sequences):
        records = note_windows(require_nonempty(as_records(sequences)), task, warnings.warn)
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
    task = folding_task(engine.spec, window, decoding.thermodynamics)
    threshold = task.threshold(engine.head_model) if decoding.threshold is None else decoding.threshold
    if threshold is not None:
        task = task.with_options(min_probability=min(MIN_PROBABILITY, threshold))
    options = {
        "method": decoding.method or task.decoder,
        "threshold": threshold,
        "canonical": decoding.canonical,
        "min_distance": decoding.min_distance,
    }
    examples = (Example(record.id, record.sequence) for record in records)
    waiting: deque[Example] = deque()

    def computed() -> Iterator[tuple[str, Tensor | PairList]]:
        for example, output in outputs(examples, engine, task):
            waiting.append(example)
            yield example.sequence, output

    decoder = decoder or Decoder()
    rnas: Iterator[tuple[str, np.ndarray | PairList]]
    if task.thermodynamics == LEARNED:
        weight, known = 0.0, decoder.ensembles(computed())
        rnas = ((sequence, task.combined(output, sequence, ensemble)) for sequence, output, ensemble in known)
    else:
        weight = float(task.thermodynamics)
        rnas = ((sequence, task.model_probabilities(output)) for sequence, output in computed())
    for probabilities, pairs in decoder.decoded(rnas, options, weight):
        example = waiting.popleft()
        yield Structure(example.name, example.sequence, tuple(pairs)), probabilities


def fold_file(
    source: str | Path,
    output: str | Path,
    engine: EngineLike,
    decoding: Decoding = MODELS_OWN,
    *,
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
            raise InputError(f"{probabilities}: probabilities are written as .npz")
        check_path(probabilities)
    file = SequenceFile(source)
    records = take_shard(file, shard)
    figures: list[StructureFigure] = []
    if plot is not None:
        records = iter(listed := list(records))
        figures = plot.figures(listed)
    with opened(engine, to_stdout) as engine, ExitStack() as stack:
        task = folding_task(engine.spec, window, decoding.thermodynamics, note=note)
        # Resolved here, so that every process and every resumed run folds with the same.
        decoding = replace(decoding, thermodynamics=task.thermodynamics)
        records = note_windows(records, task, note)
        decoder = stack.enter_context(Decoder.beside(engine.device.type if isinstance(engine, Engine) else "cpu"))
        chosen = decoder if decoder.processes else None
        stream = partial(fold_records, decoding=decoding, window=task.window, decoder=chosen)
        structures: Iterator[Folded]
        if isinstance(engine, Engine) and to_stdout:
            structures = stream(records, engine)
        else:
            keep = probabilities is not None or plot is not None
            options = {"decoding": asdict(decoding), "window": task.window, "probabilities": keep, "shard": shard}
            packed = partial(_fold_packed, stream=stream, keep=keep)
            scale = 1 if engine.device.type == "cpu" else GPU_SCALE
            size: dict[str, Any] = {"noun": "structures", "power": 2, "max_size": CHUNK_PAIRS, "scale": scale}
            done = record_job(Path(output), engine, file, records, packed, _pack, options, **size, **job)
            results = stack.enter_context(done).results(*_ARRAYS)
            structures = chain.from_iterable(map(_unpack, results))
        add_matrix = stack.enter_context(_matrix_file(probabilities))
        count = 0

        def written() -> Iterator[Structure]:
            nonlocal count
            for structure, matrix in structures:
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
            sys.stdout.writelines(structure_text(written(), "dbn"))
        else:
            write_structures(output, written())
            logger.info("%s: %s structures", output, f"{count:,}")
    return count


_ARRAYS = ("texts", "lengths", "counts", "pairs", "sizes", "listed", "probabilities")


def _fold_packed(
    records: list[Record], engine: Engine, *, stream: Callable[[list[Record], Engine], Iterator[Folded]], keep: bool
) -> Iterator[tuple[Structure, int, int, np.ndarray]]:
    """Structures with their probabilities as bytes of fp16 or `RECORD`: size, number of listed pairs (or -1), bytes."""
    for structure, matrix in stream(records, engine):
        if not keep:
            yield structure, 0, -1, np.empty(0, np.uint8)
            continue
        if isinstance(matrix, PairList):
            values, listed = matrix.records(), len(matrix.values)
        else:
            values, listed = matrix.astype(np.float16), -1
        yield structure, len(structure), listed, np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _pack(results: list[tuple[Structure, int, int, np.ndarray]]) -> Arrays:
    """A chunk of structures as arrays."""
    structures, sizes, listed, probabilities = zip(*results, strict=True)
    pairs = [pair for structure in structures for pair in structure.pairs]
    return {
        "texts": np.array(json.dumps([(structure.name, structure.sequence) for structure in structures])),
        "lengths": np.array([*map(len, structures)]),
        "counts": np.array([len(structure.pairs) for structure in structures]),
        "pairs": np.array(pairs, np.int32).reshape(-1, 2),
        "sizes": np.array(sizes),
        "listed": np.array(listed),
        "probabilities": np.concatenate(probabilities),
    }


def _unpack(arrays: Arrays) -> Iterator[Folded]:
    sizes, listed = arrays["sizes"], arrays["listed"]
    num_bytes = np.where(listed < 0, 2 * sizes**2, RECORD.itemsize * listed)
    parts = np.split(arrays["probabilities"], np.cumsum(num_bytes)[:-1])
    pairs = np.split(arrays["pairs"], np.cumsum(arrays["counts"])[:-1])
    texts = json.loads(str(arrays["texts"]))
    for (name, sequence), own, size, count, part in zip(texts, pairs, sizes, listed, parts, strict=True):
        structure = Structure(name, sequence, tuple(map(tuple, own.tolist())))
        if count < 0:
            yield structure, part.view(np.float16).reshape(size, size)
        else:
            yield structure, PairList.from_records(int(size), part.view(RECORD))


@contextmanager
def _matrix_file(path: Path | None) -> Iterator[Callable[[str, np.ndarray | PairList], None]]:
    """A function to add probabilities to an archive that `numpy.load` reads; without a path it does nothing."""
    if path is None:
        yield lambda name, matrix: None
        return
    names = set[str]()
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, matrix: np.ndarray | PairList) -> None:
            number, key = len(names) + 1, name.replace("/", "_")
            while key in names:
                key = f"{key}_{number}"
            names.add(key)
            values = matrix.records() if isinstance(matrix, PairList) else matrix.astype(np.float16)
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(values), allow_pickle=False)

        yield add
