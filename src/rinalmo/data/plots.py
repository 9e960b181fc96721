"""Bar charts of a data card, as SVG: the same counts give the same bytes. The only file here that knows matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rinalmo.durable import replacing
from rinalmo.errors import MissingExtraError

_TITLES = {
    "lengths": "Sequences by length (nt)",
    "sources": "Sequences by source",
    "families": "Sequences by family (the largest)",
    "clusters": "Clusters by size",
    "letters": "Nucleotides",
}
_LOGARITHMIC = ("clusters", "families", "sources")
_BARS = 25


def draw(facts: Mapping[str, Sequence[tuple[str, int]]], folder: Path) -> dict[str, str]:
    """Draw each kind of counts that has a title; returns the file name of each. Raises MissingExtraError."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plots", "drawing the plots of a data card") from None
    folder.mkdir(exist_ok=True)
    drawn: dict[str, str] = {}
    # Without a fixed salt the ids in an SVG are random; text stays text, in whatever font the reader has.
    with rc_context({"svg.hashsalt": "rinalmo", "svg.fonttype": "none"}):
        for kind, title in _TITLES.items():
            if pairs := list(facts[kind][:_BARS]):
                _bars(Figure, title, pairs, folder / f"{kind}.svg", kind in _LOGARITHMIC)
                drawn[kind] = f"{kind}.svg"
    return drawn


def _bars(figure_class: Any, title: str, pairs: Sequence[tuple[str, int]], path: Path, logarithmic: bool) -> None:
    figure = figure_class(figsize=(7, 0.9 + 0.24 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    axes.barh([label for label, _ in pairs], [number for _, number in pairs], color="#3b6ea5")
    axes.invert_yaxis()
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    if logarithmic:
        axes.set_xscale("log")
    with replacing(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
