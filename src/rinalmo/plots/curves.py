"""Training curves: metrics by step, of one run or of several in one figure.

    one run      training blue, validation vermilion and dashed; optionally the learning rate as a grey dotted line
    several      a colour and a marker for each run; training thin, validation thick and dashed

One panel per metric: `loss` is drawn from the lines of a log that hold `loss` or `validation/loss`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rinalmo.errors import InputError
from rinalmo.plots.style import BLUE, COLOURS, GREY, MARKERS, VERMILION, check_figure, figure_in, title_of

Log = Sequence[Mapping[str, Any]]
VALIDATION = "validation/"
MAX_RUNS = len(COLOURS)
_PURPOSE = "drawing training curves"
_WIDTH, _PANEL, _MARGINS, _LEGEND_ROW = 6.4, 2.4, 0.45, 0.18  # inches
_MARKERS_PER_LINE = 12
_LABELS = {"loss": "loss (nats)", "lr": "learning rate", "mfu": "fraction of the peak", "tokens_per_second": "tokens/s"}


def metrics_of(logs: Mapping[str, Log]) -> list[str]:
    """Names of the metrics in the logs; those of single validation sources are `source/metric`."""
    names = {name.removeprefix(VALIDATION) for log in logs.values() for line in log for name in line}
    return sorted(names - {"step"})


def draw_curves(
    logs: Mapping[str, Log], path: str | Path, metrics: Sequence[str] = ("loss",), *, rates: bool = False
) -> None:
    """Draw metrics of one to eight runs by step.

    Args:
        logs: For each run's name a sequence of mappings with `step`, as the lines of its `log.jsonl`.
        path: An SVG, PNG or PDF file.
        metrics: One panel each.
        rates: Add the learning rate to the first panel of a single run.

    Raises:
        InputError: Another ending, too many runs, or a metric that no run has.
        MissingExtraError: matplotlib is not installed.

    Examples:
        >>> import tempfile
        >>> from rinalmo.plots import draw_curves
        >>> log = [{"step": 1, "loss": 1.4}, {"step": 2, "loss": 1.3}, {"step": 2, "validation/loss": 1.35}]
        >>> draw_curves({"run": log}, tempfile.mkdtemp() + "/curves.svg")
    """
    path = Path(path)
    check_figure(path, _PURPOSE)
    if not 1 <= len(logs) <= MAX_RUNS:
        raise InputError(f"{path}: can show 1 to {MAX_RUNS} runs, but there are {len(logs)}")
    known = metrics_of(logs)
    for name in metrics:
        if name not in known:
            raise InputError(f"no run has the metric {name!r}; there are {', '.join(known) or 'none'}")
    is_single = len(logs) == 1
    size = (_WIDTH, _PANEL * len(metrics) + _MARGINS + _LEGEND_ROW * len(logs))
    with figure_in(path, _PURPOSE, figsize=size, layout="constrained") as figure:
        from matplotlib.lines import Line2D

        panels = figure.subplots(len(metrics), 1, squeeze=False, sharex=True)[:, 0]
        styles, parts = {}, set()  # of the lines that are drawn
        for axes, name in zip(panels, metrics, strict=True):
            for number, (run, log) in enumerate(logs.items()):
                for key, part in ((name, "training"), (VALIDATION + name, "validation")):
                    points = [(line["step"], line[key]) for line in log if key in line]
                    if points:
                        style = _line_style(part, None if is_single else number)
                        styles[part if is_single else run] = style
                        parts.add(part)
                        markers = max(1, len(points) // _MARKERS_PER_LINE)
                        axes.plot(*zip(*points, strict=True), markevery=markers, **style)
            axes.set_ylabel(_LABELS.get(name, name))
        panels[-1].set_xlabel("step")
        if rates and is_single:
            axes = panels[0].twinx()
            points = [(line["step"], line["lr"]) for line in next(iter(logs.values())) if "lr" in line]
            axes.spines["right"].set_visible(True)
            axes.set_ylabel("learning rate", color=GREY)
            if points:
                axes.plot(*zip(*points, strict=True), color=GREY, linewidth=0.8, linestyle=":")
        title = None if is_single or len(parts) == 1 else "thin: training; thick, dashed: validation"
        handles = [Line2D([], [], **style) for style in styles.values()]
        settings = {"ncols": 2 if is_single else 1, "handlelength": 4, "alignment": "left", "frameon": False}
        names = [title_of(name, 40) for name in styles]
        figure.legend(handles, names, loc="outside upper left", title=title, **settings)


def _line_style(part: str, number: int | None) -> dict[str, Any]:
    """The style of a curve; `number` is the run's among several."""
    if number is None and part == "training":
        return {"color": BLUE}
    if number is None:
        return {"color": VERMILION, "linestyle": "--", "marker": "s", "markersize": 3}
    style = {"color": COLOURS[number], "marker": MARKERS[number]}
    if part == "training":
        return {**style, "linewidth": 0.7, "markersize": 2.5}
    return {**style, "linewidth": 1.6, "linestyle": "--", "markersize": 5}
