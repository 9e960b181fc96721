"""The encoder: embedding, blocks, final layer norm.

Whole model at a glance, for giga: 33 × (attention + SwiGLU) at width 1280, rotary positions, no length limit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rinalmo.model import compiling
from rinalmo.model.attention import Attention
from rinalmo.model.backends import Backend, WeightsHook
from rinalmo.model.block import EncoderBlock, SwiGLU
from rinalmo.model.config import ModelConfig
from rinalmo.model.embedding import Embedding, drop_tokens
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
        self.checkpointing_function: Callable[..., Any] = partial(checkpoint, use_reentrant=False)
        self.checkpointed_every = 1  # gradient checkpointing of every n-th block
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
            elif isinstance(module, SwiGLU):
                module.eager = backend == "eager"

    def forward(
        self,
        ids: Int[Tensor, " tokens"] | None,
        layout: Layout,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        inputs_embeds: Callable[[], Tensor] | None = None,
        states_hook: Callable[[Tensor], Tensor] | None = None,
        weights_hook: WeightsHook | None = None,
    ) -> EncoderOutput:
        """Encode a packed batch. Attention weights take O(length²) memory each: ask for them only on short RNA.

        Args:
            ids: Packed token ids; None if only embeddings are known.
            layout: Where each sequence lies.
            output_hidden_states: Whether to return the states of all layers.
            output_attentions: Whether to return attention weights.
            inputs_embeds: Gives the packed embeddings, in place of `embedding(ids)`.
            states_hook: Called with the states of each layer, the embedding first; returns those to go on with.
            weights_hook: Called with the attention weights of each block; returns those to go on with.

        Returns:
            Packed states, and what was asked for beside them.
        """
        weights: list[list[Tensor]] | None = [] if output_attentions else None

        def keep(layer: list[Tensor]) -> list[Tensor]:
            assert weights is not None
            weights.append(layer)
            return layer

        embedded = None if inputs_embeds is None else inputs_embeds()
        states = self.states(ids, layout, keep if output_attentions else weights_hook, embedded)
        every: list[Tensor] = []
        x = next(states)
        while True:
            x = x if states_hook is None else states_hook(x)
            if output_hidden_states:
                every.append(x)
            try:
                x = states.send(x)
            except StopIteration:
                return EncoderOutput(x, tuple(every) if output_hidden_states else None, weights)

    def states(
        self,
        ids: Int[Tensor, " tokens"] | None,
        layout: Layout,
        weights: WeightsHook | None = None,
        inputs_embeds: Float[Tensor, "tokens hidden"] | None = None,
    ) -> Generator[Tensor, Tensor | None, None]:
        """The embedding, then each block's output, one at a time: what is not kept by the caller is freed.

        Args:
            ids: Packed token ids; None if only embeddings are known.
            layout: Where each sequence lies.
            weights: Called with each block's attention weights; returns those to compute with.
            inputs_embeds: What `embedding` gave for the tokens. Without ids, a vector of zeros is a `<mask>`.

        Yields:
            Packed states `(tokens, hidden)`. The last block's output comes after the final layer norm, since it counts
            nowhere without it in either reference implementation. A tensor that is sent back takes the yielded one's
            place.
        """
        x = self._embed(ids, layout, inputs_embeds)
        replaced = yield x
        x = x if replaced is None else replaced
        by = rotation(layout.positions, self.config.head_size)
        compiled = self._compiles(x)
        for number, block in enumerate(self.blocks):
            checkpointed = self.gradient_checkpointing and self.training and not number % self.checkpointed_every
            if checkpointed and weights is None:
                x = self.checkpointing_function(block, x, layout, by, weights, compiled)
            else:
                x = block(x, layout, by, weights, compiled)
            replaced = yield x if number < len(self.blocks) - 1 else self.final_norm(x)
            x = x if replaced is None else replaced

    def _embed(self, ids: Tensor | None, layout: Layout, inputs_embeds: Tensor | None) -> Tensor:
        x = self.embedding(ids) if inputs_embeds is None else inputs_embeds
        if not self.config.token_dropout:
            return x
        masked = ids == self.config.mask_token_id if ids is not None else (x == 0).all(dim=-1)
        return drop_tokens(x, masked, layout)

    def _compiles(self, x: Tensor) -> bool:
        """Whether blocks are to be compiled for these tokens (`rinalmo.model.compiling`)."""
        if torch.compiler.is_compiling():  # by the caller, as a whole
            return False
        training = self.training and torch.is_grad_enabled()
        if not training:
            self._tokens_seen += len(x)
        return compiling.wanted(x.device, explicit=self.fuse, training=training, tokens=self._tokens_seen)
