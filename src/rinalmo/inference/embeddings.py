"""Embeddings: one vector per sequence, or one per nucleotide."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from operator import index
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rinalmo.errors import InputError
from rinalmo.inference.batching import to_host
from rinalmo.inference.devices import DeviceLike
from rinalmo.inference.engine import Engine, as_engine
from rinalmo.inference.inputs import Sequences, as_records, encode, peeked, read_from
from rinalmo.model.heads import first_tokens
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.rna.fasta import Record

Pooling = Literal["mean", "cls", "none"]


def embed(
    sequences: Sequences,
    model: str | Path | RiNALMo | Engine = "nano",
    *,
    pooling: Pooling = "mean",
    layers: Sequence[int] = (-1,),
    device: DeviceLike = None,
) -> np.ndarray | list[np.ndarray]:
    """Embeddings of one or more sequences, FASTA records, rows, or the `Path` of a FASTA file or table, in fp32.

    Rows are mappings with a column `sequence`, as those of a `datasets.Dataset` or a DataFrame.

    model     a name, folder, file or loaded model, computed in fp32; an `Engine` for any other way
    pooling   "mean" over the nucleotides (CLS and EOS left out), "cls", or "none": one vector per nucleotide
    layers    0 is the embedding, n the output of block n, -1 the last, after the final layer norm
    device    "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; None: where a loaded model is

    Returns `(sequences, hidden)`, or with several layers `(sequences, layers, hidden)`; with pooling "none" a list of
    `(length, [layers,] hidden)`. The result for a sequence does not depend on the others.
    """
    engine = as_engine(model, device)
    with read_from(sequences):
        records = peeked(as_records(sequences))
        found = [values for _, values in embed_records(records, engine, pooling=pooling, layers=layers)]
    return found if pooling == "none" else np.stack(found)


def embed_records(
    records: Iterable[Record], engine: Engine, *, pooling: Pooling = "mean", layers: Sequence[int] = (-1,)
) -> Iterator[tuple[Record, np.ndarray]]:
    """As `embed`, record by record, for streams of any length."""
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling {pooling!r} is unknown; use one of {', '.join(get_args(Pooling))}")
    chosen = layer_indices(layers, engine.config.num_hidden_layers)
    waiting: deque[Record] = deque()

    def ids() -> Iterator[np.ndarray]:
        for record in records:
            waiting.append(record)
            yield encode(record, engine.alphabet)

    def compute(packed: Tensor, layout: Layout) -> Sequence[np.ndarray]:
        states = engine.hidden_states(packed, layout, chosen)
        # One layer gives no layer axis, so that the common case is a plain matrix.
        stacked = torch.stack(states, dim=1) if len(states) > 1 else states[0]
        # One transfer for the whole batch; on a GPU each one waits for the device.
        if pooling != "none":
            pooled = mean_of_nucleotides(stacked, layout) if pooling == "mean" else first_tokens(stacked, layout)
            return list(to_host(pooled)[0].numpy())
        inner = [part[1:-1] for part in layout.split(stacked)]
        together = to_host(torch.cat(inner))[0].numpy()
        return np.split(together, np.cumsum([len(part) for part in inner])[:-1])

    for values in engine.map(compute, ids()):
        yield waiting.popleft(), values


def layer_indices(layers: Sequence[int], num_blocks: int) -> list[int]:
    """Layers counted from 0 (the embedding) to `num_blocks`; negative ones count from the end."""
    try:
        chosen = [index(layer) for layer in layers]
    except TypeError:
        raise InputError(f"layers is {layers!r}; give a list of whole numbers, such as [-1] or [0, 3]") from None
    if not chosen:
        raise InputError("no layers given")
    for layer in chosen:
        if not -num_blocks - 1 <= layer <= num_blocks:
            raise InputError(f"there is no layer {layer}; this model has 0 (the embedding) to {num_blocks}")
    return [layer % (num_blocks + 1) for layer in chosen]


def mean_of_nucleotides(states: Tensor, layout: Layout) -> Tensor:
    """The mean of each sequence's states without CLS and EOS.

    Args:
        states: `(tokens, …)`, packed.
        layout: Where each sequence lies. Sequences of equal length side by side are one operation.

    Returns:
        `(sequences, …)`.
    """
    runs = [states[run.start : run.stop].unflatten(0, (run.count, run.length)) for run in layout.runs]
    return torch.cat([run[:, 1:-1].mean(dim=1) for run in runs])
