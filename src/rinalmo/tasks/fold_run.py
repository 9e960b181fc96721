"""The resumable part of folding: structures, and probabilities where they are wanted, in chunks on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.inference.engine import Advance, Engine
from rinalmo.inference.ray_engine import RayEngine
from rinalmo.inference.runs import Run, adding, chunked
from rinalmo.rna.fasta import Record
from rinalmo.rna.pair_list import RECORD, PairList
from rinalmo.rna.structure import Structure

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
    run = Run(output, "structures")
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
