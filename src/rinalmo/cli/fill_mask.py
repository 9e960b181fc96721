"""`rinalmo fill-mask`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from rinalmo.cli.options import engine_options, is_sequence

_FORMATS = ("table", "tsv", "jsonl")


@click.command("fill-mask")
@click.argument("source", metavar="SEQ|FASTA|-")
@click.option("-k", "--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Candidates per mask.")
@click.option(
    "-f", "--format", "style", type=click.Choice(_FORMATS), default="table", show_default=True, help="Output format."
)
@engine_options(precision="fp32")
def command(source: str, top_k: int, style: str, **engine_settings: Any) -> None:
    """Predict the nucleotides at <mask>.

    SEQ is an RNA or DNA sequence with one or more <mask>; a file name is read as FASTA; - is FASTA from standard input.

    \b
    rinalmo fill-mask "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU"
    rinalmo fill-mask masked.fa --format tsv > predictions.tsv
    """
    from rinalmo.inference.engine import Engine
    from rinalmo.inference.fill_mask import predict
    from rinalmo.inference.inputs import as_records
    from rinalmo.rna.fasta import read_fasta

    records = as_records(source, allow_mask=True) if is_sequence(source) else read_fasta(source, allow_mask=True)
    results = predict(records, Engine(**engine_settings), top_k=top_k)
    if style == "tsv":
        click.echo("id\tposition\tscore\ttoken\ttoken_str\tsequence")
    for record, masks in results:
        if style == "table":
            _table(record.id, masks, record.sequence)
            continue
        for candidate in (c for mask in masks for c in mask):
            values = {"id": record.id, **asdict(candidate), "score": float(f"{candidate.score:.6g}")}
            order = ("id", "position", "score", "token", "token_str", "sequence")
            if style == "jsonl":
                click.echo(json.dumps({key: values[key] for key in order}))
            else:
                click.echo("\t".join(str(values[key]) for key in order))


def _table(name: str, masks: list[list], sequence: str) -> None:  # type: ignore[type-arg]
    click.echo(f">{name} {sequence}")
    for mask in masks:
        click.echo(f"  mask at {mask[0].position}")
        for candidate in mask:
            bar = "█" * round(30 * candidate.score)
            click.echo(f"    {candidate.token_str}  {candidate.score:.4f}  {bar}")
