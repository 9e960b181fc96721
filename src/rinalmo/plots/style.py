"""How all pictures look: colours, letters, and how a matplotlib figure gets on the disk.

The colours stay apart for every common kind of colour blindness, and no two things are told apart by colour alone:
line styles or marks differ too, for print in grey. The same data give the same bytes of SVG.

Reference: Okabe & Ito 2008, Color Universal Design (jfly.uni-koeln.de/color).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rinalmo.errors import MissingExtraError
from rinalmo.io.files import one_line, replacing

BLACK, GREY, PALE, WHITE = "#000000", "#808080", "#d9d9d9", "#ffffff"
BLUE, VERMILION, SKY = "#0072B2", "#D55E00", "#56B4E9"

# For classes: neighbours differ in lightness too, and each colour has its own mark.
COLOURS = (BLUE, VERMILION, SKY, BLACK, "#E69F00", "#009E73", "#CC79A7", "#F0E442")
MARKS = ("o", "s", "^", "x", "D", "v", "P", "X")

ENDINGS = (".svg", ".png")
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
}


def shade(probability: float) -> str:
    """From white for 0 to blue for 1, as matplotlib's and SVG's `#rrggbb`."""
    share = min(max(float(probability), 0.0), 1.0)
    channels = [int(BLUE[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + share * (channel - 255)):02x}" for channel in channels)


def title_of(name: str, longest: int = 60) -> str:
    """A name as it stands in a picture: on one line, cut if it is long."""
    text = one_line(name)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def need_matplotlib(purpose: str) -> None:
    """Raise MissingExtraError now for what could not be drawn in the end."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "plots", purpose) from None


@contextmanager
def figure_in(path: Path, purpose: str, **settings: Any) -> Iterator[Any]:
    """A matplotlib figure that is saved as `path`, in the format of its ending, when the block ends well."""
    need_matplotlib(purpose)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(**settings)
        yield figure
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with replacing(path) as file:
            figure.savefig(file, format=path.suffix[1:], dpi=200, metadata=metadata)
