"""A fine-tuning run with what follows it: its test set evaluated, its card; or all folds one after the other.

RUN/
    fold-0/ …              one run each, with `folds`; `fold` chooses one of them
    evaluation.json        the figures over the test set (of all folds together)
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rinalmo.durable import destination, is_temporary, replacing
from rinalmo.errors import InputError
from rinalmo.inference.devices import DeviceLike
from rinalmo.inference.engine import Engine
from rinalmo.tasks.evaluation import Evaluation, Figure, judged_examples
from rinalmo.tasks.registry import task_class, task_of
from rinalmo.training.card import write_card
from rinalmo.training.examples import read_folds, read_sets
from rinalmo.training.finetune import finetune, learned
from rinalmo.training.finetune_config import FinetuneRecipe
from rinalmo.training.run import SILENCE, Listener, Outcome
from rinalmo.training.run_folder import EVALUATION


def finetune_and_test(
    recipe: FinetuneRecipe,
    output: str | Path,
    *,
    resume: bool = False,
    listener: Listener = SILENCE,
    device: DeviceLike = None,
) -> tuple[Outcome, Evaluation | None]:
    """Fine-tune, once or for each fold, and evaluate the finished model on the test examples if there are any.

    Over folds the figures are the means of the folds' figures, with the least and the greatest of them. A recipe that
    names a fold is for this one only: its figures are returned, and the others can follow by other calls.
    """
    output, folds, only = Path(output), recipe.data.folds, recipe.data.fold
    if folds is None:
        outcome = finetune(recipe, output, resume=resume, listener=listener, device=device)
        return outcome, _tested(recipe, output, device) if outcome.finished else None
    chosen = list(range(folds)) if only is None else [only]
    _check(recipe, chosen)
    _require_folds(output)
    destination(output).mkdir(parents=True, exist_ok=True)
    found: list[Evaluation] = []
    for fold in chosen:
        data = recipe.data.model_copy(update={"fold": fold})
        part, folder = recipe.model_copy(update={"data": data}), output / f"fold-{fold}"
        listener.note(f"fold {fold} of 0 to {folds - 1}")
        outcome = finetune(part, folder, resume=resume, listener=listener, device=device)
        if not outcome.finished:
            return outcome, None
        found += [evaluation] if (evaluation := _tested(part, folder, device)) else []
    if not found or only is not None:
        return outcome, found[0] if found else None
    return outcome, _written(_mean(found), output)


def _check(recipe: FinetuneRecipe, folds: Sequence[int]) -> None:
    """Raise InputError now for what would be wrong with a fold when its turn comes, hours later."""
    found = read_folds(recipe.data, task_class(recipe.task), recipe.train.seed, folds)
    for fold, sets in zip(folds, found, strict=True):
        try:
            learned(recipe, sets)
        except InputError as error:
            raise InputError(f"fold {fold} of 0 to {(recipe.data.folds or 1) - 1}: {error}") from None


def _require_folds(output: Path) -> None:
    """Raise InputError for a folder that holds anything but folds."""
    if not output.is_dir():
        return
    for path in sorted(output.iterdir()):
        if not path.name.startswith("fold-") and path.name != EVALUATION and not is_temporary(path):
            raise InputError(f"{output}: holds {path.name} and is no cross-validation; choose another folder")


def _tested(recipe: FinetuneRecipe, folder: Path, device: DeviceLike) -> Evaluation | None:
    """The finished model on its test examples, if there are any, and its card; by process 0."""
    if os.environ.get("RANK", "0") != "0":
        return None
    evaluation = None
    if recipe.data.test or recipe.data.folds:
        with_device: dict[str, Any] = {"batch_tokens": recipe.data.micro_tokens, "device": device}
        engine = Engine(folder / "model", recipe.train.precision, **with_device)
        task = task_of(engine.spec)
        sets, _ = read_sets(recipe.data, type(task), recipe.train.seed)
        evaluation = _written(judged_examples(task.understood(sets.test), engine, task), folder)
    write_card(folder, overwrite=True)
    return evaluation


def _mean(found: list[Evaluation]) -> Evaluation:
    """The mean of each figure over folds, from the least to the greatest."""
    names = [name for name in found[0].figures if all(name in one.figures for one in found)]
    values = {name: [one.figures[name].value for one in found] for name in names}
    figures = {name: Figure(sum(of) / len(of), min(of), max(of)) for name, of in values.items()}
    count = sum(one.count for one in found)
    return Evaluation(found[0].task, count, None, figures, interval=f"mean, least and greatest of {len(found)} folds")


def _written(evaluation: Evaluation, folder: Path) -> Evaluation:
    with replacing(folder / EVALUATION) as file:
        file.write(json.dumps(evaluation.plain(), indent=1).encode())
    return evaluation
