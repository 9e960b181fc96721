"""Training recipes: all settings of a run, validated before anything is computed.

A recipe is a name (`pretrain-nano`, one of those in `rinalmo/recipes/`) or a file. `--set section.key=value` changes
single values under the same checks. A run folder keeps the recipe with all defaults filled in, which is itself a
recipe. PyYAML reads `5e-5` as text (YAML 1.1 wants a dot), so pydantic converts the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rinalmo.data.batches import DataRecipe
from rinalmo.io.recipe_files import Section, load
from rinalmo.model.config import ModelConfig

PRETRAIN_PREFIX, FINETUNE_PREFIX = "pretrain-", "finetune-"


class ModelRecipe(Section):
    """Sizes of the model. With `init`, only the dropout rates are used.

    preset                 a published size (`nano`, `micro`, `mega`, `giga`), changed by the other keys
    hidden_size            width of the encoder
    num_hidden_layers      number of encoder blocks
    num_attention_heads    attention heads of each block
    intermediate_size      width of the feed-forward network
    layer_norm_eps         epsilon of the layer norms
    attention_dropout      dropout on attention weights
    hidden_dropout         dropout on the residual branches
    token_dropout          embed the mask as zero and scale the other tokens up, as ESM does
    initializer_range      standard deviation of new weights
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


class TrainRecipe(Section):
    """Length, precision and parallelism of a run.

    seed                   random seed of new weights, data order, masks and dropout
    max_steps              number of optimizer steps; by default set by `epochs`
    epochs                 passes over the data
    checkpoint_every       steps between checkpoints; none: one after each epoch
    clip                   maximum gradient norm
    precision              bf16: autocast with fp32 weights (with fsdp, bf16 copies of them); fp16: the same with
                           loss scaling, for GPUs without bf16; auto: bf16 if the device supports it natively, fp16
                           on other GPUs, else fp32; the recipe in the run folder records the choice
    sharding               ddp: every process holds the model; fsdp: each holds a shard
    activation_checkpointing   recompute each block in the backward pass instead of storing its activations
    deadline               seconds that a process waits for another one before it gives up
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
    """AdamW, or Muon for the matrices of the encoder blocks and AdamW for everything else.

    name            adamw or muon; their updates have the same size, so that `lr` means the same
    lr              peak learning rate
    betas           decay rates of AdamW's two moments
    eps             added to AdamW's denominator
    weight_decay    decoupled weight decay, of matrices only
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: PositiveFloat
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01


class ScheduleRecipe(Section):
    """Linear warm-up, then decay.

    shape           shape of the decay; constant: no decay
    warmup_steps    number of warm-up steps
    start_lr        learning rate at the first step
    min_lr          learning rate at the end
    decay_steps     number of decay steps; by default the rest of the run
    """

    shape: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: NonNegativeInt = 2000
    start_lr: NonNegativeFloat = 1e-7
    min_lr: NonNegativeFloat = 1e-5
    decay_steps: PositiveInt | None = None


class ValidationRecipe(Section):
    """Validation during the run; it is always done at the end.

    every         steps between validations; by default after each epoch
    per_source    maximum number of sequences per source
    """

    every: PositiveInt | None = 1000
    per_source: PositiveInt = 256


class CheckpointRecipe(Section):
    """Which checkpoints are kept.

    keep_last    number of most recent checkpoints to keep
    keep_best    also keep the checkpoint with the best validation metric
    """

    keep_last: PositiveInt = 2
    keep_best: bool = True


class LoggingRecipe(Section):
    """Logging, in addition to `log.jsonl`.

    every          steps between lines of the log
    tensorboard    write TensorBoard files (extra `tensorboard`)
    tracker        also log to Weights & Biases or trackio (extra of that name)
    project        project name in the tracker
    plots          plot the loss (extra `plots`)
    peak_flops     peak FLOP/s of all processes, the reference for MFU; by default measured at the start
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


class Recipe(RunRecipe):
    """A pre-training run.

    init    the model to start from: a name, folder or file; by default new random weights
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

    name        column with the names of the examples
    sequence    column with the sequences
    target      column with the values to predict; a list for several targets
    group       column with groups: a group stays in one set, and metrics are also reported per group
    second      column with second sequences, for a `table` of pairs
    features    other input columns of a `table`: numbers, names, or vectors; NAME=FILE.npz if cells name vectors of it
    """

    name: str | None = None
    sequence: str | None = None
    target: str | list[str] | None = None
    group: str | None = None
    second: str | None = None
    features: list[str] = Field(default_factory=list)


class ExamplesRecipe(Section):
    """The files of examples, and their batches.

    train                     file of training examples
    validation                file of validation examples; by default a random part of `train` is held out
    test                      file of test examples, evaluated at the end
    fingerprints              fingerprints of these files, recorded when a run starts; changed files are then refused
    columns                   see below
    validation_fraction       fraction of `train` that is held out
    folds                     number of folds for cross-validation
    fold                      index of the fold to train, from 0: it is the test set, and the one before it the
                              validation set; by default all folds are trained
    sequences_per_batch       sequences per optimizer step
    micro_tokens              tokens computed at once; results do not depend on it
    crop                      maximum number of nucleotides to use of each sequence; stored in the model
    crop_at                   the part of the sequence to use: its start, middle or end; stored in the model
    max_length                longer examples are skipped and counted
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
    """Options of particular tasks.

    kind                   for `table`: the kind of its values, if its cells are ambiguous
    per                    for `table`: one value per sequence or per nucleotide, if its cells are ambiguous
    decimal                for `table`: numbers have a decimal `point` (1,234.5) or `comma` (1.234,5)
    missing                for `table`: `drop` skips rows without a value, `class` treats words such as NA and None as
                           class names
    pooling                for `splice-site`, `ncrna-family` and `table` with one value per sequence: the head uses
                           `cls`, as in the paper, or the `mean` of all tokens
    head                   for `secondary-structure`: `pairs`, as in the paper, or `partners`, for small models
    channels               for `secondary-structure`: width of the head
    num_blocks             for `secondary-structure`: depth of the head
    window                 for `secondary-structure`: longer RNAs are folded in windows of this many nucleotides
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
    """Which part of the encoder is trained.

    mode      auto, for `table`: with one value per sequence a linear head and, from 400 rows on, also full (lora
              above 100 M parameters), keeping the one that is better on the validation examples; for values per
              nucleotide only full or lora;
              linear, for `table` with one value per sequence: a linear head on the pooled states of three layers and on
              k-mers, with the penalties chosen by cross-validation;
              full: everything, from the start;
              gradual: first the head, then blocks from the top according to `stages`, at `scale` times the head's
              learning rate; the final norm together with the first blocks, the embedding never;
              frozen: only the head; hidden states are computed once and cached in the run folder;
              lora: a low-rank adapter (extra `lora`); RUN/adapter has it alone, RUN/model merged
    stages    for gradual: a list of `{epoch: E, blocks: B}`; from epoch E on, B more blocks from the top are trained
    scale     for gradual: learning rate of the backbone, relative to the head's
    rank      for lora: rank of the adapter's matrices
    alpha     for lora: the adapter's update is scaled by alpha / rank
    dropout   for lora: dropout on the adapter's input
    target_modules   for lora: the matrices that it updates: qkv and output of attention, gate_up and down of the
                     feed-forward network
    attention_dropout   dropout on the backbone's attention weights; by default the model's own
    hidden_dropout      dropout on the backbone's residual branches; by default the model's own
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
    """Validation during the run; it is always done at the end.

    every         steps between validations; by default after each epoch
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
