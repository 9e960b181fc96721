"""Downloads that resume, verify and publish a file atomically, one process at a time.

Files beside a target `name`:

    name.part, name.part.json    the bytes so far, and the URL and version (ETag or date) that they belong to
    name.lock                    empty; never removed, which would race with a process that waits for it
    name.….part                  one process's own bytes, on a file system without locks
    name.verified                the sum that was checked, so that gigabytes are not hashed at every start

`huggingface_hub`'s `http_get` is not used: it hides the response, so a file that changes between two attempts would be
mixed (no If-Range), a login page would pass for a file, and errors of the server (5xx) would not be retried.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import logging
import os
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rinalmo import __version__
from rinalmo.errors import DownloadError, InputError
from rinalmo.io.files import Pace, destination, file_lock, file_md5, file_sha256, read_json, sync

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and their total, if known."""

_CHUNK = 1 << 18
_MAX_WAIT = 60.0
_SECONDS = 30.0  # between lines of progress where there is no terminal
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ECONNREFUSED}


class SourceUnavailable(DownloadError):  # noqa: N818  (the name says what happened)
    """The URL does not deliver; another URL of the same file might. `status` is the HTTP status, if there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _Interrupted(Exception):  # noqa: N818
    """A transfer stopped for a reason that may pass; `no_route` if the server was never reached."""

    def __init__(self, reason: str, *, wait: float = 0.0, no_route: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.no_route = no_route


def fetch(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    md5: str | None = None,
    progress: Progress | None = None,
    attempts: int = 5,
    backoff: float = 1.0,
    timeout: float = 30.0,
) -> Path:
    """Download a file, or verify the one that is there.

    An interrupted call keeps its part, which the next call resumes.

    Args:
        url: An http or https URL.
        target: The file to write. Its folder is made if needed.
        size: Published size in bytes.
        sha256: Published sum.
        md5: Published sum, where there is no other.
        progress: Called as bytes arrive. The default is a bar on a terminal and plain lines elsewhere, on stderr.
        attempts: Consecutive attempts that bring nothing new before giving up.
        backoff: Seconds before the second attempt, doubled at each further one.
        timeout: Seconds without an answer.

    Raises:
        SourceUnavailable: The URL does not deliver.
        DownloadError: It delivers something else than the published file, or the target cannot be written.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url}: only http and https addresses can be downloaded")
    if not target.is_file():
        with _one_line_errors(target):
            place = destination(target)
            place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with _one_line_errors(place):
                is_locked = stack.enter_context(
                    file_lock(
                        _beside(place, ".lock"),
                        lambda: print(f"waiting for another process that is downloading {place}", file=sys.stderr),
                    )
                )
            if not target.is_file():  # another process may have downloaded it while this one waited
                part = _Part(url, place, size, sha256, is_shared=is_locked)
                try:
                    with _default_progress(target.name) if progress is None else contextlib.nullcontext(progress) as on:
                        _transfer(part, on, attempts, backoff, timeout)
                    part.finish()
                finally:
                    if not is_locked:
                        part.discard()
    verify(target, size=size, sha256=sha256, md5=md5)
    return target


def verify(path: Path, *, size: int | None = None, sha256: str | None = None, md5: str | None = None) -> None:
    """Raise `DownloadError` unless the file has this size and sum; a sum is computed once per version of the file."""
    stat = path.stat()
    if size is not None and stat.st_size != size:
        raise DownloadError(
            f"{path}: has {stat.st_size} bytes, but the published file has {size}; delete it and run the command again"
        )
    kind, expected = ("md5", md5) if sha256 is None else ("sha256", sha256)
    verified = {kind: expected, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if expected is None or _read_json(_beside(path, ".verified")) == verified:
        return
    with _one_line_errors(path):
        actual = file_sha256(path) if kind == "sha256" else file_md5(path)
    if actual != expected:
        raise DownloadError(
            f"{path}: {kind} is {actual}, but the published file's is {expected}; delete it and run the command again"
        )
    _record_verified(path, kind, expected)


def offline_switch() -> str | None:
    """The environment variable that forbids downloads, as the user set it."""
    for name in ("RINALMO_OFFLINE", "HF_HUB_OFFLINE"):
        value = os.environ.get(name, "")
        if value.lower() in ("1", "true", "yes", "on"):
            return f"{name}={value}"
    return None


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _record_verified(path: Path, kind: str, value: str) -> None:
    stat = path.stat()
    record = {kind: value, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    with contextlib.suppress(OSError):  # in a folder that cannot be written, the file is hashed each time
        _beside(path, ".verified").write_text(json.dumps(record), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a small file of ours; empty if it is missing or damaged."""
    with contextlib.suppress(InputError):
        return read_json(path)
    return {}


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like into one line."""
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{path}: {error.strerror or error}; free some space or choose another folder") from error


class _Part:
    """The incomplete file: its bytes, and the version of the URL's file that they belong to."""

    def __init__(self, url: str, target: Path, size: int | None, sha256: str | None, *, is_shared: bool) -> None:
        """`is_shared`: later calls may resume the part, which needs a lock. Otherwise its name is unique."""
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

    def discard(self) -> None:
        with _one_line_errors(self.path):
            self.path.unlink(missing_ok=True)
            self.state_path.unlink(missing_ok=True)
        self.validator, self.total = None, self.size

    def start(self, response: http.client.HTTPResponse) -> None:
        """Empty the part for the version that the server sends now."""
        total = response.length
        if self.size is not None and total not in (None, self.size):
            raise DownloadError(f"{self.url}: offers {total} bytes, but the published file has {self.size}")
        self.validator, self.total = _validator(response), self.size if total is None else total
        with _one_line_errors(self.path):
            self.path.open("wb").close()  # empty before the state names another version
            state = {"url": self.url, "validator": self.validator, "total": total}
            self.state_path.write_text(json.dumps(state), encoding="utf-8")

    def is_continued(self, response: http.client.HTTPResponse) -> bool:
        """Whether a 206 answer is the rest of these bytes. Some servers ignore If-Range."""
        first, _, total = (response.headers.get("Content-Range") or "").removeprefix("bytes ").partition("/")
        same_version = self.validator is None or _validator(response) in (None, self.validator)
        same_size = self.total is None or total in ("*", str(self.total))
        if self.total is None and total.isdigit():
            self.total = int(total)
        return first.split("-")[0] == str(self.offset) and same_version and same_size

    def append(self, response: http.client.HTTPResponse, progress: Progress) -> None:
        offset = self.offset
        with _one_line_errors(self.path):
            free = shutil.disk_usage(self.path.parent).free
        if self.total is not None and self.total - offset > free:
            raise DownloadError(
                f"{self.path.parent}: {self.total - offset} bytes remain to be downloaded, but only {free} are free; "
                "free some space or choose another folder"
            )
        with _one_line_errors(self.path), self.path.open("ab") as file:
            progress(offset, self.total)
            # A known total ends the loop: a server may keep the connection open after the last byte.
            while offset != self.total:
                try:
                    chunk = response.read1(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _Interrupted(f"the connection broke ({error or type(error).__name__})") from error
                if not chunk:
                    break
                file.write(chunk)
                offset += len(chunk)
                progress(offset, self.total)
        if self.total is not None and offset < self.total:
            raise _Interrupted(f"the connection closed after {offset} of {self.total} bytes")

    def finish(self) -> None:
        """Check the sum, then publish the file."""
        with _one_line_errors(self.path):
            actual = file_sha256(self.path) if self.sha256 is not None else None
            if actual != self.sha256:
                self.discard()
                raise DownloadError(
                    f"{self.url}: the downloaded file has sha256 {actual}, but the published one {self.sha256}; "
                    "it was deleted; run the command again"
                )
            sync(self.path)
            self.path.replace(self.target)
            self.state_path.unlink(missing_ok=True)
            sync(self.target.parent)
        if actual is not None:
            _record_verified(self.target, "sha256", actual)


def _validator(response: http.client.HTTPResponse) -> str | None:
    """The header that names this version of the file in If-Range; a weak ETag may not."""
    etag: str | None = response.headers.get("ETag")
    return etag if etag is not None and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _transfer(part: _Part, progress: Progress, attempts: int, backoff: float, timeout: float) -> None:
    """Request the rest until it is complete, with growing pauses."""
    start = furthest = part.offset
    failures = 0
    while part.total is None or part.offset < part.total or not part.path.exists():
        if part.validator is None and part.sha256 is None:
            part.discard()  # neither the server nor the sum would reveal that the file has changed
        try:
            with _request(part, timeout) as response:
                if response.status == http.HTTPStatus.OK:
                    part.start(response)
                elif not part.is_continued(response):
                    part.discard()
                    raise _Interrupted("the file changed on the server during the download")
                part.append(response, progress)
            return
        except _Interrupted as stop:
            failures = 1 if part.offset > furthest else failures + 1
            furthest = max(furthest, part.offset)
            if failures >= attempts or (stop.no_route and furthest == start):
                kept = "; the part already downloaded is kept; run the command again to continue" if part.offset else ""
                raise SourceUnavailable(f"{part.url}: {stop}{kept}") from stop
            time.sleep(min(max(stop.wait, backoff * 2 ** (failures - 1)), _MAX_WAIT))


def _request(part: _Part, timeout: float) -> http.client.HTTPResponse:
    """Ask for the rest of the file; raises `_Interrupted` for what may pass and `SourceUnavailable` for what will not.

    The opener knows http and https alone: urllib's usual one would follow a redirect to ftp.
    """
    headers = {"User-Agent": f"rinalmo/{__version__}", "Accept-Encoding": "identity"}
    if part.offset:
        headers["Range"] = f"bytes={part.offset}-"
        if part.validator is not None:
            headers["If-Range"] = part.validator
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    try:
        response: http.client.HTTPResponse = opener.open(
            urllib.request.Request(part.url, headers=headers), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"HTTP {error.code} {error.reason}"
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.offset:
            part.discard()
            raise _Interrupted(reason) from error
        if error.code in (408, 425, 429) or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            raise _Interrupted(reason, wait=float(after) if after.isdigit() else 0.0) from error
        raise SourceUnavailable(f"{part.url}: {reason}", status=error.code) from error
    except urllib.error.URLError as error:
        cause = error.reason
        if not isinstance(cause, OSError) or isinstance(cause, ssl.SSLCertVerificationError):
            raise SourceUnavailable(f"{part.url}: {cause}") from error
        no_route = isinstance(cause, socket.gaierror | TimeoutError) or cause.errno in _NO_ROUTE
        raise _Interrupted(cause.strerror or str(cause), no_route=no_route) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error
    if response.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
        response.close()
        raise SourceUnavailable(f"{part.url}: HTTP {response.status} {response.reason}", status=response.status)
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise SourceUnavailable(f"{part.url}: the server sent a web page (a login or proxy page?) instead of the file")
    return response


@contextlib.contextmanager
def _default_progress(name: str) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line every half minute. Nothing where only errors are to be logged (--quiet)."""
    if logging.getLogger("rinalmo").getEffectiveLevel() > logging.WARNING:
        yield lambda done, total: None
        return
    if sys.stderr.isatty():
        from rich import progress
        from rich.console import Console

        bar_columns = progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn()
        rate_columns = progress.TransferSpeedColumn(), progress.TimeRemainingColumn()
        with progress.Progress(*bar_columns, *rate_columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    pace, last = Pace(), -_SECONDS

    def print_line(done: int, total: int | None) -> None:
        nonlocal last
        now, pace.total = time.monotonic(), total
        left = pace.left(done)
        if now - last < _SECONDS and done != total:
            return
        last, line = now, f"downloading {name}: {done / 1e6:.1f}"
        if total:
            line += f" of {total / 1e6:.1f} MB ({100 * done // total} %){left if done < total else ''}"
        print(line if total else f"{line} MB", file=sys.stderr, flush=True)

    yield print_line
