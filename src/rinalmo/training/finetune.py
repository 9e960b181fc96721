"""Fine-tuning, from a recipe to a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from rinalmo.errors import InputError
from rinalmo.inference.devices import DeviceLike, Precision
from rinalmo.inference.engine import Engine
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import Example, Task
from rinalmo.tasks.registry import task_class
from rinalmo.training.backbone import build, merged, trained
from rinalmo.training.cached_states import cached_states
from rinalmo.training.distributed import Ranks, joined
from rinalmo.training.examples import Sets, crop_of, located, read_sets
from rinalmo.training.finetune_config import FinetuneRecipe
from rinalmo.training.run import SILENCE, Listener, Outcome, conduct, preserved_state, with_precision
from rinalmo.training.run_folder import RunFolder, restarted
from rinalmo.training.supervised import Examples, SupervisedTask


def finetune(
    recipe: FinetuneRecipe,
    output: str | Path,
    *,
    resume: bool = False,
    listener: Listener = SILENCE,
    device: DeviceLike = None,
) -> Outcome:
    """Train a head, and as much of the backbone as the recipe says, on labelled examples, into `output/model`.

    The written model is that of the best validation figure (the task's `score`), or the last without validation
    examples. Interrupting, resuming, devices and several processes work as in `rinalmo.training.pretrain.pretrain`.

    Raises InputError for what is wrong with recipe, examples or folder, TrainingError for what goes wrong later.
    """
    with joined(recipe.train.deadline, device) as ranks, preserved_state(ranks.device):
        return _finetune(recipe, RunFolder(output, FinetuneRecipe), ranks, resume, listener)


def _finetune(recipe: FinetuneRecipe, folder: RunFolder, ranks: Ranks, resume: bool, listener: Listener) -> Outcome:
    with ExitStack() as stack:
        recipe = with_precision(recipe, ranks.device)
        recipe = recipe.model_copy(update={"data": located(recipe.data)})
        sets, notes = read_sets(recipe.data, task_class(recipe.task), recipe.train.seed)
        read = sets
        task, sets = learned(recipe, sets)
        notes += _left_out(read, sets)
        train, validation = sets.train, sets.validation
        ranks.first(lambda: stack.enter_context(folder.locked()))
        changed = ranks.first(lambda: folder.begin(recipe, resume or restarted()))
        model, fresh = build(recipe, task, train)
        encoded = [_encoded(examples, model, task) for examples in (train, validation)]
        if recipe.backbone.mode == "frozen":
            encoded = _with_states(encoded, model, recipe, folder, ranks)
        learns = trained(model, task, recipe.backbone)
        supervised = SupervisedTask(recipe, task, model, (encoded[0], encoded[1]), learns, ranks)
        return conduct(
            supervised,
            recipe,
            folder,
            ranks,
            listener,
            notes=[*changed, *filter(None, task.described().split("\n")), *notes, *fresh],
            best=bool(validation) and recipe.checkpoint.keep_best,
            export=partial(merged, model) if recipe.backbone.mode == "lora" else None,
            utilisation=recipe.backbone.mode != "frozen",
            examples={name: len(examples) for name, examples in sets._asdict().items()},
        )


def learned(recipe: FinetuneRecipe, sets: Sets) -> tuple[Task, Sets]:
    """The recipe's task as the training examples speak of it, and all examples as it understands them.

    Raises InputError for what does not go together.
    """
    kind = task_class(recipe.task)
    options = recipe.options.model_dump(exclude_none=True)
    if foreign := sorted(options.keys() - set(kind.options)):
        own = f"its options are {', '.join(kind.options)}" if kind.options else "it has no options"
        raise InputError(f"options.{foreign[0]} is not for {kind.name}; {own}")
    task = kind.learned(sets.train, options)
    task.crop = crop_of(recipe.data)
    if task.crop and task.per == "nucleotide":
        raise InputError("data.crop is for tasks with one answer a sequence; leave long ones out by data.max_length")
    return task, Sets(*(task.understood(examples) for examples in sets))


def _left_out(read: Sets, kept: Sets) -> list[str]:
    """How many examples of each set a task has left out for want of a value."""
    pairs = ((name, len(getattr(read, name)), len(examples)) for name, examples in kept._asdict().items())
    return [
        f"{before - after:,} of {before:,} {name} examples have no value and are left out"
        for name, before, after in pairs
        if after < before
    ]


def _encoded(examples: Sequence[Example], model: RiNALMo, task: Task) -> Examples:
    return Examples(examples, [model.alphabet.encode(task.seen(e.sequence), strict=True) for e in examples])


def _with_states(
    sets: list[Examples], model: RiNALMo, recipe: FinetuneRecipe, folder: RunFolder, ranks: Ranks
) -> list[Examples]:
    precision: Precision = recipe.train.precision
    engine = Engine(model, precision, batch_tokens=recipe.data.micro_tokens, device=ranks.device)
    ids: list[np.ndarray] = [sequence for part in sets for sequence in part.ids]
    states = cached_states(engine, ids, folder.path, ranks)
    cut = len(sets[0])
    return [Examples(p.examples, p.ids, s) for p, s in zip(sets, (states[:cut], states[cut:]), strict=True)]
