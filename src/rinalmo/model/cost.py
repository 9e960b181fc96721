"""What a model costs: parameters, and arithmetic for one sequence.

The published figures for giga, 84.43 GMACs and 168.92 GFLOPs, hold for 128 tokens through encoder and pooler, counted
as follows (found by solving for the length, exact to the last printed digit):

    MACs    every matrix product: linear layers, query × key, probabilities × value
    FLOPs   2 × MACs + 5 per element of each layer norm + 1 per attention probability

The FLOPs of training are those of `rinalmo.training.trainer`, which count matrix products only.
"""

from __future__ import annotations

from dataclasses import dataclass

from rinalmo.model.config import PRESETS, ModelConfig

PUBLISHED_TOKENS = 128
PUBLISHED_MAX_TOKENS = 1022


@dataclass(frozen=True)
class Specification:
    """One row of the model card's table.

    `parameters` counts encoder and pooler, as published; `macs` and `flops` are for one sequence of `tokens`.
    `max_tokens` is the maximum length in pre-training where it is known; the model itself has no limit.
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
    layer_norms = (2 * config.num_hidden_layers + 1) * tokens * config.hidden_size
    probabilities = config.num_hidden_layers * config.num_attention_heads * tokens * tokens
    return Specification(
        name=name,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        parameters=config.encoder_parameters + config.hidden_size**2 + config.hidden_size,
        flops=2 * macs + 5 * layer_norms + probabilities,
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
