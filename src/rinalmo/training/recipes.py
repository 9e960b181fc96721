"""Training recipes: all settings of a run, validated before anything is computed.

A recipe is a name (`pretrain-nano`, one of those in `rinalmo/recipes/`) or a file. `--set section.key=value` changes
single values under the same checks. A run folder keeps the recipe with all defaults filled in, which is itself a
recipe. PyYAML reads `5e-5` as text (YAML 1.1 wants a dot), so pydantic converts the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rinalmo.io.recipe_files import Section, load
from rinalmo.model.config import ModelConfig

PRETRAIN_PREFIX, FINETUNE_PREFIX = "pretrain-", "finetune-"


class ModelRecipe(Section):
    """Sizes of the model. With `init` only the dropouts are used.

    preset                 a published size (`nano`, `micro`, `mega`, `giga`), changed by the other keys
    hidden_size            width of the encoder
    num_hidden_layers      number of encoder blocks
    num_attention_heads    attention heads of each block
    intermediate_size      width of the feed-forward network
    layer_norm_eps         epsilon of the layer norms
    attention_dropout      dropout of attention weights
    hidden_dropout         dropout of the residual branches
    token_dropout          embed the mask as zero and scale the other tokens up, as ESM does
    initializer_range      standard deviation of fresh weights
    """

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
        """The config with these sizes; raises CheckpointError for sizes that do not fit together."""
        return ModelConfig.preset(self.preset, **self.changes()) if self.preset else ModelConfig(**self.changes())


class WeightsRecipe(Section):
    """Sampling weights of clusters; see `rinalmo.data.sampling.Weights`.

    source              factor for each source named here
    family              factor for each family named here
    cluster_exponent    a cluster of n sequences weighs n to this power; 0: all clusters alike
    """

    source: dict[str, float] = Field(default_factory=dict)
    family: dict[str, float] = Field(default_factory=dict)
    cluster_exponent: float = 0.0


class MaskingRecipe(Section):
    """Masked language modelling; see `rinalmo.data.sampling.Masking`.

    selected    share of the nucleotides to be predicted
    masked      share of those replaced by the mask token
    replaced    share of those replaced by a random nucleotide; the rest is kept
    """

    selected: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1


class DataRecipe(Section):
    """The token store and its batches; see `rinalmo.data.batches.BatchOptions`.

    store                  folder made by `rinalmo data prepare`
    fingerprint            of that store; filled in when a run starts, and another store is then refused
    sequences_per_batch    sequences of an optimizer step, over all processes
    tokens_per_batch       tokens of an optimizer step instead
    micro_tokens           tokens of one forward and backward pass; set it by the memory of the device
    fixed_tokens           crop sequences so that every pass has exactly `micro_tokens`
    max_length             longer sequences are cropped to so many nucleotides, at a random place each time
    workers                threads that prepare batches in advance
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
    max_steps              optimizer steps; without it, `epochs` decides
    epochs                 passes over the data
    checkpoint_every       steps between checkpoints; None: one after each epoch
    clip                   maximum norm of the gradient
    precision              bf16: autocast with fp32 weights (under fsdp, bf16 copies of them); fp16: the same with a
                           scaled loss, for GPUs without bf16; fp32; auto: bf16, or fp16 on such a GPU, where the
                           device has it natively; the run folder's recipe has the choice
    sharding               ddp: every process holds the model; fsdp: each holds a shard
    activation_checkpointing   recompute each block in the backward pass instead of keeping its activations
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
    """AdamW.

    lr              peak learning rate
    betas           decay rates of the two moments
    eps             added to the denominator
    weight_decay    decoupled weight decay of matrices
    """

    lr: PositiveFloat
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01


class ScheduleRecipe(Section):
    """Linear warm-up, then decay.

    shape           cosine, linear, or constant: no decay
    warmup_steps    steps of the warm-up
    start_lr        learning rate at the first step
    min_lr          learning rate at the end
    decay_steps     steps of the decay; by default the rest of the run
    """

    shape: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: NonNegativeInt = 2000
    start_lr: NonNegativeFloat = 1e-7
    min_lr: NonNegativeFloat = 1e-5
    decay_steps: PositiveInt | None = None


class ValidationRecipe(Section):
    """Validation, also at the end of the run.

    every         steps between validations; without it, after each epoch
    per_source    at most so many sequences of each source
    """

    every: PositiveInt | None = 1000
    per_source: PositiveInt = 256


class CheckpointRecipe(Section):
    """Which checkpoints are kept.

    keep_last    the last so many
    keep_best    the one with the best validation metric, too
    """

    keep_last: PositiveInt = 2
    keep_best: bool = True


class LoggingRecipe(Section):
    """What is logged beside `log.jsonl`.

    every          steps between lines of the log
    tensorboard    write TensorBoard files (the extra `tensorboard`)
    tracker        also send the lines to Weights & Biases or trackio (the extra of that name)
    project        the project there
    plots          draw the loss (the extra `plots`)
    peak_flops     peak FLOP/s of all processes, to which the MFU is relative; by default measured at the start
    """

    every: PositiveInt = 10
    tensorboard: bool = False
    tracker: Literal["wandb", "trackio", "none"] = "none"
    project: str = "rinalmo"
    plots: bool = True
    peak_flops: PositiveFloat | None = None


class RunRecipe(Section):
    """The sections that all runs have."""

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
    """A pre-training run.

    init    the model to start from: a name, folder or file; fresh weights without it
    """

    init: str | None = None
    model: ModelRecipe = ModelRecipe()
    data: DataRecipe = DataRecipe()


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or file, with `section.key=value` overrides.

    Raises InputError naming the key, its value and, for an unknown key, the nearest one.
    """
    return load(Recipe, source, overrides, PRETRAIN_PREFIX)


class ColumnsRecipe(Section):
    """Columns of a table of examples, by default recognized by their usual names.

    name        names of the examples
    sequence    sequences
    target      values to predict; a list for several targets
    group       examples of one group stay in one set, and metrics are also given for each group
    second      second sequences, for a `table` of pairs
    features    other inputs of a `table`: numbers, names, or vectors; NAME=FILE.npz where cells name vectors of a file
    """

    name: str | None = None
    sequence: str | None = None
    target: str | list[str] | None = None
    group: str | None = None
    second: str | None = None
    features: list[str] = Field(default_factory=list)


class ExamplesRecipe(Section):
    """The files of examples, and their batches.

    train, validation, test   files; without `validation` a share of `train` is held out, drawn with the run's seed
    fingerprints              of these files; filled in when a run starts, and other contents are then refused
    columns                   see below
    validation_fraction       share of `train` that is held out
    folds, fold               cross-validation: of so many folds, this one (from 0 on; None: each in turn) is the test
                              set and the one before it the validation set
    sequences_per_batch       per optimizer step
    micro_tokens              tokens computed at once; results do not depend on it
    crop, crop_at             use at most this many nucleotides, from this part of the sequence; part of the model
    max_length                longer examples are left out, and counted
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
    """Options of single tasks.

    kind, per              of a `table`: the kind of its values, where its cells leave that open; see
                           `rinalmo.tasks.table`
    decimal                of a `table`: numbers with a decimal `point` (1,234.5) or `comma` (1.234,5)
    missing                of a `table`: `drop` leaves rows without a value out, `class` takes words such as NA and
                           None as class names
    pooling                of the head of `splice-site`, `ncrna-family` or a `table` of whole sequences: `cls`, as in
                           the paper, or the `mean` of all tokens
    head                   of `secondary-structure`: `pairs`, the paper's, or `partners`, for small models
    channels, num_blocks   width and depth of that head
    window                 longer RNAs are folded in windows of this many nucleotides
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
    """A step of `gradual`: from `epoch` on, train the next `blocks` blocks from the top; by default all others."""

    epoch: NonNegativeInt
    blocks: PositiveInt | None = None


class BackboneRecipe(Section):
    """The trained part of the encoder.

    mode      auto, for a `table`: with one value per sequence a linear head, and from 400 rows on also full (or lora
              above 100 M parameters), of which the better on the validation examples is kept; else the latter alone;
              linear: a linear head on pooled states of three layers and on k-mers, its penalties chosen by
              cross-validation; for a `table` with one value per sequence;
              full: all of it, from the start;
              gradual: the head alone, then blocks from the top by `stages`, at `scale` times the head's rate; the
              final norm with the first of them, the embedding never;
              frozen: none; its states are computed once and cached in the run folder;
              lora: a low-rank adapter (the extra `lora`); RUN/adapter holds it alone, RUN/model merged
    stages    of gradual: a list of `{epoch: E, blocks: B}`; from epoch E on, B more blocks from the top are trained
    scale     of gradual: learning rate of the backbone, relative to the head's
    rank      of lora: rank of the adapter's matrices
    alpha     of lora: the adapter's change is scaled by alpha / rank
    dropout   of lora: dropout of the adapter's input
    target_modules   of lora: the matrices that it changes: qkv and output of attention, gate_up and down of the
                     feed-forward network
    attention_dropout, hidden_dropout   dropouts of the backbone, instead of the model's own
    """

    mode: Literal["auto", "linear", "full", "gradual", "frozen", "lora"] = "full"
    stages: list[StageRecipe] = Field(default_factory=list)
    scale: PositiveFloat = 0.1
    rank: PositiveInt = 8
    alpha: PositiveInt = 16
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: list[Literal["qkv", "output", "gate_up", "down"]] = Field(
        default=["qkv", "output", "gate_up", "down"], min_length=1
    )
    attention_dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    hidden_dropout: float | None = Field(default=None, ge=0.0, lt=1.0)


class FinetuneValidation(ValidationRecipe):
    """Validation, also at the end of the run.

    every         steps between validations; without it, after each epoch
    per_source    not used
    """

    every: PositiveInt | None = None


class FinetuneRecipe(RunRecipe):
    """A fine-tuning run.

    task    a task of `rinalmo finetune`
    init    the model whose encoder is fine-tuned: a name, folder or file
    """

    task: str
    init: str = "nano"
    data: ExamplesRecipe = ExamplesRecipe()
    options: OptionsRecipe = OptionsRecipe()
    backbone: BackboneRecipe = BackboneRecipe()
    validation: FinetuneValidation = FinetuneValidation()


_GIVEN = {
    "model": "init",
    "validation": "data.validation",
    "test": "data.test",
    "target": "data.columns.target",
    "second": "data.columns.second",
    "features": "data.columns.features",
    "folds": "data.folds",
    "fold": "data.fold",
}


def recipe_for(
    task: str,
    data: str | Path,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    target: str | Sequence[str] = (),
    **given: Any,
) -> FinetuneRecipe:
    """The recipe `finetune-TASK`, or another one, with values `given` by the names that `rinalmo.finetune` has.

    Raises InputError as `load_recipe` does.
    """
    values: dict[str, Any] = {"task": task, "data.train": str(data)}
    given["target"] = ([target] if isinstance(target, str) else list(target)) or None
    for name, value in given.items():
        if value is not None:
            values[_GIVEN[name]] = str(value) if isinstance(value, Path) else value
    return load(FinetuneRecipe, recipe or f"{FINETUNE_PREFIX}{task}", overrides, FINETUNE_PREFIX, values)
