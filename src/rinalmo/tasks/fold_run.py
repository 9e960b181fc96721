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
from rinalmo.rna.structure import Structure

CHUNK_PAIRS = 1 << 24  # what folding computes, and may have to keep, grows with the square of the length

Folded = tuple[Structure, np.ndarray]
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
    tell: Callable[[int], Any],
) -> Iterator[Iterator[Folded]]:
    """All structures with their pair probabilities `(length, length)`, fp16, empty if not wanted; in order.

    `fold` is picklable, `settings` is what the result depends on besides. What is computed is kept in a hidden folder
    beside the output until the `with` ends without an error.
    """
    run = Run(output)
    job = partial(_folding, fold=fold, with_matrices=with_matrices)
    with run.opened({**settings, "probabilities": with_matrices}, resume=resume):
        chunks = run.missing(chunked(records, lambda record: len(record.sequence) ** 2, CHUNK_PAIRS))
        for number, arrays in engine.run(job, chunks, adding(tell, run.finished())):
            run.save(number, **arrays)
        yield (pair for arrays in run.saved() for pair in _unpacked(arrays))
        run.remove()


def _folding(
    engine: Engine, advance: Advance, *, fold: Fold, with_matrices: bool
) -> Callable[[list[Record]], dict[str, np.ndarray]]:
    def compute(records: list[Record]) -> dict[str, np.ndarray]:
        found = []
        for structure, matrix in fold(records, engine):
            found.append((structure, matrix.astype(np.float16) if with_matrices else np.empty((0, 0), np.float16)))
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
        "sizes": np.array([len(matrix) for _, matrix in found]),
        "matrices": np.concatenate([matrix.reshape(-1) for _, matrix in found]),
    }


def _unpacked(arrays: dict[str, np.ndarray]) -> Iterator[Folded]:
    pairs = np.split(arrays["pairs"], np.cumsum(arrays["counts"])[:-1])
    sizes = arrays["sizes"]
    matrices = np.split(arrays["matrices"], np.cumsum(sizes**2)[:-1])
    for (name, sequence), own, size, matrix in zip(
        json.loads(str(arrays["texts"])), pairs, sizes, matrices, strict=True
    ):
        yield Structure(name, sequence, tuple(map(tuple, own.tolist()))), matrix.reshape(size, size)
