"""Each pair an arc over the sequence: what was predicted above, and what is true, if known, below.

    right (in both)   blue, solid      above and below
    extra             vermilion, dashed     above
    missed            black, dotted         below

Without a reference, blue arcs are nested and dashed ones are pseudoknots. Scores are exact, over all pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.files import check_path, record_name
from rinalmo.metrics import pair_scores
from rinalmo.plots.style import BLACK, BLUE, ENDINGS, GREY, VERMILION, WHITE, figure_in, need_matplotlib, title_of
from rinalmo.rna.structure import Pairs, Structure

LONGEST = 10_000
_LETTERS_UP_TO = 150
_WIDEST, _NARROWEST, _NUCLEOTIDE = 14.0, 3.4, 0.11  # inches

Kind = tuple[str, str, Any, Pairs]  # matplotlib types its line styles word by word


def check_arcs(path: Path, length: int) -> None:
    """Raise InputError or MissingExtraError now for what could not be drawn in the end."""
    check_path(path, ENDINGS)
    if length > LONGEST:
        raise InputError(f"{path}: arcs show up to {LONGEST:,} nt, and the sequence has {length:,}; draw a part of it")
    need_matplotlib("drawing arcs")


def check_reference(structure: Structure, reference: Structure) -> None:
    """Raise SequenceError unless both are of the same RNA, in either case, T or U."""
    record = record_name(structure.name)
    if len(structure) != len(reference):
        message = f"has {len(structure):,} nt, and its reference {len(reference):,}; both must be of the same RNA"
        raise SequenceError(message, record=record)
    ours, theirs = (each.sequence.upper().replace("T", "U") for each in (structure, reference))
    for n, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            message = f"is {one}, and {other} in its reference; both must be of the same RNA"
            raise SequenceError(message, record=record, position=n + 1)


def draw_arcs(structure: Structure, path: str | Path, reference: Structure | None = None) -> None:
    """Draw the pairs as arcs into an SVG or PNG file, with those of `reference` below.

    Raises InputError for another ending, a sequence too long or a reference of another sequence.
    """
    path, length = Path(path), len(structure)
    check_arcs(path, length)
    if reference is not None:
        check_reference(structure, reference)
    above, below = _kinds(structure, reference)
    width = min(max(_NUCLEOTIDE * length, _NARROWEST), _WIDEST)
    height = (0.9 if reference is None else 1.1) + width * (0.3 if reference is None else 0.6)
    with figure_in(path, "drawing arcs", figsize=(width, height), layout="constrained") as figure:
        axes = figure.subplots()
        _sequence(axes, structure)
        side = _side(length)
        for kind in above:
            _arcs(axes, kind, side)
        for kind in below:
            _arcs(axes, kind, -side)
        tall = max([j - i for i, j in (*structure.pairs, *(reference.pairs if reference else ()))], default=4) / 2
        axes.set(xlim=(-1, length), ylim=(-side - (tall * 1.05 if reference else 0), side + tall * 1.05))
        axes.set_title(_title(structure, reference), loc="left")
        _legend(figure, [*above, *(kind for kind in below if kind[0] != "right")])


def _kinds(structure: Structure, reference: Structure | None) -> tuple[list[Kind], list[Kind]]:
    """What is drawn above and below: name, colour, line style, pairs."""
    found = set(structure.pairs)
    if reference is None:
        nested = set(structure.nested().pairs)
        return [_kind("nested", BLUE, "-", nested), _kind("pseudoknot", VERMILION, "--", found - nested)], []
    true = set(reference.pairs)
    right = _kind("right", BLUE, "-", found & true)
    return [right, _kind("extra", VERMILION, "--", found - true)], [right, _kind("missed", BLACK, ":", true - found)]


def _kind(name: str, colour: str, dashes: str, pairs: Iterable[tuple[int, int]]) -> Kind:
    return name, colour, dashes, tuple(sorted(pairs))


def _side(length: int) -> float:
    """Half the height of the line of letters, in nucleotides."""
    return 0.9 if length <= _LETTERS_UP_TO else length / 300


def _sequence(axes: Any, structure: Structure) -> None:
    length = len(structure)
    if length <= _LETTERS_UP_TO:
        for n, letter in enumerate(structure.sequence):
            axes.text(n, 0, letter, fontsize=6.5, ha="center", va="center", family="monospace")
    else:
        axes.plot([0, length - 1], [0, 0], color=BLACK)
    every = tick_step(length)
    ticks = [0, *range(every - 1, length, every)] if length > 1 else [0]
    axes.set_xticks(ticks, [str(n + 1) for n in ticks])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2, pad=1)


def tick_step(length: int) -> int:
    """Positions from one labelled one to the next, about ten in all."""
    return next((step for step in (10, 20, 50, 100, 200, 500) if length <= 15 * step), 1000)


def _arcs(axes: Any, kind: Kind, side: float) -> None:
    """Half circles, flattened by the axes, above the letters (or below, for a negative side)."""
    from matplotlib.collections import LineCollection

    name, colour, dashes, pairs = kind
    turn = np.linspace(0, np.pi, 61)
    lines = [
        np.column_stack([(i + j) / 2 - (j - i) / 2 * np.cos(turn), side + np.sign(side) * (j - i) / 2 * np.sin(turn)])
        for i, j in pairs
    ]
    axes.add_collection(LineCollection(lines, colors=colour, linestyles=dashes, linewidths=1.1, gid=f"arcs-{name}"))


def _title(structure: Structure, reference: Structure | None) -> str:
    longest = max(20, min(60, len(structure) - 10))
    if reference is None:
        return f"{title_of(structure.name, longest)}, {len(structure):,} nt"
    scores = pair_scores(reference.pairs, structure.pairs)
    return f"{title_of(structure.name, longest)}, F1 {scores.f1:.2f}\nprediction above, reference below"


def _legend(figure: Any, kinds: list[Kind]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, linestyle=dashes) for _, colour, dashes, pairs in kinds if pairs]
    names = [f"{name} ({len(pairs):,})" for name, _, _, pairs in kinds if pairs]
    if lines:
        figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False)


LONGEST_MAP = 5000
_NARROWEST_MAP, _WIDEST_MAP, _MAP_NUCLEOTIDE = 3.4, 7.0, 0.0125  # inches
_SMALLEST_MARK = 1.2  # points


def check_map(path: Path, length: int) -> None:
    """Raise InputError or MissingExtraError now for what could not be drawn in the end."""
    check_path(path, ENDINGS)
    if length > LONGEST_MAP:
        raise InputError(f"{path}: a map shows up to {LONGEST_MAP:,} nt, and the sequence has {length:,}; draw arcs")
    need_matplotlib("drawing a pair map")


def draw_pair_map(
    structure: Structure, probabilities: np.ndarray, path: str | Path, reference: Structure | None = None
) -> None:
    """Draw pair probabilities `(length, length)` into an SVG or PNG file; below the diagonal stand the pairs.

    These are those of `reference`, if it is given. Raises InputError for another ending or what does not fit.
    """
    path, length = Path(path), len(structure)
    check_map(path, length)
    if probabilities.shape != (length, length):
        raise InputError(f"{path}: probabilities of shape {probabilities.shape} do not fit {length} nt")
    if reference is not None:
        check_reference(structure, reference)
    side = min(max(_MAP_NUCLEOTIDE * length, _NARROWEST_MAP), _WIDEST_MAP)
    with figure_in(path, "drawing a pair map", figsize=(side + 0.8, side + 0.3), layout="constrained") as figure:
        axes = figure.subplots()
        _probabilities(figure, axes, probabilities)
        _marks(axes, (reference or structure).pairs, length, side)
        ticks = [0, *range(tick_step(length) - 1, length, tick_step(length))] if length > 1 else [0]
        axes.set_xticks(ticks, [str(n + 1) for n in ticks])
        axes.set_yticks(ticks, [str(n + 1) for n in ticks])
        axes.set_xlabel(f"position; below the diagonal: {'reference' if reference else 'predicted'} pairs")
        axes.set_ylabel("position")
        axes.set_title(f"{title_of(structure.name, 36)}, {length:,} nt", loc="left")


def _probabilities(figure: Any, axes: Any, probabilities: np.ndarray) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("probability", [WHITE, BLUE]).with_extremes(bad=WHITE)
    upper = np.where(np.triu(np.ones(probabilities.shape, dtype=bool)), probabilities.astype(np.float32), np.nan)
    image = axes.imshow(upper, cmap=shades, vmin=0, vmax=1, interpolation="nearest")
    axes.plot([-0.5, len(upper) - 0.5], [-0.5, len(upper) - 0.5], color=GREY, linewidth=0.6)
    axes.spines[:].set_visible(True)
    key = figure.colorbar(image, ax=axes, shrink=0.6, label="pair probability")
    key.outline.set_linewidth(0.5)


def _marks(axes: Any, pairs: Pairs, length: int, inches: float) -> None:
    """Squares as large as a cell, or as can be seen."""
    side = max(inches * 0.8 * 72 / length, _SMALLEST_MARK)
    rows, columns = [j for _, j in pairs], [i for i, _ in pairs]
    axes.scatter(columns, rows, s=side**2, marker="s", color=BLACK, linewidths=0, gid="pairs")
    axes.set(xlim=(-0.5, length - 0.5), ylim=(length - 0.5, -0.5))
