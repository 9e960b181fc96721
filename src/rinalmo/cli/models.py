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
        where = "bundled" if entry.bundled else f"in {entry.folder}" if entry.present else "fetched on first use"
        print(f"{entry.name:8} {entry.parameters:6.1f} M  {entry.license:11} {where:22} {entry.summary}")
