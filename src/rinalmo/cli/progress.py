"""Progress on standard error: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rinalmo.training.loop import Event

_SECONDS = 10.0


@contextmanager
def counter(what: str, noun: str = "sequences") -> Iterator[Callable[[int], None]]:
    """A function to call with the number of things done so far."""
    if not sys.stderr.isatty():
        yield _lines(what, noun)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn("line"),
        TextColumn("{task.description} {task.completed:,.0f} " + noun),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda count: bar.update(task, completed=count)


def noted(text: str) -> None:
    """A line about what is computed; a bar makes room for it."""
    _say(f"note: {text}")


@contextmanager
def resumable(output: Path, noun: str) -> Iterator[None]:
    """Tell what an interrupted run of embeddings, scores or structures has kept: when it goes on, and on Ctrl-C."""
    from rinalmo.inference import runs

    try:
        with _told(runs.logger):
            yield
    except KeyboardInterrupt:
        if kept := runs.Run(output).finished():
            _say(f"rinalmo: {kept:,} {noun} are kept; the same command goes on")
        raise


@contextmanager
def _told(logger: logging.Logger) -> Iterator[None]:
    """What this logger has to say of its work, as lines."""
    handler, level = logging.Handler(), logger.level
    handler.emit = lambda record: _say(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _lines(what: str, noun: str) -> Callable[[int], None]:
    last = time.monotonic()

    def tell(count: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS:
            last = time.monotonic()
            _say(f"{what}: {count:,} {noun}")

    return tell


@contextmanager
def training() -> Iterator[tuple[Callable[[Event], None], Callable[[str], None]]]:
    """Two functions to call: with each line of a run's log, and with each note."""
    if not sys.stderr.isatty():
        yield _training_lines(), noted
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def tell(event: Event) -> None:
            if "loss" in event.values:
                bar.update(task, completed=event.step, total=event.steps, description=_described(event))
            else:
                bar.console.print(_described(event), highlight=False)

        yield tell, lambda text: bar.console.print(f"note: {text}", highlight=False)


def _training_lines() -> Callable[[Event], None]:
    last = -_SECONDS

    def tell(event: Event) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS or "loss" not in event.values or event.step == event.steps:
            last = now
            _say(_described(event))

    return tell


def _described(event: Event) -> str:
    """One line: `step 1,200/75,900  loss 1.2345  lr 5.0e-05  12,345 tokens/s  MFU 41 %`."""
    values: dict[str, Any] = dict(event.values)
    parts = [f"step {event.step:,}/{event.steps:,}"]
    if "loss" in values:
        parts += [
            f"loss {values['loss']:.4f}",
            f"lr {values['lr']:.1e}",
            f"{values['tokens_per_second']:,.0f} tokens/s",
        ]
        parts += [f"MFU {100 * values['mfu']:.0f} %"] if "mfu" in values else []
    else:
        names = ("loss", "accuracy", "perplexity")
        parts += [f"validation {name} {values[key]:.4f}" for name in names if (key := f"validation/{name}") in values]
    return "  ".join(parts)
