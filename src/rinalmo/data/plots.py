"""Bar charts of a data card, as SVG: the same counts give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rinalmo.plots.style import BLUE, figure_in, need_matplotlib, title_of

_TITLES = {
    "lengths": "Sequences by length (nt)",
    "sources": "Sequences by source",
    "families": "Sequences by family (the largest)",
    "clusters": "Clusters by size",
    "letters": "Nucleotides",
}
_LOGARITHMIC = ("clusters", "families", "sources")
_BARS = 25
_LONGEST_LABEL = 40
_PURPOSE = "drawing the plots of a data card"


def draw(facts: Mapping[str, Sequence[tuple[str, int]]], folder: Path) -> dict[str, str]:
    """Draw each kind of counts that has a title; returns the file name of each. Raises MissingExtraError."""
    need_matplotlib(_PURPOSE)
    folder.mkdir(exist_ok=True)
    drawn: dict[str, str] = {}
    for kind, title in _TITLES.items():
        if pairs := list(facts[kind][:_BARS]):
            _bars(title, pairs, folder / f"{kind}.svg", kind in _LOGARITHMIC)
            drawn[kind] = f"{kind}.svg"
    return drawn


def _bars(title: str, pairs: Sequence[tuple[str, int]], path: Path, logarithmic: bool) -> None:
    from matplotlib.ticker import NullFormatter

    size = (7, 0.9 + 0.24 * len(pairs))
    with figure_in(path, _PURPOSE, figsize=size, layout="constrained") as figure:
        axes = figure.subplots()
        numbers = [number for _, number in pairs]
        bars = axes.barh(range(len(pairs)), numbers, color=BLUE)
        axes.set_yticks(range(len(pairs)), [title_of(label, _LONGEST_LABEL) for label, _ in pairs])
        axes.bar_label(bars, [f"{number:,}" for number in numbers], padding=2)
        axes.invert_yaxis()
        axes.set_title(title, loc="left")
        if logarithmic:
            # From below 1, so that a bar of 1 is seen; room on the right for the numbers.
            axes.set(xscale="log", xlim=(0.7, max(numbers) * 2))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.margins(x=0.1)
        axes.xaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
