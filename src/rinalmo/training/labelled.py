"""Fine-tuning in Python: a task and labelled examples, in files or as rows such as those of a `datasets.Dataset`.

Rows are written into the run's folder first (`RUN/examples/train.jsonl`): the run can then be resumed, repeated and
described in its card like any other, and a message about a row names its line there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rinalmo.durable import destination, replacing
from rinalmo.errors import InputError
from rinalmo.inference.devices import DeviceLike
from rinalmo.tasks.evaluation import Evaluation
from rinalmo.tasks.labelled_rows import json_lines
from rinalmo.tasks.registry import task_class
from rinalmo.training.cross_validation import finetune_and_test
from rinalmo.training.finetune_config import FinetuneRecipe, recipe_for
from rinalmo.training.run import SILENCE, Listener
from rinalmo.training.run_folder import EXAMPLES, RECIPE, RunFolder, restarted

Rows = Iterable[Mapping[str, Any]]


def finetune(
    task: str,
    data: str | Path | Rows,
    output: str | Path,
    *,
    model: str | Path | None = None,
    validation: str | Path | Rows | None = None,
    test: str | Path | Rows | None = None,
    target: str | Sequence[str] = (),
    folds: int | None = None,
    fold: int | None = None,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    listener: Listener = SILENCE,
    device: DeviceLike = None,
) -> Evaluation | None:
    """Train a model for a task on labelled examples, into `output/model`, as `rinalmo finetune` does.

    data        a file, or rows: mappings with the columns that a table would have, as a `datasets.Dataset` gives them,
                or a pandas or polars DataFrame or a pyarrow Table
    model       what to start from; nano if None
    validation  held-out examples; None: a tenth of `data`
    test        examples to evaluate the finished model on
    target      the column or columns to predict, where they have no usual name
    folds       cross-validation in so many runs, in `output/fold-0`, …; with `fold` only that one of them, from 0 on
    overrides   changes of the recipe, such as "train.epochs=5"
    device      "auto" (None; CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"

    Returns the figures over the test examples (of `folds` their means), None without any. A class label of a
    `datasets.Dataset` becomes its name. Raises InputError for what is wrong with the examples, TrainingError for what
    goes wrong later, KeyboardInterrupt when it was stopped and saved; `resume` then goes on.
    """
    task_class(task)
    output = Path(output)
    given = {"train": data, "validation": validation, "test": test}
    files = {name: _file(rows, name, output, resume) for name, rows in given.items() if rows is not None}
    chosen = recipe_for(
        task,
        files["train"],
        model=model,
        validation=files.get("validation"),
        test=files.get("test"),
        targets=[target] if isinstance(target, str) else target,
        folds=folds,
        fold=fold,
        recipe=recipe,
        overrides=overrides,
    )
    outcome, evaluation = finetune_and_test(chosen, output, resume=resume, listener=listener, device=device)
    if not outcome.finished:
        raise KeyboardInterrupt
    return evaluation


def _file(rows: str | Path | Rows, name: str, output: Path, resume: bool) -> Path:
    """The file of examples, written if they came as rows."""
    if isinstance(rows, str | Path):
        return Path(rows)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"the {name} examples came as rows; several processes need them in a file")
    if isinstance(rows, Mapping):
        raise InputError(f"the {name} examples came as a mapping; give one of {', '.join(map(str, rows))}")
    destination(output).mkdir(parents=True, exist_ok=True)
    RunFolder(output, FinetuneRecipe).check(resume or restarted())
    (output / EXAMPLES).mkdir(exist_ok=True)
    path = output / EXAMPLES / f"{name}.jsonl"
    text = b"".join(json_lines(rows, name))
    if (output / RECIPE).exists() and path.exists() and path.read_bytes() != text:
        raise InputError(f"{output}: cannot be resumed: the {name} examples are not those that it was started with")
    with replacing(path) as file:
        file.write(text)
    return path
