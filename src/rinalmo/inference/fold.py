"""The pictures of `rinalmo fold --plot`: which file shows which sequence, checked before anything is folded.

out.svg              the picture of the one sequence
pictures/{name}.svg  one picture a sequence, `{name}` standing for its name
pictures/            a folder: the same as pictures/{name}.svg
"""

from __future__ import annotations

import json
import re
import sys
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from torch import Tensor

from rinalmo.engine.devices import DeviceLike
from rinalmo.engine.engine import Advance, Engine, as_engine
from rinalmo.engine.inputs import Sequences, as_records, peeked, read_sequences
from rinalmo.engine.jobs import Job, adding, chunked, input_sum
from rinalmo.engine.ray import RayEngine
from rinalmo.errors import CheckpointError, InputError, SequenceError
from rinalmo.io.fasta import Record
from rinalmo.io.files import check_path, one_line, replacing
from rinalmo.model.rinalmo import ModelSpec, RiNALMo
from rinalmo.plots.drawing import check_drawing, draw_structure
from rinalmo.plots.pairs import check_arcs, check_map, check_reference, draw_arcs, draw_pair_map
from rinalmo.rna.decoding import Decoder
from rinalmo.rna.formats import format_of, read_structures, structure_text, write_structures
from rinalmo.rna.structure import RECORD, PairList, Structure
from rinalmo.tasks.base import Example
from rinalmo.tasks.evaluate import Note, note_windows, outputs
from rinalmo.tasks.registry import task_of
from rinalmo.tasks.secondary_structure import (
    LEARNED,
    MIN_PROBABILITY,
    SecondaryStructure,
    Weight,
    resolve_thermodynamics,
)

Kind = Literal["drawing", "arcs", "map"]

_CHECKS = {"drawing": check_drawing, "arcs": check_arcs, "map": check_map}
_PLACE = "{name}"
_LONGEST_NAME = 100
# Windows takes these for devices, whatever follows a dot.
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10))}


@dataclass(frozen=True)
class Plot:
    """What is to be drawn. `kind` None is arcs if there is a `reference`, a file of structures, else a drawing."""

    path: Path
    kind: Kind | None = None
    reference: Path | None = None

    def pictures(self, records: list[Record]) -> list[Picture]:
        """One for each record. Raises InputError or MissingExtraError for what could not be drawn in the end."""
        kind: Kind = self.kind or ("drawing" if self.reference is None else "arcs")
        if kind == "drawing" and self.reference is not None:
            raise InputError(f"{self.reference}: a drawing shows no reference; use arcs or map")
        references = _references(self.reference, records)
        paths = _paths(self.path, [record.id for record in records])
        for path, record in zip(paths, records, strict=True):
            _CHECKS[kind](path, len(record.sequence))
        return [Picture(path, kind, reference) for path, reference in zip(paths, references, strict=True)]


@dataclass(frozen=True)
class Picture:
    """One file to draw."""

    path: Path
    kind: Kind
    reference: Structure | None = None

    def draw(self, structure: Structure, probabilities: np.ndarray | PairList) -> None:
        """Write the file."""
        if self.kind == "arcs":
            draw_arcs(structure, self.path, self.reference)
            return
        square = probabilities.matrix() if isinstance(probabilities, PairList) else probabilities
        if self.kind == "drawing":
            draw_structure(structure, self.path, square)
        else:
            draw_pair_map(structure, square, self.path, self.reference)


def _references(path: Path | None, records: list[Record]) -> list[Structure | None]:
    """The reference of each record: the one of its name, or the only one for an only record."""
    if path is None:
        return [None] * len(records)
    found = list(read_structures(path))
    by_name = {structure.name: structure for structure in found}
    if len(found) == len(records) == 1:
        by_name = {records[0].id: found[0]}
    elif len(by_name) < len(found):
        raise InputError(f"{path}: a name stands twice; give each reference its own")
    if missing := [one_line(record.id) for record in records if record.id not in by_name]:
        raise InputError(f"{path}: has no structure named {missing[0]!r}, which is in the sequences; add it")
    for record in records:
        try:
            check_reference(Structure(record.id, record.sequence), by_name[record.id])
        except SequenceError as error:
            raise error.with_location(str(path), None, error.record) from None
    return [by_name[record.id] for record in records]


def _paths(path: Path, names: list[str]) -> list[Path]:
    if path.is_dir():
        path = path / f"{_PLACE}.svg"
    if _PLACE in path.name:
        return [path.with_name(path.name.replace(_PLACE, name)) for name in _file_names(names)]
    if len(names) > 1:
        example = path.with_name(f"{path.stem}-{_PLACE}{path.suffix}")
        raise InputError(f"{path}: shows one sequence, but there are {len(names):,}; use {example}, or a folder")
    return [path] * len(names)


def _file_names(names: Iterable[str]) -> Iterator[str]:
    """Names that every file system takes, each once; one that stands twice gets its number added."""
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", name)[:_LONGEST_NAME].strip(".") or "sequence"
        if safe.partition(".")[0].upper() in _DEVICES:
            safe = f"_{safe}"
        while safe.lower() in seen:
            safe = f"{safe}_{number}"
        seen.add(safe.lower())
        yield safe


CHUNK_PAIRS = 1 << 24  # what folding computes, and may have to keep, grows with the square of the length
GPU_CHUNK_PAIRS = 1 << 26  # a GPU runs dry at the end of each chunk

_ARRAYS = ("texts", "lengths", "counts", "pairs", "sizes", "records", "probabilities")

Folded = tuple[Structure, np.ndarray | PairList]
Fold = Callable[[Iterable[Record], Engine], Iterator[Folded]]


@contextmanager
def folded(
    records: Iterable[Record],
    output: Path,
    engine: Engine | RayEngine,
    fold: Fold,
    settings: dict[str, Any],
    *,
    with_matrices: bool,
    resume: bool,
    restart: bool,
    tell: Callable[[int], Any],
) -> Iterator[Iterator[Folded]]:
    """All structures with their pair probabilities, a square or a list, fp16, empty if not wanted; in order.

    `fold` is picklable, `settings` is what the result depends on besides. What is computed is kept in a hidden folder
    beside the output until the `with` ends without an error.
    """
    run = Job(output, "structures")
    job = partial(_folding, fold=fold, with_matrices=with_matrices)
    with run.opened({**settings, "probabilities": with_matrices}, resume=resume, restart=restart):
        full = CHUNK_PAIRS if engine.device.type == "cpu" else GPU_CHUNK_PAIRS
        chunks = run.missing(chunked(records, lambda record: len(record.sequence) ** 2, full))
        for number, arrays in engine.run(job, chunks, adding(tell, run.finished())):
            run.save(number, **arrays)
        yield (pair for arrays in run.saved(*_ARRAYS) for pair in _unpacked(arrays))
        run.remove()


def _folding(
    engine: Engine, advance: Advance, *, fold: Fold, with_matrices: bool
) -> Callable[[list[Record]], dict[str, np.ndarray]]:
    def compute(records: list[Record]) -> dict[str, np.ndarray]:
        found = []
        for structure, probabilities in fold(records, engine):
            found.append((structure, probabilities if with_matrices else np.empty((0, 0))))
            advance(1)
        return _packed(found)

    return compute


def _packed(found: list[Folded]) -> dict[str, np.ndarray]:
    """A chunk of structures as arrays."""
    structures = [structure for structure, _ in found]
    return {
        "texts": np.array(json.dumps([(structure.name, structure.sequence) for structure in structures])),
        "lengths": np.array([len(structure) for structure in structures]),
        "counts": np.array([len(structure.pairs) for structure in structures]),
        "pairs": np.array([pair for structure in structures for pair in structure.pairs], np.int32).reshape(-1, 2),
        "sizes": np.array([each.shape[0] for _, each in found]),
        "records": np.array([len(each.values) if isinstance(each, PairList) else -1 for _, each in found]),
        "probabilities": np.concatenate([_flat(each) for _, each in found]),
    }


def _flat(found: np.ndarray | PairList) -> np.ndarray:
    """Bytes of fp16 or `RECORD`."""
    values = found.records() if isinstance(found, PairList) else found.astype(np.float16)
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _unpacked(arrays: dict[str, np.ndarray]) -> Iterator[Folded]:
    texts = json.loads(str(arrays["texts"]))
    pairs = np.split(arrays["pairs"], np.cumsum(arrays["counts"])[:-1])
    squares, lists = 2 * arrays["sizes"] ** 2, RECORD.itemsize * arrays["records"]
    parts = np.split(arrays["probabilities"], np.cumsum(np.where(lists < 0, squares, lists))[:-1])
    for (name, sequence), own, size, listed, part in zip(
        texts, pairs, arrays["sizes"], arrays["records"] >= 0, parts, strict=True
    ):
        found = PairList.from_records(int(size), part.view(RECORD)) if listed else part.view(np.float16)
        structure = Structure(name, sequence, tuple(map(tuple, own.tolist())))
        yield structure, found if isinstance(found, PairList) else found.reshape(size, size)


@dataclass(frozen=True)
class Decoding:
    """How pairs are chosen from their probabilities (`rinalmo.rna.decoding`); None is what belongs to the model.

    `thermodynamics` is the weight, from 0 to 1, of ViennaRNA's probabilities (`rinalmo.rna.thermodynamics`) beside the
    model's; None takes them into account as is best for the model, if ViennaRNA is installed.
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
    """Structures of one or more sequences, FASTA records, or the `Path` of a FASTA file.

    RNAs longer than `window` nucleotides, the model's own if None, are folded in overlapping windows of that size, and
    a warning says so. `device` is "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps";
    None: where a loaded model is. Raises InputError if the model was not fine-tuned for secondary structure, or windows
    are smaller than 32 nt.
    """
    engine = as_engine(model, device)
    task = folding_task(engine.spec, window)
    records = note_windows(peeked(as_records(sequences)), task, warnings.warn)
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

    Raises InputError for one of another task, CheckpointError for one of none; both name it as `model`, if given.
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
    Pairs are chosen in this process, or as `decoder` does.
    """
    options = asdict(decoding)
    task = folding_task(engine.spec, window, options.pop("thermodynamics"))
    own = {"method": task.decoder, "threshold": task.threshold(engine.head_model)}
    options = {name: own[name] if value is None else value for name, value in options.items()}
    if options["threshold"] is not None:
        task = task.with_options(min_probability=min(MIN_PROBABILITY, options["threshold"]))
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
    fasta: str | Path,
    output: str | Path,
    engine: Engine | RayEngine,
    decoding: Decoding = MODELS_OWN,
    *,
    window: int | None = None,
    probabilities: Path | None = None,
    plot: Plot | None = None,
    resume: bool = False,
    restart: bool = False,
    tell: Callable[[int], Any] = lambda count: None,
    note: Note = warnings.warn,
) -> int:
    """Fold every sequence of `fasta` ("-" is standard input) and write `output`; returns their number.

    The ending of `output` chooses the format; "-" is DBN on standard output. `probabilities` is an `.npz` file with
    one matrix for each sequence, fp16, under its name (a name that stands twice gets its number added). An RNA longer
    than `window`, the model's own if None, is folded in windows, of which `note` is told; its probabilities are an
    array with the fields `i`, `j` (from 0) and `probability`. With `plot` all sequences are read before the first is
    folded.

    An interrupted run into a file keeps what it has finished in a hidden folder beside it. The same call continues it;
    `resume` refuses an input that can be read only once, and `restart` discards what is kept. Raises InputError if
    input or options are not those that the interrupted run was started with.
    """
    task = folding_task(engine.spec, window, decoding.thermodynamics, note=note)
    # Resolved here, so that every process and every resumed run folds with the same.
    decoding = replace(decoding, thermodynamics=task.thermodynamics)
    if str(output) != "-":
        format_of(output)
        check_path(Path(output))
    if probabilities is not None and probabilities.suffix != ".npz":
        raise InputError(f"{probabilities}: probabilities are written as .npz")
    if probabilities is not None:
        check_path(probabilities)
    records: Iterable[Record] = peeked(read_sequences(fasta))
    pictures: list[Picture] = []
    if plot is not None:
        records = list(records)
        pictures = plot.pictures(records)
    records = note_windows(records, task, note)
    decoder = Decoder.beside(engine.device.type if isinstance(engine, Engine) else "cpu")
    fold = partial(fold_records, decoding=decoding, window=task.window, decoder=decoder if decoder.processes else None)
    found: AbstractContextManager[Iterator[Folded]]
    if isinstance(engine, Engine) and str(output) == "-":
        found = nullcontext(_told(fold(records, engine), tell))
    else:
        settings = {
            "input": input_sum(fasta, resume=resume),
            "model": engine.fingerprint,
            "precision": engine.precision,
            "device": engine.device.type,
            "batch_tokens": engine.batch_tokens,
            "decoding": asdict(decoding),
            "window": task.window,
        }
        with_matrices = probabilities is not None or plot is not None
        found = folded(
            records,
            Path(output),
            engine,
            fold,
            settings,
            with_matrices=with_matrices,
            resume=resume,
            restart=restart,
            tell=tell,
        )
    count = 0
    with decoder, _matrices(probabilities) as put, found as pairs:

        def structures() -> Iterator[Structure]:
            nonlocal count
            for structure, matrix in pairs:
                put(structure.name, matrix)
                if pictures:
                    pictures[count].draw(structure, matrix)
                count += 1
                yield structure

        if str(output) == "-":
            sys.stdout.writelines(structure_text(structures(), "dbn"))
        else:
            write_structures(output, structures())
    return count


def _told(found: Iterator[Folded], tell: Callable[[int], Any]) -> Iterator[Folded]:
    for count, pair in enumerate(found, start=1):
        tell(count)
        yield pair


@contextmanager
def _matrices(path: Path | None) -> Iterator[Callable[[str, np.ndarray | PairList], None]]:
    if path is None:
        yield lambda name, found: None
        return
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        yield _Adding(archive)


class _Adding:
    """Put matrices and lists of pairs into an archive that `numpy.load` reads."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive, self.names = archive, set[str]()

    def __call__(self, name: str, found: np.ndarray | PairList) -> None:
        number, key = len(self.names) + 1, name.replace("/", "_")
        while key in self.names:
            key = f"{key}_{number}"
        self.names.add(key)
        with self.archive.open(f"{key}.npy", "w", force_zip64=True) as member:
            _save(member, found.records() if isinstance(found, PairList) else found.astype(np.float16))


def _save(member: IO[bytes], matrix: np.ndarray) -> None:
    np.lib.format.write_array(member, np.ascontiguousarray(matrix), allow_pickle=False)
