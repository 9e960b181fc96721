"""Training curves: figures by step, of one run or of several in one picture.

    one run      training blue, validation vermilion and dashed, the learning rate a grey dotted line if asked for
    several      a colour and a mark for each run; training thin, validation thick and dashed

One panel a figure: `loss` is drawn from the lines of a log that hold `loss` or `validation/loss`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rinalmo.errors import InputError
from rinalmo.io.files import check_path
from rinalmo.plots.style import BLUE, COLOURS, ENDINGS, GREY, MARKS, VERMILION, figure_in, need_matplotlib, title_of

Log = Sequence[Mapping[str, Any]]
VALIDATION = "validation/"
MOST_RUNS = len(COLOURS)
_PURPOSE = "drawing training curves"
_WIDTH, _PANEL, _AROUND, _KEY_ROW = 6.4, 2.4, 0.45, 0.18  # inches
_MARKED = 12  # marks along a line
_NAMES = {"loss": "loss (nats)", "lr": "learning rate", "mfu": "share of the peak", "tokens_per_second": "tokens/s"}


class _Curve(NamedTuple):
    run: str
    part: str
    steps: list[int]
    values: list[float]
    style: dict[str, Any]


def check_curves(path: Path, logs: Mapping[str, Log], figures: Sequence[str] = ("loss",)) -> None:
    """Raise InputError or MissingExtraError for what cannot be drawn."""
    check_path(path, ENDINGS)
    need_matplotlib(_PURPOSE)
    if not 1 <= len(logs) <= MOST_RUNS:
        raise InputError(f"{path}: shows 1 to {MOST_RUNS} runs, and there are {len(logs)}")
    known = figures_of(logs)
    for figure in figures:
        if figure not in known:
            raise InputError(f"no run has the figure {figure!r}; there are {', '.join(known) or 'none'}")


def figures_of(logs: Mapping[str, Log]) -> list[str]:
    """Names of the figures in the logs; those of single validation sources stand under `source/figure`."""
    names = {name.removeprefix(VALIDATION) for log in logs.values() for line in log for name in line}
    return sorted(names - {"step"})


def draw_curves(
    logs: Mapping[str, Log], path: str | Path, figures: Sequence[str] = ("loss",), *, rates: bool = False
) -> None:
    """Draw figures of runs, by name of the run, into an SVG or PNG file.

    A log is a sequence of mappings with `step`, as the lines of a run's `log.jsonl`. `rates` adds the learning rate to
    the first panel of a single run. Raises InputError for another ending, too many runs or a figure that none has.
    """
    path = Path(path)
    check_curves(path, logs, figures)
    size = (_WIDTH, _PANEL * len(figures) + _AROUND + _KEY_ROW * len(logs))
    with figure_in(path, _PURPOSE, figsize=size, layout="constrained") as figure:
        panels = figure.subplots(len(figures), 1, squeeze=False, sharex=True)[:, 0]
        drawn: list[_Curve] = []
        for axes, name in zip(panels, figures, strict=True):
            drawn += (lines := _lines(logs, name))
            for line in lines:
                every = max(1, len(line.steps) // _MARKED)
                axes.plot(line.steps, line.values, markevery=every, **line.style)
            axes.set_ylabel(_NAMES.get(name, name))
        panels[-1].set_xlabel("step")
        if rates and len(logs) == 1:
            _rates(panels[0].twinx(), next(iter(logs.values())))
        _legend(figure, drawn, len(logs) == 1)


def _lines(logs: Mapping[str, Log], name: str) -> list[_Curve]:
    """Training and validation of each run, as far as they have the figure."""
    found = []
    for number, (run, log) in enumerate(logs.items()):
        for key, part in ((name, "training"), (VALIDATION + name, "validation")):
            points = [(line["step"], line[key]) for line in log if key in line]
            if points:
                steps, values = zip(*points, strict=True)
                style = _style_of_one(part) if len(logs) == 1 else _style_of_many(part, number)
                found.append(_Curve(run, part, list(steps), list(values), style))
    return found


def _legend(figure: Any, lines: list[_Curve], single: bool) -> None:
    """The parts of one run, or each run once, with a line that tells the parts apart."""
    from matplotlib.lines import Line2D

    styles = {line.part if single else line.run: line.style for line in lines}
    handles = [Line2D([], [], **style) for style in styles.values()]
    parts = {line.part for line in lines}
    title = None if single or len(parts) == 1 else "thin: training; thick, dashed: validation"
    labels = [title_of(name, 40) for name in styles]
    settings = {"ncols": 2 if single else 1, "handlelength": 4, "alignment": "left", "frameon": False}
    figure.legend(handles, labels, loc="outside upper left", title=title, **settings)


def _style_of_one(part: str) -> dict[str, Any]:
    if part == "training":
        return {"color": BLUE}
    return {"color": VERMILION, "linestyle": "--", "marker": "s", "markersize": 3}


def _style_of_many(part: str, number: int) -> dict[str, Any]:
    colour = COLOURS[number]
    if part == "training":
        return {"color": colour, "linewidth": 0.7, "marker": MARKS[number], "markersize": 2.5}
    return {"color": colour, "linewidth": 1.6, "linestyle": "--", "marker": MARKS[number], "markersize": 5}


def _rates(axes: Any, log: Log) -> None:
    points = [(line["step"], line["lr"]) for line in log if "lr" in line]
    axes.spines["right"].set_visible(True)
    axes.set_ylabel("learning rate", color=GREY)
    if points:
        axes.plot(*zip(*points, strict=True), color=GREY, linewidth=0.8, linestyle=":")
