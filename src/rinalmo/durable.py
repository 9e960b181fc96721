"""Files and folders that a kill cannot halve: written beside their place, put on the disk, then renamed into it.

Whoever reads sees the old one, the new one or none, never a part of one. A rename is only durable once the folder
that holds the name is on the disk too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from rinalmo.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once it is written and on the disk; an error removes it."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def check_path(path: Path, endings: Iterable[str]) -> None:
    """Raise InputError for a file of another ending, or in no folder."""
    if path.suffix not in endings:
        raise InputError(f"{path}: cannot write {path.suffix or 'a file without ending'!r}; use {', '.join(endings)}")
    check_place(path)


def check_place(path: Path) -> None:
    """Raise InputError for a file that would be a folder, or lie in none."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder; make it first")


def sync(path: Path) -> None:
    """Put the content of a file on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk; Windows has no such call."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def held(folder: Path, output: Path) -> Iterator[None]:
    """Hold a work folder, made if need be; a second process is told so. The system frees a dead process's lock."""
    import fcntl  # not on Windows, where the rest of this file works

    while True:
        folder.mkdir(exist_ok=True)
        try:
            handle = (folder / "lock").open("ab")
        except FileNotFoundError:
            continue  # whoever held it has finished, and removed the folder
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{output}: another process is writing it") from None
            if _is_still(handle.fileno(), folder / "lock"):
                yield
                return


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to the open file: it may have been removed between opening and locking it."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
