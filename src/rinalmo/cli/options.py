"""What several commands share: options, the engine, messages, progress."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rinalmo.io.files import Pace, counted, escape_controls

if TYPE_CHECKING:
    from rich.progress import Progress

    from rinalmo.engine.engine import Engine
    from rinalmo.engine.ray import RayEngine
    from rinalmo.tasks.evaluate import Evaluation
    from rinalmo.training.trainer import Event

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

FOLD_MODEL = "nano-fold"
_SECONDS = 30.0  # between lines of progress where there is no terminal
_quiet = False


def set_quiet(ctx: click.Context | None, param: click.Parameter | None, value: bool) -> None:
    """Let nothing but errors and results be printed, by this command and the library."""
    global _quiet
    if value or param is None:
        _quiet = value
        logging.getLogger("rinalmo").setLevel(logging.ERROR if value else logging.INFO)


quiet_option = click.Option(
    ["-q", "--quiet"],
    is_flag=True,
    expose_value=False,
    callback=set_quiet,
    help="Print only errors: no progress and no notes.",
)


class FigurePath(click.Path):
    """The file of a figure. A name that ends in a slash is a folder, which is made; `name` is the file in a folder."""

    def __init__(self, name: str = "") -> None:
        super().__init__(path_type=Path)
        self.file = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if str(value).endswith(("/", os.sep)):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self.fail(f"{path}: cannot create this folder ({error.strerror})", param, ctx)
        return path / self.file if self.file and path.is_dir() else path


def combined(*options: Decorator) -> Decorator:
    """Several options as one decorator, in this order in the help."""
    return lambda command: reduce(lambda inner, option: option(inner), reversed(options), command)


def model_option_with(default: str) -> Decorator:
    """`--model` with this default."""
    return click.option(
        "-m",
        "--model",
        default=default,
        metavar="MODEL",
        help="A name from `rinalmo models`, a model folder or file in any layout, or OWNER/MODEL on the Hugging Face "
        "Hub.",
    )


model_option = model_option_with("nano")

threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads to use.")

device_option = click.option(
    "--device",
    default="auto",
    metavar="DEVICE",
    help="auto (CUDA, then MPS, then the CPU), cpu, cuda, cuda:N or mps.",
)

colour_option = click.option(
    "--color-by",
    "--colour-by",
    "colour_by",
    metavar="FIELD",
    help="Color a map by length, type, family, taxon, description, a KEY of KEY=value in the headers, or "
    "TABLE:COLUMN, a column of a CSV or TSV file with ids.",
)

values_option = click.option(
    "--color-by",
    "values",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Color the nucleotides of a drawing by reactivity, conservation or any number: lines of position and value, "
    "after `>name` for several RNAs; or a table with columns `id` and `reactivity`.",
)

fill_option = click.option(
    "--fill-to",
    type=click.IntRange(min=0),
    metavar="TOKENS",
    help="For ribosome-load: pad sequences to this many tokens, 0 for no padding.  [default: as in training]",
)

vectors_option = click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="COLUMN=FILE.npz",
    help="For a model with vector inputs: the file with the vectors named in this column.",
)


def vector_files(features: tuple[str, ...]) -> dict[str, Path]:
    """The file of each `--feature`, by column."""
    files = {}
    for text in features:
        name, sign, path = text.rpartition("=")
        if not sign:
            raise click.UsageError(f"--feature {text}: give COLUMN=FILE.npz; only vectors need this option")
        files[name] = Path(path)
    return files


folding_options = combined(
    click.option(
        "--window",
        type=click.IntRange(min=32),
        metavar="NT",
        help="Fold RNAs longer than this in overlapping windows of this size.  [default: the model's]",
    ),
    click.option(
        "--thermodynamics",
        type=click.FloatRange(0, 1),
        metavar="WEIGHT",
        help="Weight of ViennaRNA's pair probabilities (extra `fold`) in the average with the model's; 0 uses only "
        "the model.  [default: the model's]",
    ),
)


def computing_options(precision: str) -> Decorator:
    """The options of an `Engine` but for its model, with this default precision."""
    return combined(
        device_option,
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16", "fp16", "int8"]),
            default=precision,
            help="Precision of the encoder; auto is bf16 if the device supports it (fp16 on older GPUs), else fp32.",
        ),
        threads_option,
        click.option(
            "--batch-tokens",
            type=click.IntRange(min=1),
            help="Tokens per batch; fewer need less memory. Results do not depend on it.  [default: 4096 on a CPU, "
            "depending on memory on a GPU]",
        ),
    )


adapter_option = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="[NAME=]FOLDER",
    help="LoRA adapter from PEFT or `rinalmo finetune`, applied to the model. May be given several times: {adapter} in "
    "the names of output files is then replaced by each adapter's name, by default that of its folder or run.",
)

task_option = click.option(
    "--task",
    metavar="TASK",
    help="The model's task. For a model saved by transformers' Trainer without a problem_type, the kind of its labels: "
    "regression, binary, multiclass or multilabel.",
)


def each_adapter(
    adapters: Sequence[str], settings: dict[str, Any], **outputs: Any
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, settings of the engine and output files for each adapter; once, and unchanged, without any.

    All adapters are checked before the first is used. Those of one base act over one copy of it in memory.
    """
    if not adapters:
        yield "", settings, outputs
        return
    from rinalmo.errors import InputError
    from rinalmo.weights.checkpoint import base_of, read, read_adapter

    folders: dict[str, Path] = {}
    for given in adapters:
        name, sign, path = given.partition("=")
        folder = Path(path if sign else given)
        resolved = folder.resolve()
        name = name if sign else (resolved.parent if resolved.name == "adapter" else resolved).name
        if name in folders:
            raise InputError(f"--adapter {given}: another adapter is also called {name}; rename it with NAME={folder}")
        folders[name] = folder
    for option, output in outputs.items():
        if len(folders) > 1 and output is not None and "{adapter}" not in str(output):
            example = "{adapter}.csv" if str(output) == "-" else "{adapter}" + str(output)
            raise InputError(
                f"--{option} {output}: with several adapters, put {{adapter}} into the name, such as '{example}'"
            )
    given_base = _base_given(settings)
    bases = {name: given_base or base_of(read_adapter(folder)) for name, folder in folders.items()}
    for name, folder in folders.items():
        read(bases[name], adapter=folder)
    for name, folder in folders.items():
        changed = settings | {"model": bases[name], "adapter": None if bases[name] == folder else folder}
        files = {
            option: type(output)(str(output).replace("{adapter}", name)) if output is not None else None
            for option, output in outputs.items()
        }
        yield name, changed, files


def _base_given(settings: dict[str, Any]) -> Any:
    """The model that the user named; None if it is the command's default, for an adapter names its own."""
    source = click.get_current_context().get_parameter_source("model")
    return None if source == click.core.ParameterSource.DEFAULT else settings["model"]


def engine_options(precision: str, model: str = "nano") -> Decorator:
    """The options of an `Engine`."""
    return combined(model_option_with(model), computing_options(precision))


shard_option = click.option(
    "--shard", metavar="I/N", help="Use every N-th sequence, starting with the I-th: one job of an array of N."
)

job_options = combined(
    click.option("--resume", is_flag=True, help="Continue an interrupted run of the same command, if there is one."),
    click.option("--restart", is_flag=True, help="Discard the results of an interrupted run and start over."),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        help="ray: many processes, here or on a cluster (extra `ray`). With ray, --threads is per worker (default 1).",
    ),
    click.option(
        "--address",
        metavar="HOST:PORT",
        help="Address of a running Ray cluster, or auto for the one on this machine.  [default: start one]",
    ),
    click.option(
        "--workers", type=click.IntRange(min=1), help="Worker processes of --engine ray.  [default: all CPUs]"
    ),
    click.option(
        "--gpus-per-worker",
        type=click.FloatRange(min=0),
        metavar="N",
        help="GPUs per Ray worker; with 0.5 two workers share one.  [default: 1 if there are GPUs, else 0]",
    ),
)


@contextmanager
def open_engine(
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    **settings: Any,
) -> Iterator[Engine | RayEngine]:
    """The engine that the options describe. It prints its device once it computes, so that bad input is one line."""
    if engine == "ray":
        from rinalmo.engine.ray import RayEngine

        with RayEngine(address=address, workers=workers, gpus_per_worker=gpus_per_worker, **settings) as ray_engine:
            print_line(f"device: {ray_engine.describe()}")
            yield ray_engine
        return
    if address is not None or workers is not None or gpus_per_worker is not None:
        raise click.UsageError("--address, --workers and --gpus-per-worker need --engine ray")
    yield make_engine(**settings)


def make_engine(**settings: Any) -> Engine:
    """An `Engine` that prints its device before it computes; a second command in the process loads no model again."""
    from rinalmo.engine.engine import as_engine

    engine = as_engine(**settings)
    engine.announce = print_line
    return engine


def print_line(line: str) -> None:
    """A line on standard error, unless --quiet is given; a progress bar makes room for it."""
    if not _quiet:
        print(escape_controls(line), file=sys.stderr, flush=True)


def print_note(text: str) -> None:
    """A note on standard error."""
    print_line(f"note: {text}")


@contextmanager
def progress(
    task: str, noun: str = "sequences", total: Callable[[], tuple[int, bool] | None] = lambda: None
) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of things done so far: a bar on a terminal, else a line every half minute.

    `total` gives how many there are, and whether that is exact; it is called when it is needed first.
    """
    pace: Pace | None = None

    def text(count: int) -> str:
        nonlocal pace
        if pace is None:
            known = total()
            pace = Pace(known[0], "" if known[1] else "about ") if known else Pace()
        return pace.text(count, noun)

    if _quiet:
        yield lambda count: None
        return
    if not sys.stderr.isatty():
        last = time.monotonic()

        def report(count: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _SECONDS:
                last = time.monotonic()
                print_line(f"{task}: {text(count)}")

        yield report
        return
    with _bar(transient=True) as bar:
        bar_task = bar.add_task(task, total=None)

        def update(count: int) -> None:
            description = f"{task} {text(count)}"
            known = max(pace.total, count) if pace and pace.total else None
            bar.update(bar_task, completed=count, total=known, description=description)

        yield update


def _bar(**options: Any) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = SpinnerColumn("line"), BarColumn(bar_width=20), TextColumn("{task.description}", markup=False)
    return Progress(*columns, console=Console(stderr=True), **options)


@contextmanager
def training_progress() -> Iterator[tuple[Callable[[Event], None], Callable[[str], None]]]:
    """Two functions to call: with each event of a run, and with each note."""
    if _quiet:
        yield lambda event: None, lambda text: None
        return
    pace = Pace()
    if not sys.stderr.isatty():
        last = -_SECONDS

        def print_event(event: Event) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _SECONDS or "loss" not in event.values or event.step == event.steps:
                last = now
                print_line(_description(event, pace))

        yield print_event, print_note
        return
    with _bar() as bar:
        bar_task = bar.add_task("", total=None)

        def update(event: Event) -> None:
            description = _description(event, pace)
            if "loss" in event.values:
                bar.update(bar_task, completed=event.step, total=event.steps, description=description)
            else:
                bar.console.print(description, highlight=False, markup=False)

        yield update, print_note


def _description(event: Event, pace: Pace) -> str:
    """One line: `1,200 of 75,900 steps (1 %), 5 h 3 min left  loss 1.2345  lr 5.0e-05  12,345 tokens/s  MFU 41 %`."""
    values: dict[str, Any] = dict(event.values)
    pace.total = event.steps
    if "loss" not in values:
        names = ("loss", "accuracy", "perplexity")
        parts = [f"validation {name} {values[key]:.4f}" for name in names if (key := f"validation/{name}") in values]
        return "  ".join([f"step {event.step:,}", *parts])
    parts = [pace.text(event.step, "steps"), f"loss {values['loss']:.4f}", f"lr {values['lr']:.1e}"]
    parts += [f"{values['tokens_per_second']:,.0f} tokens/s"]
    parts += [f"MFU {100 * values['mfu']:.0f} %"] if "mfu" in values else []
    return "  ".join(parts)


_GROUPS, _MEMBERS = 15, 5
"""As many groups are printed one by one; of more, the worst that have so many examples."""


def print_evaluation(evaluation: Evaluation, title: str, report: str | Path = "--report FILE.json") -> None:
    """All metrics with their intervals, then the main ones of each group, or of the worst of more than 15: `report` has
    them all."""
    threshold = "" if evaluation.threshold is None else f", threshold {evaluation.threshold:.2f}"
    print(f"{title}: {counted(evaluation.count, 'example')}, {evaluation.task}{threshold}; {evaluation.interval}")
    rows = []
    for name, metric in evaluation.metrics.items():
        cells = [f"{metric.value:.4f}", f"{metric.low:.4f} – {metric.high:.4f}"]
        for simple in evaluation.baselines.values():
            other = simple.metrics.get(name)
            cells.append("" if other is None or isnan(other.value) else f"{other.value:.4f}")
        rows.append([name, *cells])
    print_columns(["metric", "value", "interval", *evaluation.baselines], rows)
    if evaluation.groups:
        names = [name for name in evaluation.metrics if "/" not in name][:6]
        groups, metric_name = evaluation.groups, "f1" if "f1" in names else names[0]
        print()
        if len(groups) > _GROUPS:
            large = {group: of for group, of in groups.items() if of.count >= _MEMBERS and metric_name in of.metrics}
            worst = sorted(large, key=lambda group: large[group].metrics[metric_name].value)[:10]
            which = f"The {len(worst)} with the lowest {metric_name} of {len(large):,} groups" if worst else "No groups"
            print(f"{which} of {_MEMBERS} examples or more; {report} has all {len(groups):,}")
            groups = {group: groups[group] for group in worst}
        rows = [
            [group, f"{of.count:,}", *(f"{of.metrics[n].value:.3f}" if n in of.metrics else "" for n in names)]
            for group, of in groups.items()
        ]
        if rows:
            print_columns(["group", "examples", *names], rows)


def print_columns(header: list[str], rows: Iterable[list[str]], left: int = 1) -> None:
    """Columns as wide as their longest cell; the first ones to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line[:left], widths, strict=False)]
        padded += [cell.rjust(width) for cell, width in zip(line[left:], widths[left:], strict=True)]
        print("  ".join(["", *padded]).rstrip())
