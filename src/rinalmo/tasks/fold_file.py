"""A FASTA file in, structures out: the work of `rinalmo fold`, resumable."""

from __future__ import annotations

import sys
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from rinalmo.durable import check_place, replacing
from rinalmo.errors import CheckpointError, InputError
from rinalmo.inference.devices import DeviceLike
from rinalmo.inference.engine import Engine, as_engine
from rinalmo.inference.inputs import Sequences, as_records, peeked, read_sequences
from rinalmo.inference.ray_engine import RayEngine
from rinalmo.inference.runs import input_sum
from rinalmo.model.rinalmo import ModelSpec, RiNALMo
from rinalmo.rna.fasta import Record
from rinalmo.rna.formats import format_of, write_structures
from rinalmo.rna.formats.files import structure_text
from rinalmo.rna.pair_list import PairList
from rinalmo.rna.structure import Structure
from rinalmo.tasks.base import Example
from rinalmo.tasks.decoding import Decoder
from rinalmo.tasks.fold_run import Folded, folded
from rinalmo.tasks.pictures import Picture, Plot
from rinalmo.tasks.predicting import Note, outputs, remarked
from rinalmo.tasks.registry import task_of
from rinalmo.tasks.secondary_structure import LEARNED, SecondaryStructure, Weight, as_asked
from rinalmo.tasks.windows import LEAST


@dataclass(frozen=True)
class Decoding:
    """How pairs are chosen from their probabilities (`rinalmo.rna.folding`); None is what belongs to the model.

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
    records = remarked(peeked(as_records(sequences)), task.remark, warnings.warn)
    return [structure for structure, _ in fold_records(records, engine, decoding, window=task.window)]


def folding_task(
    spec: ModelSpec,
    window: int | None = None,
    thermodynamics: Weight | None = 0.0,
    *,
    model: str = "",
    note: Note = warnings.warn,
) -> SecondaryStructure:
    """The task of a model that folds, as asked (`as_asked`).

    Raises InputError for one of another task, CheckpointError for one of none; both name it as `model`, if given.
    """
    try:
        task = task_of(spec)
    except CheckpointError as error:
        raise CheckpointError(f"{model}: {error}" if model else str(error)) from None
    if not isinstance(task, SecondaryStructure):
        raise InputError(f"{model or 'the model'} was fine-tuned for {task.name}, not for secondary-structure")
    as_asked(task, spec, window, thermodynamics, note)
    return task


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
    task.least = LEAST if options["threshold"] is None else min(LEAST, options["threshold"])
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
        check_place(Path(output))
    if probabilities is not None and probabilities.suffix != ".npz":
        raise InputError(f"{probabilities}: probabilities are written as .npz")
    if probabilities is not None:
        check_place(probabilities)
    records: Iterable[Record] = peeked(read_sequences(fasta))
    pictures: list[Picture] = []
    if plot is not None:
        records = list(records)
        pictures = plot.pictures(records)
    records = remarked(records, task.remark, note)
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
