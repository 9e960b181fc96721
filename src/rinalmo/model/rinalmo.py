"""RiNALMo on packed tokens: embedding, attention, feed-forward network, block, encoder; then the model with its heads.

It is a bidirectional transformer with rotary positions and SwiGLU. What is unusual:

    - Token dropout: `<mask>` is embedded as zero, and the other tokens of a sequence are scaled up by how many masks
      it has, relative to the expected share in pre-training (0.15 × 0.8).
    - Not quite pre-norm: the first residual connection of a block starts from the *normalized* input.
    - The slope of the swish is a parameter, `beta`, one per block.
    - Linear layers of the attention have no bias, those of the feed-forward network have.

Axis names: `tokens`, all tokens of the batch; `hidden`, the model width; `head`, the width of one attention head.

In the whole model, `RiNALMo`, a head is an attribute with its name. Names and shapes of a file's tensors give its heads
and their sizes (`ModelSpec.with_heads`).

References: Penić et al. 2025 (arXiv:2403.00043) for the model, Su et al. 2021 (arXiv:2104.09864) for rotary positions,
Shazeer 2020 (arXiv:2002.05202) for SwiGLU, Lin et al. 2023 (ESM-2) for token dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rinalmo.errors import CheckpointError
from rinalmo.model import kernels
from rinalmo.model.config import ModelConfig
from rinalmo.model.heads import (
    ClassificationHead,
    ContactHead,
    HeadConfig,
    JointHead,
    LinearHead,
    MaskedLMHead,
    Pooler,
    ProblemType,
    RibosomeLoadHead,
    SequenceHead,
    StructureHead,
    TokenHead,
)
from rinalmo.model.kernels import (
    Backend,
    Rotation,
    WeightsHook,
    attend,
    attend_in_training,
    attend_with_weights,
    compiled_region,
    gated_swish,
    is_hooked,
    rotate,
    rotation,
)
from rinalmo.model.packing import Layout
from rinalmo.model.structure_heads import Combiner, PartnerHead
from rinalmo.rna.alphabet import Alphabet

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


# --- The model with its heads ---

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build and use a `RiNALMo`, except its weights.

    Attributes:
        config: Sizes of the encoder.
        alphabet: The tokens that ids stand for.
        heads: For each head's name the arguments of its class.
        threshold: Pairing probability above which the structure decoder accepts a pair, tuned on validation data.
        task: The task that the model was fine-tuned for, with its settings (`rinalmo.tasks`).
        problem_type: Of the head on sequences or tokens, as transformers' configs name it; None if that is not known.
        labels: Names of that head's outputs.
    """

    config: ModelConfig
    alphabet: Alphabet = field(default_factory=Alphabet)
    heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    threshold: float | None = None
    task: Mapping[str, Any] | None = None
    problem_type: ProblemType | None = None
    labels: Sequence[str] = ()

    def with_heads(self, shapes: Shapes, head_config: HeadConfig, pooling: str = "cls") -> ModelSpec:
        """The same with the heads that have tensors of these names and shapes.

        What shapes do not determine comes from `head_config` (activations, dropout, eps) and `pooling`.
        """
        heads: dict[str, dict[str, Any]] = {}
        for name in HEADS:
            own = {key.removeprefix(f"{name}."): shape for key, shape in shapes.items() if key.startswith(f"{name}.")}
            if own:
                heads[name] = _head_options(name, own, head_config)
                if pooling != "cls" and name in _POOLING:
                    heads[name]["pooling"] = pooling
        return replace(self, heads=heads)

    @property
    def pooling(self) -> str:
        """How heads on whole sequences pool tokens: "cls" or "mean"."""
        return next((str(options["pooling"]) for options in self.heads.values() if "pooling" in options), "cls")


class RiNALMo(nn.Module):
    """Encoder, heads, alphabet. Built without weights; `rinalmo.load` returns one with weights.

    Attributes:
        spec: What the model is built from.
        config: Sizes of the encoder.
        alphabet: The tokens that ids stand for.
        encoder: The encoder; each head is an attribute of its own name beside it.
        adapter_sha256: Of the adapter that was merged into the weights; empty if there was none.
    """

    adapter_sha256 = ""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config, self.alphabet = spec, spec.config, spec.alphabet
        self.encoder = Encoder(spec.config)
        for name, options in spec.heads.items():
            if name not in HEADS:
                raise CheckpointError(f"no head {name!r}; there are {', '.join(HEADS)}")
            self.add_module(name, HEADS[name](spec.config, **options))

    def forward(self, ids: Int[Tensor, " tokens"], layout: Layout) -> EncoderOutput:
        """The encoder's states of a packed batch (`rinalmo.model.packing.pack`), without any head."""
        return self.encoder(ids, layout)

    def head(self, name: str) -> nn.Module:
        """One of the heads; raises CheckpointError if this model does not have it."""
        if name not in self.spec.heads:
            raise CheckpointError(f"this model has no {name}; its heads: {', '.join(self.spec.heads) or 'none'}")
        return self.get_submodule(name)


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """Draw fresh weights: normal of standard deviation `std`, biases 0, norms and betas 1."""
    for name, parameter in module.named_parameters():
        if name.endswith(("norm.weight", "beta")):
            nn.init.ones_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=std)
    for name, buffer in module.named_buffers():
        nn.init.constant_(buffer, float(name.endswith("std")))


def create(spec: ModelSpec, seed: int = 0) -> RiNALMo:
    """A model with fresh weights, which depend on the seed alone, not on the state of torch's generator."""
    with torch.device("meta"):
        model = RiNALMo(spec)
    model.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would also seed GPUs
        initialise(model, spec.config.initializer_range)
    return model


HEADS: dict[str, Callable[..., nn.Module]] = {
    "lm_head": MaskedLMHead,
    "pooler": Pooler,
    "sequence_head": lambda config, **options: SequenceHead(config.hidden_size, HeadConfig(**options)),
    "token_head": lambda config, **options: TokenHead(config.hidden_size, HeadConfig(**options)),
    "linear_head": lambda config, **options: LinearHead(config.hidden_size, **options),
    "joint_head": lambda config, **options: JointHead(config.hidden_size, **options),
    "contact_head": lambda config, **options: ContactHead(config.hidden_size, HeadConfig(**options)),
    "structure_head": lambda config, **options: StructureHead(config.hidden_size, **options),
    "partner_head": lambda config, **options: PartnerHead(config.hidden_size, **options),
    "combiner": lambda config, **options: Combiner(**options),
    "ribosome_load_head": lambda config, **options: RibosomeLoadHead(config.hidden_size, **options),
    "splice_site_head": lambda config, width=128, num_labels=1, **options: ClassificationHead(
        config.hidden_size, width, num_labels, **options
    ),
    "ncrna_family_head": lambda config, width=256, num_labels=88, **options: ClassificationHead(
        config.hidden_size, width, num_labels, **options
    ),
}


_POOLING = ("pooler", "splice_site_head", "ncrna_family_head")


def _head_options(name: str, shapes: Shapes, head_config: HeadConfig) -> dict[str, Any]:
    """The arguments of a head, from the shapes of its tensors; their names are without the head's."""

    def size(key: str) -> int:
        if key not in shapes:
            raise CheckpointError(f"the tensors of {name} lack {name}.{key}")
        return shapes[key][0] if shapes[key] else 0

    blocks = len({key.split(".")[1] for key in shapes if key.startswith("blocks.")})
    match name:
        case "lm_head" | "pooler":
            return {}
        case "linear_head":
            if len(shapes.get("decoder.weight", ())) != 2:
                raise CheckpointError("the tensors of linear_head lack linear_head.decoder.weight")
            return {"num_labels": size("decoder.weight"), "inputs": shapes["decoder.weight"][1]}
        case "joint_head":
            if len(shapes.get("dense.weight", ())) != 2:
                raise CheckpointError("the tensors of joint_head lack joint_head.dense.weight")
            return {"num_labels": size("decoder.weight"), "inputs": shapes["dense.weight"][1]}
        case "structure_head":
            channels, labels = size("projection.weight"), size("prediction.weight")
            return {"channels": channels, "num_blocks": blocks, "num_labels": labels}
        case "partner_head":
            channels = size("final_norm.weight")
            return {"channels": channels, "num_blocks": blocks, "rank": size("left.weight") // channels}
        case "combiner":
            return {"channels": size("pair_norm.weight"), "num_blocks": blocks}
        case "ribosome_load_head":
            return {"channels": size("projection.weight"), "num_blocks": blocks}
        case "splice_site_head" | "ncrna_family_head":
            return {"width": size("dense.weight"), "num_labels": size("decoder.weight")}
    transform = (head_config.transform or "nonlinear") if "transform.dense.weight" in shapes else None
    labels, has_bias = size("decoder.weight"), "decoder.bias" in shapes
    return {**vars(head_config), "num_labels": labels, "transform": transform, "bias": has_bias}
