"""Token embedding with token dropout.

`<mask>` has no vector of its own: masked positions are zero, and the rest of the sequence is scaled up by what was
masked, relative to the share expected in pre-training (15 % × 80 %). This stays on at inference: without any mask
every vector is multiplied by 0.88.

Reference: the scheme is that of ESM (Rives et al. 2021); the observed ratio is per sequence, CLS and EOS included.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rinalmo.model.config import ModelConfig
from rinalmo.model.packing import Layout

EXPECTED_MASKED = 0.15 * 0.8


class Embedding(nn.Embedding):
    """Ids of any shape to vectors; `<mask>` is zero under token dropout. `drop_tokens` does the scaling."""

    def __init__(self, config: ModelConfig) -> None:
        size = (config.vocab_size, config.hidden_size)
        super().__init__(*size, _weight=torch.empty(size))  # weights are loaded or initialised by the caller
        self.mask_token_id = config.mask_token_id
        self.token_dropout = config.token_dropout

    def forward(self, input: Int[Tensor, "*any"]) -> Float[Tensor, "*any hidden"]:
        x = super().forward(input)
        return x.masked_fill((input == self.mask_token_id)[..., None], 0.0) if self.token_dropout else x


def drop_tokens(
    x: Float[Tensor, "tokens hidden"], masked: Bool[Tensor, " tokens"], layout: Layout
) -> Float[Tensor, "tokens hidden"]:
    """Token dropout on packed embeddings: zero where masked, the rest of each sequence scaled up.

    Args:
        x: Packed embeddings.
        masked: Which tokens are `<mask>`.
        layout: Where each sequence lies.

    Returns:
        The input of the first block.
    """
    scale = (1 - EXPECTED_MASKED) / kept_ratio(masked, layout)
    return x * (~masked * scale[layout.sequence_ids]).to(x.dtype)[:, None]


def kept_ratio(masked: Bool[Tensor, " tokens"], layout: Layout) -> Float[Tensor, " sequences"]:
    """Share of the tokens of each sequence that are not masked, fp32; never 0, so that all masks stay finite."""
    counts = torch.zeros(len(layout.lengths), dtype=torch.float32, device=masked.device)
    counts.index_add_(0, layout.sequence_ids, masked.float())
    lengths = layout.real_counts.float().clamp(min=1)
    return (lengths - counts).clamp(min=1) / lengths
