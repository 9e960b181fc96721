"""The command benchmark."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rinalmo.cli.options import computing_options, print_columns, print_note, progress, training_progress

if TYPE_CHECKING:
    from rinalmo.benchmarks import Benchmark

_PATH = click.Path(path_type=Path)


@click.command("benchmark")
@click.argument("name", metavar="[NAME]", required=False)
@click.option(
    "--data",
    type=_PATH,
    metavar="PATH",
    help="The benchmark's data: a file, or a folder as distributed by its authors.",
)
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    help="A name from `rinalmo models`, or a model folder or file; {fold} is replaced by the name of each fold.  "
    "[default: nano, or nano-fold for folding]",
)
@click.option("-o", "--output", type=_PATH, help="File for the table: .csv, .tsv, .jsonl or .parquet.")
@click.option("--run", type=_PATH, metavar="RUN", help="Folder for a model that the benchmark fine-tunes.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value of the fine-tuning recipe."
)
@click.option("--target", metavar="COLUMN", help="For mrnabench: the column of the true values.")
@click.option(
    "--kind",
    type=click.Choice(["regression", "classification", "multilabel"]),
    help="For mrnabench: the kind of values in the column.  [default: detected]",
)
@click.option("--zero-shot", is_flag=True, help="Fold with the model's attention, without its head.")
@click.option(
    "--random-weights", is_flag=True, help="A baseline: the architecture of --model with untrained weights of seed 0."
)
@computing_options(precision="auto")
def benchmark_command(
    name: str | None,
    data: Path | None,
    model: str | None,
    output: Path | None,
    run: Path | None,
    overrides: tuple[str, ...],
    target: str | None,
    kind: str | None,
    zero_shot: bool,
    random_weights: bool,
    **settings: Any,
) -> None:
    """Run a published benchmark on its own data, with its own metrics.

    Without NAME, list all benchmarks; with only NAME, show its source, license, data and RiNALMo's published result.
    Data are never downloaded. BEACON's tasks fine-tune the model into --run, or test a fine-tuned one.

    \b
    rinalmo benchmark
    rinalmo benchmark rnagym-fitness
    rinalmo benchmark rnagym-fitness --data fitness_processed_assays -o scores.csv
    rinalmo benchmark pdb-rna --data rna-llm-folding/data --model run/model
    rinalmo benchmark beacon-isoform --data Isoform --model giga --run run
    rinalmo benchmark structure-audit --model nano --random-weights
    """
    from rinalmo.benchmarks import BENCHMARKS, Setup, find_benchmark
    from rinalmo.io.tables import check_rows_output, write_rows
    from rinalmo.training.trainer import Listener

    if name is None:
        print_columns(["benchmark", ""], [[name, each.measures] for name, each in BENCHMARKS.items()], left=2)
        return
    chosen = find_benchmark(name)
    if data is None and chosen.needs_data:
        _describe(chosen)
        return
    if output is not None:
        check_rows_output(output)
    with progress(name, "done") as report, training_progress() as callbacks:
        chosen_model, listener = model or chosen.model, Listener(*callbacks)
        setup = Setup(data, chosen_model, run, overrides, target, kind, zero_shot, random_weights, settings)
        setup = replace(setup, note=print_note, progress=report, listener=listener)
        rows = chosen.run(setup)
    columns = list(rows[0])
    print_columns(columns, [[_text(row.get(column)) for column in columns] for row in rows])
    print(f"published: {chosen.published}")
    if output is not None:
        write_rows(output, rows)


def _describe(benchmark: Benchmark) -> None:
    for title, text in (
        ("measures", benchmark.measures),
        ("source", benchmark.source),
        ("license", benchmark.license),
        ("data", benchmark.data),
        ("model", f"{benchmark.model} by default"),
        ("published", benchmark.published),
    ):
        print(f"{title:9} {text}")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
