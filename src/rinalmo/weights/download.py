"""Fetching one published file over http: resumed where it broke off, verified, put in place whole or not at all.

The surprise: only tries that bring nothing new count as failures, so a long file arrives over a bad line.
What lies on the disk meanwhile is drawn in `rinalmo.weights.cache`.

Reference: RFC 9110, sections 13.1.5 (If-Range), 14.2 (Range) and 15.5.17 (416).
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from rinalmo import __version__
from rinalmo.durable import destination
from rinalmo.errors import DownloadError
from rinalmo.weights.cache import Part, file_sha256, locked, validator, verify, writing

__all__ = ["Report", "SourceUnavailable", "fetch", "file_sha256", "offline_switch", "verify"]

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
