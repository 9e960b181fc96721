"""`rinalmo fill-mask`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rinalmo.cli.options import (
    FOLD_MODEL,
    colour_option,
    computing_options,
    engine_options,
    fill_option,
    is_sequence,
    make_engine,
    opened_engine,
    parse_layers,
    ray_options,
    resume_options,
    thermodynamics_option,
    window_option,
)

if TYPE_CHECKING:
    from rinalmo.inference.variants import VariantSource


if TYPE_CHECKING:
    from rinalmo.inference.fill_mask import Prediction
    from rinalmo.io.fasta import Record

    Masks = list[list[Prediction]]

_FORMATS = ("table", "tsv", "jsonl")
_COLUMNS = ("id", "position", "score", "token", "token_str", "sequence")


@click.command("fill-mask")
@click.argument("source", metavar="SEQ|FASTA|-")
@click.option("-k", "--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Candidates per mask.")
@click.option(
    "-f", "--format", "style", type=click.Choice(_FORMATS), default="table", show_default=True, help="Output format."
)
@engine_options(precision="fp32")
def fill_mask_command(source: str, top_k: int, style: str, **engine_settings: Any) -> None:
    """Predict the nucleotides at <mask>.

    SEQ is an RNA or DNA sequence with one or more <mask>; a file name is read as FASTA; - is FASTA from standard input.

    \b
    rinalmo fill-mask "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU"
    rinalmo fill-mask masked.fa --format tsv > predictions.tsv
    """
    from rinalmo.engine.inputs import as_records, read_from
    from rinalmo.inference.fill_mask import predict
    from rinalmo.io.fasta import read_fasta

    given = is_sequence(source)
    records = as_records(source, allow_mask=True) if given else read_fasta(source, allow_mask=True)
    show = {"table": _table, "tsv": _tsv, "jsonl": _jsonl}[style]
    engine = make_engine(**engine_settings)
    with read_from(None if given else Path(source)):
        for number, (record, masks) in enumerate(predict(records, engine, top_k=top_k)):
            if style == "tsv" and number == 0:
                print("\t".join(_COLUMNS))
            show(record, masks)


def _tsv(record: Record, masks: Masks) -> None:
    for values in _rows(record, masks):
        print("\t".join(map(str, values)))


def _jsonl(record: Record, masks: Masks) -> None:
    for values in _rows(record, masks):
        print(json.dumps(dict(zip(_COLUMNS, values, strict=True))))


def _rows(record: Record, masks: Masks) -> Iterator[list[Any]]:
    for candidate in (c for mask in masks for c in mask):
        values = {"id": record.id, **asdict(candidate), "score": float(f"{candidate.score:.6g}")}
        yield [values[column] for column in _COLUMNS]


def _table(record: Record, masks: Masks) -> None:
    print(f">{record.id} {record.sequence}")
    for mask in masks:
        print(f"  mask at {mask[0].position}")
        for candidate in mask:
            bar = "█" * round(30 * candidate.score)
            print(f"    {candidate.token_str}  {candidate.score:.4f}  {bar}")


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
def embed_command(
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
    from rinalmo.cli.options import counter, resumable
    from rinalmo.inference.embed import MapPlot, Pooling, check_input, embed_file

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
def score_command(
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
    from rinalmo.cli.options import counter, resumable
    from rinalmo.inference.variants import check_output, print_scores, score_file

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


def _source(source: str, mutations: Path | None, variants: Path | None) -> VariantSource:
    from rinalmo.engine.inputs import as_records
    from rinalmo.inference.variants import all_single, from_fasta, from_table
    from rinalmo.io.fasta import read_fasta

    wild_types = as_records(source) if is_sequence(source) else read_fasta(source)
    if mutations is not None:
        return from_table(wild_types, mutations)
    return all_single(wild_types) if variants is None else from_fasta(wild_types, variants)


def _tell(source: VariantSource, count: int, output: Path | None, plot: Path | None) -> None:
    if output is not None:
        wild_types = len(source.wild_types)
        click.echo(f"{output}: {count:,} variants of {wild_types:,} wild type{'s' * (wild_types > 1)}", err=True)
    if plot is not None:
        click.echo(f"{plot}: drawn", err=True)
    if left_out := source.left_out:
        click.echo(f"note: {left_out:,} positions with another letter than A, C, G, U were left out", err=True)


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
def fold_command(
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
    from rinalmo.cli.options import counter, noted, resumable
    from rinalmo.inference.embed import check_input
    from rinalmo.inference.fold import Decoding, Plot, fold_file

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


@click.command("predict")
@click.argument("model", metavar="MODEL")
@click.argument("fasta", metavar="FASTA|-")
@click.option(
    "-o", "--output", default="-", help="File to write: .csv, .tsv, .jsonl or .parquet.  [default: CSV to stdout]"
)
@click.option("--keep-columns", is_flag=True, help="Write the other columns of a table beside the predictions.")
@fill_option
@window_option
@thermodynamics_option
@computing_options(precision="auto")
def predict_command(
    model: str,
    fasta: str,
    output: str,
    keep_columns: bool,
    fill_to: int | None,
    window: int | None,
    thermodynamics: float | None,
    **engine_settings: Any,
) -> None:
    """Predict with a fine-tuned model for the sequences of a FASTA file or table.

    MODEL is a folder that `rinalmo finetune` wrote, or the authors' fine-tuned .pt file as it is.
    One row a sequence: a number, a class with the probability of each, or a structure; a model for single nucleotides
    gives a row for each of them. Sequences are cropped as they were for training. `rinalmo fold` writes structures in
    other formats. A table (.csv, .tsv, .jsonl, .parquet) has a column `sequence`.

    \b
    rinalmo predict run/model sequences.fa -o predictions.csv
    rinalmo predict ribosome_load.pt utrs.fa
    rinalmo predict run/model measured.csv --keep-columns -o both.csv
    """
    from rinalmo.cli.options import counter, noted
    from rinalmo.engine.inputs import is_sequence_table, read_sequences
    from rinalmo.inference.embed import check_input
    from rinalmo.io.tables import check_rows_output, write_rows
    from rinalmo.tasks.evaluate import predict_records, predict_table
    from rinalmo.tasks.registry import task_of, with_options

    if keep_columns and not is_sequence_table(fasta):
        raise click.UsageError("--keep-columns is for sequences in a table (.csv, .tsv, .jsonl, .parquet)")
    check_input(fasta)
    check_rows_output(output)
    engine = make_engine(model=model, **engine_settings)
    folding: dict[str, Any] = {"window": window, "thermodynamics": thermodynamics}
    task = with_options(task_of(engine.spec), engine.spec, fill_to=fill_to, **folding, note=noted)
    done = 0
    with counter("predicting") as tell:

        def rows() -> Any:
            nonlocal done
            predicted = (
                predict_table(Path(fasta), engine, task, noted)
                if keep_columns
                else predict_records(read_sequences(fasta), engine, task, noted)
            )
            for found in predicted:
                done += 1
                tell(done)
                yield from found

        write_rows(output, rows())
    if output != "-":
        click.echo(f"{output}: {done:,} sequences, {task.name}", err=True)


@click.command("evaluate")
@click.argument("task", metavar="TASK")
@click.argument("data", type=click.Path(path_type=Path), metavar="DATA")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Scores of each structure: .csv, .tsv, .parquet.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.json", help="All figures as JSON.")
@click.option("--target", "targets", multiple=True, metavar="COLUMN", help="Column with the truth.")
@click.option("--group", metavar="COLUMN", help="Column whose values figures are also given for.")
@fill_option
@window_option
@thermodynamics_option
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap.")
@engine_options(precision="auto")
def evaluate_command(
    task: str,
    data: Path,
    output: Path | None,
    report: Path | None,
    targets: tuple[str, ...],
    group: str | None,
    fill_to: int | None,
    window: int | None,
    thermodynamics: float | None,
    seed: int,
    **engine_settings: Any,
) -> None:
    """Measure a fine-tuned model on labelled examples, with 95 % bootstrap intervals.

    For structures exact scores and those that allow ±1 stand side by side, over all and for each family. Sequences are
    cropped as they were for training.

    \b
    rinalmo evaluate secondary-structure TS0.csv.gz --model run/model -o per_structure.csv
    rinalmo evaluate table held_out.csv --target half_life --model run/model --report figures.json
    """
    from rinalmo.cli.options import noted, print_evaluation
    from rinalmo.errors import InputError
    from rinalmo.io.files import check_path, replacing
    from rinalmo.io.tables import check_rows_output, write_rows
    from rinalmo.tasks.base import Columns, Task
    from rinalmo.tasks.evaluate import evaluate
    from rinalmo.tasks.registry import task_class

    kind = task_class(task)
    if output is not None:
        check_rows_output(output)
        if kind.example_metrics is Task.example_metrics:
            raise InputError(f"{task} has no scores of single examples; use --report, or predict")
    if report is not None:
        check_path(report, (".json",))
    engine = make_engine(**engine_settings)
    columns = Columns(target=targets, group=group)
    asked: dict[str, Any] = {"fill_to": fill_to, "window": window, "thermodynamics": thermodynamics}
    found = evaluate(data, engine, columns=columns, task=task, seed=seed, **asked)
    print_evaluation(found, str(data))
    for note in found.notes:
        noted(note)
    if report is not None:
        with replacing(report) as file:
            file.write(json.dumps(found.plain(), indent=1).encode())
    if output is not None:
        write_rows(output, found.rows)
