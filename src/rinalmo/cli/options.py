"""Options that several commands share."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rinalmo.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from rinalmo.engine.engine import Engine
    from rinalmo.engine.ray import RayEngine
    from rinalmo.tasks.evaluate import Evaluation, Metric
    from rinalmo.training.trainer import Event


FOLD_MODEL = "nano-fold"


def model_option_with(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--model` for a command with this one as its usual model."""
    return click.option(
        "-m",
        "--model",
        default=default,
        show_default=True,
        metavar="MODEL",
        help="A name from `rinalmo models`, or a model folder or file in any layout.",
    )


model_option = model_option_with("nano")

threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads to use.")

batch_tokens_option = click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    help="Tokens computed at once; less needs less memory. Results do not depend on it.  [default: 4096 on a CPU, by "
    "its memory on a GPU]",
)

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto (CUDA, then MPS, then the CPU), cpu, cuda, cuda:N or mps.",
)


colour_option = click.option(
    "--colour-by",
    metavar="FIELD",
    help="Colour a map by length, type, family, taxon, description, a KEY of KEY=value in the headers, or "
    "TABLE:COLUMN, a column of a CSV or TSV file with ids.",
)

fill_option = click.option(
    "--fill-to",
    type=click.IntRange(min=0),
    metavar="TOKENS",
    help="For ribosome-load: fill sequences up with pad tokens, 0 for none.  [default: as the model was trained]",
)

window_option = click.option(
    "--window",
    type=click.IntRange(min=32),
    metavar="NT",
    help="Fold RNAs longer than this in overlapping windows of this size.  [default: the model's]",
)

thermodynamics_option = click.option(
    "--thermodynamics",
    type=click.FloatRange(0, 1),
    metavar="WEIGHT",
    help="Override how much thermodynamics (ViennaRNA, extra `fold`) counts: the weight of its pair probabilities in "
    "the mean with the model's, 0 for the model alone.  [default: what is best for the model]",
)


def engine_options(precision: str, model: str = "nano") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--model`, and what else makes an `Engine`."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        return model_option_with(model)(computing_options(precision)(command))

    return add


def computing_options(precision: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--device`, `--precision` (with this default), `--threads`, `--batch-tokens`: an `Engine` but for its model."""
    precision_option = click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
        default=precision,
        show_default=True,
        help="Arithmetic of the encoder; auto is bf16 where the device has it (fp16 on older GPUs), fp32 elsewhere.",
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (batch_tokens_option, threads_option, precision_option, device_option):
            command = option(command)
        return command

    return add


def ray_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--engine`, `--address`, `--workers` and `--gpus-per-worker`: where `opened_engine` computes."""
    for option in (
        click.option(
            "--gpus-per-worker",
            type=click.FloatRange(min=0),
            metavar="N",
            help="GPUs of each Ray worker; 0.5 shares one between two.  [default: 1 where there are GPUs, else 0]",
        ),
        click.option("--workers", type=click.IntRange(min=1), help="Processes of --engine ray.  [default: all CPUs]"),
        click.option(
            "--address", metavar="HOST:PORT", help="A running Ray, or auto for this machine's.  [default: start one]"
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="ray: many processes, here or on a cluster (extra `ray`); --threads is then per worker (default 1).",
        ),
    ):
        command = option(command)
    return command


@contextmanager
def opened_engine(
    engine: str, address: str | None, workers: int | None, gpus_per_worker: float | None, **settings: Any
) -> Iterator[Engine | RayEngine]:
    """The engine that `ray_options` and `engine_options` describe."""
    if engine == "ray":
        from rinalmo.engine.ray import RayEngine

        with RayEngine(address=address, workers=workers, gpus_per_worker=gpus_per_worker, **settings) as many:
            click.echo(f"device: {many.describe()}", err=True)
            yield many
        return
    if address is not None or workers is not None or gpus_per_worker is not None:
        raise click.UsageError("--address, --workers and --gpus-per-worker are for --engine ray")
    yield make_engine(**settings)


def make_engine(**settings: Any) -> Engine:
    """The engine that `computing_options` describe.

    When it begins to compute, and not before, so that bad input stays one line, it says on standard error on what.
    """
    from rinalmo.engine.engine import Engine

    engine = Engine(**settings)
    engine.announce = lambda device: click.echo(f"device: {device}", err=True)
    return engine


def resume_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--resume` and `--restart`: what becomes of the work that an interrupted run has kept."""
    for option in (
        click.option("--restart", is_flag=True, help="Discard what an interrupted run has kept, and start anew."),
        click.option(
            "--resume",
            is_flag=True,
            help="Go on with an interrupted run of the same command; this is the default.",
        ),
    ):
        command = option(command)
    return command


def is_sequence(source: str) -> bool:
    """Whether the argument is an RNA itself: it holds a mask, or nothing but nucleotides, and names no file."""
    looks_like_one = "<mask>" in source.lower() or set(source.upper()) <= set("ACGUTN")
    try:
        return source != "-" and looks_like_one and not Path(source).exists()
    except OSError:  # longer than any file name
        return True


def parse_layers(text: str) -> list[int]:
    """Layers from a list such as `0,3,-1`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--layers {text!r}: give whole numbers such as -1 or 0,3,6") from None


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
    from rinalmo.engine import jobs

    try:
        with _told(jobs.logger):
            yield
    except KeyboardInterrupt:
        if kept := jobs.Job(output).finished():
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


def print_evaluation(evaluation: Evaluation, what: str) -> None:
    """All figures with their intervals, then each group's main ones."""
    threshold = "" if evaluation.threshold is None else f", threshold {evaluation.threshold:.2f}"
    print(f"{what}: {evaluation.count:,} examples, {evaluation.task}{threshold}; {evaluation.interval}")
    _print(["figure", "value", "interval"], ([name, *_cells(f)] for name, f in evaluation.metrics.items()))
    if evaluation.groups:
        names = [name for name in evaluation.metrics if "/" not in name][:6]
        rows = (
            [group, f"{of.count:,}", *(f"{of.metrics[n].value:.3f}" if n in of.metrics else "" for n in names)]
            for group, of in evaluation.groups.items()
        )
        print()
        _print(["group", "examples", *names], rows)


def _cells(figure: Metric) -> list[str]:
    return [f"{figure.value:.4f}", f"{figure.low:.4f} – {figure.high:.4f}"]


def _print(header: list[str], rows: Iterable[list[str]]) -> None:
    """Columns as wide as their longest cell; the first to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(["  " + line[0].ljust(widths[0]), *cells]).rstrip())
