"""`rinalmo finetune`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from rinalmo.cli.options import device_option, threads_option


@click.command("finetune")
@click.argument("task", metavar="TASK")
@click.argument("data", type=click.Path(path_type=Path), metavar="DATA")
@click.option("-m", "--model", metavar="MODEL", help="Backbone to start from.  [default: nano]")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="RUN", help="Folder for the run."
)
@click.option("--validation", type=click.Path(path_type=Path), help="Validation examples.  [default: a tenth of DATA]")
@click.option("--test", type=click.Path(path_type=Path), help="Test examples, evaluated at the end.")
@click.option(
    "--target", "targets", multiple=True, metavar="COLUMN", help="Column to predict; more than one for table."
)
@click.option("--folds", type=click.IntRange(min=3), help="Cross-validation with so many runs, in RUN/fold-0, …")
@click.option("--fold", type=click.IntRange(min=0), help="Only this one of --folds, from 0 on.")
@click.option("--recipe", metavar="NAME|FILE.yaml", help="Another recipe than finetune-TASK.")
@click.option("--resume", is_flag=True, help="Go on with the run in RUN from its last checkpoint, if it has one.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value of the recipe.")
@threads_option
@device_option
def command(
    task: str,
    data: Path,
    model: str | None,
    output: Path,
    validation: Path | None,
    test: Path | None,
    targets: tuple[str, ...],
    folds: int | None,
    fold: int | None,
    recipe: str | None,
    resume: bool,
    overrides: tuple[str, ...],
    threads: int | None,
    device: str,
) -> None:
    """Train a model for a task on labelled examples; the result is in RUN/model.

    TASK is secondary-structure, ribosome-load, translation-efficiency, expression-level, splice-site, ncrna-family or
    table. DATA is a table (CSV, TSV, JSON lines, Parquet; plain, .gz or .zst), for structures also DBN, CT, BPSEQ, ST.
    Ctrl-C stops after a checkpoint; the same command with --resume goes on.

    \b
    rinalmo finetune table measured.csv --target half_life --output run
    rinalmo finetune secondary-structure TR0.csv.gz --validation VL0.csv.gz --output run
    rinalmo finetune ncrna-family families.csv --model giga --set backbone.mode=frozen --output run
    """
    import torch

    from rinalmo.cli.progress import training
    from rinalmo.cli.tables import print_evaluation
    from rinalmo.tasks.registry import task_class
    from rinalmo.training.cross_validation import finetune_and_test
    from rinalmo.training.finetune_config import recipe_for
    from rinalmo.training.run import Listener

    task_class(task)
    chosen = recipe_for(
        task,
        data,
        model=model,
        validation=validation,
        test=test,
        targets=targets,
        folds=folds,
        fold=fold,
        recipe=recipe,
        overrides=overrides,
    )
    if threads is not None:
        torch.set_num_threads(threads)
    with training() as (tell, note):
        outcome, evaluation = finetune_and_test(
            chosen, output, resume=resume, listener=Listener(tell, note), device=device
        )
    if os.environ.get("RANK", "0") == "0":
        if evaluation is not None:
            print_evaluation(evaluation, "test")
        count, only = chosen.data.folds, chosen.data.fold
        if count and only is None:
            done = f"{output}: {count} folds are trained; their models are {output}/fold-N/model"
        else:
            where = (output if only is None else output / f"fold-{only}") / "model"
            done = f"{where}: trained for {outcome.step:,} steps; use it with --model {where}"
        click.echo(done if outcome.finished else f"{output}: stopped and saved; go on with --resume", err=True)
    if outcome.signal == signal.SIGINT:
        raise KeyboardInterrupt
