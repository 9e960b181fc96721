"""The folder of a run: its recipe, its log, the versions it ran with, and its loss plot.

    recipe.yaml     the recipe with all defaults filled in
    versions.json   one entry for each start
    log.jsonl       one object per line with its `step`: training lines have `loss`, validation lines `validation/loss`
    checkpoints/, model/, adapter/, evaluation.json, loss.png, predictions.png, tensorboard/, tracker_id,
    wandb/, examples/

A run that is resumed first cuts the log back to the checkpoint, so that each step has one line.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

import rinalmo
from rinalmo.errors import InputError, RinalmoError, TrainingError
from rinalmo.io.files import LOCK, atomic_write, clear_temporaries, destination, is_temporary, lock_folder
from rinalmo.io.recipe_files import flatten, parse, read
from rinalmo.plots.curves import draw_curves
from rinalmo.training.recipes import FinetuneRecipe, Recipe, RunRecipe
from rinalmo.training.tracking import TRACKER_ID, check_trackers, open_trackers

LOG, PLOT, PREDICTIONS = "log.jsonl", "loss.png", "predictions.png"
RECIPE, VERSIONS, EVALUATION, EXAMPLES = "recipe.yaml", "versions.json", "evaluation.json", "examples"

_RUN = (
    LOG,
    PLOT,
    PREDICTIONS,
    VERSIONS,
    EVALUATION,
    "checkpoints",
    "model",
    "adapter",
    "tensorboard",
    TRACKER_ID,
    "wandb",
)
"""What `--restart` removes; the examples are written before, and the recipe goes last."""
_STATES = re.compile(r"states-[0-9a-f]{16}\.npy")

# May differ when a run is resumed: locations, how things are computed and logged, and the length of the run.
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


def _started_again() -> bool:
    """Whether torchrun has restarted all processes since one had died; they resume without being told to."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


class RunLog:
    """The log of one run folder, a context manager; used by one process."""

    def __init__(self, folder: Path, step: int, recipe: RunRecipe) -> None:
        """Open the log, cut back to the lines up to `step`, and the recipe's trackers."""
        lines = read_log(folder)
        kept = [line for line in lines if line["step"] <= step]
        with atomic_write(folder / LOG) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in kept)
        self._file = (folder / LOG).open("a", encoding="utf-8", newline="\n", buffering=1)
        settings = flatten(recipe.model_dump(mode="json"))
        self._trackers = open_trackers(recipe.logging, folder, step, settings, lines[len(kept) :])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self._trackers:
            tracker.write(step, values)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close(failed=kind is not None)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without a last line that a kill cut short."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def logs_of(runs: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """The logs of run folders, named by the shortest distinct ends of their paths.

    Raises InputError for a folder without a log, or named twice.
    """
    folders = [folder.resolve() for folder in runs]
    logs = [read_log(folder) for folder in folders]
    for folder, lines in zip(folders, logs, strict=True):
        if not lines:
            raise InputError(f"{folder}: not a run, or its {LOG} is still empty")
        if folders.count(folder) > 1:
            raise InputError(f"{folder}: is given twice")
    parts = 1
    while len(set(names := [Path(*folder.parts[-parts:]).as_posix() for folder in folders])) < len(folders):
        parts += 1
    return dict(zip(names, logs, strict=True))


def plot_losses(folder: Path) -> Path:
    """Draw training and validation loss and the learning rate over the steps into `loss.png`."""
    draw_curves({folder.name: read_log(folder)}, folder / PLOT, rates=True)
    return folder / PLOT


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: str | Path, kind: type[RunRecipe] | None = None) -> None:
        """`kind` is the class of its recipe; None: the one that the recipe in the folder has."""
        self.path = Path(path)
        if kind is None:
            kind = FinetuneRecipe if "task" in read(self.path / RECIPE) else Recipe
        self.kind = kind
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.adapter = self.path / "adapter"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create and lock the folder; InputError if another process trains in it."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; give a folder for the run")
        try:
            destination(self.path).mkdir(parents=True, exist_ok=True)
            with lock_folder(self.path, self.path) as is_held:
                if is_held:
                    clear_temporaries(self.path)
                yield
        except RinalmoError:
            raise
        except OSError as error:
            where = error.filename or self.path
            raise TrainingError(f"{where}: {error.strerror or error}; continue with --resume") from None

    def begin(self, recipe: RunRecipe, resume: bool, restart: bool = False) -> list[str]:
        """Write the recipe, or with `resume` compare it with the one in the folder; returns notes on changed values.

        With `restart` the run in the folder is removed, but nothing else that is there.
        """
        self.check(resume, restart)
        check_trackers(recipe.logging)
        if restart and not _started_again():
            self._remove()
        notes = self._changes(recipe) if (self.path / RECIPE).exists() else []
        with atomic_write(self.path / RECIPE) as file:
            file.write(recipe.dump().encode())
        return notes

    def check(self, resume: bool, restart: bool = False) -> None:
        """Raise InputError if the folder, which must exist, holds something that a run must not touch."""
        if resume and restart:
            raise InputError(f"{self.path}: --resume and --restart cannot be combined")
        if (self.path / RECIPE).exists():
            if not (resume or restart or _started_again()):
                raise InputError(
                    f"{self.path}: contains a run; continue it with --resume, or discard it with --restart"
                )
            return
        allowed = (LOCK, EXAMPLES)  # written before the recipe is
        names = [path.name for path in self.path.iterdir() if path.name not in allowed and not is_temporary(path)]
        if names:
            raise InputError(f"{self.path}: contains {min(names)} and is not a run; choose another folder")

    def discard(self) -> None:
        """Remove the run in this folder, if there is one."""
        if (self.path / RECIPE).exists() and not _started_again():
            with self.locked():
                self._remove()

    def _remove(self) -> None:
        # The recipe goes last: until then the folder is one of a run, for another --restart.
        for path in self.path.iterdir():
            if path.name in _RUN and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name in _RUN or _STATES.fullmatch(path.name):
                path.unlink()
        (self.path / RECIPE).unlink(missing_ok=True)

    def _changes(self, recipe: RunRecipe) -> list[str]:
        before = flatten(self.recipe().model_dump(mode="json"))
        now = flatten(recipe.model_dump(mode="json"))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        for key in changed:
            if any(f"{key}.".startswith(f"{free}.") for free in _FREE):
                continue
            if key.startswith("data.fingerprints.") and key in before and key in now:
                file = now[key.replace(".fingerprints", "")]
                raise InputError(f"{self.path}: cannot be resumed: {file} differs from the file it was started with")
            raise InputError(
                f"{self.path}: cannot be resumed: {key} was {before.get(key)!r} and is now {now.get(key)!r}; "
                "resume with the original recipe, or start another run"
            )
        return [f"{key} was {before.get(key)!r} and is {now.get(key)!r} from now on" for key in changed]

    def record_start(self, step: int, **facts: Any) -> None:
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
        with atomic_write(self.path / VERSIONS) as file:
            file.write(json.dumps([*self.read_json(VERSIONS, []), entry], indent=1).encode())

    def read_json(self, name: str, default: Any) -> Any:
        """The content of `versions.json` or `evaluation.json`; the default if there is no such file."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default

    def recipe(self) -> RunRecipe:
        """The recipe in the folder; InputError if this is no run."""
        if not (self.path / RECIPE).is_file():
            raise InputError(f"{self.path}: not a run folder (it has no {RECIPE})")
        return parse(self.kind, read(self.path / RECIPE), str(self.path / RECIPE))
