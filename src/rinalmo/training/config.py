"""Recipes: everything that decides how a run goes, as YAML that is checked before anything is computed.

A recipe is a name (`pretrain-nano`, one of those in `rinalmo/recipes/`) or a file. `--set section.key=value` changes
single values under the same checks. A run folder keeps the recipe with all defaults filled in, which is itself a
recipe. The surprise: PyYAML reads `5e-5` as text (YAML 1.1 wants a dot), so numbers are converted here, not there.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from rinalmo.errors import InputError
from rinalmo.model.config import ModelConfig

RECIPES = Path(__file__).parents[1] / "recipes"
_MAX_BYTES = 1 << 20


class Section(BaseModel):
    """Part of a recipe: unknown keys are errors, and what was read stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelRecipe(Section):
    """Sizes: those of `preset`, changed by whatever else is given. With `init` only the dropouts count."""

    preset: str | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    layer_norm_eps: float | None = None
    attention_dropout: float | None = None
    hidden_dropout: float | None = None
    token_dropout: bool | None = None
    initializer_range: float | None = None

    def changes(self) -> dict[str, Any]:
        """The fields of `ModelConfig` that are given."""
        return self.model_dump(exclude={"preset"}, exclude_none=True)

    def config(self) -> ModelConfig:
        """The config that this describes; raises CheckpointError if it is none."""
        return ModelConfig.preset(self.preset, **self.changes()) if self.preset else ModelConfig(**self.changes())


class WeightsRecipe(Section):
    """How often clusters are drawn, by source, family and size; see `rinalmo.data.sampler.Weights`."""

    source: dict[str, float] = {}
    family: dict[str, float] = {}
    cluster_exponent: float = 0.0


class MaskingRecipe(Section):
    """Shares of the nucleotides; see `rinalmo.data.masking.Masking`."""

    selected: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1


class DataRecipe(Section):
    """What is read and how it is batched; see `rinalmo.data.batches.BatchOptions`.

    store         folder that `rinalmo data prepare` made
    fingerprint   of that store; filled in when a run starts, and another store is then refused
    workers       threads that make batches ahead
    """

    store: str | None = None
    fingerprint: str | None = None
    sequences_per_batch: int | None = None
    tokens_per_batch: int | None = None
    micro_tokens: int = 4096
    fixed_tokens: bool = False
    max_length: int = 1022
    weights: WeightsRecipe = WeightsRecipe()
    masking: MaskingRecipe = MaskingRecipe()
    workers: NonNegativeInt = 1


class TrainRecipe(Section):
    """The run itself.

    seed                   of fresh weights, of the data's order and masks, of dropout
    max_steps              optimizer steps; None: `epochs` over the data
    checkpoint_every       steps between checkpoints
    clip                   largest norm of the gradient
    precision              bf16: autocast with fp32 weights (under fsdp, bf16 copies of them); fp32
    sharding               ddp: every process holds the model; fsdp: they share it
    activation_checkpointing   recompute each block in the backward pass instead of keeping its inside
    deadline               seconds after which a process that waits for another one gives up
    """

    seed: int = 0
    max_steps: PositiveInt | None = None
    epochs: PositiveInt = 6
    checkpoint_every: PositiveInt = 1000
    clip: PositiveFloat = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    sharding: Literal["ddp", "fsdp"] = "ddp"
    activation_checkpointing: bool = False
    deadline: PositiveFloat = 600.0


class OptimizerRecipe(Section):
    """AdamW."""

    lr: PositiveFloat
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01


class ScheduleRecipe(Section):
    """Linear warm-up from `start_lr`, then a cosine to `min_lr` over `decay_steps` (None: the rest of the run)."""

    warmup_steps: NonNegativeInt = 2000
    start_lr: NonNegativeFloat = 1e-7
    min_lr: NonNegativeFloat = 1e-5
    decay_steps: PositiveInt | None = None


class ValidationRecipe(Section):
    """Every so many steps and at the end, over at most `per_source` sequences of each source."""

    every: PositiveInt = 1000
    per_source: PositiveInt = 256


class CheckpointRecipe(Section):
    """Which checkpoints stay: the last `keep_last`, and the one of least validation loss."""

    keep_last: PositiveInt = 2
    keep_best: bool = True


class LoggingRecipe(Section):
    """`log.jsonl` every so many steps; TensorBoard files and loss plots need the extras `tensorboard` and `plots`.

    `peak_flops` is what utilisation is measured against, of all processes together; None: measured at the start.
    """

    every: PositiveInt = 10
    tensorboard: bool = False
    plots: bool = True
    peak_flops: PositiveFloat | None = None


class Recipe(Section):
    """A whole pre-training run. `init` is a model to go on from: a name, folder or file; None: fresh weights."""

    init: str | None = None
    model: ModelRecipe = ModelRecipe()
    data: DataRecipe = DataRecipe()
    train: TrainRecipe = TrainRecipe()
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe = ScheduleRecipe()
    validation: ValidationRecipe = ValidationRecipe()
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    logging: LoggingRecipe = LoggingRecipe()

    def dump(self) -> str:
        """As YAML with all defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def names() -> list[str]:
    """The recipes that the package brings along."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or file, with `section.key=value` overrides.

    Raises InputError naming the key, its value and, for an unknown key, the nearest one.
    """
    path = _find(source)
    values = _read(path)
    for override in overrides:
        _set(values, override)
    return parse_recipe(values, str(source))


def parse_recipe(values: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from nested values; `source` is what errors call it."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {_explain(error)}") from None


def _find(source: str | Path) -> Path:
    if Path(source).is_file():
        return Path(source)
    name = str(source).removesuffix(".yaml")
    if name in names():
        return RECIPES / f"{name}.yaml"
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
    raise InputError(f"no recipe {str(source)!r} and no such file; {hint}")


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file.read(_MAX_BYTES), Loader=_NoDuplicates)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no sections")
    return values


class _NoDuplicates(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; PyYAML alone would take the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = [self.construct_object(key) for key, _ in node.value]
        twice = [key for key in seen if seen.count(key) > 1]
        if twice:
            raise yaml.YAMLError(f"{twice[0]} stands twice, line {node.start_mark.line + 1} on")
        return super().construct_mapping(node, deep)


def _set(values: dict[str, Any], override: str) -> None:
    """Apply one `section.key=value`."""
    key, sign, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not sign or not last:
        raise InputError(f"--set {override!r}: write section.key=value, such as train.max_steps=1000")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, dict) else {}
        values = values[section]
    values[last] = value


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = nearest(key)
        return f"no key {key!r}" + (f"; did you mean {near}?" if near else "")
    if first["type"] == "missing":
        return f"{key} is missing; write it, or give it with --set {key}=…"
    return f"{key} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def nearest(key: str) -> str | None:
    """The known key most like this one: the same name in another section, or a similar spelling."""
    known = list(_keys(Recipe))
    last = key.rpartition(".")[2]
    moved = [name for name in known if name.rpartition(".")[2] == last]
    return next(iter(moved or difflib.get_close_matches(key, known, n=1, cutoff=0.5)), None)


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
