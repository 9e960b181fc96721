"""`rinalmo convert`."""

from __future__ import annotations

import click


@click.command("convert")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option(
    "--layout",
    type=click.Choice(["rinalmo", "official", "multimolecule"]),
    default="rinalmo",
    show_default=True,
    help="rinalmo and multimolecule are folders, official is one .pt file.",
)
@click.option("--heads", type=click.IntRange(min=1), help="Attention heads, for a file that does not say.")
@click.option("--half", is_flag=True, help="Write matrices in fp16: half the size, weights rounded to 11 bits.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def command(source: str, target: str, layout: str, heads: int | None, half: bool, overwrite: bool) -> None:
    """Write a model in another layout.

    IN is a name from `rinalmo models`, a folder or a file; its layout is recognised. Weights are copied bit by bit
    unless --half is given; only the token rows change between the authors' 22 tokens (with T) and the 28 of the others
    (with U).

    \b
    rinalmo convert rinalmo_giga_pretrained.pt giga
    rinalmo convert giga giga.pt --layout official
    rinalmo convert run/model small --half
    """
    from rinalmo.weights.checkpoint import convert

    checkpoint = convert(
        source,
        target,
        layout,  # type: ignore[arg-type]
        num_attention_heads=heads,
        half=half,
        overwrite=overwrite,
    )
    for note in checkpoint.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{target}: {layout} layout, from {checkpoint.layout}", err=True)
