"""The network of RiNALMo without a head, on packed tokens: embedding, attention, feed-forward network, block, encoder.

It is a bidirectional transformer with rotary positions and SwiGLU. What is unusual:

    - Token dropout: `<mask>` is embedded as zero, and the other tokens of a sequence are scaled up by how many masks
      it has, relative to the expected share in pre-training (0.15 × 0.8).
    - Not quite pre-norm: the first residual connection of a block starts from the *normalized* input.
    - The slope of the swish is a parameter, `beta`, one per block.
    - Linear layers of the attention have no bias, those of the feed-forward network have.

Axis names: `tokens`, all tokens of the batch; `hidden`, the model width; `head`, the width of one attention head.

References: Penić et al. 2025 (arXiv:2403.00043) for the model, Su et al. 2021 (arXiv:2104.09864) for rotary positions,
Shazeer 2020 (arXiv:2002.05202) for SwiGLU, Lin et al. 2023 (ESM-2) for token dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.utils.checkpoint import checkpoint

from rinalmo.model import kernels
from rinalmo.model.config import ModelConfig
from rinalmo.model.kernels import (
    Backend,
    Rotation,
    WeightsHook,
    attend,
    attend_in_training,
    attend_with_weights,
    compiled_region,
    gated_swish,
    rotate,
    rotation,
)
from rinalmo.model.packing import Layout

EXPECTED_MASKED = 0.15 * 0.8


class Embedding(nn.Embedding):
    """Embeds token ids; with token dropout `<mask>` becomes zero. `drop_tokens` does the scaling."""

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
    """Token dropout: zero where `masked`, the other embeddings of each sequence scaled up to make up for it."""
    counts, valid = layout.sums(masked.float()), layout.valid_counts.clamp(min=1)
    unmasked = (valid - counts).clamp(min=1) / valid  # never 0, so that a sequence of masks stays finite
    scale = (1 - EXPECTED_MASKED) / unmasked
    return x * (~masked * scale[layout.sequence_ids]).to(x.dtype)[:, None]


class Attention(nn.Module):
    """Self-attention within each sequence of a packed batch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.dropout = config.attention_dropout
        self.backend: Backend = "auto"
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, x: Float[Tensor, "tokens hidden"], layout: Layout, rope: Rotation, weights_hook: WeightsHook | None = None
    ) -> Float[Tensor, "tokens hidden"]:
        qkv, dropout = self.qkv(x), self.dropout if self.training else 0.0
        if weights_hook is None and self.backend == "auto" and not layout.has_padding and trains_on_cpu(qkv):
            return self.output(attend_in_training(qkv, layout, rope, self.head_size, dropout))
        q, k, v = self.rotated_heads(qkv, rope)
        if weights_hook is None:
            y = attend(q, k, v, layout, dropout=dropout, backend=self.backend)
        else:
            y, _ = attend_with_weights(q, k, v, layout, dropout=dropout, hook=weights_hook)
        return self.output(y.flatten(1))

    def rotated_heads(self, qkv: Float[Tensor, "tokens three_hidden"], rope: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both with rotary positions) and values, each `(tokens, heads, head)`."""
        q, k, v = qkv.unflatten(-1, (3, -1, self.head_size)).unbind(1)
        return rotate(q, rope), rotate(k, rope), v


class SwiGLU(nn.Module):
    """Gated feed-forward network whose swish has a trained slope, `beta`.

    `gate_up` is one matrix: the rows of the gate, which goes through the swish, then the rows of `up`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eager = False  # written out, so that it can be differentiated twice
        self.beta = nn.Parameter(torch.ones(1))
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.ffn_size)
        self.down = nn.Linear(config.ffn_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        if not self.eager and trains_on_cpu(gate):
            return self.down(gated_swish(gate, up, self.beta))
        return self.down(gate * torch.sigmoid(self.beta * gate) * up)


def trains_on_cpu(x: Tensor) -> bool:
    """Whether the kernels for training on a CPU apply: gradients are recorded, eagerly."""
    if x.device.type != "cpu" or not x.requires_grad or not torch.is_grad_enabled():
        return False
    return not torch.compiler.is_compiling() and not functorch_transforms()


def functorch_transforms() -> list[str]:
    """The transforms of `torch.func` within which this is called, such as "Grad" and "Vmap"."""
    return [level.key().name for level in torch._C._functorch.get_interpreter_stack() or ()]


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward network, each with a residual connection.

    This is not quite pre-norm. The first residual starts from the *normalized* input, and the
    published weights were trained that way, so the textbook form would give other outputs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn = SwiGLU(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        x: Float[Tensor, "tokens hidden"],
        layout: Layout,
        rope: Rotation,
        weights_hook: WeightsHook | None = None,
        compiled: bool = False,
    ) -> Float[Tensor, "tokens hidden"]:
        if compiled and weights_hook is None and not self._is_customised():
            attention = self.attention
            dropout = attention.dropout if attention.training else 0.0
            x, q, k, v = _before_attention(self, x, *rope)
            y = attend(q, k, v, layout, dropout=dropout, backend=attention.backend)
            return _after_attention(self, x, y.flatten(1))
        x = self.attention_norm(x)
        x = x + self.dropout(self.attention(x, layout, rope, weights_hook))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))

    def _is_customised(self) -> bool:
        """Whether a compiled region would bypass a hook or a replaced module. The block's own hooks are honoured."""
        return type(self.attention) is not Attention or any(map(is_hooked, self.children()))


# The block in two compiled regions, before and after attention. They have no annotations, since the tests' shape
# checker would be traced along.


@compiled_region
def _before_attention(block, x, cos, sin):  # type: ignore[no-untyped-def]
    x = block.attention_norm(x)
    return x, *block.attention.rotated_heads(block.attention.qkv(x), Rotation(cos, sin))


@compiled_region
def _after_attention(block, x, y):  # type: ignore[no-untyped-def]
    x = x + block.dropout(block.attention.output(y))
    return x + block.dropout(block.ffn(block.ffn_norm(x)))


def is_hooked(module: nn.Module) -> bool:
    """Whether a module or a submodule has forward or backward hooks, or a replaced `forward` (as accelerate does).

    Code that reads a layer's weight instead of calling the layer asks here first.
    """
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        return True
    return any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        or "forward" in vars(part)
        for part in module.modules()
    )


class EncoderOutput(NamedTuple):
    """Outputs of the encoder.

    last_hidden_state   (tokens, hidden), after the final layer norm
    hidden_states       if requested: blocks + 1 tensors, the embedding first, `last_hidden_state` last
    attentions          if requested: per block, per sequence, (heads, length, length)
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
        self.fuse: bool | None = None  # whether to compile; None decides by device and use (`kernels.should_compile`)
        self._inferred_tokens = 0
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList([EncoderBlock(config) for _ in range(config.num_hidden_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def set_attention_backend(self, backend: Backend) -> None:
        """Use this backend in every block; see `rinalmo.model.kernels`."""
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
        """Encode a packed batch. Attention weights take O(length²) memory each: request them only for short RNA.

        Args:
            ids: Packed token ids; None if only embeddings are known.
            layout: Where each sequence lies.
            output_hidden_states: Whether to return the states of all layers.
            output_attentions: Whether to return attention weights.
            inputs_embeds: Returns packed embeddings to use instead of `embedding(ids)`.
            states_hook: Called with the states of each layer, the embedding first; returns their replacement.
            weights_hook: Called with the attention weights of each block; returns their replacement.
        """
        attentions: list[list[Tensor]] = []

        def collect(weights: list[Tensor]) -> list[Tensor]:
            attentions.append(weights)
            return weights

        embeds = None if inputs_embeds is None else inputs_embeds()
        states = self.states(ids, layout, collect if output_attentions else weights_hook, embeds)
        hidden_states: list[Tensor] = []
        x: Any = None
        for _ in range(len(self.blocks) + 1):
            x = states.send(x)
            if states_hook is not None:
                x = states_hook(x)
            if output_hidden_states:
                hidden_states.append(x)
        every = tuple(hidden_states) if output_hidden_states else None
        return EncoderOutput(x, every, attentions if output_attentions else None)

    def states(
        self,
        ids: Int[Tensor, " tokens"] | None,
        layout: Layout,
        weights_hook: WeightsHook | None = None,
        inputs_embeds: Float[Tensor, "tokens hidden"] | None = None,
    ) -> Generator[Tensor, Tensor | None, None]:
        """Yield the embedding, then each block's output, one at a time: only what the caller keeps stays in memory.

        Args:
            ids: Packed token ids; None if only embeddings are known.
            layout: Where each sequence lies.
            weights_hook: Called with each block's attention weights; returns their replacement.
            inputs_embeds: Output of `embedding` for the tokens. Without ids, a vector of zeros is a `<mask>`.

        Yields:
            Packed states `(tokens, hidden)`; a tensor that is sent back replaces them. The last block's output comes
            after the final layer norm, as in both reference implementations.
        """
        config = self.config
        x = self.embedding(ids) if inputs_embeds is None else inputs_embeds
        if config.token_dropout:
            x = drop_tokens(x, ids == config.mask_token_id if ids is not None else (x == 0).all(dim=-1), layout)
        replaced = yield x
        x = x if replaced is None else replaced
        rope = rotation(layout.indices if layout.position_ids is None else layout.position_ids, config.head_size)
        training = self.training and torch.is_grad_enabled()
        if torch.compiler.is_compiling():  # the caller compiles the whole
            compiled = False
        else:
            self._inferred_tokens += 0 if training else len(x)
            compiled = kernels.should_compile(x.device, self.fuse, training=training, tokens=self._inferred_tokens)
        for number, block in enumerate(self.blocks):
            checkpointed = self.gradient_checkpointing and self.training and not number % self.checkpointed_every
            if checkpointed and weights_hook is None:
                x = self.checkpointing_function(block, x, layout, rope, weights_hook, compiled)
            else:
                x = block(x, layout, rope, weights_hook, compiled)
            replaced = yield x if number < len(self.blocks) - 1 else self.final_norm(x)
            x = x if replaced is None else replaced
