"""`rinalmo fold`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from rinalmo.cli.options import (
    FOLD_MODEL,
    engine_options,
    opened_engine,
    ray_options,
    resume_options,
    thermodynamics_option,
    window_option,
)


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
    help="greedy: the paper's; nested: the best without pseudoknots; matching: the best with them (extra `fold`).  "
    "[default: the model's]",
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="Least probability of a pair.  [default: the model's]")
@click.option("--all-pairs", is_flag=True, help="Also pairs other than AU, GC and GU.")
@click.option(
    "--min-loop", type=click.IntRange(min=0), default=3, show_default=True, help="Least nucleotides in a hairpin."
)
@window_option
@thermodynamics_option
@click.option(
    "--probabilities",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Also write each matrix of probabilities; of RNAs folded in windows a list of pairs.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also draw, .svg or .png. For several sequences {name} in FILE stands for each name; a folder takes NAME.svg.",
)
@click.option(
    "--plot-kind",
    type=click.Choice(["drawing", "arcs", "map"]),
    help="drawing: letters and helices (.svg, up to 2,000 nt, extra `draw`); arcs: an arc a pair; map: probabilities "
    "(both extra `plots`).  [default: drawing; arcs with --reference]",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="True structures, in any format that -o writes, to compare with in --plot: by name, or one for one sequence.",
)
@resume_options
@ray_options
@engine_options(precision="auto", model=FOLD_MODEL)
def command(
    fasta: str,
    output: str,
    decoder: str | None,
    threshold: float | None,
    all_pairs: bool,
    min_loop: int,
    window: int | None,
    thermodynamics: float | None,
    probabilities: Path | None,
    plot: Path | None,
    plot_kind: Any,
    reference: Path | None,
    resume: bool,
    restart: bool,
    **engine_settings: Any,
) -> None:
    """Predict the secondary structures of the sequences of a FASTA file.

    The model is one fine-tuned for secondary structure. Pseudoknots are found by the decoders greedy, which belongs to
    the paper's head, and matching; nano-fold's is nested. Memory grows with the square of the longest sequence, up to
    the size of a window, beyond which it grows with the length.

    \b
    rinalmo fold sequences.fa
    rinalmo fold sequences.fa -o structures.ct --decoder matching
    rinalmo fold sequences.fa --thermodynamics 0
    rinalmo fold tRNA.fa -o tRNA.dbn --probabilities tRNA.npz
    rinalmo fold sequences.fa --model run/model -o structures.parquet --engine ray --workers 8
    rinalmo fold tRNA.fa --plot tRNA.svg
    rinalmo fold sequences.fa --plot 'arcs/{name}.png' --reference true.dbn
    """
    if plot is None and (plot_kind or reference):
        raise click.UsageError("--plot-kind and --reference are for --plot; name its file")
    if output == "-" and (resume or restart or engine_settings["engine"] == "ray"):
        raise click.UsageError("--resume, --restart and --engine ray write a file; name it with --output")
    from rinalmo.cli.progress import counter, noted, resumable
    from rinalmo.inference.embed_file import check_input
    from rinalmo.tasks.fold_file import Decoding, fold_file
    from rinalmo.tasks.pictures import Plot

    check_input(fasta)
    decoding = Decoding(
        decoder, threshold, canonical=not all_pairs, min_distance=min_loop + 1, thermodynamics=thermodynamics
    )
    drawn = None if plot is None else Plot(plot, plot_kind, reference)
    kept = nullcontext() if output == "-" else resumable(Path(output), "structures")
    with opened_engine(**engine_settings) as engine, kept, counter("folding") as tell:
        count = fold_file(
            fasta,
            output,
            engine,
            decoding,
            window=window,
            probabilities=probabilities,
            plot=drawn,
            resume=resume,
            restart=restart,
            tell=tell,
            note=noted,
        )
    if output != "-":
        click.echo(f"{output}: {count:,} structures", err=True)
