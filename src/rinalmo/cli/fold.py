"""`rinalmo fold`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rinalmo.cli.options import engine_options


@click.command("fold")
@click.argument("fasta", metavar="FASTA|-")
@click.option(
    "-o",
    "--output",
    default="-",
    help="File to write: .dbn, .ct, .bpseq, .st, .csv, .tsv or .parquet.  [default: DBN to standard output]",
)
@click.option(
    "--decoder",
    type=click.Choice(["greedy", "nested", "matching"]),
    default="greedy",
    show_default=True,
    help="greedy: the paper's; nested: the best without pseudoknots; matching: the best with them (extra `fold`).",
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="Least probability of a pair.  [default: the model's]")
@click.option("--all-pairs", is_flag=True, help="Also pairs other than AU, GC and GU.")
@click.option(
    "--min-loop", type=click.IntRange(min=0), default=3, show_default=True, help="Least nucleotides in a hairpin."
)
@click.option(
    "--probabilities",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Also write each matrix of probabilities.",
)
@engine_options(precision="auto")
def command(
    fasta: str,
    output: str,
    decoder: str,
    threshold: float | None,
    all_pairs: bool,
    min_loop: int,
    probabilities: Path | None,
    **engine_settings: Any,
) -> None:
    """Predict the secondary structures of the sequences of a FASTA file, pseudoknots included.

    The model is one fine-tuned for secondary structure. Memory grows with the square of the longest sequence.

    \b
    rinalmo fold sequences.fa --model run/model
    rinalmo fold sequences.fa --model run/model -o structures.ct --decoder nested
    rinalmo fold tRNA.fa --model run/model -o tRNA.dbn --probabilities tRNA.npz
    """
    from rinalmo.cli.progress import counter
    from rinalmo.inference.embed_file import check_input
    from rinalmo.inference.engine import Engine
    from rinalmo.tasks.fold_file import Decoding, fold_file

    check_input(fasta)
    engine = Engine(**engine_settings)
    decoding = Decoding(decoder, threshold, canonical=not all_pairs, min_distance=min_loop + 1)
    with counter("folding") as tell:
        count = fold_file(fasta, output, engine, decoding, probabilities=probabilities, tell=tell)
    if output != "-":
        click.echo(f"{output}: {count:,} structures", err=True)
