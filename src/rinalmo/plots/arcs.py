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

from rinalmo.durable import check_path
from rinalmo.errors import InputError, SequenceError
from rinalmo.metrics.pairs import pair_scores
from rinalmo.plots.style import BLACK, BLUE, ENDINGS, VERMILION, figure_in, need_matplotlib, title_of
from rinalmo.rna.reading import record_name
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
