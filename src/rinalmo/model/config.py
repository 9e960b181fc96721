"""The sizes of a RiNALMo encoder, the four published presets, and what a model costs.

Field names are those of a Hugging Face `config.json`. `intermediate_size` is by convention the nominal
4 × `hidden_size`; the gated feed-forward network uses two thirds of it (`ffn_size`, 3413 for giga).

The published costs of giga, 84.43 GMACs and 168.92 GFLOPs, hold for 128 tokens through encoder and pooler, counted as
follows (determined by solving for the length, exact to the last printed digit):

    MACs    every matrix product: linear layers, query × key, probabilities × value
    FLOPs   2 × MACs + 5 per element of each layer norm + 1 per attention probability

The FLOPs of training are those of `rinalmo.training.trainer`, which count matrix products only.

Reference: Penić et al. 2025 (arXiv:2403.00043).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from rinalmo.errors import CheckpointError

# No published model comes near these; a config beyond them is damaged or hostile and is refused before allocation.
MAX_PARAMETERS = 100_000_000_000


@dataclass(frozen=True)
class ModelConfig:
    """Everything that the encoder's shapes and numbers depend on.

    Attributes:
        hidden_size: Model width.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Heads per block; each has an even width.
        intermediate_size: Nominal feed-forward width; 0 means 4 × `hidden_size`.
        vocab_size: Number of tokens.
        layer_norm_eps: Epsilon of all layer norms in the encoder.
        attention_dropout: Dropout on attention weights in training.
        hidden_dropout: Dropout on each residual branch in training.
        token_dropout: Whether `<mask>` is embedded as zero and the other tokens are scaled up.
        mask_token_id: Id of `<mask>`.
        cls_token_id: Id of the first token of a sequence.
        eos_token_id: Id of the last token of a sequence.
        initializer_range: Standard deviation of new weights.

    Raises:
        CheckpointError: A value that no encoder can have.

    Source: Penić et al. 2025, https://arxiv.org/abs/2403.00043.

    Examples:
        >>> from rinalmo import ModelConfig
        >>> config = ModelConfig.preset("giga")
        >>> config.hidden_size, config.head_size, config.ffn_size
        (1280, 64, 3413)
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int = 20
    intermediate_size: int = 0
    vocab_size: int = 28
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.1
    hidden_dropout: float = 0.1
    token_dropout: bool = True
    mask_token_id: int = 4
    cls_token_id: int = 1
    eos_token_id: int = 2
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.intermediate_size == 0:
            object.__setattr__(self, "intermediate_size", 4 * self.hidden_size)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"):
            value = getattr(self, name)
            if value < 1:
                raise CheckpointError(f"config: {name} is {value!r}; it must be a positive whole number")
        for name in ("attention_dropout", "hidden_dropout"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise CheckpointError(f"config: {name} is {value!r}; it must be a number in [0, 1)")
        if not 0.0 <= self.layer_norm_eps < math.inf:
            raise CheckpointError(
                f"config: layer_norm_eps is {self.layer_norm_eps!r}; it must be a number of at least 0"
            )
        if self.hidden_size % self.num_attention_heads or self.head_size % 2:
            raise CheckpointError(
                f"config: hidden_size {self.hidden_size} cannot be split into {self.num_attention_heads} attention "
                "heads of even size"
            )
        if self.encoder_parameters > MAX_PARAMETERS:
            raise CheckpointError(f"config: a model of {self.encoder_parameters:.1e} parameters is not a RiNALMo")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        """Width of the gated feed-forward network: two thirds of `intermediate_size`, rounded down."""
        return 2 * self.intermediate_size // 3

    @property
    def encoder_parameters(self) -> int:
        """Number of parameters in embedding, blocks and final layer norm, without any head."""
        d, h = self.hidden_size, self.ffn_size
        block = 4 * d * d + 4 * d + 2 * (d * h + h) + 1 + h * d + d
        return self.vocab_size * d + self.num_hidden_layers * block + 2 * d

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ModelConfig:
        """A published configuration.

        Args:
            name: "nano", "micro", "mega" or "giga".
            **changes: Fields with other values, such as `vocab_size=22`.

        Raises:
            CheckpointError: An unknown name, or a value that no encoder can have.
        """
        if name not in PRESETS:
            raise CheckpointError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """A configuration from a mapping such as a parsed `config.json`; keys that are not fields are ignored.

        Raises:
            CheckpointError: A size is missing, or a value has the wrong type or is impossible.
        """
        if missing := [name for name in ("hidden_size", "num_hidden_layers") if values.get(name) is None]:
            raise CheckpointError(f"config: {', '.join(missing)} is missing")
        known: dict[str, Any] = {}
        for field in fields(cls):
            kind, value = str(field.type), values.get(field.name)
            if value is None:
                continue
            types, description = _JSON_TYPES[kind]
            if not isinstance(value, types) or isinstance(value, bool) != (kind == "bool"):
                raise CheckpointError(f"config: {field.name} is {value!r}; it must be {description}")
            known[field.name] = (
                float(value) if isinstance(value, int) and kind == "float" else value
            )  # JSON may have 0 for 0.0
        return cls(**known)


_JSON_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
}

PRESETS: dict[str, dict[str, Any]] = {
    "nano": {"hidden_size": 320, "num_hidden_layers": 6},
    "micro": {"hidden_size": 480, "num_hidden_layers": 12},
    "mega": {"hidden_size": 640, "num_hidden_layers": 30},
    "giga": {"hidden_size": 1280, "num_hidden_layers": 33},
}


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
