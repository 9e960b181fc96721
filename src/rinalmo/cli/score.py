"""`rinalmo score`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rinalmo.cli.options import engine_options, is_sequence, opened_engine, ray_options, resume_options

if TYPE_CHECKING:
    from rinalmo.inference.variant_sources import Source

_METHODS = ("masked-marginals", "wild-type-marginals", "pll")


@click.command("score")
@click.argument("source", metavar="SEQ|FASTA|-")
@click.option(
    "--mutations",
    type=click.Path(path_type=Path),
    metavar="TABLE",
    help="CSV or TSV with a column `mutant`, such as A12G or A12G:C13U, and `record`, if FASTA has several.",
)
@click.option(
    "--variants",
    type=click.Path(path_type=Path),
    metavar="FASTA",
    help="Whole sequences, against the one of SEQ or each against its partner in FASTA.",
)
@click.option("--all-single", is_flag=True, help="Every exchange of one letter.")
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default="masked-marginals",
    show_default=True,
    help="pll takes as many passes as there are letters, and insertions and deletions.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write: .csv, .tsv or .parquet; CSV to standard output without.",
)
@resume_options
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw a heat map, .svg or .png, of --all-single."
)
@ray_options
@engine_options(precision="fp32")
def command(
    source: str,
    mutations: Path | None,
    variants: Path | None,
    all_single: bool,
    method: Any,
    output: Path | None,
    resume: bool,
    restart: bool,
    plot: Path | None,
    **engine_settings: Any,
) -> None:
    """Score variants of an RNA without training: how likely they are to the model, next to the wild type.

    SEQ is the wild type itself; a file name is read as FASTA; - is FASTA from standard input. A score of 0 is as
    likely as the wild type, a negative one less. The output has the table's columns, or the names, and the score.

    \b
    rinalmo score GCGGAUUUAGCUCAGUUGGGAGAGCGC --all-single --plot heat.svg -o scores.csv
    rinalmo score wild_type.fa --mutations mutants.csv -o scores.csv
    rinalmo score wild_type.fa --variants variants.fa --method pll -o scores.parquet
    rinalmo score wild_type.fa --variants variants.fa -o scores.parquet --engine ray --workers 8
    """
    if sum((mutations is not None, variants is not None, all_single)) != 1:
        raise click.UsageError("give one of --mutations, --variants and --all-single")
    if plot is not None and not all_single:
        raise click.UsageError("--plot draws the map of --all-single")
    many = engine_settings["engine"] == "ray"
    if output is None and (resume or restart or many):
        reason = "--engine ray writes" if many else "--resume goes on with" if resume else "--restart starts anew"
        raise click.UsageError(f"{reason} a file; name it with --output")
    from rinalmo.cli.progress import counter, resumable
    from rinalmo.inference.score_file import check_output, print_scores, score_file

    chosen = _source(source, mutations, variants)
    check_output(chosen, method, output, plot)  # before a model is loaded, or fetched
    # On a terminal a bar would be drawn over the rows.
    is_shown = output is None and sys.stdout.isatty()
    progress = nullcontext(lambda count: None) if is_shown else counter("scoring", "variants" if many else "passes")
    kept = nullcontext() if output is None else resumable(output, "variants")
    with opened_engine(**engine_settings) as engine, kept, progress as tell:
        if output is not None:
            count = score_file(
                chosen, output, engine, method=method, resume=resume, restart=restart, plot=plot, tell=tell
            )
        else:
            count = print_scores(chosen, sys.stdout, engine, method=method, plot=plot, tell=tell)  # type: ignore[arg-type]
    _tell(chosen, count, output, plot)


def _source(source: str, mutations: Path | None, variants: Path | None) -> Source:
    from rinalmo.inference.inputs import as_records
    from rinalmo.inference.variant_sources import all_single, from_fasta, from_table
    from rinalmo.rna.fasta import read_fasta

    wild_types = as_records(source) if is_sequence(source) else read_fasta(source)
    if mutations is not None:
        return from_table(wild_types, mutations)
    return all_single(wild_types) if variants is None else from_fasta(wild_types, variants)


def _tell(source: Source, count: int, output: Path | None, plot: Path | None) -> None:
    if output is not None:
        wild_types = len(source.wild_types)
        click.echo(f"{output}: {count:,} variants of {wild_types:,} wild type{'s' * (wild_types > 1)}", err=True)
    if plot is not None:
        click.echo(f"{plot}: drawn", err=True)
    if left_out := source.left_out:
        click.echo(f"note: {left_out:,} positions with another letter than A, C, G, U were left out", err=True)
