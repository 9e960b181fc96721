"""Whether modules compute what their class says, or somebody listens to them or has changed them.

Code that reads a layer's weight instead of calling the layer asks here first.
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
    Region,
    Rotation,
    WeightsHook,
    attend,
    attend_with_weights,
    gated_swish,
    rotate,
    rotation,
)
from rinalmo.model.packing import Layout


def is_hooked(module: nn.Module) -> bool:
    """Whether a module or one within it has a hook on its forward pass, or a `forward` of its own (accelerate's)."""
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        return True
    return any(_is_hooked_itself(part) for part in module.modules())


def _is_hooked_itself(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in vars(module)


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
        self, x: Float[Tensor, "tokens hidden"], layout: Layout, by: Rotation, weights: WeightsHook | None = None
    ) -> Float[Tensor, "tokens hidden"]:
        """With `weights` given, the written-out path runs and passes this layer's attention through it."""
        qkv = self.qkv(x)
        dropout = self.dropout if self.training else 0.0
        if weights is None and self.backend == "auto" and layout.real is None and trains_on_cpu(qkv):
            return self.output(kernels.attend_in_training(qkv, layout, by, x.shape[-1] // self.head_size, dropout))
        q, k, v = self.heads(qkv, by)
        if weights is None:
            return self.output(self.attend(q, k, v, layout))
        y, _ = attend_with_weights(q, k, v, layout, dropout=dropout, hook=weights)
        return self.output(y.flatten(1))

    def heads(self, qkv: Float[Tensor, "tokens three_hidden"], by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both rotated) and values, each `(tokens, heads, head)`."""
        q, k, v = qkv.unflatten(-1, (3, -1, self.head_size)).unbind(1)
        return rotate(q, by), rotate(k, by), v

    def attend(
        self,
        q: Float[Tensor, "tokens heads head"],
        k: Float[Tensor, "tokens heads head"],
        v: Float[Tensor, "tokens heads head"],
        layout: Layout,
    ) -> Float[Tensor, "tokens hidden"]:
        """What the heads say of each token, before the output projection."""
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, layout, dropout=dropout, backend=self.backend).flatten(1)


def trains_on_cpu(x: Tensor) -> bool:
    """Whether `cpu_training` serves best: gradients are wanted, on a CPU."""
    return x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class SwiGLU(nn.Module):
    """Gated feed-forward network whose swish has a learned slope, `beta`.

    `gate_up` is one matrix: the gate's rows (which go through the swish), then those it multiplies.
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


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward network, each with a residual connection.

    This is not quite pre-norm. The first residual starts from the *normalised* input, and the
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
        by: Rotation,
        weights: WeightsHook | None = None,
        compiled: bool = False,
    ) -> Float[Tensor, "tokens hidden"]:
        """The block's output; `compiled` fuses what is not attention (`rinalmo.model.kernels`)."""
        if compiled and weights is None and not self._is_changed():
            x, q, k, v = _before_attention.compiled(self, x, *by)
            return _after_attention.compiled(self, x, self.attention.attend(q, k, v, layout))
        x = self.attention_norm(x)
        return self._feed_forward(x + self.dropout(self.attention(x, layout, by, weights)))

    def _is_changed(self) -> bool:
        """Whether regions would pass by what somebody has hooked or replaced. The block's own hooks are honoured."""
        return type(self.attention) is not Attention or any(map(is_hooked, self.children()))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


# Without annotations: the tests' checker of shapes would be traced along.


@Region
def _before_attention(block, x, cos, sin):  # type: ignore[no-untyped-def]
    """The normed input, on which the residual starts, and queries, keys and values."""
    x = block.attention_norm(x)
    return x, *block.attention.heads(block.attention.qkv(x), Rotation(cos, sin))


@Region
def _after_attention(block, x, y):  # type: ignore[no-untyped-def]
    return block._feed_forward(x + block.dropout(block.attention.output(y)))


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
        self.fuse: bool | None = None  # what `rinalmo.model.kernels.wanted` is asked for
        self._tokens_seen = 0
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_hidden_layers))
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
        """Whether blocks are to be compiled for these tokens (`rinalmo.model.kernels`)."""
        if torch.compiler.is_compiling():  # by the caller, as a whole
            return False
        training = self.training and torch.is_grad_enabled()
        if not training:
            self._tokens_seen += len(x)
        return kernels.wanted(x.device, explicit=self.fuse, training=training, tokens=self._tokens_seen)
