"""The encoder: embedding, blocks, final layer norm.

Whole model at a glance, for giga: 33 × (attention + SwiGLU) at width 1280, rotary positions, no length limit.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rinalmo.model.attention import Attention
from rinalmo.model.backends import Backend
from rinalmo.model.block import EncoderBlock
from rinalmo.model.config import ModelConfig
from rinalmo.model.embedding import Embedding
from rinalmo.model.packing import Layout
from rinalmo.model.rotary import rotation


class EncoderOutput(NamedTuple):
    """What the encoder found.

    last_hidden_state   (tokens, hidden), after the final layer norm
    hidden_states       if asked for: blocks + 1 tensors, the embedding first, `last_hidden_state` last
    attentions          if asked for: per block, per sequence, (heads, length, length)
    """

    last_hidden_state: Float[Tensor, "tokens hidden"]
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: list[list[Tensor]] | None = None


class Encoder(nn.Module):
    """RiNALMo without a head, on packed token ids."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def set_attention_backend(self, backend: Backend) -> None:
        """Use this backend in every block; see `rinalmo.model.backends`."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    def forward(
        self,
        ids: Int[Tensor, " tokens"],
        layout: Layout,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Encode a packed batch. Attention weights take O(length²) memory each: ask for them only on short RNA."""
        x = self.embedding(ids, layout)
        by = rotation(layout.positions, self.config.head_size)
        states = [x]
        weights: list[list[Tensor]] | None = [] if output_attentions else None
        for block in self.blocks:
            if self.gradient_checkpointing and self.training and weights is None:
                x = checkpoint(block, x, layout, by, weights, use_reentrant=False)
            else:
                x = block(x, layout, by, weights)
            if output_hidden_states:
                states.append(x)
        x = self.final_norm(x)
        # The last block's output counts only after the final norm, as in both reference implementations.
        return EncoderOutput(x, (*states[:-1], x) if output_hidden_states else None, weights)
