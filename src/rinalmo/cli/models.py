"""`rinalmo models`."""

from __future__ import annotations

import click


@click.command("models")
def command() -> None:
    """List the models that can be named, and whether they are here.

    \b
    rinalmo models
    """
    from rinalmo.weights.catalog import models

    for entry in models():
        click.echo(f"{entry.name:8} {entry.summary}")
