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


class Embedding(nn.Module):
    """Ids to vectors."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.mask_token_id = config.mask_token_id
        self.token_dropout = config.token_dropout

    def forward(self, ids: Int[Tensor, " tokens"], layout: Layout) -> Float[Tensor, "tokens hidden"]:
        x = nn.functional.embedding(ids, self.weight)
        if not self.token_dropout:
            return x
        masked = ids == self.mask_token_id
        scale = (1 - EXPECTED_MASKED) / kept_ratio(masked, layout)
        return x * (~masked * scale[layout.sequence_ids]).to(x.dtype)[:, None]


def kept_ratio(masked: Bool[Tensor, " tokens"], layout: Layout) -> Float[Tensor, " sequences"]:
    """Share of the tokens of each sequence that are not masked, fp32; never 0, so that all masks stay finite."""
    counts = torch.zeros(len(layout.lengths), dtype=torch.float32, device=masked.device)
    counts.index_add_(0, layout.sequence_ids, masked.float())
    lengths = layout.real_counts.float().clamp(min=1)
    return (lengths - counts).clamp(min=1) / lengths
