"""The folder of a run: its recipe, its log, the versions it ran with, and its loss plot.

    recipe.yaml     the recipe with all defaults filled in
    versions.json   one entry for each start
    log.jsonl       one object per line with its `step`: training lines have `loss`, validation lines `validation/loss`
    checkpoints/, model/, adapter/, evaluation.json, loss.png, predictions.png, tensorboard/, tracker_id,
    wandb/, examples/

A run that is resumed first cuts the log back to the checkpoint, so that each step has one line. The lines go to
TensorBoard, Weights & Biases or trackio as well.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

import rinalmo
from rinalmo.errors import InputError, MissingExtraError, RinalmoError, TrainingError
from rinalmo.io.files import LOCK, atomic_write, clear_temporaries, destination, is_temporary, lock_folder
from rinalmo.io.recipe_files import flatten, parse, read
from rinalmo.training.recipes import FinetuneRecipe, LoggingRecipe, Recipe, RunRecipe

LOG, PLOT, PREDICTIONS = "log.jsonl", "loss.png", "predictions.png"
RECIPE, VERSIONS, EVALUATION, EXAMPLES = "recipe.yaml", "versions.json", "evaluation.json", "examples"
TRACKER_ID = "tracker_id"
"""The file with the id under which a tracker knows the run; a resumed run continues it."""

Write = Callable[[int, Mapping[str, float]], None]
"""Adds the values of a step to a log."""

_RUN = {LOG, PLOT, PREDICTIONS, VERSIONS, EVALUATION, TRACKER_ID}
_RUN |= {"checkpoints", "model", "adapter", "tensorboard", "wandb"}
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


@contextmanager
def open_log(folder: Path, step: int, recipe: RunRecipe) -> Iterator[Write]:
    """The log of a run, cut back to the lines up to `step`, and the recipe's trackers, as one function."""
    lines = read_log(folder)
    kept = [line for line in lines if line["step"] <= step]
    with atomic_write(folder / LOG) as cut:
        cut.writelines(json.dumps(line).encode() + b"\n" for line in kept)
    with ExitStack() as stack:
        trackers: list[Write] = []
        if recipe.logging.tensorboard:
            trackers.append(stack.enter_context(_tensorboard(folder, step)))
        if recipe.logging.tracker != "none":
            settings = flatten(recipe.model_dump(mode="json"))
            trackers.append(stack.enter_context(_tracked_run(recipe.logging, folder, settings, lines[len(kept) :])))
        file = stack.enter_context((folder / LOG).open("a", encoding="utf-8", newline="\n", buffering=1))

        def write(step: int, values: Mapping[str, float]) -> None:
            file.write(json.dumps({"step": step, **values}) + "\n")
            for track in trackers:
                track(step, values)

        yield write


@contextmanager
def _tensorboard(folder: Path, step: int) -> Iterator[Write]:
    """Event files in `tensorboard/`."""
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1) as board:

        def write(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                board.add_scalar(name, value, step)

        yield write


@contextmanager
def _tracked_run(
    logging: LoggingRecipe, folder: Path, settings: dict[str, Any], cut: Sequence[Mapping[str, Any]]
) -> Iterator[Write]:
    """A run of Weights & Biases or trackio, which share one interface.

    Neither forgets lines, so those that were cut, which a resumed run repeats with the same numbers, are left out.
    """
    sent = {(line["step"], frozenset(line) - {"step"}) for line in cut} if (folder / TRACKER_ID).exists() else set()
    if not (folder / TRACKER_ID).exists():
        with atomic_write(folder / TRACKER_ID) as file:
            file.write(uuid.uuid4().hex[:8].encode())
    own, whole = (folder / TRACKER_ID).read_text(encoding="ascii"), folder.resolve()
    name = f"{whole.parent.name}/{whole.name}" if whole.name.startswith("fold-") else whole.name
    run: Any
    if logging.tracker == "wandb":
        import wandb

        try:
            run = wandb.init(
                project=logging.project,
                name=name,
                id=own,
                resume="allow",
                config=settings,
                dir=os.environ.get("WANDB_DIR") or str(folder),
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise TrainingError(
                f"logging.tracker wandb: {' '.join(str(error).split()).rstrip('.')}; "
                "WANDB_MODE=offline tracks without a connection"
            ) from None
    else:
        import trackio

        name = f"{name}-{own}"  # a run is continued by its name
        with redirect_stdout(sys.stderr):
            run = trackio.init(project=logging.project, name=name, resume="allow", config=settings, embed=False)

    def write(step: int, values: Mapping[str, float]) -> None:
        if (step, frozenset(values)) not in sent:
            run.log(dict(values), step=step)

    ending = {"exit_code": 1} if logging.tracker == "wandb" else {}
    try:
        yield write
        ending = {}
    finally:
        with redirect_stdout(sys.stderr):
            run.finish(**ending)


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


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
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

    def begin(self, recipe: RunRecipe, restart: bool) -> list[str]:
        """Write the recipe, compared with the one in the folder; returns notes on changed values.

        With `restart` the run in the folder is removed, but nothing else that is there. `check` comes before.
        """
        if recipe.logging.tensorboard and find_spec("tensorboardX") is None:
            raise MissingExtraError("tensorboardX", "tensorboard", "logging.tensorboard")
        tracker = recipe.logging.tracker
        # A folder `wandb` in the working directory is found too, but has no origin.
        if tracker != "none" and ((spec := find_spec(tracker)) is None or spec.origin is None):
            raise MissingExtraError(tracker, tracker, f"logging.tracker {tracker}")
        if restart and not _started_again():
            self._remove()
        notes = self._changes(recipe) if (self.path / RECIPE).exists() else []
        with atomic_write(self.path / RECIPE) as file:
            file.write(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).encode())
        return notes

    def check(self, resume: bool, restart: bool) -> None:
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
            "threads": torch.get_num_threads(),
            **facts,
        }
        with atomic_write(self.path / VERSIONS) as file:
            file.write(json.dumps([*self.read_json(VERSIONS, []), entry], indent=1).encode())

    def read_json(self, name: str, default: Any) -> Any:
        """The content of `versions.json` or `evaluation.json`; the default if there is no such file."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default

    def recipe(self) -> RunRecipe:
        """The recipe in the folder."""
        values = read(self.path / RECIPE)
        return parse(FinetuneRecipe if "task" in values else Recipe, values, str(self.path / RECIPE))
