"""Moving a model's token rows from one alphabet to another.

Three tensors have one row per token: the embedding and the LM decoder's weight and bias. Rows move by token, T and U
being the same. A token that the source lacks gets

    X          the mean of A, C, G and U, as the published conversion has it
    others     N(0, 0.02) from a fixed seed in the weights, 0 in the bias

and a token that the target lacks is dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rinalmo.alphabet import Alphabet, vocabulary_map

ROW_TENSORS = ("encoder.embedding.weight", "lm_head.decoder.weight", "lm_head.decoder.bias")
_SEED = 20250316
_STD = 0.02


def move_rows(name: str, rows: Tensor, source: Alphabet, target: Alphabet) -> Tensor:
    """The tensor `name`, one row per token of `source`, as one row per token of `target`."""
    origin = torch.from_numpy(vocabulary_map(source, target))
    moved = rows[origin.clamp(min=0)].clone()
    for index in (origin < 0).nonzero().flatten().tolist():
        moved[index] = _new_row(name, target.tokens[index], rows, source, index)
    return moved


def invented(source: Alphabet, target: Alphabet) -> list[str]:
    """The tokens of `target` that get made-up rows."""
    origin = vocabulary_map(source, target)
    return [token for token, index in zip(target.tokens, origin.tolist(), strict=True) if index < 0 and token != "X"]


def _new_row(name: str, token: str, rows: Tensor, source: Alphabet, index: int) -> Tensor:
    if token == "X":
        return rows[list(source.nucleotide_ids)].mean(dim=0)
    if rows.dim() == 1:
        return torch.zeros((), dtype=rows.dtype)
    seed = _SEED + 1000 * ROW_TENSORS.index(name) + index
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows.shape[1], generator=generator).mul(_STD).to(rows.dtype)
