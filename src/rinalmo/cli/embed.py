"""`rinalmo embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rinalmo.cli.options import colour_option, engine_options, opened_engine, parse_layers, ray_options, resume_options


@click.command("embed")
@click.argument("fasta", metavar="FASTA|-")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write; its ending chooses the format: .npz, .parquet, .h5 or .h5ad.",
)
@click.option("--per-token", is_flag=True, help="One vector per nucleotide instead of the mean over the sequence.")
@click.option("--cls", "use_cls", is_flag=True, help="The vector of the CLS token instead of the mean.")
@click.option(
    "--layers",
    default="-1",
    show_default=True,
    metavar="N[,N…]",
    help="Layers to write: 0 is the embedding, -1 the last.",
)
@click.option("--shard", metavar="I/N", help="Only every N-th sequence, from the I-th on: one job of an array of N.")
@resume_options
@ray_options
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw a map of the embeddings as well, .svg or .png; `rinalmo plot map` draws it again.",
)
@click.option(
    "--plot-method", type=click.Choice(["pca", "umap"]), default="pca", show_default=True, help="How the map is made."
)
@colour_option
@engine_options(precision="auto")
def command(
    fasta: str,
    output: Path,
    per_token: bool,
    use_cls: bool,
    layers: str,
    shard: str | None,
    resume: bool,
    restart: bool,
    plot: Path | None,
    plot_method: Any,
    colour_by: str | None,
    **engine_settings: Any,
) -> None:
    """Embed the sequences of a FASTA file (plain, .gz or .zst; - for standard input).

    The default is one vector per sequence: the mean over its nucleotides in the last layer. The order of the input is
    kept. Upper or lower case, U or T and IUPAC letters are read; anything else is an error that names its place.

    \b
    rinalmo embed sequences.fa -o embeddings.parquet
    rinalmo embed sequences.fa.gz -o tokens.h5 --per-token --layers 3,-1
    rinalmo embed sequences.fa -o embeddings.parquet --plot map.svg --colour-by family
    rinalmo embed sequences.fa -o part2.npz --shard 2/8
    rinalmo embed sequences.fa -o embeddings.parquet --engine ray --address auto
    """
    if per_token and use_cls:
        raise click.UsageError("--per-token and --cls exclude each other")
    if plot and (per_token or "," in layers):
        raise click.UsageError("--plot shows one vector a sequence: without --per-token, of one layer")
    if colour_by and not plot:
        raise click.UsageError("--colour-by is for the picture of --plot")
    from rinalmo.cli.progress import counter, resumable
    from rinalmo.inference.embed_file import check_input, embed_file
    from rinalmo.inference.embeddings import Pooling
    from rinalmo.inference.map_file import MapPlot

    pooling: Pooling = "none" if per_token else "cls" if use_cls else "mean"
    chosen = parse_layers(layers)
    picture = MapPlot(plot, plot_method, colour_by) if plot else None
    if picture:
        picture.check(output)
    check_input(fasta)  # before a model is loaded, or fetched, for a file that is not there
    with opened_engine(**engine_settings) as engine, resumable(output, "sequences"):
        with counter("embedding") as tell:
            count = embed_file(
                fasta,
                output,
                engine,
                pooling=pooling,
                layers=chosen,
                resume=resume,
                restart=restart,
                part=shard,
                tell=tell,
                model_name=engine_settings["model"],
            )
        width = engine.spec.config.hidden_size
    click.echo(f"{output}: {count:,} sequences, {width} dimensions", err=True)
    if picture:
        picture.draw(output)
        click.echo(f"{plot}: drawn", err=True)
