"""`rinalmo pretrain`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rinalmo.cli.options import device_option, threads_option

if TYPE_CHECKING:
    from rinalmo.training.run import Outcome


@click.command("pretrain")
@click.argument("recipe", metavar="RECIPE|FILE.yaml")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="RUN", help="Folder for the run."
)
@click.option("--resume", is_flag=True, help="Go on with the run in RUN from its last checkpoint, if it has one.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value of the recipe.")
@threads_option
@device_option
def command(
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

    from rinalmo.cli.progress import training
    from rinalmo.training.config import load_recipe
    from rinalmo.training.pretrain import pretrain
    from rinalmo.training.run import Listener

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
