"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rinalmo.errors import InputError

model_option = click.option(
    "-m",
    "--model",
    default="nano",
    show_default=True,
    metavar="MODEL",
    help="A name from `rinalmo models`, or a model folder or file in any layout.",
)

threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads to use.")

batch_tokens_option = click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Nucleotides computed at once; less needs less memory. Results do not depend on it.",
)


fill_option = click.option(
    "--fill-to",
    type=click.IntRange(min=0),
    metavar="TOKENS",
    help="For ribosome-load: fill sequences up with pad tokens, 0 for none.  [default: as the model was trained]",
)


def engine_options(precision: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--model`, and what else makes an `Engine`."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        return model_option(computing_options(precision)(command))

    return add


def computing_options(precision: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--precision` (with this default), `--threads` and `--batch-tokens`: an `Engine` but for its model."""
    precision_option = click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "int8"]),
        default=precision,
        show_default=True,
        help="Arithmetic of the encoder; auto is bf16 where the processor has it, fp32 elsewhere.",
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (batch_tokens_option, threads_option, precision_option):
            command = option(command)
        return command

    return add


def is_sequence(source: str) -> bool:
    """Whether the argument is an RNA itself: it holds a mask, or nothing but nucleotides, and names no file."""
    looks_like_one = "<mask>" in source or set(source.upper()) <= set("ACGUTN")
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
