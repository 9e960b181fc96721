"""`rinalmo plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rinalmo.cli.options import colour_option, print_line, values_option

_OUTPUT = click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Figure to write, .svg, .png or .pdf."
)


@click.group("plot")
def plot_command() -> None:
    """Draw embeddings, structures, calibration and training curves.

    `embed --plot`, `fold --plot` and `score --plot` draw what they compute.

    \b
    rinalmo plot map embeddings.parquet -o map.svg --color-by family
    rinalmo plot structure tRNA.ct -o tRNA.pdf --color-by tRNA.shape
    rinalmo plot calibration probabilities.npz true.dbn -o calibration.svg
    rinalmo plot curves run -o curves.svg
    """


@plot_command.command("map")
@click.argument("embeddings", type=click.Path(path_type=Path), metavar="FILE")
@_OUTPUT
@click.option(
    "--method",
    type=click.Choice(["pca", "umap"]),
    default="pca",
    help="Projection to 2-D.",
)
@colour_option
def map_(embeddings: Path, output: Path, method: Any, colour_by: str | None) -> None:
    """Draw a map of the embeddings in a file from `rinalmo embed`, one point per sequence.

    \b
    rinalmo plot map embeddings.parquet -o map.svg --color-by family
    rinalmo plot map embeddings.npz -o map.png --method umap --color-by facts.csv:species
    """
    from rinalmo.inference.embed import MapPlot

    plot = MapPlot(output, method, colour_by)
    plot.check(embeddings)
    plot.draw(embeddings)
    print_line(f"{output}: drawn")


@plot_command.command("curves")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN…")
@_OUTPUT
@click.option(
    "--figure", "names", multiple=True, metavar="NAME", help="Metric from the log, one panel each.  [default: loss]"
)
def curves(runs: tuple[Path, ...], output: Path, names: tuple[str, ...]) -> None:
    """Draw the training curves of one or several runs, finished or not.

    RUN is a run folder of `rinalmo pretrain` or `rinalmo finetune`, or one of its folds. SOURCE/METRIC is a metric on
    one validation source.

    \b
    rinalmo plot curves run -o curves.svg
    rinalmo plot curves first second -o both.png --figure loss --figure accuracy
    """
    from rinalmo.plots import draw_curves
    from rinalmo.training.run_folder import logs_of

    draw_curves(logs_of(runs), output, names or ("loss",), rates=True)
    print_line(f"{output}: drawn")


@plot_command.command("structure")
@click.argument("source", type=click.Path(path_type=Path), metavar="STRUCTURES")
@_OUTPUT
@click.option(
    "--kind",
    type=click.Choice(["drawing", "arcs", "map"]),
    help="drawing: nucleotides and helices (extra `draw`); arcs: one arc per pair; map: the probabilities.  "
    "[default: drawing; arcs with --reference]",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Accepted structures, matched by name: pairs are then drawn as correct, extra or missed.",
)
@click.option(
    "--probabilities",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Pair probabilities from `rinalmo fold --probabilities`, for maps and for the colors of drawings.",
)
@values_option
def structure(
    source: Path, output: Path, kind: Any, reference: Path | None, probabilities: Path | None, values: Path | None
) -> None:
    """Draw structures from a file: .dbn, .ct, .bpseq, .st, .csv, .tsv or .parquet.

    For several structures, put {name} into the output name or give a folder, which gets NAME.svg.

    \b
    rinalmo plot structure tRNA.ct -o tRNA.pdf
    rinalmo plot structure predicted.dbn -o compared.svg --kind drawing --reference true.dbn
    rinalmo plot structure 16S.dbn -o 16S.png --color-by 16S.shape
    """
    from rinalmo.errors import InputError
    from rinalmo.io.sequences import Record
    from rinalmo.plots.structures import Plot, read_probabilities
    from rinalmo.rna.formats import read_structures

    structures = list(read_structures(source))
    records = [Record(each.name, "", each.sequence) for each in structures]
    figures = Plot(output, kind, reference, values).figures(records)
    known: list[Any] = [None] * len(structures)
    if probabilities is not None:
        known = read_probabilities(probabilities, structures)
    elif kind == "map":
        raise InputError(f"{output}: a map shows pair probabilities; add --probabilities FILE.npz, or use --kind arcs")
    for figure, each, matrix in zip(figures, structures, known, strict=True):
        figure.draw(each, matrix)
        print_line(f"{figure.path}: drawn")


@plot_command.command("calibration")
@click.argument("probabilities", type=click.Path(path_type=Path), metavar="PROBABILITIES.npz")
@click.argument("reference", type=click.Path(path_type=Path), metavar="STRUCTURES")
@_OUTPUT
def calibration(probabilities: Path, reference: Path, output: Path) -> None:
    """Draw a reliability diagram: the fraction of correct pairs for each predicted probability.

    PROBABILITIES.npz comes from `rinalmo fold --probabilities`; STRUCTURES has true structures with the same names.
    Pairs with a probability below 0.01 are left out.

    \b
    rinalmo fold known.csv -o folded.dbn --probabilities probabilities.npz
    rinalmo plot calibration probabilities.npz known.csv -o calibration.svg
    """
    import numpy as np

    from rinalmo.plots import draw_calibration
    from rinalmo.plots.structures import read_probabilities
    from rinalmo.rna.formats import read_structures

    structures = list(read_structures(reference))
    chosen, right = [], []
    for each, matrix in zip(structures, read_probabilities(probabilities, structures), strict=True):
        upper = np.triu(np.maximum(matrix, matrix.T)).clip(0, 1)
        rows, columns = np.nonzero(upper >= 0.01)
        chosen.append(upper[rows, columns])
        right.append(each.matrix()[rows, columns])
    pairs = (np.concatenate(chosen), np.concatenate(right))
    errors = draw_calibration({probabilities.stem: pairs}, output)
    error = errors[probabilities.stem]
    print_line(f"{output}: drawn; {len(pairs[0]):,} pairs, expected calibration error {error:.3f}")
