"""The examples of a fine-tuning run: read, left out, split into training, validation and test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rinalmo.data import draws
from rinalmo.durable import file_sha256
from rinalmo.errors import InputError
from rinalmo.tasks.base import Columns, Crop, Example, Task
from rinalmo.training.finetune_config import ExamplesRecipe

_SPLIT = 12  # what the keys of this file are for
_FILES = ("train", "validation", "test")


class Sets(NamedTuple):
    """The three sets of a run; validation and test may be empty."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def located(data: ExamplesRecipe) -> ExamplesRecipe:
    """The same with absolute paths and the sums of the files; raises InputError for a file that has changed."""
    paths = {name: Path(path).absolute() for name in _FILES if (path := getattr(data, name)) is not None}
    if "train" not in paths:
        raise InputError("data.train is missing: name the file of examples")
    try:
        sums = {name: file_sha256(path) for name, path in paths.items()}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
    for name, known in data.fingerprints.items():
        if sums.get(name) != known:
            raise InputError(f"{paths.get(name, name)}: is not the file that this run was started with")
    return data.model_copy(update={**{name: str(path) for name, path in paths.items()}, "fingerprints": sums})


def read_sets(data: ExamplesRecipe, task: type[Task], seed: int) -> tuple[Sets, list[str]]:
    """Read and split what the recipe names; also notes on what was left out and on what is in two sets."""
    notes: list[str] = []
    sets = _split(_read_all(data, task, notes), data, seed)
    if not sets.train:
        raise InputError(f"{data.train}: no example is left for training")
    seen = _seen(data)
    known = {seen(example) for example in sets.train}
    for name, examples in (("validation", sets.validation), ("test", sets.test)):
        twice = sum(seen(example) in known for example in examples)
        if twice:
            notes.append(f"{twice:,} of {len(examples):,} {name} sequences are in the training set too")
    return sets, notes


def read_folds(data: ExamplesRecipe, task: type[Task], seed: int, folds: Sequence[int]) -> Iterator[Sets]:
    """The sets of each of these folds, from reading the file once."""
    read = _read_all(data, task, [])
    for fold in folds:
        yield _split(read, data.model_copy(update={"fold": fold}), seed)


def columns_of(data: ExamplesRecipe) -> Columns:
    """The columns as the tasks take them."""
    given = data.columns
    target = (given.target,) if isinstance(given.target, str) else tuple(given.target or ())
    return Columns(given.name, given.sequence, target, given.group)


def _read_all(data: ExamplesRecipe, task: type[Task], notes: list[str]) -> dict[str, list[Example]]:
    return {name: _read(getattr(data, name), data, task, notes) for name in _FILES}


def _read(path: str | None, data: ExamplesRecipe, task: type[Task], notes: list[str]) -> list[Example]:
    if path is None:
        return []
    examples, seen = task.read(Path(path), columns_of(data)), _seen(data)
    kept = [example for example in examples if data.max_length is None or len(seen(example)) <= data.max_length]
    if len(kept) < len(examples):
        notes.append(f"{path}: {len(examples) - len(kept):,} examples longer than {data.max_length} nt are left out")
    return kept


def crop_of(data: ExamplesRecipe) -> Crop | None:
    """What a model trained by this recipe sees of a sequence; None: all of it."""
    return None if data.crop is None else Crop(data.crop, data.crop_at)


def _seen(data: ExamplesRecipe) -> Callable[[Example], str]:
    crop = crop_of(data)
    return lambda example: crop.of(example.sequence) if crop else example.sequence


def _split(read: dict[str, list[Example]], data: ExamplesRecipe, seed: int) -> Sets:
    train, validation, test = (read[name] for name in _FILES)
    if data.folds is not None:
        if data.validation is not None or data.test is not None:
            raise InputError("folds are validation and test sets themselves; leave the files of such examples out")
        return _folded(train, data.folds, data.fold or 0, data, seed)
    if data.fold is not None:
        raise InputError(f"data.fold is {data.fold}; of how many? Say --folds, or data.folds")
    if not validation and data.validation_fraction:
        order = _shuffled(train, seed)
        size = max(1, round(len(order) * data.validation_fraction))
        train, validation = order[size:], order[:size]
    return Sets(train, validation, test)


def _folded(examples: list[Example], folds: int, fold: int, data: ExamplesRecipe, seed: int) -> Sets:
    """Fold `fold` is the test set and the one before it the validation set, as in the paper."""
    if fold >= folds:
        raise InputError(f"data.fold is {fold}; with {folds} folds it goes from 0 to {folds - 1}")
    if len(examples) < folds:
        raise InputError(f"{data.train}: {len(examples)} examples cannot be cut into {folds} folds")
    parts: list[Any] = [_shuffled(examples, seed)[number::folds] for number in range(folds)]
    test, validation = parts[fold], parts[(fold - 1) % folds]
    rest = [part for number, part in enumerate(parts) if number not in (fold, (fold - 1) % folds)]
    return Sets([example for part in rest for example in part], validation, test)


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    order = draws.permute(np.arange(len(examples)), max(1, len(examples)), draws.key(seed, _SPLIT))
    return [examples[place] for place in order.tolist()]
