"""The sizes of a RiNALMo encoder and the four published presets.

Field names are those of a Hugging Face `config.json`, so that one file serves every skin. The surprise is
`intermediate_size`: by convention it is the nominal 4 × `hidden_size`, of which the gated network uses two thirds
(`ffn_size`, 3413 for giga).

Reference: Penić et al. 2025 (arXiv:2403.00043).
"""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from typing import Any

from rinalmo.errors import CheckpointError

# No published model comes near these; a config beyond them is damaged or hostile and is refused before allocation.
MAX_PARAMETERS = 100_000_000_000


@dataclass(frozen=True)
class ModelConfig:
    """Everything that the encoder's shapes and numbers depend on."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int = 20
    intermediate_size: int = 0  # 0: 4 × hidden_size
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
        for name, top in (("attention_dropout", 1.0), ("hidden_dropout", 1.0), ("layer_norm_eps", 1.0)):
            value = getattr(self, name)
            if not 0.0 <= value < top:
                raise CheckpointError(f"config: {name} is {value!r}; it must be a number in [0, {top:g})")
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
    def block_parameters(self) -> int:
        """Trainable numbers in one block."""
        d, h = self.hidden_size, self.ffn_size
        return 4 * d * d + 4 * d + 2 * (d * h + h) + 1 + h * d + d

    @property
    def encoder_parameters(self) -> int:
        """Trainable numbers in embedding, blocks and final layer norm, without any head."""
        d = self.hidden_size
        return self.vocab_size * d + self.num_hidden_layers * self.block_parameters + 2 * d

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ModelConfig:
        """One of `PRESETS`, optionally with other values, such as `vocab_size=22`."""
        if name not in PRESETS:
            raise CheckpointError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The fields of this class found in `values` (such as a parsed `config.json`); others are ignored."""
        names = {field.name for field in fields(cls)}
        known = {name: value for name, value in values.items() if name in names and value is not None}
        missing = {"hidden_size", "num_hidden_layers"} - known.keys()
        if missing:
            raise CheckpointError(f"config: no value for {', '.join(sorted(missing))}")
        return cls(**{field.name: _typed(field, known[field.name]) for field in fields(cls) if field.name in known})


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def _typed(field: Field[Any], value: Any) -> Any:
    """The value as the field's type, from JSON, where a float may be written as 0."""
    kind = str(field.type)
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
    }[kind]
    if not fits:
        raise CheckpointError(f"config: {field.name} is {value!r}; it must be {_KINDS[kind]}")
    return float(value) if kind == "float" else value


PRESETS: dict[str, dict[str, Any]] = {
    "nano": {"hidden_size": 320, "num_hidden_layers": 6},
    "micro": {"hidden_size": 480, "num_hidden_layers": 12},
    "mega": {"hidden_size": 640, "num_hidden_layers": 30},
    "giga": {"hidden_size": 1280, "num_hidden_layers": 33},
}
