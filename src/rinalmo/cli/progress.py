"""Progress on standard error: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_SECONDS = 10.0


def progress(items: Iterable[T], what: str, noun: str = "sequences") -> Iterator[T]:
    """The items, counted as they pass."""
    return _bar(items, what, noun) if sys.stderr.isatty() else _lines(items, what, noun)


def _bar(items: Iterable[T], what: str, noun: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f} " + noun), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        for item in items:
            yield item
            bar.advance(task)


def _lines(items: Iterable[T], what: str, noun: str) -> Iterator[T]:
    last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= _SECONDS:
            last = time.monotonic()
            print(f"{what}: {count:,} {noun}", file=sys.stderr, flush=True)
