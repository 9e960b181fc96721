"""Checkpoints of a run: complete or absent, checked when they are read, and never a pickle.

    RUN/checkpoints/step-00001000/
        shard-00001-….safetensors …   weights and optimizer, one file per process that had something to write
        state.json                    everything else
        SHA256SUMS                    as `sha256sum -c` reads it, over all the files above

A checkpoint is written into a hidden folder, put on the disk and renamed. torch.distributed.checkpoint cuts and joins
the tensors, so any number of processes reads what any other number wrote. The surprise is its storage: its own format
keeps a pickled `.metadata` which is executed when a folder is loaded, so the safetensors storage is used, whose files
say themselves what they hold. A folder with anything more, less or other than its sums is not read at all.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from rinalmo.errors import CheckpointError, TrainingError
from rinalmo.io.files import file_sha256, publish_folder, replacing, temporary_folder
from rinalmo.training.distributed import Ranks

SUMS, STATE = "SHA256SUMS", "state.json"
_NAME = re.compile(r"step-(\d{8,})$")


class Checkpoints:
    """The checkpoints in one folder. All processes of the run call each method together."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder = folder
        self.ranks = ranks

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, unless this step's is there already. Raises TrainingError if it cannot be written."""
        target = self.folder / f"step-{step:08d}"
        if self.ranks.first(lambda: target.exists() and damage(target) is None):
            return target
        partial = self.ranks.first(lambda: _begin(target))
        with _writing(target, partial):
            with _quiet():
                dcp.save(
                    dict(tensors),
                    storage_writer=dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True),
                    no_dist=self.ranks.world == 1,
                )
            self.ranks.first(lambda: _complete(partial, target, state))
        return target

    def at(self, step: int | None) -> Path | None:
        """The checkpoint written after this step, if it is there and whole."""
        path = None if step is None else self.folder / f"step-{step:08d}"
        return self.ranks.first(lambda: path if path and path.exists() and damage(path) is None else None)

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is whole, and notes on those that are not; these are renamed out of the way."""
        return self.ranks.first(self._newest)

    def _newest(self) -> tuple[Path | None, list[str]]:
        notes: list[str] = []
        for leftover in self.folder.glob(".step-*"):  # of a process that was killed while it wrote or removed
            shutil.rmtree(leftover, ignore_errors=True)
        for path in reversed(listed(self.folder)):
            wrong = damage(path)
            if wrong is None:
                return path, notes
            notes.append(f"{path} is damaged ({wrong}) and not used")
            _set_aside(path)
        if notes:
            raise CheckpointError(f"{self.folder}: no checkpoint is whole: {'; '.join(notes)}")
        return None, notes

    def restore(self, path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fill `tensors` from a checkpoint that `newest` gave, in place; returns its state."""
        try:
            with _quiet():
                dcp.load(
                    dict(tensors),
                    storage_reader=dcp.HuggingFaceStorageReader(str(path)),
                    no_dist=self.ranks.world == 1,
                )
            return json.loads((path / STATE).read_text(encoding="utf-8"))
        except (CheckpointException, SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: does not fit this run ({_reason(error)})") from None

    def prune(self, keep_last: int, best: int | None) -> None:
        """Remove all but the last ones and that of step `best`."""
        self.ranks.first(lambda: self._prune(keep_last, best))

    def _prune(self, keep_last: int, best: int | None) -> None:
        for path in listed(self.folder)[:-keep_last]:
            if step_of(path) != best:
                _remove(path)


def listed(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first, whole or not."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(path.name.removeprefix("step-"))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint: a file whose sum is another than written down, or None."""
    try:
        written = (path / SUMS).read_bytes()
        found = _sums(path)
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    if written == found:
        return None
    changed = sorted(set(written.splitlines()) ^ set(found.splitlines()))
    names = {line[66:].decode("ascii", "replace") for line in changed}
    return f"{', '.join(sorted(names)[:3]) or SUMS} not as written"


def _sums(path: Path) -> bytes:
    """One line per file, sorted by name; whatever is no plain file of this folder spoils the text."""
    names = sorted(file.name for file in path.iterdir() if file.name != SUMS)
    return "".join(f"{file_sha256(path / name)}  {name}\n" for name in names).encode()


def _begin(target: Path) -> Path:
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        return temporary_folder(target)


def _complete(partial: Path, target: Path, state: Mapping[str, Any]) -> None:
    """Add state and sums to the tensors, and give the folder its name."""
    with _writing(target, partial):
        with replacing(partial / STATE) as file:
            file.write(json.dumps(dict(state), indent=1).encode())
        sums = _sums(partial)
        with replacing(partial / SUMS) as file:
            file.write(sums)
        if target.exists():  # damaged since it was written
            _set_aside(target)
        publish_folder(partial, target)


def _remove(path: Path) -> None:
    """Remove a folder so that a kill in between leaves it whole or hidden."""
    hidden = path.with_name(f".{path.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


@contextmanager
def _writing(target: Path, partial: Path | None = None) -> Iterator[None]:
    """A full disk and its like, from whichever library: one line, and no remains."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(
            f"{target}: cannot be written ({_reason(error)}); earlier checkpoints are kept, go on with --resume"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """torch remarks that one process is not several."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # holds what each process raised, with its traceback
        error = next(iter(error.failures.values()))[0]
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(reason).splitlines()[0][:160]
