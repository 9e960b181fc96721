"""Pairs of a structure as arcs or as a map of probabilities, with or without a reference.

    right (in both)   blue, solid           above and below
    extra             vermilion, dashed     above
    missed            black, dotted         below

Without a reference, blue arcs are nested and dashed ones are pseudoknots. F1 is exact, over all pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.files import record_name
from rinalmo.metrics import pair_scores
from rinalmo.plots.style import (
    BLACK,
    BLUE,
    GREY,
    VERMILION,
    WHITE,
    check_figure,
    figure_in,
    position_ticks,
    tick_step,
    title_of,
)
from rinalmo.rna.structure import Structure

LONGEST_ARCS, LONGEST_MAP = 10_000, 5_000
_ARCS, _MAP = "drawing arcs", "drawing a pair map"
_LETTERS_UP_TO = 150
_MIN_WIDTH, _MAX_ARCS_WIDTH, _MAX_MAP_WIDTH = 3.4, 14.0, 7.0  # inches
_ARCS_NUCLEOTIDE, _MAP_NUCLEOTIDE = 0.11, 0.0125  # inches
_MIN_MARKER = 1.2  # points


def check_arcs(path: Path, length: int) -> None:
    """Raise InputError or MissingExtraError before computing what could not be drawn."""
    check_figure(path, _ARCS, length, LONGEST_ARCS)


def check_map(path: Path, length: int) -> None:
    """Raise InputError or MissingExtraError before computing what could not be drawn."""
    check_figure(path, _MAP, length, LONGEST_MAP, "draw arcs")


def check_reference(structure: Structure, reference: Structure) -> None:
    """Raise SequenceError unless both are of the same RNA, in either case, T or U."""
    record = record_name(structure.name)
    if len(structure) != len(reference):
        message = f"has {len(structure):,} nt, but its reference {len(reference):,}; both must be the same RNA"
        raise SequenceError(message, record=record)
    ours, theirs = (each.sequence.upper().replace("T", "U") for each in (structure, reference))
    for n, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            message = f"is {one}, but {other} in its reference; both must be the same RNA"
            raise SequenceError(message, record=record, position=n + 1)


def draw_arcs(structure: Structure, path: str | Path, reference: Structure | None = None) -> None:
    """Draw the pairs of a structure as arcs.

    Args:
        structure: Its pairs are above the sequence.
        path: An SVG, PNG or PDF file.
        reference: A structure of the same RNA, below.

    Raises:
        InputError: Another ending, a sequence of more than 10,000 nt, or a reference of another sequence.
        MissingExtraError: matplotlib is not installed.

    Examples:
        >>> import tempfile
        >>> from rinalmo.plots import draw_arcs
        >>> from rinalmo.rna.structure import Structure
        >>> structure = Structure.from_dot_bracket("hairpin", "GGGAAACCC", "(((...)))")
        >>> draw_arcs(structure, tempfile.mkdtemp() + "/arcs.svg")
    """
    path, length, pairs = Path(path), len(structure), set(structure.pairs)
    check_arcs(path, length)
    longest_name = max(20, min(60, length - 10))
    title, aspect, margin = f"{title_of(structure.name, longest_name)}, {length:,} nt", 0.3, 0.9
    above: list[tuple[str, str, Any, set[tuple[int, int]]]]  # name, colour, line style, pairs
    if reference is None:
        nested = set(structure.nested().pairs)
        above = [("nested", BLUE, "-", nested), ("pseudoknot", VERMILION, "--", pairs - nested)]
        kinds, below = above, []
    else:
        check_reference(structure, reference)
        true = set(reference.pairs)
        right = ("right", BLUE, "-", pairs & true)
        above = [right, ("extra", VERMILION, "--", pairs - true)]
        below = [right, ("missed", BLACK, ":", true - pairs)]
        kinds = [*above, below[1]]
        f1 = pair_scores(reference.pairs, structure.pairs).f1
        title = f"{title_of(structure.name, longest_name)}, F1 {f1:.2f}\nprediction above, reference below"
        pairs, aspect, margin = pairs | true, 0.6, 1.1
    width = min(max(_ARCS_NUCLEOTIDE * length, _MIN_WIDTH), _MAX_ARCS_WIDTH)
    with figure_in(path, _ARCS, figsize=(width, margin + width * aspect), layout="constrained") as figure:
        from matplotlib.lines import Line2D

        axes = figure.subplots()
        if length <= _LETTERS_UP_TO:
            for n, letter in enumerate(structure.sequence):
                axes.text(n, 0, letter, fontsize=6.5, ha="center", va="center", family="monospace")
        else:
            axes.plot([0, length - 1], [0, 0], color=BLACK)
        axes.set_xticks(*position_ticks(length, tick_step(length)))
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=2, pad=1)
        # Half the height of the row of letters, in nucleotides.
        letters = 0.9 if length <= _LETTERS_UP_TO else length / 300
        for kind in above:
            _add_arcs(axes, *kind, letters)
        for kind in below:
            _add_arcs(axes, *kind, -letters)
        highest = max((j - i for i, j in pairs), default=4) / 2 * 1.05
        axes.set(xlim=(-1, length), ylim=(-letters - (highest if reference else 0), letters + highest))
        axes.set_title(title, loc="left")
        drawn = [kind for kind in kinds if kind[3]]
        lines = [Line2D([], [], color=colour, linestyle=dashes) for _, colour, dashes, _ in drawn]
        if lines:
            names = [f"{name} ({len(its_pairs):,})" for name, _, _, its_pairs in drawn]
            figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False)


def _add_arcs(axes: Any, name: str, colour: str, dashes: Any, pairs: Iterable[tuple[int, int]], letters: float) -> None:
    """Half circles, flattened by the axes, above the letters (or below, for a negative height)."""
    from matplotlib.collections import LineCollection

    turn = np.linspace(0, np.pi, 61)
    lines = [
        np.column_stack(
            [(i + j) / 2 - (j - i) / 2 * np.cos(turn), letters + np.sign(letters) * (j - i) / 2 * np.sin(turn)]
        )
        for i, j in sorted(pairs)
    ]
    axes.add_collection(LineCollection(lines, colors=colour, linestyles=dashes, linewidths=1.1, gid=f"arcs-{name}"))


def draw_pair_map(
    structure: Structure, probabilities: np.ndarray, path: str | Path, reference: Structure | None = None
) -> None:
    """Draw pair probabilities above the diagonal and pairs below it.

    Args:
        structure: Its pairs are below the diagonal.
        probabilities: `(length, length)`; the upper triangle counts.
        path: An SVG, PNG or PDF file.
        reference: Another structure of the same RNA, whose pairs are below the diagonal instead.

    Raises:
        InputError: Another ending, a sequence of more than 5,000 nt, or probabilities or a reference that do not fit.
        MissingExtraError: matplotlib is not installed.

    Examples:
        >>> import tempfile
        >>> from rinalmo.plots import draw_pair_map
        >>> from rinalmo.rna.structure import Structure
        >>> structure = Structure.from_dot_bracket("hairpin", "GGGAAACCC", "(((...)))")
        >>> draw_pair_map(structure, structure.matrix() * 0.9, tempfile.mkdtemp() + "/map.svg")
    """
    path, length = Path(path), len(structure)
    check_map(path, length)
    if probabilities.shape != (length, length):
        raise InputError(f"{path}: probabilities of shape {probabilities.shape} do not fit {length} nt")
    if reference is not None:
        check_reference(structure, reference)
    side = min(max(_MAP_NUCLEOTIDE * length, _MIN_WIDTH), _MAX_MAP_WIDTH)
    with figure_in(path, _MAP, figsize=(side + 0.8, side + 0.3), layout="constrained") as figure:
        from matplotlib.colors import LinearSegmentedColormap

        axes = figure.subplots()
        colours = LinearSegmentedColormap.from_list("probability", [WHITE, BLUE]).with_extremes(bad=WHITE)
        upper = np.where(np.triu(np.ones((length, length), dtype=bool)), probabilities.astype(np.float32), np.nan)
        image = axes.imshow(upper, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        axes.plot([-0.5, length - 0.5], [-0.5, length - 0.5], color=GREY, linewidth=0.6)
        axes.spines[:].set_visible(True)
        bar = figure.colorbar(image, ax=axes, shrink=0.6, label="pair probability")
        bar.outline.set_linewidth(0.5)
        # Squares as large as a cell, or as the smallest that can be seen.
        pairs, marker = (reference or structure).pairs, max(side * 0.8 * 72 / length, _MIN_MARKER)
        style = {"marker": "s", "color": BLACK, "linewidths": 0, "gid": "pairs"}
        axes.scatter([i for i, _ in pairs], [j for _, j in pairs], s=marker**2, **style)
        axes.set(xlim=(-0.5, length - 0.5), ylim=(length - 0.5, -0.5))
        ticks = position_ticks(length, tick_step(length))
        axes.set_xticks(*ticks)
        axes.set_yticks(*ticks)
        axes.set_xlabel(f"position; below the diagonal: {'reference' if reference else 'predicted'} pairs")
        axes.set_ylabel("position")
        axes.set_title(f"{title_of(structure.name, 36)}, {length:,} nt", loc="left")
