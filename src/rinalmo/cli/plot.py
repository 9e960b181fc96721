"""`rinalmo plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rinalmo.cli.options import colour_option, print_line

_OUTPUT = click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Figure to write, .svg, .png or .pdf."
)


@click.group("plot")
def plot_command() -> None:
    """Draw embeddings and training curves.

    Other figures are drawn by the commands that compute them: `fold --plot`, `score --plot`, `embed --plot`.

    \b
    rinalmo plot map embeddings.parquet -o map.svg --colour-by family
    rinalmo plot curves run -o curves.svg
    """


@plot_command.command("map")
@click.argument("embeddings", type=click.Path(path_type=Path), metavar="FILE")
@_OUTPUT
@click.option(
    "--method",
    type=click.Choice(["pca", "umap"]),
    default="pca",
    show_default=True,
    help="Projection to 2-D.",
)
@colour_option
def map_(embeddings: Path, output: Path, method: Any, colour_by: str | None) -> None:
    """Draw the embeddings of a file that `rinalmo embed` has written, one point per sequence.

    \b
    rinalmo plot map embeddings.parquet -o map.svg --colour-by family
    rinalmo plot map embeddings.npz -o map.png --method umap --colour-by facts.csv:species
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
    "--figure", "names", multiple=True, metavar="NAME", help="Metric of the log, one panel each.  [default: loss]"
)
def curves(runs: tuple[Path, ...], output: Path, names: tuple[str, ...]) -> None:
    """Draw the training curves of one or several runs, finished or not.

    A RUN is the folder of `rinalmo pretrain` or `rinalmo finetune`, or a fold of one. A metric of one validation
    source is named SOURCE/METRIC.

    \b
    rinalmo plot curves run -o curves.svg
    rinalmo plot curves first second -o both.png --figure loss --figure accuracy
    """
    from rinalmo.plots.curves import draw_curves
    from rinalmo.training.run_folder import logs_of

    draw_curves(logs_of(runs), output, names or ("loss",), rates=True)
    print_line(f"{output}: drawn")
