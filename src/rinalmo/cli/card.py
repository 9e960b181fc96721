"""`rinalmo card`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("card")
@click.argument("source", metavar="RUN|MODEL")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write, instead of README.md in the model's folder."
)
@click.option("--name", help="Name of the model on the card; that of the folder by default.")
@click.option("--license", "license_id", metavar="ID", help="Licence for the card's header, such as apache-2.0.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def command(source: str, output: Path | None, name: str | None, license_id: str | None, overwrite: bool) -> None:
    """Write the model card of a run (with its data, procedure and validation figures) or of any model.

    It has the metadata header of the Hugging Face Hub, the specification table and, computed now, the model's
    predictions for two well-known RNAs.

    \b
    rinalmo card RUN --license apache-2.0
    rinalmo card nano --output nano.md
    """
    from rinalmo.training.card import write_card

    target = write_card(source, output, name=name, license_id=license_id, overwrite=overwrite)
    click.echo(f"{target}: written", err=True)
