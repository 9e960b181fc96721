"""A FASTA file in, structures out: the work of `rinalmo fold`, resumable."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from rinalmo.durable import check_place, replacing
from rinalmo.errors import InputError
from rinalmo.inference.engine import Engine, as_engine
from rinalmo.inference.inputs import Sequences, as_records, peeked
from rinalmo.inference.ray_engine import RayEngine
from rinalmo.inference.runs import input_sum
from rinalmo.model.rinalmo import ModelSpec, RiNALMo
from rinalmo.rna.fasta import Record, read_fasta
from rinalmo.rna.folding import decode
from rinalmo.rna.formats import format_of, write_structures
from rinalmo.rna.formats.files import structure_text
from rinalmo.rna.structure import Structure
from rinalmo.tasks.base import Example
from rinalmo.tasks.fold_run import Folded, folded
from rinalmo.tasks.pictures import Picture, Plot
from rinalmo.tasks.predicting import outputs
from rinalmo.tasks.registry import task_of
from rinalmo.tasks.secondary_structure import SecondaryStructure, threshold_of


@dataclass(frozen=True)
class Decoding:
    """How pairs are chosen from their probabilities; `threshold` None is the model's own. See `rinalmo.rna.folding`."""

    method: str = "greedy"
    threshold: float | None = None
    canonical: bool = True
    min_distance: int = 4


PAPER = Decoding()


def fold(
    sequences: Sequences, model: str | Path | RiNALMo | Engine = "nano-fold", decoding: Decoding = PAPER
) -> list[Structure]:
    """Structures of one or more sequences, FASTA records, or the `Path` of a FASTA file.

    Raises InputError if the model was not fine-tuned for secondary structure.
    """
    records = peeked(as_records(sequences))
    return [structure for structure, _ in fold_records(records, as_engine(model), decoding)]


def folding_task(spec: ModelSpec, model: str = "the model") -> SecondaryStructure:
    """The task of a model that folds; raises InputError, which names it as `model`, for one of another task."""
    task = task_of(spec)
    if not isinstance(task, SecondaryStructure):
        raise InputError(f"{model} was fine-tuned for {task.name}, not for secondary-structure")
    return task


def fold_records(
    records: Iterable[Record], engine: Engine, decoding: Decoding = PAPER
) -> Iterator[tuple[Structure, np.ndarray]]:
    """Each record's structure and its pair probabilities `(length, length)`, in the order of the input."""
    task = folding_task(engine.model.spec)
    options = asdict(decoding)
    if options["threshold"] is None:
        options["threshold"] = threshold_of(engine.model)
    examples = (Example(record.id, record.sequence) for record in records)
    for example, output in outputs(examples, engine, task):
        probabilities = task.probabilities(output)
        pairs = decode(probabilities, example.sequence, **options)
        yield Structure(example.name, example.sequence, tuple(pairs)), probabilities


def fold_file(
    fasta: str | Path,
    output: str | Path,
    engine: Engine | RayEngine,
    decoding: Decoding = PAPER,
    *,
    probabilities: Path | None = None,
    plot: Plot | None = None,
    resume: bool = False,
    tell: Callable[[int], Any] = lambda count: None,
) -> int:
    """Fold every sequence of `fasta` ("-" is standard input) and write `output`; returns their number.

    The ending of `output` chooses the format; "-" is DBN on standard output. `probabilities` is an `.npz` file with
    one matrix for each sequence, fp16, under its name (a name that stands twice gets its number added). With `plot`
    all sequences are read before the first is folded.

    An interrupted run into a file keeps what it has finished in a hidden folder beside it; `resume` continues it.
    Raises InputError if input or options are not those it was started with.
    """
    if str(output) != "-":
        format_of(output)
        check_place(Path(output))
    if probabilities is not None and probabilities.suffix != ".npz":
        raise InputError(f"{probabilities}: probabilities are written as .npz")
    records: Iterable[Record] = peeked(read_fasta(fasta))
    pictures: list[Picture] = []
    if plot is not None:
        records = list(records)
        pictures = plot.pictures(records)
    fold = partial(fold_records, decoding=decoding)
    found: AbstractContextManager[Iterator[Folded]]
    if isinstance(engine, Engine) and str(output) == "-":
        found = nullcontext(_told(fold(records, engine), tell))
    else:
        settings = {
            "input": input_sum(fasta, resume=resume),
            "model": engine.fingerprint,
            "precision": engine.precision,
            "batch_tokens": engine.batch_tokens,
            "decoding": asdict(decoding),
        }
        with_matrices = probabilities is not None or plot is not None
        found = folded(
            records, Path(output), engine, fold, settings, with_matrices=with_matrices, resume=resume, tell=tell
        )
    count = 0
    with _matrices(probabilities) as put, found as pairs:

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
def _matrices(path: Path | None) -> Iterator[Callable[[str, np.ndarray], None]]:
    if path is None:
        yield lambda name, matrix: None
        return
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        yield _Adding(archive)


class _Adding:
    """Put matrices into an archive that `numpy.load` reads."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive, self.names = archive, set[str]()

    def __call__(self, name: str, matrix: np.ndarray) -> None:
        key = name.replace("/", "_")
        key = key if key not in self.names else f"{key}_{len(self.names) + 1}"
        self.names.add(key)
        with self.archive.open(f"{key}.npy", "w", force_zip64=True) as member:
            _save(member, matrix.astype(np.float16))


def _save(member: IO[bytes], matrix: np.ndarray) -> None:
    np.lib.format.write_array(member, np.ascontiguousarray(matrix), allow_pickle=False)
