"""Where each nucleotide of a drawing lies: ViennaRNA's RNApuzzler, else one circle.

RNApuzzler keeps apart what other layouts draw over each other, in units of 25 from one nucleotide to the next. On a
few structures, known ones of bpRNA too, it takes for ever or fails, and an empty hairpin crashes it. Native code cannot
be stopped from inside, so it runs in a process of its own with a time limit. What it fails on lies on one circle, with
its pairs as chords: less telling, but nothing overlaps.

Reference: Wiegreffe et al. 2019 (Bioinformatics 35:1377).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec

import numpy as np

from rinalmo.errors import MissingExtraError

STEP = 25.0
"""From one nucleotide to the next."""

CLOSEST = 20.0
"""No two nucleotides are nearer. RNApuzzler's may be, by a little: then everything is drawn larger."""

SMALLEST_LOOP = 2
_SECONDS = 5  # others take less than one
_PUZZLER = """
import json, sys, RNA
RNA.cvar.rna_plot_type = RNA.PLOT_TYPE_PUZZLER
text = sys.stdin.read()
found = RNA.get_xy_coordinates(text)
print(json.dumps([(found.get(n).X, found.get(n).Y) for n in range(len(text))]))
"""


def need_vienna() -> None:
    """Raise MissingExtraError if ViennaRNA is not installed."""
    if find_spec("RNA") is None:
        raise MissingExtraError("ViennaRNA", "draw", "drawing a structure")


def positions(pairs: Iterable[tuple[int, int]], length: int) -> tuple[np.ndarray, bool]:
    """Coordinates `(length, 2)`, y downward, and whether they follow the pairs, which are nested and have loops."""
    need_vienna()
    text = ["."] * length
    for i, j in pairs:
        text[i], text[j] = "(", ")"
    found = _puzzled("".join(text))
    if found is None or (room := nearest(found)) < CLOSEST / 2:
        return circle(length), False
    return found * (1, -1) * max(1.0, CLOSEST / room), True


def circle(length: int) -> np.ndarray:
    """Nucleotides on a circle, clockwise from the lower left, with a gap between the ends."""
    angles = np.pi / 2 + 2 * np.pi * (np.arange(length) + 1) / (length + 1)
    radius = STEP / 2 / np.sin(np.pi / (length + 1))
    return radius * np.column_stack([np.cos(angles), np.sin(angles)])


def nearest(points: np.ndarray) -> float:
    """The smallest distance of two points; infinite for one."""
    smallest = np.inf
    for n in range(1, len(points)):
        smallest = min(smallest, float(np.hypot(*(points[:n] - points[n]).T).min()))
    return smallest


def _puzzled(text: str) -> np.ndarray | None:
    command = [sys.executable, "-c", _PUZZLER]
    try:
        done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", timeout=_SECONDS, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return None
    found = np.array(json.loads(done.stdout), dtype=np.float64).reshape(-1, 2)
    return found if np.isfinite(found).all() else None
