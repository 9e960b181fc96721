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

from rinalmo.io.recipe_files import Section, load, parse
from rinalmo.model.config import ModelConfig

PRETRAIN_PREFIX = "pretrain-"


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
    """How often clusters are drawn, by source, family and size; see `rinalmo.data.sampling.Weights`."""

    source: dict[str, float] = Field(default_factory=dict)
    family: dict[str, float] = Field(default_factory=dict)
    cluster_exponent: float = 0.0


class MaskingRecipe(Section):
    """Shares of the nucleotides; see `rinalmo.data.sampling.Masking`."""

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
    return load(Recipe, source, overrides, PRETRAIN_PREFIX)


def parse_recipe(values: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from nested values; `source` is what errors call it."""
    return parse(Recipe, values, source)


FINETUNE_PREFIX = "finetune-"


class ColumnsRecipe(Section):
    """Columns of a table of examples; None: found by their usual names."""

    name: str | None = None
    sequence: str | None = None
    target: str | list[str] | None = None
    group: str | None = None


class ExamplesRecipe(Section):
    """Where the examples are, and how they are batched.

    train, validation, test   files; without `validation` a share of `train` is held out, drawn with the run's seed
    fingerprints              of these files; filled in when a run starts, and other contents are then refused
    folds, fold               cross-validation: of so many folds, this one (from 0 on; None: each in turn) is the test
                              set and the one before it the validation set
    sequences_per_batch       of an optimizer step
    micro_tokens              tokens computed at once; results do not depend on it
    crop, crop_at             see at most so many nucleotides, of this part of the sequence; the model remembers it
    max_length                examples longer than this are left out, and counted
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    fingerprints: dict[str, str] = Field(default_factory=dict)
    columns: ColumnsRecipe = ColumnsRecipe()
    validation_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    folds: int | None = Field(default=None, ge=3)
    fold: NonNegativeInt | None = None
    sequences_per_batch: PositiveInt = 32
    micro_tokens: PositiveInt = 4096
    crop: PositiveInt | None = None
    crop_at: Literal["start", "middle", "end"] = "middle"
    max_length: PositiveInt | None = None


class OptionsRecipe(Section):
    """What belongs to one task only.

    kind, per              what a `table` holds, where its cells do not say: see `rinalmo.tasks.table`
    decimal                how a `table` writes numbers: `point` (1,234.5) or `comma` (1.234,5)
    missing                what a `table` does with rows without a value: `drop` leaves them out, `class` takes words
                           such as NA and None for names
    pooling                what the head of `splice-site`, `ncrna-family` or a `table` for whole sequences looks at:
                           `cls`, as in the paper, or the `mean` of all tokens
    head                   of `secondary-structure`: `pairs`, the paper's, or `partners`, which is made for small models
    channels, num_blocks   its width and depth
    window                 nt above which its model folds an RNA in windows of that size
    """

    kind: Literal["regression", "binary", "multiclass", "multilabel"] | None = None
    per: Literal["sequence", "nucleotide"] | None = None
    decimal: Literal["point", "comma"] | None = None
    missing: Literal["drop", "class"] | None = None
    pooling: Literal["cls", "mean"] | None = None
    head: Literal["pairs", "partners"] | None = None
    channels: PositiveInt | None = None
    num_blocks: PositiveInt | None = None
    window: PositiveInt | None = None


class StageRecipe(Section):
    """From the beginning of `epoch` on, the next `blocks` blocks from the top learn too; None: all that are left."""

    epoch: NonNegativeInt
    blocks: PositiveInt | None = None


class BackboneRecipe(Section):
    """How much of the encoder learns.

    mode      full: all of it, from the start
              gradual: the head alone, then blocks from the top as `stages` say, at `scale` times the head's rate;
              the final norm with the first of them, the embedding never
              frozen: none; its states are computed once and kept beside the run
              lora: low-rank additions to its matrices (the extra `lora`), which the written model has merged
    """

    mode: Literal["full", "gradual", "frozen", "lora"] = "full"
    stages: list[StageRecipe] = Field(default_factory=list)
    scale: PositiveFloat = 0.1
    rank: PositiveInt = 8
    alpha: PositiveInt = 16
    attention_dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    hidden_dropout: float | None = Field(default=None, ge=0.0, lt=1.0)


class FinetuneValidation(ValidationRecipe):
    """After each epoch unless `every` says so many steps."""

    every: PositiveInt | None = None


class FinetuneRecipe(RunRecipe):
    """A whole fine-tuning run: `task` on the backbone of the model `init`."""

    task: str
    init: str = "nano"
    data: ExamplesRecipe = ExamplesRecipe()
    options: OptionsRecipe = OptionsRecipe()
    backbone: BackboneRecipe = BackboneRecipe()
    validation: FinetuneValidation = FinetuneValidation()


def recipe_for(
    task: str,
    data: str | Path,
    *,
    model: str | Path | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    targets: Sequence[str] = (),
    folds: int | None = None,
    fold: int | None = None,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> FinetuneRecipe:
    """The recipe `finetune-TASK`, or another one, for these files; raises InputError for what is wrong."""
    files = {"data.train": data, "data.validation": validation, "data.test": test, "init": model}
    given: dict[str, Any] = {"task": task, **{key: str(path) for key, path in files.items() if path is not None}}
    numbers = {"data.folds": folds, "data.fold": fold}
    given |= {key: number for key, number in numbers.items() if number is not None}
    if targets:
        given["data.columns.target"] = list(targets)
    return load(FinetuneRecipe, recipe or f"{FINETUNE_PREFIX}{task}", overrides, FINETUNE_PREFIX, given)


def load_finetune_recipe(source: str | Path, overrides: Sequence[str] = ()) -> FinetuneRecipe:
    """A recipe by name or file, with `section.key=value` overrides; raises InputError as `load_recipe` does."""
    return load(FinetuneRecipe, source, overrides, FINETUNE_PREFIX)
