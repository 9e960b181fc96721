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
import errno
import http.client
import json
import os
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rinalmo import __version__
from rinalmo.errors import DownloadError
from rinalmo.io.files import destination, file_lock, file_sha256, sync


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
            sync(self.target.parent)
        _remember(self.target, found)


def validator(headers: Message) -> str | None:
    """What names this version of the file in If-Range; weak ETags may not."""
    etag: str | None = headers.get("ETag")
    return etag if etag is not None and not etag.startswith("W/") else headers.get("Last-Modified")


Report = Callable[[int, int | None], None]
"""Called with the bytes so far and their total, if known."""

CHUNK = 1 << 18
LONGEST_WAIT = 60.0
NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ECONNREFUSED}


class SourceUnavailable(DownloadError):  # noqa: N818  (the name says what happened)
    """The address does not deliver; another address of the same file might.

    `status` is the HTTP status, where it came to one.
    """

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
    progress: Report | None = None,
    attempts: int = 5,
    backoff: float = 1.0,
    timeout: float = 30.0,
) -> Path:
    """Download `url` (http or https) to `target`, or verify the `target` that is there.

    `size` is in bytes, `backoff` (doubled at each try) and `timeout` are in seconds; `attempts` counts consecutive
    tries that bring nothing new. By default progress is a bar on a terminal and plain lines elsewhere, on stderr.
    An interrupted call keeps its part, which the next call resumes.

    Raises `SourceUnavailable` if the address does not deliver, and `DownloadError` if what it delivers is not the
    published file or cannot be written.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url}: only http and https addresses are fetched")
    if not target.is_file():
        with writing(target):
            place = destination(target)
            place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place) as is_held:
            if not target.is_file():  # another process may have brought it while this one waited
                part = Part(url, place, size, sha256, is_shared=is_held)
                try:
                    shown = _default_report(target.name) if progress is None else contextlib.nullcontext(progress)
                    with shown as report:
                        _transfer(part, report, attempts, backoff, timeout)
                    part.finish()
                finally:
                    if not is_held:
                        part.discard()
    verify(target, size=size, sha256=sha256)
    return target


def offline_switch() -> str | None:
    """The switch that forbids the network, as the user set it."""
    for name in ("RINALMO_OFFLINE", "HF_HUB_OFFLINE"):
        value = os.environ.get(name, "")
        if value.lower() in ("1", "true", "yes", "on"):
            return f"{name}={value}"
    return None


def _transfer(part: Part, report: Report, attempts: int, backoff: float, timeout: float) -> None:
    """Receive until the part is complete, with growing pauses between tries."""
    start = furthest = part.offset
    failures = 0
    while not part.complete:
        try:
            _receive(part, report, timeout)
            return
        except _Interrupted as stop:
            failures = 1 if part.offset > furthest else failures + 1
            furthest = max(furthest, part.offset)
            if failures >= attempts or (stop.no_route and furthest == start):
                kept = "; what has arrived is kept, run again to continue" if part.offset else ""
                raise SourceUnavailable(f"{part.url}: {stop}{kept}") from stop
            time.sleep(min(max(stop.wait, backoff * 2 ** (failures - 1)), LONGEST_WAIT))


def _receive(part: Part, report: Report, timeout: float) -> None:
    """One request: the rest of the file, or all of it if the server will not resume."""
    if not part.resumable:
        part.discard()
    with _open(part, timeout) as response:
        _require_file(response, part)
        if response.status == http.HTTPStatus.OK:
            part.begin(validator(response.headers), response.length)
        elif not part.continued_by(response.headers):
            part.discard()
            raise _Interrupted("the file changed on the server while it was fetched")
        part.require_space()
        _copy(response, part, report)


def _require_file(response: http.client.HTTPResponse, part: Part) -> None:
    if response.status not in (http.HTTPStatus.OK, http.HTTPStatus.PARTIAL_CONTENT):
        raise SourceUnavailable(f"{part.url}: HTTP {response.status} {response.reason}", status=response.status)
    if response.headers.get_content_type() == "text/html":
        raise SourceUnavailable(f"{part.url}: answers with a web page (a login or proxy page?), not the file")


def _open(part: Part, timeout: float) -> http.client.HTTPResponse:
    headers = {"User-Agent": f"rinalmo/{__version__}", "Accept-Encoding": "identity"}
    if part.offset:
        headers["Range"] = f"bytes={part.offset}-"
        if part.validator is not None:
            headers["If-Range"] = part.validator
    try:
        response: http.client.HTTPResponse = _opener().open(
            urllib.request.Request(part.url, headers=headers), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        raise _refusal(error, part) from error
    except urllib.error.URLError as error:
        raise _no_answer(error.reason, part) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error
    return response


def _opener() -> urllib.request.OpenerDirector:
    """http and https only: urllib's usual opener would follow a redirect to ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _refusal(error: urllib.error.HTTPError, part: Part) -> Exception:
    """What an HTTP error status means for the transfer."""
    error.close()
    reason = f"HTTP {error.code} {error.reason}"
    if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.offset:
        part.discard()
        return _Interrupted(reason)
    if error.code in (408, 425, 429) or error.code >= 500:
        after = error.headers.get("Retry-After", "")
        return _Interrupted(reason, wait=float(after) if after.isdigit() else 0.0)
    return SourceUnavailable(f"{part.url}: {reason}", status=error.code)


def _no_answer(reason: str | BaseException, part: Part) -> Exception:
    """What a failure to connect means; name look-up, refusal and silence count as having no route."""
    if not isinstance(reason, OSError) or isinstance(reason, ssl.SSLCertVerificationError):
        return SourceUnavailable(f"{part.url}: {reason}")
    no_route = isinstance(reason, socket.gaierror | TimeoutError) or reason.errno in NO_ROUTE
    return _Interrupted(reason.strerror or str(reason), no_route=no_route)


def _copy(response: http.client.HTTPResponse, part: Part, report: Report) -> None:
    with writing(part.path), part.path.open("ab") as file:
        offset = part.offset
        report(offset, part.total)
        # A known total ends the loop: a server may keep the connection open after the last byte.
        while offset != part.total and (chunk := _read(response)):
            file.write(chunk)
            offset += len(chunk)
            report(offset, part.total)
    if part.total is not None and offset < part.total:
        raise _Interrupted(f"the connection closed after {offset} of {part.total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection broke ({error or type(error).__name__})") from error


@contextlib.contextmanager
def _default_report(name: str) -> Iterator[Report]:
    """A bar on a terminal; elsewhere a line every tenth of the way."""
    if not sys.stderr.isatty():
        yield _line_report(name)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line_report(name: str) -> Report:
    last = -1

    def report(done: int, total: int | None) -> None:
        nonlocal last
        step = done * 10 // total if total else done // 100_000_000
        if step > last:
            last = step
            of = f" of {total / 1e6:.1f} MB" if total else " MB"
            print(f"downloading {name}: {done / 1e6:.1f}{of}", file=sys.stderr, flush=True)

    return report
