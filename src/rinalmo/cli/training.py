"""`rinalmo pretrain`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rinalmo.cli.options import device_option, threads_option

if TYPE_CHECKING:
    from rinalmo.training.trainer import Outcome


@click.command("pretrain")
@click.argument("recipe", metavar="RECIPE|FILE.yaml")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="RUN", help="Folder for the run."
)
@click.option("--resume", is_flag=True, help="Go on with the run in RUN from its last checkpoint, if it has one.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value of the recipe.")
@threads_option
@device_option
def pretrain_command(
    recipe: str, output: Path, resume: bool, overrides: tuple[str, ...], threads: int | None, device: str
) -> None:
    """Train a model on a token store (`rinalmo data prepare` makes one); the result is in RUN/model.

    RECIPE is pretrain-tiny, -nano-cpu, -nano, -micro, -mega or -giga, or a YAML file. SIGTERM and Ctrl-C stop after a
    checkpoint; the same command with --resume goes on. Several processes are started by torchrun.

    \b
    rinalmo pretrain pretrain-tiny --set data.store=STORE --output RUN
    rinalmo pretrain pretrain-nano --set data.store=STORE --output RUN --resume
    torchrun --nproc-per-node 8 -m rinalmo pretrain pretrain-giga --set data.store=STORE --output RUN
    """
    import torch

    from rinalmo.cli.options import training
    from rinalmo.training.pretrain import pretrain
    from rinalmo.training.recipes import load_recipe
    from rinalmo.training.trainer import Listener

    chosen = load_recipe(recipe, overrides)
    if threads is not None:
        torch.set_num_threads(threads)
    with training() as (tell, note):
        outcome = pretrain(chosen, output, resume=resume, listener=Listener(tell, note), device=device)
    if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes speaks for all
        click.echo(_told(outcome, output), err=True)
    if outcome.signal == signal.SIGINT:
        raise KeyboardInterrupt


def _told(outcome: Outcome, output: Path) -> str:
    if outcome.finished:
        return f"{output / 'model'}: trained for {outcome.step:,} steps; use it with --model {output / 'model'}"
    return f"{output}: stopped and saved after step {outcome.step:,}; go on with --resume"


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
def finetune_command(
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

    from rinalmo.cli.options import print_evaluation, training
    from rinalmo.tasks.registry import task_class
    from rinalmo.training.finetune import finetune_and_test
    from rinalmo.training.recipes import recipe_for
    from rinalmo.training.trainer import Listener

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


@click.command("card")
@click.argument("source", metavar="RUN|MODEL")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write, instead of README.md in the model's folder."
)
@click.option("--name", help="Name of the model on the card; that of the folder by default.")
@click.option("--license", "license_id", metavar="ID", help="Licence for the card's header, such as apache-2.0.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def card_command(source: str, output: Path | None, name: str | None, license_id: str | None, overwrite: bool) -> None:
    """Write the model card of a run (with its data, procedure and validation figures) or of any model.

    It has the metadata header of the Hugging Face Hub, the specification table and, computed now, the model's
    predictions for two well-known RNAs.

    \b
    rinalmo card RUN --license apache-2.0
    rinalmo card nano --output nano.md
    """
    from rinalmo.training.model_card import write_card

    target = write_card(source, output, name=name, license_id=license_id, overwrite=overwrite)
    click.echo(f"{target}: written", err=True)
