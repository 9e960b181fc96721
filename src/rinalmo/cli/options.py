"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from rinalmo.errors import InputError

model_option = click.option(
    "-m",
    "--model",
    default="starter",
    show_default=True,
    metavar="MODEL",
    help="A name from `rinalmo models`, or a model folder or file in any layout.",
)

batch_tokens_option = click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=8192,
    show_default=True,
    help="Nucleotides computed at once; less needs less memory. Results do not depend on it.",
)


def threads_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--threads`, applied when the command runs."""
    return click.option(
        "--threads", type=click.IntRange(min=1), callback=_set_threads, expose_value=False, help="CPU threads to use."
    )(command)


def _set_threads(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    if value is not None:
        import torch

        torch.set_num_threads(value)


def parse_layers(text: str) -> list[int]:
    """Layers from a list such as `0,3,-1`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--layers {text!r}: give whole numbers such as -1 or 0,3,6") from None
