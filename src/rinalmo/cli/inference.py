"""Commands that compute: fill-mask, embed, score, fold, predict, evaluate."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rinalmo.cli.options import (
    FOLD_MODEL,
    FigurePath,
    adapter_option,
    colour_option,
    computing_options,
    device_option,
    each_adapter,
    engine_options,
    fill_option,
    folding_options,
    job_options,
    make_engine,
    open_engine,
    print_evaluation,
    print_line,
    print_note,
    progress,
    shard_option,
    task_option,
    threads_option,
    values_option,
    vector_files,
    vectors_option,
)
from rinalmo.errors import InputError
from rinalmo.io.files import counted

if TYPE_CHECKING:
    from rinalmo.inference.embed import Estimate

_FILE = click.Path(path_type=Path)
_ENGINE = ("model", "device", "precision", "threads", "batch_tokens", "engine", "address", "workers", "gpus_per_worker")
_table_output = click.option(
    "-o",
    "--output",
    default="-",
    show_default=False,
    help="File to write: .csv, .tsv, .jsonl or .parquet.  [default: CSV to stdout]",
)
_COLUMNS = ("id", "position", "score", "token", "token_str", "sequence")


@click.command("fill-mask")
@click.argument("source", metavar="SEQ|FASTA|-")
@click.option("-k", "--top-k", type=click.IntRange(min=1), default=5, help="Candidates per mask.")
@click.option(
    "-f",
    "--format",
    "style",
    type=click.Choice(("table", "tsv", "jsonl")),
    default="table",
    help="Output format.",
)
@engine_options(precision="fp32")
def fill_mask_command(source: str, top_k: int, style: str, **engine_settings: Any) -> None:
    """Predict masked nucleotides.

    SEQ is an RNA or DNA sequence with one or more <mask> tokens; a file name is read as FASTA; - reads FASTA from
    standard input.

    \b
    rinalmo fill-mask "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU"
    rinalmo fill-mask masked.fa --format tsv > predictions.tsv
    """
    from rinalmo.inference.fill_mask import fill_mask_records
    from rinalmo.io.files import escape_controls
    from rinalmo.io.sequences import as_records, is_sequence, name_source_in_errors, read_fasta

    is_text = is_sequence(source)
    records = as_records(source, allow_mask=True) if is_text else read_fasta(source, allow_mask=True)
    engine = make_engine(**engine_settings)
    with name_source_in_errors(None if is_text else Path(source)):
        for number, (record, masks) in enumerate(fill_mask_records(records, engine, top_k=top_k)):
            if style == "table":
                print(escape_controls(f">{record.id} {record.sequence}"))
            elif style == "tsv" and number == 0:
                print("\t".join(_COLUMNS))
            for mask in masks:
                if style == "table":
                    print(f"  mask at {mask[0].position}")
                for candidate in mask:
                    if style == "table":
                        bar = "█" * round(30 * candidate.score)
                        print(f"    {candidate.token_str}  {candidate.score:.4f}  {bar}")
                        continue
                    values = {"id": record.id, **asdict(candidate), "score": float(f"{candidate.score:.6g}")}
                    row = {column: values[column] for column in _COLUMNS}
                    line = "\t".join(map(str, row.values())) if style == "tsv" else json.dumps(row)
                    print(escape_controls(line))


@click.command("embed")
@click.argument("source", metavar="SEQ|FASTA|TABLE|-")
@click.option(
    "-o",
    "--output",
    required=True,
    type=_FILE,
    help="File to write; the extension sets the format: .npz, .npy, .parquet, .h5, .h5ad, .csv or .tsv.",
)
@click.option(
    "--per-token", is_flag=True, help="Write one vector per nucleotide instead of the mean over the sequence."
)
@click.option("--cls", "use_cls", is_flag=True, help="Write the vector of the CLS token instead of the mean.")
@click.option(
    "--layers",
    default="-1",
    metavar="N[,N…]",
    help="Layers to write: 0 is the token embedding, -1 the last layer.",
)
@click.option(
    "--window",
    type=int,
    metavar="NT",
    help="Embed longer sequences in overlapping windows of this many nucleotides.  [default: as a whole]",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    help="Data type of the numbers in the file.",
)
@click.option("--keep-columns", is_flag=True, help="Copy a table's other columns: into .parquet, .h5ad, .csv, .tsv.")
@click.option("--dry-run", is_flag=True, help="Estimate time, memory and file size without writing anything.")
@shard_option
@job_options
@click.option(
    "--plot",
    type=FigurePath("map.svg"),
    metavar="FILE",
    help="Also draw a map of the embeddings, .svg, .png or .pdf; `rinalmo plot map` redraws it.",
)
@click.option("--plot-method", type=click.Choice(["pca", "umap"]), default="pca", help="Projection of the map.")
@colour_option
@engine_options(precision="auto")
def embed_command(
    source: str,
    output: Path,
    per_token: bool,
    use_cls: bool,
    layers: str,
    keep_columns: bool,
    dry_run: bool,
    plot: Path | None,
    plot_method: Any,
    colour_by: str | None,
    **options: Any,
) -> None:
    """Embed the sequences of a FASTA file or table.

    SEQ is an RNA or DNA sequence. FASTA may be compressed (gzip, bzip2, xz, zstd); - reads it from standard input. A
    TABLE (.csv, .tsv, .jsonl, .parquet) needs a column `sequence`. By default the output has one vector per sequence,
    in input order: the mean over its nucleotides in the last layer. Sequences may be upper or lower case, with U or T
    and IUPAC codes; any other character is an error that gives its position.

    \b
    rinalmo embed sequences.fa -o embeddings.parquet
    rinalmo embed sequences.fa.gz -o tokens.h5 --per-token --layers 3,-1
    rinalmo embed sequences.fa -o embeddings.parquet --plot map.svg --color-by family
    rinalmo embed sequences.fa -o part2.npz --shard 2/8
    rinalmo embed sequences.fa -o embeddings.parquet --model giga --dry-run
    rinalmo embed sequences.fa -o embeddings.parquet --engine ray --address auto
    """
    if per_token and use_cls:
        raise click.UsageError("--per-token and --cls cannot be combined")
    if plot and (per_token or "," in layers):
        raise click.UsageError("--plot needs one vector per sequence: leave out --per-token, and give one layer")
    if colour_by and not plot:
        raise click.UsageError("--color-by needs --plot")
    if dry_run and options["engine"] == "ray":
        raise click.UsageError(
            "--dry-run measures this machine: leave out --engine ray and divide by the number of workers"
        )
    from rinalmo.inference.embed import MapPlot, embed_file, estimate_embedding

    try:
        chosen = tuple(map(int, layers.split(",")))
    except ValueError:
        raise InputError(f"--layers {layers!r}: give whole numbers such as -1 or 0,3,6") from None
    settings = _engine_settings(options, str(output))
    options |= {"pooling": "none" if per_token else "cls" if use_cls else "mean", "layers": chosen}
    if dry_run:
        del options["resume"], options["restart"]
        with open_engine(**settings) as engine:
            estimate = estimate_embedding(source, output, engine, **options)  # type: ignore[arg-type]
        _print_estimate(estimate, output)
        return
    map_plot = MapPlot(plot, plot_method, colour_by) if plot else None
    if map_plot:
        map_plot.check(output)
    options |= {"keep_columns": keep_columns, "model_name": settings["model"]}
    with progress("embedding", total=partial(_count, source, options)) as report:
        embed_file(source, output, open_engine(**settings), progress=report, **options)
    if map_plot:
        map_plot.draw(output)
        print_line(f"{plot}: drawn")


def _print_estimate(estimate: Estimate, output: Path) -> None:
    hours, minutes = divmod(round(estimate.seconds / 60), 60)
    lasts = f"{hours:,} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{estimate.seconds:.0f} s"
    mean = estimate.nucleotides / estimate.sequences
    print(f"input    {counted(estimate.sequences, 'sequence')}, {estimate.nucleotides:,} nt", end="")
    print(f" (mean {mean:,.0f}, longest {estimate.longest:,})")
    print(f"time     {lasts}, measured on {estimate.sample:,} of the sequences")
    if estimate.memory is not None:
        print(f"memory   {estimate.memory / 1e9:.1f} GB")
    print(f"output   {output}, {estimate.size / 1e6:,.1f} MB; nothing was written")


@click.command("score")
@click.argument("source", metavar="[SEQ|FASTA|-]", required=False)
@click.option(
    "--mutations",
    type=_FILE,
    metavar="TABLE",
    help="CSV or TSV with a column `mutant`, such as A12G or A12G:C13U, and `record` if FASTA has several records.",
)
@click.option(
    "--variants",
    type=_FILE,
    metavar="FASTA",
    help="Whole sequences, each compared with SEQ or with the record of the same rank in FASTA.",
)
@click.option("--all-single", is_flag=True, help="Score every single-nucleotide substitution.")
@click.option(
    "--vcf", type=_FILE, metavar="FILE", help="Variants in genome coordinates: .vcf, .vcf.gz or .bcf (extra `vcf`)."
)
@click.option("--reference", type=_FILE, metavar="FASTA", help="For --vcf: the genome, plain or bgzip-compressed.")
@click.option("--regions", type=_FILE, metavar="FILE", help="For --vcf: the transcripts, .gtf, .gff3 or .bed.")
@click.option(
    "--window",
    type=click.IntRange(min=1),
    metavar="NT",
    help="For --vcf: length of the transcript window around each variant.  [default: 500]",
)
@click.option(
    "--method",
    type=click.Choice(("masked-marginals", "wild-type-marginals", "pll", "length-corrected-pll")),
    default="masked-marginals",
    help="pll and length-corrected-pll take one pass per nucleotide and also score insertions and deletions.",
)
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=False,
    help="File to write: .csv, .tsv or .parquet; with --vcf also .vcf or .vcf.gz.  [default: CSV or VCF to stdout]",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Use every N-th position or record, starting with the I-th: one job of an array of N.",
)
@job_options
@click.option(
    "--plot",
    type=FigurePath("heat_map.svg"),
    metavar="FILE",
    help="Draw a heat map of --all-single, .svg, .png or .pdf.",
)
@engine_options(precision="fp32")
def score_command(
    source: str | None,
    mutations: Path | None,
    variants: Path | None,
    all_single: bool,
    vcf: Path | None,
    reference: Path | None,
    regions: Path | None,
    window: int | None,
    method: Any,
    output: str,
    plot: Path | None,
    **job: Any,
) -> None:
    """Score variants of an RNA by their likelihood relative to the wild type, without training.

    SEQ is the wild-type sequence; a file name is read as FASTA; - reads FASTA from standard input. A score of 0 means
    as likely as the wild type, a negative score less likely. The output has the columns of the input table, or the
    names, and the score. With --vcf the wild types are transcripts spliced from a genome, and the output is a table or
    VCF with scores in INFO.

    \b
    rinalmo score GCGGAUUUAGCUCAGUUGGGAGAGCGC --all-single --plot heat.svg -o scores.csv
    rinalmo score wild_type.fa --mutations mutants.csv -o scores.csv
    rinalmo score wild_type.fa --variants variants.fa --method pll -o scores.parquet
    rinalmo score wild_type.fa --variants variants.fa -o scores.parquet --engine ray --workers 8
    rinalmo score --vcf variants.vcf.gz --reference genome.fa --regions transcripts.gtf -o scored.vcf.gz
    """
    if sum((mutations is not None, variants is not None, vcf is not None, all_single)) != 1:
        raise click.UsageError("give exactly one of --mutations, --variants, --all-single and --vcf")
    if (vcf is None) == (source is None):
        raise click.UsageError("give a sequence or FASTA file as the wild type, or --vcf instead")
    if vcf is None and (reference or regions or window):
        raise click.UsageError("--reference, --regions and --window need --vcf")
    if plot is not None and not all_single:
        raise click.UsageError("--plot needs --all-single")
    settings = _engine_settings(job, output)
    from rinalmo.inference import variants as scoring
    from rinalmo.io.sequences import as_records, is_sequence, read_fasta

    if source is not None:
        wild_types = as_records(source) if is_sequence(source) else read_fasta(source)
        if mutations is not None:
            read = scoring.from_table(wild_types, mutations)
        else:
            read = scoring.all_single(wild_types) if variants is None else scoring.from_fasta(wild_types, variants)
    else:
        from rinalmo.inference.vcf import WINDOW, VcfSource

        if vcf is None or reference is None or regions is None:
            raise click.UsageError("--vcf needs --reference (the genome) and --regions (its transcripts)")
        name = settings["model"]
        read = VcfSource(vcf, reference, regions, window=window or WINDOW, method=method, model_name=name)

    def total() -> tuple[int, bool] | None:
        return (read.take_shard(job["shard"]).checked(method), True) if vcf is None else None

    # On a terminal a bar would be drawn over the rows.
    is_shown = output == "-" and sys.stdout.isatty()
    with nullcontext(lambda count: None) if is_shown else progress("scoring", "variants", total) as report:
        job |= {"method": method, "plot": plot, "progress": report, "note": print_note}
        scoring.score_file(read, output, open_engine(**settings), **job)
    if plot is not None:
        print_line(f"{plot}: drawn")


@click.command("fold")
@click.argument("source", metavar="SEQ|FASTA|TABLE|-", required=False)
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=False,
    help="File to write: .dbn, .ct, .bpseq, .st, .csv, .tsv, .jsonl or .parquet.  [default: DBN to standard output]",
)
@click.option(
    "-C",
    "--constraint",
    "constraints",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Structure constraints in RNAfold's notation: dot-bracket with x | < >. They follow each sequence in FASTA, "
    "or are in FILE with the same names; in a table they are in the column `constraint`.",
)
@click.option(
    "--shape",
    type=_FILE,
    metavar="FILE",
    help="SHAPE or DMS reactivities (extra `fold`): lines of position and value, after `>name` for several RNAs; or a "
    "table with columns `id` and `reactivity`. {name} in FILE is replaced by the name of each RNA.",
)
@click.option(
    "--shape-method",
    default="deigan",
    metavar="METHOD",
    help="deigan or zarringhalam, or with parameters as in RNAfold, such as Dm1.8b-0.6 or Zb0.89.",
)
@click.option(
    "--max-bp-span", type=click.IntRange(min=2), metavar="NT", help="Maximum number of nucleotides that a pair spans."
)
@click.option(
    "--decoder",
    type=click.Choice(["greedy", "nested", "matching"]),
    help="greedy: as in the paper; nested: best structure without pseudoknots; matching: best with pseudoknots "
    "(extra `fold`).  [default: the model's]",
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="Minimum pair probability.  [default: the model's]")
@click.option("--all-pairs", is_flag=True, help="Also allow pairs other than AU, GC and GU.")
@click.option("--min-loop", type=click.IntRange(min=0), default=3, help="Minimum hairpin loop length.")
@folding_options
@click.option(
    "--zero-shot",
    is_flag=True,
    help="Predict pairs from the attention of any model, without a trained head; --thermodynamics then defaults to 0.",
)
@click.option(
    "--probabilities",
    type=_FILE,
    metavar="FILE.npz",
    help="Also write each RNA's matrix of pair probabilities, or a list of pairs if it is folded in windows.",
)
@click.option(
    "--plot",
    type=FigurePath(),
    metavar="FILE",
    help="Also draw the structures: .svg, .png or .pdf. For several sequences, put {name} into FILE or give a folder, "
    "which gets NAME.svg.",
)
@click.option(
    "--plot-kind",
    type=click.Choice(["drawing", "arcs", "map"]),
    help="drawing: nucleotides and helices (up to 3,000 nt, extra `draw`); arcs: one arc per pair; map: probabilities "
    "(both extra `plots`).  [default: drawing; arcs with --reference]",
)
@click.option(
    "--reference",
    type=_FILE,
    metavar="FILE",
    help="True structures to compare with in --plot, in any format that -o writes; matched by name, or one for one "
    "sequence.",
)
@values_option
@shard_option
@adapter_option
@job_options
@engine_options(precision="auto", model=FOLD_MODEL)
def fold_command(
    source: str | None,
    output: str,
    constraints: str | None,
    shape: Path | None,
    shape_method: str,
    max_bp_span: int | None,
    decoder: str | None,
    threshold: float | None,
    all_pairs: bool,
    min_loop: int,
    window: int | None,
    thermodynamics: float | None,
    zero_shot: bool,
    probabilities: Path | None,
    plot: Path | None,
    plot_kind: Any,
    reference: Path | None,
    values: Path | None,
    adapters: tuple[str, ...],
    **job: Any,
) -> None:
    """Predict the secondary structures of the sequences of a FASTA file or table.

    SEQ is an RNA or DNA sequence. FASTA may be compressed (gzip, bzip2, xz, zstd); - reads it from standard input. A
    TABLE (.csv, .tsv, .jsonl, .parquet) needs a column `sequence`. The model must be fine-tuned for secondary
    structure. The decoders greedy (default with the paper's head) and matching predict pseudoknots; nested (default of
    nano-fold) does not. Memory grows with the square of the longest sequence or of the window, whichever is shorter.

    \b
    rinalmo fold GGGGGAAAACCCCC
    rinalmo fold sequences.fa
    rinalmo fold sequences.fa -o structures.ct --decoder matching
    rinalmo fold sequences.fa --thermodynamics 0
    rinalmo fold tRNA.fa -o tRNA.dbn --probabilities tRNA.npz
    rinalmo fold sequences.fa --model run/model -o structures.parquet --engine ray --workers 8
    rinalmo fold tRNA.fa --plot tRNA.svg
    rinalmo fold tRNA.fa --model nano --zero-shot
    rinalmo fold tRNA.fa --shape tRNA.shape --plot tRNA.png --color-by tRNA.shape
    rinalmo fold sequences.fa --plot 'arcs/{name}.png' --reference true.dbn
    """
    if plot is None and (plot_kind or reference or values):
        raise click.UsageError("--plot-kind, --reference and --color-by need --plot FILE")
    if source is None:  # `fold --constraint FASTA`, as for RNAfold, names the file of both
        source, constraints = constraints, ""
    if not source:
        raise click.UsageError("Missing argument 'FASTA|TABLE|-'.")
    settings = _engine_settings(job, output)
    from rinalmo.inference.fold import Decoding, Plot, fold_file

    how = Decoding(
        decoder, threshold, not all_pairs, min_loop + 1, thermodynamics, max_bp_span, shape_method, zero_shot
    )
    for _, chosen, files in each_adapter(adapters, settings, output=output, probabilities=probabilities, plot=plot):
        with progress("folding", total=partial(_count, source, job)) as report:
            fold_file(
                source,
                files["output"],
                open_engine(**chosen),
                how,
                constraints=constraints in ("", source) or (Path(constraints) if constraints else None),
                reactivities=shape,
                window=window,
                probabilities=files["probabilities"],
                plot=None if plot is None else Plot(files["plot"], plot_kind, reference, values),
                progress=report,
                **job,
                note=print_note,
            )


@click.command("predict")
@click.argument("model", metavar="MODEL")
@click.argument("source", metavar="SEQ|FASTA|TABLE|-")
@_table_output
@click.option("--keep-columns", is_flag=True, help="Also write the other columns of the input table.")
@vectors_option
@fill_option
@folding_options
@task_option
@adapter_option
@shard_option
@job_options
@computing_options(precision="auto")
def predict_command(
    source: str, output: str, adapters: tuple[str, ...], features: tuple[str, ...], **options: Any
) -> None:
    """Predict with a fine-tuned model for the sequences of a FASTA file or table.

    MODEL is a folder from `rinalmo finetune` or transformers' Trainer, a LoRA adapter, one of the authors' fine-tuned
    .pt files, or, with --adapter, the model that the adapters were trained on. SEQ is an RNA or DNA sequence. FASTA may
    be compressed (gzip, bzip2, xz, zstd); - reads it from standard input. A TABLE (.csv, .tsv, .jsonl, .parquet) needs
    a column `sequence`. The output has one row per sequence, with a number, a class and the probability of every class,
    or a structure; models with values per nucleotide give one row per nucleotide. Sequences are cropped as in training.
    `rinalmo fold` writes structures in other formats.

    \b
    rinalmo predict run/model sequences.fa -o predictions.csv
    rinalmo predict ribosome_load.pt utrs.fa
    rinalmo predict run/model measured.csv --keep-columns -o both.csv
    rinalmo predict run/model sequences.fa -o part2.parquet --shard 2/8
    rinalmo predict giga sequences.fa --adapter liver/adapter --adapter brain/adapter -o '{adapter}.csv'
    """
    settings = _engine_settings(options, output)
    options |= {"features": vector_files(features), "note": print_note}
    from rinalmo.inference.predict import predict_file

    for _, chosen, files in each_adapter(adapters, settings, output=output):
        with progress("predicting", total=partial(_count, source, options)) as report:
            predict_file(source, files["output"], open_engine(**chosen), progress=report, **options)


def _count(source: str, job: dict[str, Any]) -> tuple[int, bool] | None:
    """The number of sequences that a job takes from its input, and whether it is exact."""
    from rinalmo.engine.jobs import shard_size
    from rinalmo.io.sequences import count_records

    known = count_records(source)
    return known and (shard_size(known[0], job["shard"]), known[1])


@click.command("explain")
@click.argument("model", metavar="MODEL")
@click.argument("source", metavar="FASTA|TABLE|-")
@_table_output
@click.option(
    "--output-name",
    metavar="NAME",
    help="Column or class to explain.  [default: the only column, or each sequence's most probable class]",
)
@click.option("--steps", type=click.IntRange(min=1), default=128, help="Integration steps.")
@click.option("--plot", type=_FILE, metavar="FILE", help="Draw the attributions of a single sequence, .svg or .png.")
@device_option
@threads_option
def explain_command(
    model: str,
    source: str,
    output: str,
    output_name: str | None,
    steps: int,
    plot: Path | None,
    device: str,
    threads: int | None,
) -> None:
    """Show what a fine-tuned model looks at: each nucleotide's contribution to the prediction, and its contacts.

    MODEL predicts a value or class per sequence; for a structure model the output has only contacts. There is one row
    per nucleotide, with its attribution (integrated gradients) and the nucleotide with which it shares the most
    attention.

    \b
    rinalmo explain run/model sequences.fa -o explained.csv --plot explained.svg
    rinalmo explain giga-splice-donor sequences.fa
    rinalmo explain nano-fold tRNA.fa
    """
    from rinalmo.inference.explain import explain_file

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    explain_file(source, output, model, name=output_name, steps=steps, plot=plot, device=device)
    if plot is not None:
        print_line(f"{plot}: drawn")


def _engine_settings(options: dict[str, Any], output: str = "") -> dict[str, Any]:
    """Take the settings of the engine out of a command's options; those of its job stay there."""
    if output == "-" and (options["resume"] or options["restart"] or options["engine"] == "ray"):
        raise click.UsageError("--resume, --restart and --engine ray need an output file; add --output FILE")
    return {name: options.pop(name) for name in _ENGINE if name in options}


@click.command("evaluate")
@click.argument("task", metavar="TASK")
@click.argument("data", type=_FILE, metavar="DATA")
@click.option("-o", "--output", type=_FILE, help="File for the scores of each structure: .csv, .tsv or .parquet.")
@click.option("--report", type=_FILE, metavar="FILE.json", help="File for all metrics as JSON.")
@click.option("--target", "targets", multiple=True, metavar="COLUMN", help="Column with the true values.")
@click.option("--group", metavar="COLUMN", help="Also report metrics for each value of this column.")
@vectors_option
@fill_option
@folding_options
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Random seed for the bootstrap.")
@adapter_option
@engine_options(precision="auto")
def evaluate_command(
    task: str,
    data: Path,
    output: Path | None,
    report: Path | None,
    targets: tuple[str, ...],
    group: str | None,
    features: tuple[str, ...],
    adapters: tuple[str, ...],
    **options: Any,
) -> None:
    """Evaluate a fine-tuned model on labeled examples, with 95 % bootstrap intervals.

    For structures there are exact scores and scores that allow ±1, over all examples and per family. Sequences are
    cropped as in training. TASK is the model's task; for a model saved by transformers' Trainer without a problem_type,
    it is regression, binary, multiclass or multilabel.

    \b
    rinalmo evaluate secondary-structure TS0.csv.gz --model run/model -o per_structure.csv
    rinalmo evaluate table held_out.csv --target half_life --model run/model --report metrics.json
    """
    from typing import get_args

    from rinalmo.io.files import atomic_write, check_path
    from rinalmo.io.tables import check_rows_output, write_rows
    from rinalmo.model.heads import ProblemType
    from rinalmo.tasks.base import Columns, Task
    from rinalmo.tasks.evaluate import evaluate, task_class
    from rinalmo.tasks.table import Table

    kind = Table if task in get_args(ProblemType) else task_class(task)
    if output is not None:
        check_rows_output(output)
        if kind.example_metrics is Task.example_metrics:
            raise InputError(
                f"--output: {task} has no scores per example; use --report for metrics, or `rinalmo predict`"
            )
    if report is not None:
        check_path(report, (".json",))
    settings = _engine_settings(options)
    options |= {"columns": Columns(target=targets, group=group), "features": vector_files(features)}
    for name, chosen, files in each_adapter(adapters, settings, output=output, report=report):
        engine = make_engine(**chosen)
        evaluation = evaluate(data, engine, task=task, **options)
        print_evaluation(evaluation, f"{data}, {name}" if name else str(data))
        for note in evaluation.notes:
            print_note(note)
        if files["report"] is not None:
            with atomic_write(files["report"]) as file:
                file.write(json.dumps(evaluation.plain(), indent=1).encode())
        if files["output"] is not None:
            write_rows(files["output"], evaluation.rows)
