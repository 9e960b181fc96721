"""What a run writes down as it goes: `log.jsonl`, TensorBoard files if asked for, and loss plots at the end.

Each line is one object with its `step`; training lines have `loss`, validation lines `validation/loss`. A run that
goes on after an interruption first cuts the log back to the checkpoint, so that each step stands there once.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import rinalmo
from rinalmo.errors import InputError, MissingExtraError, RinalmoError, TrainingError
from rinalmo.io.files import LOCK, clear_temporaries, destination, held, is_temporary, replacing
from rinalmo.io.recipe_files import parse, read
from rinalmo.plots.curves import draw_curves
from rinalmo.training.recipes import Recipe, RunRecipe

LOG, PLOT = "log.jsonl", "loss.png"


class RunLog:
    """The log of one run folder; used by one process."""

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        """Open the log, cut back to what was written up to `step`."""
        kept = [line for line in read_log(folder) if line["step"] <= step]
        with replacing(folder / LOG) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in kept)
        self._file = (folder / LOG).open("a", encoding="utf-8", newline="\n", buffering=1)
        self._board = _board(folder / "tensorboard", step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that a kill cut short is left out."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def logs_of(runs: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """The logs of run folders, by as much of the ends of their paths as tells them apart.

    Raises InputError for a folder without a log, or named twice.
    """
    folders = [folder.resolve() for folder in runs]
    logs = [read_log(folder) for folder in folders]
    for folder, lines in zip(folders, logs, strict=True):
        if not lines:
            raise InputError(f"{folder}: no run, or none that has written a line to {LOG} yet")
        if folders.count(folder) > 1:
            raise InputError(f"{folder}: is named twice")
    parts = 1
    while len(set(names := [Path(*folder.parts[-parts:]).as_posix() for folder in folders])) < len(folders):
        parts += 1
    return dict(zip(names, logs, strict=True))


def _board(folder: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        raise MissingExtraError("tensorboardX", "tensorboard", "logging.tensorboard") from None
    return SummaryWriter(str(folder), purge_step=step + 1)


def plot_losses(folder: Path) -> Path:
    """Draw training and validation loss and the learning rate over the steps into `loss.png`."""
    draw_curves({folder.name: read_log(folder)}, folder / PLOT, rates=True)
    return folder / PLOT


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
