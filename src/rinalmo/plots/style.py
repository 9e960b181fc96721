"""The style of all figures, and what they share: checks before drawing, saving, ticks.

The colours are distinct for every common kind of colour blindness, and colour is never the only difference: line styles
or markers differ too, for print in grey. The same data give the same bytes of SVG.

Reference: Okabe & Ito 2008, Color Universal Design (jfly.uni-koeln.de/color).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.errors import InputError, import_extra
from rinalmo.io.files import atomic_write, check_path, one_line

BLACK, GREY, PALE, WHITE = "#000000", "#808080", "#d9d9d9", "#ffffff"
BLUE, VERMILION, SKY = "#0072B2", "#D55E00", "#56B4E9"

# For classes: neighbours differ in lightness too, and each colour has its own marker.
COLOURS = (BLUE, VERMILION, SKY, BLACK, "#E69F00", "#009E73", "#CC79A7", "#F0E442")
MARKERS = ("o", "s", "^", "x", "D", "v", "P", "X")

# For more classes than eight: after those above, with a marker that no neighbour has. The muted scheme of Paul Tol
# (personal.sron.nl/~pault), and three more.
CLASS_COLOURS = (
    *COLOURS,
    *("#332288", "#44AA99", "#999933", "#882255", "#6699CC", "#DDCC77", "#117733", "#CC6677", "#AA4499"),
    *("#661100", "#88CCEE", "#5A5A5A"),
)
CLASS_MARKERS = tuple(MARKERS[(n + n // len(MARKERS) * 5) % len(MARKERS)] for n in range(len(CLASS_COLOURS)))

ENDINGS = (".svg", ".png", ".pdf")
_DPI, _MAX_PIXELS = 300, 8000  # of a PNG; the longer side of one
_DPI_WITHIN = 200  # of an image in an SVG or PDF
FONTS = "Helvetica, Arial, 'DejaVu Sans', sans-serif"

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "text.parse_math": False,  # a name may hold $
    "svg.hashsalt": "rinalmo",  # without it the ids in an SVG are random
    "svg.fonttype": "none",  # text stays text, in whatever font the reader has
    "pdf.fonttype": 42,  # TrueType, which journals ask for and editors can change
}


def shade(share: float, colour: str = BLUE) -> str:
    """From white for 0 to a colour for 1, as matplotlib's and SVG's `#rrggbb`."""
    share = min(max(float(share), 0.0), 1.0)
    channels = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + share * (channel - 255)):02x}" for channel in channels)


def ink_on(colour: str) -> str:
    """Black, or white on dark `#rrggbb`, whichever has more contrast (WCAG 2.2's relative luminance)."""
    channels = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return BLACK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else WHITE


def robust_limit(values: np.ndarray) -> float:
    """The end of a scale from 0: the largest absolute value, unless few outliers would leave the others pale.

    At most 1.5 times the 95th percentile; larger values get the colour of the end.
    """
    absolute = np.abs(values[np.isfinite(values)])
    if not len(absolute) or not absolute.max():
        return 1.0
    usual = 1.5 * float(np.percentile(absolute, 95))
    return min(float(absolute.max()), usual or np.inf)


def title_of(name: str, longest: int = 60) -> str:
    """A name as it is written in a figure: on one line, shortened if it is long."""
    text = one_line(name)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def need_matplotlib(purpose: str) -> None:
    """Raise MissingExtraError without matplotlib."""
    import_extra("matplotlib", "plots", purpose)


def check_figure(
    path: Path, purpose: str, length: int = 0, maximum: int = 0, remedy: str = "draw a part of it"
) -> None:
    """Raise InputError or MissingExtraError before computing what could not be drawn."""
    check_path(path, ENDINGS)
    if length > maximum:
        raise InputError(f"{path}: {purpose} is limited to {maximum:,} nt, but the sequence has {length:,}; {remedy}")
    need_matplotlib(purpose)


@contextmanager
def figure_in(path: Path, purpose: str, **settings: Any) -> Iterator[Any]:
    """A matplotlib figure that is saved as `path`, in the format of its ending, when the block ends well."""
    need_matplotlib(purpose)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(**settings)
        yield figure
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
        dpi = min(_DPI, _MAX_PIXELS / max(figure.get_size_inches())) if path.suffix == ".png" else _DPI_WITHIN
        with atomic_write(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=dpi, metadata=metadata)


def position_ticks(count: int, step: int, start: int = 0) -> tuple[list[int], list[str]]:
    """Ticks and labels of 1-based positions: the first and each `step`th of `count` from `start` on."""
    ticks = [n for n in range(count) if (start + n + 1) % step == 0 or start + n == 0]
    return ticks, [str(start + n + 1) for n in ticks]


def tick_step(length: int) -> int:
    """Positions from one label to the next, for about ten labels in all."""
    return next((step for step in (10, 20, 50, 100, 200, 500) if length <= 15 * step), 1000)
