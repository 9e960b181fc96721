"""Checkpoints of a run: complete or absent, verified when they are read, and never a pickle.

    RUN/checkpoints/step-00001000/
        shard-00001-….safetensors …   weights and optimizer, one file per process that had something to write
        state.json                    everything else
        SHA256SUMS                    as `sha256sum -c` reads it, over all the files above

A checkpoint is written into a hidden folder, synced to disk and renamed. torch.distributed.checkpoint cuts and joins
the tensors, so any number of processes reads what any other number wrote. It writes safetensors, which describe their
own content: its default format has a pickled `.metadata`, which is executed when a folder is loaded. A folder with
anything more, less or other than its sums is not read at all.
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
from rinalmo.io.files import atomic_write, file_sha256, publish_folder, temporary_folder
from rinalmo.training.distributed import Ranks

SUMS, STATE = "SHA256SUMS", "state.json"
_NAME = re.compile(r"step-(\d{8,})$")


class Checkpoints:
    """The checkpoints in one folder. All processes of the run call each method together."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, unless this step has an intact one. Raises TrainingError if it cannot be written."""
        target = self.folder / f"step-{step:08d}"
        if self.ranks.on_rank_zero(lambda: target.exists() and damage(target) is None):
            return target

        def begin() -> Path:
            with _write_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                return temporary_folder(target)

        def complete() -> None:
            with _write_errors(target, partial):
                with atomic_write(partial / STATE) as file:
                    file.write(json.dumps(dict(state), indent=1).encode())
                sums = _sums(partial)
                with atomic_write(partial / SUMS) as file:
                    file.write(sums)
                if target.exists():  # damaged since it was written
                    _set_aside(target)
                publish_folder(partial, target)

        partial = self.ranks.on_rank_zero(begin)
        with _write_errors(target, partial):
            writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # a single process is not distributed
                dcp.save(dict(tensors), storage_writer=writer, no_dist=self.ranks.world == 1)
            self.ranks.on_rank_zero(complete)
        return target

    def at(self, step: int | None) -> Path | None:
        """The checkpoint written after this step, if there is an intact one."""
        path = None if step is None else self.folder / f"step-{step:08d}"
        return self.ranks.on_rank_zero(lambda: path if path and path.exists() and damage(path) is None else None)

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest intact checkpoint, and notes on damaged ones, which are renamed."""

        def find() -> tuple[Path | None, list[str]]:
            notes: list[str] = []
            for leftover in self.folder.glob(".step-*"):  # of a process killed while it wrote or removed
                shutil.rmtree(leftover, ignore_errors=True)
            for path in reversed(listed(self.folder)):
                problem = damage(path)
                if problem is None:
                    return path, notes
                notes.append(f"{path} is damaged ({problem}) and is not used")
                _set_aside(path)
            if notes:
                raise CheckpointError(f"{self.folder}: no checkpoint is intact: {'; '.join(notes)}")
            return None, notes

        return self.ranks.on_rank_zero(find)

    def restore(self, path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fill `tensors` from a checkpoint in place; returns its state."""
        try:
            reader = dcp.HuggingFaceStorageReader(str(path))
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                dcp.load(dict(tensors), storage_reader=reader, no_dist=self.ranks.world == 1)
            return json.loads((path / STATE).read_text(encoding="utf-8"))
        except (CheckpointException, SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: does not fit this run ({_reason(error)})") from None

    def prune(self, keep_last: int, best: int | None) -> None:
        """Remove all but the last ones and the one of step `best`."""

        def remove() -> None:
            for path in listed(self.folder)[:-keep_last]:
                if step_of(path) != best:
                    # A kill in between leaves the folder whole or hidden.
                    removed = path.with_name(f".{path.name}.removed")
                    shutil.rmtree(removed, ignore_errors=True)
                    path.rename(removed)
                    shutil.rmtree(removed, ignore_errors=True)

        self.ranks.on_rank_zero(remove)


def listed(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first, intact or not."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(path.name.removeprefix("step-"))


def damage(path: Path) -> str | None:
    """The first file of a checkpoint whose sum differs from SHA256SUMS, as a message; None for an intact one."""
    try:
        expected = (path / SUMS).read_bytes()
        actual = _sums(path)
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    if expected == actual:
        return None
    changed = sorted(set(expected.splitlines()) ^ set(actual.splitlines()))
    names = {line[66:].decode("ascii", "replace") for line in changed}
    return f"{', '.join(sorted(names)[:3]) or SUMS} not as written"


def _sums(path: Path) -> bytes:
    """One line per file, sorted by name; anything but a plain file changes the text."""
    names = sorted(file.name for file in path.iterdir() if file.name != SUMS)
    return "".join(f"{file_sha256(path / name)}  {name}\n" for name in names).encode()


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


@contextmanager
def _write_errors(target: Path, partial: Path | None = None) -> Iterator[None]:
    """Turn a full disk and the like, from any library, into a TrainingError, and remove the partial folder."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(
            f"{target}: cannot be written ({_reason(error)}); earlier checkpoints are kept, continue with --resume"
        ) from None


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # holds the error of each process, with its traceback
        error = next(iter(error.failures.values()))[0]
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(reason).splitlines()[0][:160]
