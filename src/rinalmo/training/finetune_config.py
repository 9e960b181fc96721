"""Recipes of fine-tuning: a task, its examples, how much of the backbone learns.

`finetune-secondary-structure` and its like in `rinalmo/recipes/` are the paper's; the file of examples and the model
to start from come with the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from rinalmo.recipe_files import Section, load
from rinalmo.training.config import RunRecipe, ValidationRecipe

PREFIX = "finetune-"


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
    return load(FinetuneRecipe, recipe or f"{PREFIX}{task}", overrides, PREFIX, given)


def load_finetune_recipe(source: str | Path, overrides: Sequence[str] = ()) -> FinetuneRecipe:
    """A recipe by name or file, with `section.key=value` overrides; raises InputError as `load_recipe` does."""
    return load(FinetuneRecipe, source, overrides, PREFIX)
