"""What a model costs: parameters, arithmetic for one sequence, memory of a training step.

The published figures for giga, 84.43 GMACs and 168.92 GFLOPs, hold for 128 tokens through encoder and pooler, counted
as follows (found by solving for the length, exact to the last printed digit):

    MACs    every matrix product: linear layers, query × key, probabilities × value
    FLOPs   2 × MACs + 5 per element of each layer norm + 1 per attention probability

The FLOPs of training are those of `rinalmo.training.trainer`, which count matrix products only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rinalmo.model.config import PRESETS, ModelConfig
from rinalmo.model.packing import Layout

PUBLISHED_TOKENS = 128
PUBLISHED_MAX_TOKENS = 1022


@dataclass(frozen=True)
class Specification:
    """One row of the model card's table.

    `parameters` counts encoder and pooler, as published; `macs` and `flops` are for one sequence of `tokens`.
    `max_tokens` is the length seen in pre-training where it is known; the model itself has no limit.
    """

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    parameters: int
    flops: int
    macs: int
    tokens: int
    max_tokens: int | None = None


def specification(name: str, config: ModelConfig, tokens: int = PUBLISHED_TOKENS) -> Specification:
    """Sizes and costs of one config."""
    macs = count_macs(config, tokens)
    return Specification(
        name=name,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        parameters=config.encoder_parameters + config.hidden_size**2 + config.hidden_size,
        flops=2 * macs + _other_operations(config, tokens),
        macs=macs,
        tokens=tokens,
        max_tokens=PUBLISHED_MAX_TOKENS if name in PRESETS else None,
    )


def count_macs(config: ModelConfig, tokens: int) -> int:
    """Multiply-accumulates of one sequence through encoder and pooler."""
    d = config.hidden_size
    per_token = 4 * d * d + 3 * d * config.ffn_size
    attention = 2 * tokens * tokens * d
    return config.num_hidden_layers * (tokens * per_token + attention) + d * d


def _other_operations(config: ModelConfig, tokens: int) -> int:
    layer_norms = (2 * config.num_hidden_layers + 1) * tokens * config.hidden_size
    probabilities = config.num_hidden_layers * config.num_attention_heads * tokens * tokens
    return 5 * layer_norms + probabilities


def pretraining_parameters(config: ModelConfig) -> int:
    """Trainable numbers in encoder and masked-LM head."""
    d, vocabulary = config.hidden_size, config.vocab_size
    return config.encoder_parameters + d * d + 3 * d + vocabulary * (d + 1)


def matrix_parameters(config: ModelConfig) -> int:
    """Those in the blocks' matrices, of which autocast makes bf16 copies."""
    return config.num_hidden_layers * (4 * config.hidden_size**2 + 3 * config.hidden_size * config.ffn_size)


def activation_bytes(
    config: ModelConfig,
    lengths: Sequence[int],
    predicted: int,
    *,
    path: Literal["cpu", "sdpa"] = "cpu",
    checkpointing: bool = False,
) -> int:
    """What a training step keeps for its backward pass, in bytes: a packed batch, bf16 autocast, residuals in fp32.

    `predicted` positions go through the masked-LM head. `path` is how a block computes: as `model.cpu_training` does,
    or in plain torch with fused attention, as on a GPU. With `checkpointing` only each block's input is kept; beside
    it the backward pass then needs the inside of one block at a time, which is not counted.
    """
    layout, d = Layout(tuple(lengths)), config.hidden_size
    tokens = layout.total
    inside = {"cpu": _cpu_block_bytes, "sdpa": _sdpa_block_bytes}[path]
    block = 4 * tokens * d if checkpointing else inside(config, layout)
    angles = 4 * config.head_size * tokens if checkpointing or path == "sdpa" else 0
    ends = tokens * (4 * d + 8) + 21 * tokens  # final norm; positions, sequence numbers, masks, factors
    head = predicted * (16 * d + 8 + 4 * config.vocab_size)
    return config.num_hidden_layers * block + angles + ends + head


def _cpu_block_bytes(config: ModelConfig, layout: Layout) -> int:
    """Of `model.cpu_training`: one block.

    A run of a single sequence keeps views, and with them the whole of rotated queries and keys (4) and of what the
    projection gave (6); a run of several keeps copies of its part (6).
    """
    tokens, d, ffn = layout.total, config.hidden_size, config.ffn_size
    single = any(run.count == 1 for run in layout.runs)
    copied = sum(run.count * run.length for run in layout.runs if run.count > 1)
    attention = d * (10 * tokens * single + 6 * copied) + 2 * config.head_size * tokens
    squares = config.num_attention_heads * sum(length * length for length in layout.lengths)
    weights = squares * (5 if config.attention_dropout else 2)
    dropout = 4 * tokens * d if config.hidden_dropout else 0
    return _norms_and_inputs(config, tokens) + attention + weights + 10 * ffn * tokens + dropout


def _sdpa_block_bytes(config: ModelConfig, layout: Layout) -> int:
    """Of plain torch: the projection (6), rotated queries and keys (4), attention's result (2) and its statistics.

    The swish is in fp32, since its slope is (4 for gate and up, 4 the sigmoid, 4 the product, 2 its bf16 form). Masks
    of dropout are one byte each, as a GPU makes them.
    """
    tokens, d = layout.total, config.hidden_size
    attention = tokens * (12 * d + 4 * config.num_attention_heads)
    dropout = 2 * tokens * d if config.hidden_dropout else 0
    return _norms_and_inputs(config, tokens) + attention + 14 * config.ffn_size * tokens + dropout


def _norms_and_inputs(config: ModelConfig, tokens: int) -> int:
    """Two norms keep their fp32 inputs and two statistics; three projections of width `hidden` their bf16 inputs."""
    return tokens * (2 * (4 * config.hidden_size + 8) + 3 * 2 * config.hidden_size)
