"""A drawing of a structure: nucleotides, backbone, helices, and labels where there is room.

The layout is that of RNApuzzler (Wiegreffe et al. 2019), from ViennaRNA. Its external loop is a straight line;
where that makes a long strip, the ends are joined for the layout, so that the external loop becomes round.

With a reference, the layout is the reference's, and pairs are those of both:

    right (in both)   blue, solid
    extra             vermilion, dashed
    missed            black, dotted
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.io.files import check_path, one_line
from rinalmo.metrics import pair_scores
from rinalmo.plots import svg
from rinalmo.plots.pairs import check_reference
from rinalmo.plots.style import (
    BLACK,
    BLUE,
    ENDINGS,
    GREY,
    PALE,
    SKY,
    VERMILION,
    WHITE,
    ink_on,
    need_matplotlib,
    robust_limit,
    shade,
    title_of,
)
from rinalmo.rna.structure import Structure

LONGEST = 3000
_PURPOSE = "drawing a structure"

CLOSEST = 20.0
"""Minimum distance of two nucleotides. Where RNApuzzler's is smaller, everything is drawn larger, up to 5 times."""

_MIN_LOOP = 2
_LAYOUT_SECONDS = 30  # others take less than one
_STRIP = 2000.0  # a longer side is shortened if a round external loop does it
_PUZZLER = """
import json, sys, RNA
RNA.cvar.rna_plot_type = RNA.PLOT_TYPE_PUZZLER
text = sys.stdin.read()
layout = RNA.get_xy_coordinates(text)
print(json.dumps([(layout.get(n).X, layout.get(n).Y) for n in range(len(text))]))
"""

_RADIUS, _MARGIN, _LETTER = 9.0, 45.0, 12
_LARGE = (
    1500.0  # labels, title and legend of a larger drawing are larger, so that they can be read at the size of a page
)
_BEND = 0.22  # of a curve, as a share of its length
# Labels: every 10th number (in large drawings every 50th) at one of these distances and 16 angles.
_LABEL_DISTANCES, _LABEL_ANGLES = (22.0, 30.0, 40.0), 16
_LABEL_CLEARANCE = 19.0
_LINE_SPACING = 8.0  # labels avoid lines by points along them

_DASHES = {"right": "", "extra": "5 3", "missed": "1.5 3", "pseudoknot": "5 3", "pair": ""}
_COLOURS = {"right": BLUE, "extra": VERMILION, "missed": BLACK, "pseudoknot": VERMILION, "pair": BLACK}


class _PairLine(NamedTuple):
    """How a pair is drawn: straight in the ladder or as a curve, with its midpoint."""

    pair: tuple[int, int]
    letters: str  # "" for AU and GC, "GU", or "other"
    kind: str  # right, extra or missed with a reference; else pair, or pseudoknot for all that is not straight
    middle: np.ndarray


def check_drawing(path: Path, length: int) -> None:
    """Raise InputError or MissingExtraError before computing what could not be drawn."""
    check_path(path, ENDINGS)
    if length > LONGEST:
        raise InputError(f"{path}: drawings are limited to {LONGEST:,} nt, but the sequence has {length:,}; draw arcs")
    if path.suffix != ".svg":
        need_matplotlib(_PURPOSE)
    _need_vienna()


def _need_vienna() -> None:
    if find_spec("RNA") is None:
        raise MissingExtraError("ViennaRNA", "draw", _PURPOSE)


def draw_structure(
    structure: Structure,
    path: str | Path,
    probabilities: np.ndarray | None = None,
    *,
    reference: Structure | None = None,
    track: tuple[np.ndarray, str] | None = None,
) -> None:
    """Draw a structure with its nucleotides and pairs.

    Args:
        structure: Up to 3,000 nt.
        path: An SVG, PNG or PDF file.
        probabilities: Of pairs, `(length, length)`: shades each nucleotide by its likeliest pair.
        reference: Another structure of the same RNA: pairs are then right, extra or missed.
        track: `(length,)` numbers, NaN where there is none, and their name: shades each nucleotide by its number.

    Raises:
        InputError: A structure too long or without a layout, another ending, or numbers or a reference that do not fit.
        MissingExtraError: ViennaRNA is not installed; or matplotlib, which PNG and PDF need.

    Examples:
        >>> import tempfile
        >>> from rinalmo.plots import draw_structure
        >>> from rinalmo.rna.structure import Structure
        >>> structure = Structure.from_dot_bracket("hairpin", "GGGAAACCC", "(((...)))")
        >>> draw_structure(structure, tempfile.mkdtemp() + "/drawing.svg")
    """
    path = Path(path)
    check_drawing(path, len(structure))
    try:
        text = structure_svg(structure, probabilities, reference=reference, track=track)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    svg.save(text, path, _PURPOSE)


def structure_svg(
    structure: Structure,
    probabilities: np.ndarray | None = None,
    *,
    reference: Structure | None = None,
    track: tuple[np.ndarray, str] | None = None,
) -> str:
    """The drawing as text of SVG, for a page or a notebook; the arguments are those of `draw_structure`."""
    length = len(structure)
    if probabilities is not None and probabilities.shape != (length, length):
        raise InputError(f"probabilities of shape {probabilities.shape} do not fit {length} nt")
    if track is not None and track[0].shape != (length,):
        raise InputError(f"{track[1]}: values of shape {track[0].shape} do not fit {length} nt")
    if reference is not None:
        check_reference(structure, reference)
    points, lines = _layout(structure, reference)
    partners = structure.partners()
    scale = max(1.0, float(np.ptp(points, axis=0).max()) / _LARGE)
    labels = placed_labels(points, structure.pairs, scale)
    body = []
    if length > 1:
        body.append(svg.polyline(points, class_="backbone", stroke=GREY, stroke_width=1.5))
    for line in lines:
        (i, j), colour = line.pair, _COLOURS[line.kind]
        control = 2 * line.middle - (points[i] + points[j]) / 2
        dashes = {"stroke_dasharray": _DASHES[line.kind]} if _DASHES[line.kind] else {}
        curve = svg.curve(points[i], control, points[j], stroke=colour, stroke_width=1.8, **dashes)
        marker = _marker(line.letters, line.middle, colour)
        body.append(svg.element("g", curve + marker, class_="pair", data_kind=line.kind, data_pair=f"{i + 1}-{j + 1}"))
    for n, at, text in labels:
        towards = (points[n] - at) / max(float(np.hypot(*(points[n] - at))), 1e-9)
        start, end = points[n] - towards * _RADIUS, points[n] - towards * (_RADIUS + 4 * scale)
        label = svg.line(start, end, stroke=GREY, stroke_width=scale)
        label += svg.text(text, at, fill="#404040", font_size=11 * scale)
        body.append(svg.element("g", label, class_="label"))
    if track is not None:
        fills, legend = _track_fills(*track)
    elif probabilities is not None:
        symmetric = np.nan_to_num(np.maximum(probabilities, probabilities.T))
        fills = [
            (shade(row.max()), f"probability {row[n]:.2f}" if n >= 0 else f"most probable pair {row.max():.2f}")
            for row, n in zip(symmetric, partners, strict=True)
        ]
        legend = [_scale("probability of the most probable pair, 0 to 1", [shade(n / 10) for n in range(11)])]
    else:
        fills, legend = _pair_fills(length, lines), []
    for n, (letter, at, (fill, value)) in enumerate(zip(structure.sequence, points, fills, strict=True)):
        partner = partners[n]
        paired = f"pairs with {structure.sequence[partner]}{partner + 1}" if partner >= 0 else "unpaired"
        tooltip = f"{letter}{n + 1}, {paired}" + (f"; {value}" if value else "")
        nucleotide = svg.element("title", tooltip) + svg.circle(at, _RADIUS, fill=fill, stroke=BLACK, stroke_width=0.8)
        nucleotide += svg.text(letter, at, fill=ink_on(fill), font_size=_LETTER)
        body.append(svg.element("g", nucleotide, class_="nucleotide", data_position=n + 1))
    corners = np.vstack([points, *(at for _, at, _ in labels), *(line.middle for line in lines)])
    margin, head = _MARGIN * scale, 20 * scale
    x, y = np.array([margin, margin + head]) - corners.min(axis=0)
    width, height = np.ptp(corners, axis=0) + np.array([2 * margin, 2 * margin + head])
    title = f"{title_of(structure.name)}, {length:,} nt" if structure.name else f"{length:,} nt"
    if reference is not None:
        title += f", F1 {pair_scores(reference.pairs, structure.pairs).f1:.2f}"
    rows = [*_pair_legend(lines), *legend]
    placed = [
        svg.element("g", row, transform=f"translate({margin:.0f} {height + 22 * scale * n:.0f}) scale({scale:.2f})")
        for n, row in enumerate(rows)
    ]
    content = [
        svg.text(title, np.array([margin, 24 * scale]), text_anchor="start", font_size=14 * scale),
        svg.element("g", "\n".join(["", *body, ""]), transform=f"translate({x:.1f} {y:.1f})"),
        *placed,
    ]
    min_width = max(7.5 * len(title) * scale + 2 * margin, 300.0 + (100 if track or reference else 0))
    return svg.page(max(width, min_width), height + 22 * scale * len(rows), content)


def _layout(structure: Structure, reference: Structure | None) -> tuple[np.ndarray, list[_PairLine]]:
    """Where the nucleotides are, and how each pair is drawn."""
    ladder = {(i, j) for i, j in (reference or structure).nested().pairs if j - i > _MIN_LOOP}
    points = positions(ladder, len(structure))
    predicted, true = set(structure.pairs), set(reference.pairs if reference else ())
    centre, lines = points.mean(axis=0), []
    for i, j in sorted(predicted | true):
        is_straight = (i, j) in ladder
        middle = (points[i] + points[j]) / 2
        if not is_straight:
            # Curves bend away from the centre of the drawing.
            bend = np.array([points[i][1] - points[j][1], points[j][0] - points[i][0]]) * _BEND
            middle = middle + (bend if np.dot(bend, middle - centre) >= 0 else -bend)
        text = "".join(sorted((structure.sequence[i] + structure.sequence[j]).upper().replace("T", "U")))
        letters = {"AU": "", "CG": "", "GU": "GU"}.get(text, "other")
        if reference is None:
            kind = "pair" if is_straight else "pseudoknot"
        else:
            kind = "right" if (i, j) in predicted & true else "extra" if (i, j) in predicted else "missed"
        lines.append(_PairLine((i, j), letters, kind, middle))
    return points, lines


def positions(pairs: Iterable[tuple[int, int]], length: int) -> np.ndarray:
    """Coordinates `(length, 2)`, y downward, for pairs that are nested and have loops. InputError if there are none."""
    _need_vienna()
    text = ["."] * length
    for i, j in pairs:
        text[i], text[j] = "(", ")"
    layout = _puzzled("".join(text))
    if layout is None or np.ptp(layout, axis=0).max() > _STRIP:
        closed = _puzzled(f"(..{''.join(text)}..)")
        if closed is not None:
            closed = closed[3:-3]
        both = (points for points in (layout, closed) if points is not None)
        layout = min(both, key=lambda points: float(np.ptp(points, axis=0).max()), default=None)
    if layout is None:
        raise InputError(f"no layout without overlaps was found for these {length:,} nt; draw arcs or a map")
    return layout


def _puzzled(text: str) -> np.ndarray | None:
    """RNApuzzler's coordinates, large enough for letters; None where it fails or leaves nucleotides on each other."""
    command = [sys.executable, "-c", _PUZZLER]
    options = {"capture_output": True, "encoding": "utf-8", "timeout": _LAYOUT_SECONDS, "check": True}
    try:
        output = subprocess.run(command, input=text, **options).stdout  # type: ignore[call-overload]
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return None
    points = np.array(json.loads(output), dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(points).all() or (closest := nearest(points)) < CLOSEST / 5:
        return None
    return points * (1, -1) * max(1.0, CLOSEST / closest)


def nearest(points: np.ndarray) -> float:
    """The smallest distance of two points; infinite for one."""
    smallest = np.inf
    for n in range(1, len(points)):
        smallest = min(smallest, float(np.hypot(*(points[:n] - points[n]).T).min()))
    return smallest


def placed_labels(
    points: np.ndarray, pairs: Iterable[tuple[int, int]], scale: float = 1.0
) -> list[tuple[int, np.ndarray, str]]:
    """Nucleotide, position and text of each label: 5′, 3′ and each 10th number, at the nearest clear place.

    Where no place is clear, the clearest one is taken. Labels are `scale` times as large, and every 50th from 1.5 on.
    """
    obstacles = [points]
    for i, j in [*zip(range(len(points)), range(1, len(points)), strict=False), *pairs]:
        steps = int(np.hypot(*(points[j] - points[i])) // _LINE_SPACING)
        obstacles.append(points[i] + np.linspace(0, 1, steps + 2)[1:-1, None] * (points[j] - points[i]))
    taken = np.vstack(obstacles)
    angles = 2 * np.pi * np.arange(_LABEL_ANGLES) / _LABEL_ANGLES
    around = np.column_stack([np.cos(angles), np.sin(angles)])
    step, clear = 10 if scale < 1.5 else 50, _LABEL_CLEARANCE * scale
    numbers = [(n, str(n + 1)) for n in range(step - 1, len(points), step)]
    labels = []
    for n, text in [(0, "5′"), (len(points) - 1, "3′"), *numbers]:
        near = taken[np.abs(taken - points[n]).max(axis=1) < _LABEL_DISTANCES[-1] * scale + 2 * clear]
        near = near[np.hypot(*(near - points[n]).T) > _LINE_SPACING / 2]  # its own nucleotide is no obstacle
        best, best_clearance = points[n], -1.0
        for distance in _LABEL_DISTANCES:
            places = points[n] + distance * scale * around
            clearance = np.hypot(*(places[:, None] - near[None]).transpose(2, 0, 1)).min(axis=1, initial=1e3)
            if clearance.max() > best_clearance:
                best, best_clearance = places[clearance.argmax()], float(clearance.max())
            if best_clearance >= clear:
                break
        taken = np.vstack([taken, best])
        labels.append((n, best, text))
    return labels


def _marker(letters: str, at: np.ndarray, colour: str) -> str:
    """A full dot for GU, an empty one for pairs other than AU, GC and GU."""
    fill = colour if letters == "GU" else WHITE
    return svg.circle(at, 3.2, fill=fill, stroke=colour, stroke_width=1.4) if letters else ""


def _pair_fills(length: int, lines: list[_PairLine]) -> list[tuple[str, str]]:
    """The colour and the value of each nucleotide, by its pair."""
    fills = [(WHITE, "")] * length
    for kind, fill in (
        ("missed", PALE),
        ("extra", shade(0.3, VERMILION)),
        ("pseudoknot", ""),
        ("pair", ""),
        ("right", ""),
    ):
        for line in lines:
            if line.kind == kind:
                for n in line.pair:
                    fills[n] = (fill or shade(0.3, SKY), "")
    return fills


def _track_fills(values: np.ndarray, name: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The colour and the value of each nucleotide by its number, and rows of the legend."""
    is_known = np.isfinite(values)
    limit, is_signed = robust_limit(values[is_known]), bool((values[is_known] < 0).any())

    def colour(value: float) -> str:
        return shade(abs(value) / limit, BLUE if is_signed and value > 0 else VERMILION)

    fills = [(colour(v), f"{v:.3g}") if known else (PALE, "") for v, known in zip(values, is_known, strict=True)]
    low, above = (-limit if is_signed else 0.0), " and beyond" if (np.abs(values[is_known]) > limit).any() else ""
    scale = [colour(value) for value in np.linspace(low, limit, 11)]
    legend = [_scale(f"{one_line(name)}, {low:.3g} to {limit:.3g}{above}", scale)]
    if not is_known.all():
        legend.append(_scale("no value", [PALE]))
    return fills, legend


def _scale(meaning: str, colours: list[str]) -> str:
    """A row of the legend with a scale of colours."""
    boxes = [svg.element("rect", x=6.0 * n, y=-6, width=6.2, height=12, fill=each) for n, each in enumerate(colours)]
    boxes.append(
        svg.element("rect", x=0, y=-6, width=6.0 * len(colours), height=12, fill="none", stroke=GREY, stroke_width=0.5)
    )
    return "".join(boxes) + svg.text(meaning, np.array([74.0, 0.0]), text_anchor="start", font_size=11)


def _pair_legend(lines: list[_PairLine]) -> Iterator[str]:
    left, middle, right = np.array([0.0, 0.0]), np.array([15.0, 0.0]), np.array([30.0, 0.0])
    counts = Counter(line.kind for line in lines)
    rows = [(kind, f"{kind} ({counts[kind]:,})", "") for kind in ("right", "extra", "missed")]
    rows.append(("pseudoknot", "pair of a pseudoknot, or too close to draw straight", ""))
    rows = [row for row in rows if counts[row[0]]]
    letters = {line.letters for line in lines}
    for kind, meaning in (("GU", "GU pair"), ("other", "pair other than AU, GC and GU")):
        if kind in letters:
            rows.append(("pair", meaning, kind))
    for kind, meaning, marked in rows:
        dashes = {"stroke_dasharray": _DASHES[kind]} if _DASHES[kind] else {}
        stroke = svg.line(left, right, stroke=_COLOURS[kind], stroke_width=1.8, **dashes)
        text = svg.text(meaning, np.array([40.0, 0.0]), text_anchor="start", font_size=11)
        yield stroke + _marker(marked, middle, BLACK) + text
