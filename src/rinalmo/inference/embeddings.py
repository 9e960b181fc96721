"""Embeddings: one vector per sequence, or one per nucleotide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rinalmo.errors import InputError
from rinalmo.inference.batching import BATCH_TOKENS, map_packed
from rinalmo.inference.inputs import Sequences, as_model, as_records, encode, peeked
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.rna.fasta import Record

Pooling = Literal["mean", "cls", "none"]


def embed(
    sequences: Sequences,
    model: str | Path | RiNALMo = "starter",
    *,
    pooling: Pooling = "mean",
    layers: Sequence[int] = (-1,),
    batch_tokens: int = BATCH_TOKENS,
    device: torch.device | str = "cpu",
) -> np.ndarray | list[np.ndarray]:
    """Embeddings of one or more sequences, FASTA records, or the `Path` of a FASTA file, in fp32.

    pooling   "mean" over the nucleotides (CLS and EOS left out), "cls", or "none": one vector per nucleotide
    layers    0 is the embedding, n the output of block n, -1 the last, after the final layer norm

    Returns `(sequences, hidden)`, or with several layers `(sequences, layers, hidden)`; with pooling "none" a list of
    `(length, [layers,] hidden)`. The result for a sequence does not depend on the others.
    """
    loaded = as_model(model, device)
    records = as_records(sequences)
    found = [
        values
        for _, values in embed_records(records, loaded, pooling=pooling, layers=layers, batch_tokens=batch_tokens)
    ]
    return found if pooling == "none" else np.stack(found)


def embed_records(
    records: Iterable[Record],
    model: RiNALMo,
    *,
    pooling: Pooling = "mean",
    layers: Sequence[int] = (-1,),
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[tuple[Record, np.ndarray]]:
    """As `embed`, record by record, for streams of any length."""
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling {pooling!r} is unknown; use one of {', '.join(get_args(Pooling))}")
    chosen = layer_indices(layers, model.config.num_hidden_layers)
    waiting: list[Record] = []

    def ids() -> Iterator[np.ndarray]:
        for record in peeked(records):
            encoded = encode(record, model.alphabet)
            waiting.append(record)
            yield encoded

    compute = partial(hidden_states, model, pooling, chosen)
    device = next(model.parameters()).device
    for values in map_packed(compute, ids(), batch_tokens=batch_tokens, device=device):
        yield waiting.pop(0), values


def layer_indices(layers: Sequence[int], num_blocks: int) -> list[int]:
    """Layers counted from 0 (the embedding) to `num_blocks`; negative ones count from the end."""
    if not layers:
        raise InputError("no layers given")
    for layer in layers:
        if not -num_blocks - 1 <= layer <= num_blocks:
            raise InputError(f"there is no layer {layer}; this model has 0 (the embedding) to {num_blocks}")
    return [layer % (num_blocks + 1) for layer in layers]


@torch.inference_mode()
def hidden_states(
    model: RiNALMo, pooling: Pooling, layers: Sequence[int], ids: Tensor, layout: Layout
) -> list[np.ndarray]:
    """Per sequence of a packed batch its pooled or per-nucleotide states of the chosen layers."""
    last = model.config.num_hidden_layers
    out = model.encoder(ids, layout, output_hidden_states=list(layers) != [last])
    states = [out.last_hidden_state if out.hidden_states is None else out.hidden_states[layer] for layer in layers]
    # One layer gives no layer axis, so that the common case is a plain matrix.
    stacked = torch.stack(states, dim=1) if len(states) > 1 else states[0]
    return [_pooled(part, pooling).float().cpu().numpy() for part in layout.split(stacked)]


def _pooled(states: Tensor, pooling: Pooling) -> Tensor:
    match pooling:
        case "cls":
            return states[0].clone()
        case "mean":
            return states[1:-1].float().mean(dim=0)
        case _:
            return states[1:-1].clone()
