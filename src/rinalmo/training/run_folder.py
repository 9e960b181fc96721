"""The folder of a run: what it was asked to do, with which versions, and what came of it.

RUN/
    recipe.yaml      the recipe with every default filled in: `rinalmo pretrain RUN/recipe.yaml` repeats the run
    examples/        the examples of a fine-tuning run that were given as rows, not as files
    versions.json    one entry per start: versions, command, processes, threads, from which step
    log.jsonl        training and validation figures by step
    checkpoints/     see `rinalmo.training.checkpoint`
    evaluation.json  figures over the test examples of a fine-tuning run
    model/           the trained model and its card, once the run is finished
    loss.png         its curve
    lock             held while a process trains here
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import rinalmo
from rinalmo.durable import LOCK, clear_temporaries, destination, held, is_temporary, replacing
from rinalmo.errors import InputError, RinalmoError, TrainingError
from rinalmo.recipe_files import parse, read
from rinalmo.training.config import Recipe, RunRecipe

RECIPE, VERSIONS, EVALUATION, EXAMPLES = "recipe.yaml", "versions.json", "evaluation.json", "examples"

# What may differ when a run is resumed: where things lie, how they are computed and watched, and how long it goes on.
_FREE = (
    "data.store",
    "data.workers",
    "data.train",
    "data.validation",
    "data.test",
    "train.max_steps",
    "train.epochs",
    "train.checkpoint_every",
    "train.sharding",
    "train.activation_checkpointing",
    "train.deadline",
    "validation",
    "checkpoint",
    "logging",
)


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: str | Path, kind: type[RunRecipe] = Recipe) -> None:
        """`kind` is what its recipe is read as."""
        self.path, self.kind = Path(path), kind
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, made if need be; raises InputError if another process trains here."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; give a folder for the run")
        try:
            destination(self.path).mkdir(parents=True, exist_ok=True)
            with held(self.path, self.path) as is_held:
                if is_held:
                    clear_temporaries(self.path)
                yield
        except RinalmoError:
            raise
        except OSError as error:
            where = error.filename or self.path
            raise TrainingError(f"{where}: {error.strerror or error}; go on with --resume") from None

    def begin(self, recipe: RunRecipe, resume: bool) -> list[str]:
        """Write the recipe down, or with `resume` compare it with the one that is there; returns what changed."""
        self.check(resume)
        notes = self._changes(recipe) if (self.path / RECIPE).exists() else []
        with replacing(self.path / RECIPE) as file:
            file.write(recipe.dump().encode())
        return notes

    def check(self, resume: bool) -> None:
        """Raise InputError if the folder, which must exist, holds something that a run must not touch."""
        if (self.path / RECIPE).exists():
            if not resume:
                raise InputError(f"{self.path}: holds a run; go on with it by --resume, or choose another folder")
        elif foreign := [path.name for path in self.path.iterdir() if not _is_ours(path)]:
            raise InputError(f"{self.path}: holds {sorted(foreign)[0]} and is no run; choose another folder")

    def _changes(self, recipe: RunRecipe) -> list[str]:
        before = _flat(self.recipe().model_dump(mode="json"))
        now = _flat(recipe.model_dump(mode="json"))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        fixed = [key for key in changed if not any(f"{key}.".startswith(f"{free}.") for free in _FREE)]
        if fixed:
            key = fixed[0]
            if key.startswith("data.fingerprints.") and key in before and key in now:
                file = now[key.replace(".fingerprints", "")]
                raise InputError(f"{self.path}: cannot be resumed: {file} is not the file that it was started with")
            raise InputError(
                f"{self.path}: cannot be resumed: {key} was {before.get(key)!r} and is {now.get(key)!r} now; "
                "resume with the recipe it was started with, or start another run"
            )
        return [f"{key} was {before.get(key)!r} and is {now.get(key)!r} from here on" for key in changed]

    def note_start(self, step: int, **facts: Any) -> None:
        """Add an entry to `versions.json`."""
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": step,
            "rinalmo": rinalmo.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.platform(),
            "command": sys.argv,
            **facts,
        }
        with replacing(self.path / VERSIONS) as file:
            file.write(json.dumps([*self.starts(), entry], indent=1).encode())

    def starts(self) -> list[dict[str, Any]]:
        """The entries of `versions.json`."""
        path = self.path / VERSIONS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def evaluation(self) -> dict[str, Any]:
        """The figures over test examples, if there are any."""
        path = self.path / EVALUATION
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def recipe(self) -> RunRecipe:
        """The recipe that was written down; raises InputError if this is no run."""
        if not (self.path / RECIPE).is_file():
            raise InputError(f"{self.path}: no {RECIPE} in this folder, so it is no run")
        return parse(self.kind, read(self.path / RECIPE), str(self.path / RECIPE))


def _is_ours(path: Path) -> bool:
    """Whether a run may find a file of this name in its folder before it has written its recipe."""
    return path.name in (LOCK, EXAMPLES) or is_temporary(path)


def restarted() -> bool:
    """Whether torchrun has started this process again after one of the run died: it goes on without being asked."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value})
    return flat
