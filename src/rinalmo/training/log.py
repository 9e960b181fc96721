"""What a run writes down as it goes: `log.jsonl`, TensorBoard files if asked for, and loss plots at the end.

Each line is one object with its `step`; training lines have `loss`, validation lines `validation/loss`. A run that
goes on after an interruption first cuts the log back to the checkpoint, so that each step stands there once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rinalmo.durable import replacing
from rinalmo.errors import InputError, MissingExtraError
from rinalmo.plots.curves import draw_curves

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
