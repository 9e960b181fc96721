"""`rinalmo embed`."""

from __future__ import annotations

from pathlib import Path

import click

from rinalmo.cli.options import batch_tokens_option, model_option, parse_layers, threads_option


@click.command("embed")
@click.argument("fasta", metavar="FASTA|-")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write; its ending chooses the format: .npz, .parquet, .h5 or .h5ad.",
)
@model_option
@click.option("--per-token", is_flag=True, help="One vector per nucleotide instead of the mean over the sequence.")
@click.option("--cls", "use_cls", is_flag=True, help="The vector of the CLS token instead of the mean.")
@click.option(
    "--layers",
    default="-1",
    show_default=True,
    metavar="N[,N…]",
    help="Layers to write: 0 is the embedding, -1 the last.",
)
@batch_tokens_option
@threads_option
def command(
    fasta: str, output: Path, model: str, per_token: bool, use_cls: bool, layers: str, batch_tokens: int
) -> None:
    """Embed the sequences of a FASTA file (plain, .gz or .zst; - for standard input).

    The default is one vector per sequence: the mean over its nucleotides in the last layer. The order of the input is
    kept. Upper or lower case, U or T and IUPAC letters are read; anything else is an error that names its place.

    \b
    rinalmo embed sequences.fa -o embeddings.parquet
    rinalmo embed sequences.fa.gz -o tokens.h5 --per-token --layers 3,-1
    """
    if per_token and use_cls:
        raise click.UsageError("--per-token and --cls exclude each other")
    from rinalmo.cli.progress import progress
    from rinalmo.inference.embeddings import Pooling, embed_records
    from rinalmo.inference.writers import OpenWriter
    from rinalmo.rna.fasta import read_fasta
    from rinalmo.weights.checkpoint import load

    pooling: Pooling = "none" if per_token else "cls" if use_cls else "mean"
    chosen = parse_layers(layers)
    count = 0
    with OpenWriter(output, per_token=per_token) as writer:
        found = embed_records(read_fasta(fasta), load(model), pooling=pooling, layers=chosen, batch_tokens=batch_tokens)
        for record, values in progress(found, "embedding"):
            writer.write(record, values)
            count += 1
    click.echo(f"{output}: {count:,} sequences, {values.shape[-1]} dimensions", err=True)
