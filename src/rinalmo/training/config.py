"""Recipes of training: everything that decides how a run goes, checked before anything is computed.

A recipe is a name (`pretrain-nano`, one of those in `rinalmo/recipes/`) or a file. `--set section.key=value` changes
single values under the same checks. A run folder keeps the recipe with all defaults filled in, which is itself a
recipe. The surprise: PyYAML reads `5e-5` as text (YAML 1.1 wants a dot), so numbers are converted by pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rinalmo.model.config import ModelConfig
from rinalmo.recipe_files import Section, load, parse

PREFIX = "pretrain-"


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

    source: dict[str, float] = Field(default_factory=dict)
    family: dict[str, float] = Field(default_factory=dict)
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
    checkpoint_every       steps between checkpoints; None: one after each epoch
    clip                   largest norm of the gradient
    precision              bf16: autocast with fp32 weights (under fsdp, bf16 copies of them); fp16: the same with a
                           scaled loss, for GPUs without bf16; fp32; auto: bf16, or fp16 on such a GPU, where the
                           device has it natively, which the run's own recipe then says
    sharding               ddp: every process holds the model; fsdp: they share it
    activation_checkpointing   recompute each block in the backward pass instead of keeping its inside
    deadline               seconds after which a process that waits for another one gives up
    """

    seed: int = 0
    max_steps: PositiveInt | None = None
    epochs: PositiveInt = 6
    checkpoint_every: PositiveInt | None = 1000
    clip: PositiveFloat = 1.0
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
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
    """Linear warm-up from `start_lr`, then down to `min_lr` over `decay_steps` (None: the rest of the run).

    shape   cosine, linear, or constant: no way down
    """

    shape: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: NonNegativeInt = 2000
    start_lr: NonNegativeFloat = 1e-7
    min_lr: NonNegativeFloat = 1e-5
    decay_steps: PositiveInt | None = None


class ValidationRecipe(Section):
    """Every so many steps (None: each epoch) and at the end, over at most `per_source` sequences of each source."""

    every: PositiveInt | None = 1000
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


class RunRecipe(Section):
    """What every run has, whatever is learned."""

    train: TrainRecipe = TrainRecipe()
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe = ScheduleRecipe()
    validation: ValidationRecipe = ValidationRecipe()
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    logging: LoggingRecipe = LoggingRecipe()

    def dump(self) -> str:
        """As YAML with all defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class Recipe(RunRecipe):
    """A whole pre-training run. `init` is a model to go on from: a name, folder or file; None: fresh weights."""

    init: str | None = None
    model: ModelRecipe = ModelRecipe()
    data: DataRecipe = DataRecipe()


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or file, with `section.key=value` overrides.

    Raises InputError naming the key, its value and, for an unknown key, the nearest one.
    """
    return load(Recipe, source, overrides, PREFIX)


def parse_recipe(values: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from nested values; `source` is what errors call it."""
    return parse(Recipe, values, source)
