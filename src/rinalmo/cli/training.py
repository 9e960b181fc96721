"""Commands that train, and the model card: pretrain, finetune, card."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import click

from rinalmo.cli.options import (
    combined,
    device_option,
    print_evaluation,
    print_line,
    threads_option,
    training_progress,
)

_PATH = click.Path(path_type=Path)
_run_options = combined(
    click.option("-o", "--output", required=True, type=_PATH, metavar="RUN", help="Folder for the run."),
    click.option("--resume", is_flag=True, help="Continue the run from its last checkpoint, if there is one."),
    click.option("--restart", is_flag=True, help="Discard the run in RUN and start over."),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value of the recipe."),
    threads_option,
    device_option,
)


@click.command("pretrain")
@click.argument("recipe", metavar="RECIPE|FILE.yaml")
@_run_options
def pretrain_command(
    recipe: str, output: Path, overrides: tuple[str, ...], threads: int | None, **options: Any
) -> None:
    """Train a model on a token store from `rinalmo data prepare`; the result is in RUN/model.

    RECIPE is pretrain-tiny, -nano-cpu, -nano, -micro, -mega or -giga, or a YAML file. SIGTERM and Ctrl-C save a
    checkpoint and stop; the same command with --resume continues. Start several processes with torchrun.

    \b
    rinalmo pretrain pretrain-tiny --set data.store=STORE --output RUN
    rinalmo pretrain pretrain-nano --set data.store=STORE --output RUN --resume
    torchrun --nproc-per-node 8 -m rinalmo pretrain pretrain-giga --set data.store=STORE --output RUN
    """
    import torch

    from rinalmo.training.pretrain import pretrain
    from rinalmo.training.recipes import load_recipe
    from rinalmo.training.trainer import Listener

    chosen = load_recipe(recipe, overrides)
    if threads is not None:
        torch.set_num_threads(threads)
    with training_progress() as callbacks:
        outcome = pretrain(chosen, output, listener=Listener(*callbacks), **options)
    if outcome.finished:
        _print_once(f"{outcome.model}: trained for {outcome.step:,} steps; use it with --model {outcome.model}")
    else:
        _print_once(f"{output}: stopped and saved after step {outcome.step:,}; continue with --resume")
    if outcome.signal == signal.SIGINT:
        raise KeyboardInterrupt


def _print_once(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes prints for all
        print_line(text)


@click.command("finetune")
@click.argument("task", metavar="TASK")
@click.argument("data", type=_PATH, metavar="DATA")
@click.option("-m", "--model", metavar="MODEL", help="Pre-trained model to start from.  [default: nano]")
@click.option("--validation", type=_PATH, help="Validation examples.  [default: a tenth of DATA]")
@click.option("--test", type=_PATH, help="Test examples, evaluated at the end.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="COLUMN",
    help="Column to predict; for table, may be given several times.",
)
@click.option("--second", metavar="COLUMN", help="For table: column with a second sequence.")
@click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="COLUMN[=FILE.npz]",
    help="For table: another input column, with numbers, names, or names of vectors in a file.",
)
@click.option("--folds", type=click.IntRange(min=3), help="Number of folds for cross-validation, in RUN/fold-0, …")
@click.option("--fold", type=click.IntRange(min=0), help="Train only this fold of the --folds, counted from 0.")
@click.option("--recipe", metavar="NAME|FILE.yaml", help="Recipe.  [default: finetune-TASK]")
@_run_options
def finetune_command(
    task: str, data: Path, output: Path, targets: tuple[str, ...], threads: int | None, **options: Any
) -> None:
    """Train a model for a task on labeled examples; the result is in RUN/model.

    TASK is secondary-structure, ribosome-load, translation-efficiency, expression-level, splice-site, ncrna-family or
    table. DATA is a table (CSV, TSV, JSON lines, Parquet; .gz, .bz2, .xz, .zst), for structures also DBN, CT, BPSEQ,
    ST. Ctrl-C saves a checkpoint and stops; the same command with --resume continues.

    \b
    rinalmo finetune table measured.csv --target half_life --output run
    rinalmo finetune secondary-structure TR0.csv.gz --validation VL0.csv.gz --output run
    rinalmo finetune table sirnas.csv --second target --feature concentration --feature cell_line --output run
    rinalmo finetune ncrna-family families.csv --model giga --set backbone.mode=frozen --output run
    """
    import torch

    from rinalmo.training.finetune import finetune
    from rinalmo.training.trainer import Listener, Outcome

    if threads is not None:
        torch.set_num_threads(threads)
    runs: list[Outcome] = []
    with training_progress() as callbacks:
        try:
            listener = Listener(*callbacks, runs.append)
            evaluation = finetune(task, data, output, target=targets, listener=listener, **options)
        except KeyboardInterrupt:
            if not runs or runs[-1].finished:
                raise
            _print_once(f"{output}: stopped and saved; continue with --resume")
            if runs[-1].signal == signal.SIGINT:
                raise
            return
    if evaluation is not None:
        print_evaluation(evaluation, "test", output / "evaluation.json")
    if len(runs) > 1:
        _print_once(f"{output}: trained {len(runs)} folds; their models are in {output}/fold-N/model")
    else:
        steps = f" for {runs[0].step:,} steps" if runs[0].step > 1 else ""
        _print_once(f"{runs[0].model}: trained{steps}; use it with --model {runs[0].model}")


@click.command("card")
@click.argument("source", metavar="RUN|MODEL")
@click.option("-o", "--output", type=_PATH, help="File to write.  [default: README.md in the model's folder]")
@click.option("--name", help="Name of the model on the card.  [default: the folder's name]")
@click.option("--license", "license_id", metavar="ID", help="License for the card's header, such as apache-2.0.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def card_command(source: str, output: Path | None, name: str | None, license_id: str | None, overwrite: bool) -> None:
    """Write the model card of a run (with its data, procedure and validation metrics) or of any model.

    The card has the metadata header of the Hugging Face Hub, a table of model sizes, and the model's predictions for
    two well-known RNAs, which are computed now.

    \b
    rinalmo card RUN --license apache-2.0
    rinalmo card nano --output nano.md
    """
    from rinalmo.training.model_card import write_card

    target = write_card(source, output, name=name, license_id=license_id, overwrite=overwrite)
    print_line(f"{target}: written")
