"""The encoder: embedding, blocks, final layer norm.

Whole model at a glance, for giga: 33 × (attention + SwiGLU) at width 1280, rotary positions, no length limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rinalmo.model import compiling
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
        self.fuse: bool | None = None  # what `rinalmo.model.compiling.wanted` is asked for
        self._tokens_seen = 0
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
        weights: list[list[Tensor]] | None = [] if output_attentions else None
        states = self.states(ids, layout, weights)
        if output_hidden_states:
            every = tuple(states)
            return EncoderOutput(every[-1], every, weights)
        return EncoderOutput(deque(states, maxlen=1)[0], None, weights)

    def states(
        self, ids: Int[Tensor, " tokens"], layout: Layout, weights: list[list[Tensor]] | None = None
    ) -> Iterator[Tensor]:
        """The embedding, then each block's output, one at a time: what is not kept by the caller is freed.

        Args:
            ids: Packed token ids.
            layout: Where each sequence lies.
            weights: Where each block's attention weights are appended, if given.

        Yields:
            Packed states `(tokens, hidden)`. The last block's output comes after the final layer norm, since it counts
            nowhere without it in either reference implementation.
        """
        x = self.embedding(ids, layout)
        yield x
        by = rotation(layout.positions, self.config.head_size)
        compiled = self._compiles(ids)
        for number, block in enumerate(self.blocks, start=1):
            if self.gradient_checkpointing and self.training and weights is None:
                x = checkpoint(block, x, layout, by, weights, compiled, use_reentrant=False)
            else:
                x = block(x, layout, by, weights, compiled)
            yield x if number < len(self.blocks) else self.final_norm(x)

    def _compiles(self, ids: Tensor) -> bool:
        """Whether blocks are to be compiled for these tokens (`rinalmo.model.compiling`)."""
        if torch.compiler.is_compiling():  # by the caller, as a whole
            return False
        training = self.training and torch.is_grad_enabled()
        if not training:
            self._tokens_seen += len(ids)
        return compiling.wanted(ids.device, explicit=self.fuse, training=training, tokens=self._tokens_seen)
