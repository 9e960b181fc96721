"""Where the lines of `log.jsonl` go as well: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Collection, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from rinalmo.errors import MissingExtraError, TrainingError
from rinalmo.io.files import atomic_write
from rinalmo.training.recipes import LoggingRecipe

TRACKER_ID = "tracker_id"
"""The file with the id under which a tracker knows the run; a resumed run continues it."""


class Tracker(Protocol):
    """What receives the lines of a log."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of one step."""

    def close(self, failed: bool) -> None:
        """End the run, or this part of it."""


class TensorBoard:
    """Event files in `tensorboard/`."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._board.close()


class TrackedRun:
    """A run of Weights & Biases or trackio, which share one interface.

    Neither forgets lines, so those that a resumed run repeats are left out; they have the same numbers.
    """

    def __init__(self, run: Any, failure: Mapping[str, Any], sent: Collection[Mapping[str, Any]]) -> None:
        """`failure` is how `finish` is told of one; `sent` are the lines after the step at which the run continues."""
        self._run, self._failure = run, failure
        self._sent = {(line["step"], frozenset(line) - {"step"}) for line in sent}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if (step, frozenset(values)) not in self._sent:
            self._run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish(**(self._failure if failed else {}))


def _wandb_run(folder: Path, project: str, settings: dict[str, Any]) -> Any:
    import wandb

    try:
        return wandb.init(
            project=project,
            name=_name(folder),
            id=_id(folder),
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


def _trackio_run(folder: Path, project: str, settings: dict[str, Any]) -> Any:
    import trackio

    name = f"{_name(folder)}-{_id(folder)}"  # a run is continued by its name
    with redirect_stdout(sys.stderr):
        return trackio.init(project=project, name=name, resume="allow", config=settings, embed=False)


def check_trackers(logging: LoggingRecipe) -> None:
    """Raise MissingExtraError if the recipe asks for a tracker that is not installed."""
    if logging.tensorboard and find_spec("tensorboardX") is None:
        raise MissingExtraError("tensorboardX", "tensorboard", "logging.tensorboard")
    tracker = logging.tracker
    # A folder `wandb` in the working directory is found too, but has no origin.
    if tracker != "none" and ((spec := find_spec(tracker)) is None or spec.origin is None):
        raise MissingExtraError(tracker, tracker, f"logging.tracker {tracker}")


def open_trackers(
    logging: LoggingRecipe, folder: Path, step: int, settings: dict[str, Any], cut: Collection[Mapping[str, Any]]
) -> list[Tracker]:
    """The trackers that a recipe asks for.

    Args:
        logging: The recipe's section.
        folder: The run's folder.
        step: The step after which the run continues.
        settings: The run's recipe, flattened.
        cut: The lines of the log after that step.
    """
    trackers: list[Tracker] = [TensorBoard(folder, step)] if logging.tensorboard else []
    sent = cut if (folder / TRACKER_ID).exists() else ()
    if logging.tracker == "wandb":
        trackers.append(TrackedRun(_wandb_run(folder, logging.project, settings), {"exit_code": 1}, sent))
    elif logging.tracker == "trackio":
        trackers.append(TrackedRun(_trackio_run(folder, logging.project, settings), {}, sent))
    return trackers


def _name(folder: Path) -> str:
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("fold-") else folder.name


def _id(folder: Path) -> str:
    path = folder / TRACKER_ID
    if not path.exists():
        with atomic_write(path) as file:
            file.write(uuid.uuid4().hex[:8].encode())
    return path.read_text(encoding="ascii")
