"""The disk side of a download: the incomplete file, its lock, and the check of the complete one.

What lies beside a file `name`:

    name.part, name.part.json    the bytes so far, and which version of which address they belong to
    name.lock                    empty; one process at a time writes (the system frees the lock of a dead process)
    name.….part                  the bytes of one of several processes, where the file system has no locks
    name.verified                the sha256 that was checked, so that gigabytes are not hashed at every start

The surprise: `name.lock` stays for ever, because removing it would race with a process that waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

from rinalmo.durable import file_lock, file_sha256, sync, sync_folder
from rinalmo.errors import DownloadError


def verify(path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
    """Raise `DownloadError` unless the file has this size and sum; a sum once found right is remembered."""
    found_size = path.stat().st_size
    if size is not None and found_size != size:
        raise DownloadError(f"{path}: {found_size} bytes, but the published file has {size}; delete it and run again")
    if sha256 is None or _remembered(path) == sha256:
        return
    with writing(path):
        found = file_sha256(path)
    if found != sha256:
        raise DownloadError(f"{path}: sha256 is {found}, the published file's is {sha256}; delete it and run again")
    _remember(path, sha256)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _remember(path: Path, sha256: str) -> None:
    stat = path.stat()
    record = {"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    with contextlib.suppress(OSError):  # a cache that cannot be written is hashed each time
        _beside(path, ".verified").write_text(json.dumps(record), encoding="utf-8")


def _remembered(path: Path) -> str | None:
    """The sum that was verified for exactly this file, unchanged since."""
    record, stat = _read_json(_beside(path, ".verified")), path.stat()
    unchanged = record.get("size") == stat.st_size and record.get("mtime_ns") == stat.st_mtime_ns
    return record.get("sha256") if unchanged else None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a small file of ours; empty if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like into one line."""
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{path}: {error.strerror or error}; free some space or choose another folder") from error


@contextlib.contextmanager
def locked(target: Path) -> Iterator[bool]:
    """Hold `target`'s lock, waiting for whoever has it; yields False where the file system has no locks.

    The file stays: removing it would race with a process that waits for it.
    """

    def note() -> None:
        print(f"waiting for another process that is downloading {target}", file=sys.stderr)

    with contextlib.ExitStack() as stack:
        with writing(target):
            is_held = stack.enter_context(file_lock(_beside(target, ".lock"), note))
        yield is_held


class Part:
    """The incomplete file: its bytes, and the version of the address that they belong to."""

    def __init__(self, url: str, target: Path, size: int | None, sha256: str | None, *, is_shared: bool = True) -> None:
        """`is_shared` is whether other calls may go on with the part, which needs a lock; otherwise its name is new."""
        self.url, self.target, self.size, self.sha256 = url, target, size, sha256
        suffix = ".part" if is_shared else f".{os.urandom(8).hex()}.part"
        self.path, self.state_path = _beside(target, suffix), _beside(target, f"{suffix}.json")
        state = _read_json(self.state_path)
        self.validator: str | None = state.get("validator")
        self.total: int | None = size if size is not None else state.get("total")
        if state.get("url") != url or (self.total is not None and self.offset > self.total):
            self.discard()

    @property
    def offset(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def resumable(self) -> bool:
        """Whether a change of the file would be noticed: by the server, or by the sum at the end."""
        return self.validator is not None or self.sha256 is not None

    @property
    def complete(self) -> bool:
        """Whether all bytes have arrived; unknown totals never say so."""
        return self.total is not None and self.path.exists() and self.offset == self.total

    def discard(self) -> None:
        """Forget everything that has arrived."""
        with writing(self.path):
            self.path.unlink(missing_ok=True)
            self.state_path.unlink(missing_ok=True)
        self.validator, self.total = None, self.size

    def begin(self, validator: str | None, total: int | None) -> None:
        """Start over with the version that the server has now."""
        if self.size is not None and total not in (None, self.size):
            raise DownloadError(f"{self.url}: offers {total} bytes, but the published file has {self.size}")
        self.validator = validator
        self.total = total if total is not None else self.size
        with writing(self.path):
            self.path.open("wb").close()  # empty before the state names another version
            state = {"url": self.url, "validator": validator, "total": total}
            self.state_path.write_text(json.dumps(state), encoding="utf-8")

    def continued_by(self, headers: Message) -> bool:
        """Whether a 206 answer is the rest of these bytes. Some servers ignore If-Range."""
        first, _, total = (headers.get("Content-Range") or "").removeprefix("bytes ").partition("/")
        same_version = self.validator is None or validator(headers) in (None, self.validator)
        same_size = self.total is None or total in ("*", str(self.total))
        if self.total is None and total.isdigit():
            self.total = int(total)
        return first.split("-")[0] == str(self.offset) and same_version and same_size

    def require_space(self) -> None:
        """Refuse before filling the disk."""
        with writing(self.path):
            free = shutil.disk_usage(self.path.parent).free
        if self.total is not None and self.total - self.offset > free:
            raise DownloadError(
                f"{self.path.parent}: {self.total - self.offset} bytes are still to come, but only {free} are free; "
                "free some space or choose another folder"
            )

    def finish(self) -> None:
        """Check the sum, then make the file durable and visible in one step."""
        with writing(self.path):
            found = file_sha256(self.path)
            if self.sha256 is not None and found != self.sha256:
                self.discard()
                raise DownloadError(
                    f"{self.url}: the file received has sha256 {found}, the published one {self.sha256}; "
                    "it was removed, run again to download it anew"
                )
            sync(self.path)
            self.path.replace(self.target)
            self.state_path.unlink(missing_ok=True)
            sync_folder(self.target.parent)
        _remember(self.target, found)


def validator(headers: Message) -> str | None:
    """What names this version of the file in If-Range; weak ETags may not."""
    etag: str | None = headers.get("ETag")
    return etag if etag is not None and not etag.startswith("W/") else headers.get("Last-Modified")
