"""`rinalmo evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from rinalmo.cli.options import engine_options, fill_option, make_engine, thermodynamics_option, window_option


@click.command("evaluate")
@click.argument("task", metavar="TASK")
@click.argument("data", type=click.Path(path_type=Path), metavar="DATA")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Scores of each structure: .csv, .tsv, .parquet.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.json", help="All figures as JSON.")
@click.option("--target", "targets", multiple=True, metavar="COLUMN", help="Column with the truth.")
@click.option("--group", metavar="COLUMN", help="Column whose values figures are also given for.")
@fill_option
@window_option
@thermodynamics_option
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap.")
@engine_options(precision="auto")
def command(
    task: str,
    data: Path,
    output: Path | None,
    report: Path | None,
    targets: tuple[str, ...],
    group: str | None,
    fill_to: int | None,
    window: int | None,
    thermodynamics: float | None,
    seed: int,
    **engine_settings: Any,
) -> None:
    """Measure a fine-tuned model on labelled examples, with 95 % bootstrap intervals.

    For structures exact scores and those that allow ±1 stand side by side, over all and for each family. Sequences are
    cropped as they were for training.

    \b
    rinalmo evaluate secondary-structure TS0.csv.gz --model run/model -o per_structure.csv
    rinalmo evaluate table held_out.csv --target half_life --model run/model --report figures.json
    """
    from rinalmo.cli.progress import noted
    from rinalmo.cli.tables import print_evaluation
    from rinalmo.durable import check_path, replacing
    from rinalmo.errors import InputError
    from rinalmo.tasks.base import Columns, Task
    from rinalmo.tasks.evaluation import evaluate
    from rinalmo.tasks.registry import task_class
    from rinalmo.tasks.row_files import check_rows_output, write_rows

    kind = task_class(task)
    if output is not None:
        check_rows_output(output)
        if kind.each is Task.each:
            raise InputError(f"{task} has no scores of single examples; use --report, or predict")
    if report is not None:
        check_path(report, (".json",))
    engine = make_engine(**engine_settings)
    columns = Columns(target=targets, group=group)
    asked: dict[str, Any] = {"fill_to": fill_to, "window": window, "thermodynamics": thermodynamics}
    found = evaluate(data, engine, columns=columns, task=task, seed=seed, **asked)
    print_evaluation(found, str(data))
    for note in found.notes:
        noted(note)
    if report is not None:
        with replacing(report) as file:
            file.write(json.dumps(found.plain(), indent=1).encode())
    if output is not None:
        write_rows(output, found.rows)
