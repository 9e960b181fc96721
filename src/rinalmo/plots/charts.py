"""Charts of results: training curves, bars for comparisons, reliability diagrams, predictions beside true values.

References: Niculescu-Mizil & Caruana 2005 (ICML) for reliability diagrams, Naeini et al. 2015 (AAAI) for the expected
calibration error, Wilson 1927 for the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.errors import InputError
from rinalmo.plots.style import (
    BLUE,
    COLOURS,
    GREY,
    MARKERS,
    VERMILION,
    WHITE,
    check_figure,
    figure_in,
    title_of,
)

MAX_SERIES = len(COLOURS)
_BARS, _CALIBRATION = "drawing bars", "drawing calibration"
_CURVES, _PREDICTIONS = "drawing training curves", "drawing predictions"
Value = float | tuple[float, float, float]
Log = Sequence[Mapping[str, Any]]
VALIDATION = "validation/"
_HATCHES = ("", "////", "", "", "||||", "xxxx", "\\\\\\\\", "++++")  # where a neighbour is as dark
_Z = 1.96  # of 95 % intervals
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
    """Draw metrics of one to eight runs by step, from the lines of each log that hold them.

    Training of a single run is blue, validation vermilion and dashed, the learning rate a grey dotted line. Several
    runs have a color and a marker each; training is thin, validation thick and dashed.

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
    check_figure(path, _CURVES)
    if not 1 <= len(logs) <= MAX_SERIES:
        raise InputError(f"{path}: can show 1 to {MAX_SERIES} runs, but there are {len(logs)}")
    known = metrics_of(logs)
    for name in metrics:
        if name not in known:
            raise InputError(f"no run has the metric {name!r}; there are {', '.join(known) or 'none'}")
    is_single = len(logs) == 1
    size = (_WIDTH, _PANEL * len(metrics) + _MARGINS + _LEGEND_ROW * len(logs))
    with figure_in(path, _CURVES, figsize=size, layout="constrained") as figure:
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


def draw_bars(
    values: Mapping[str, Mapping[str, Value]],
    path: str | Path,
    *,
    label: str = "",
    title: str = "",
    digits: int = 2,
    logarithmic: bool = False,
) -> None:
    """Draw a bar for each group and series, such as the F1 of several programs on several RNAs.

    Args:
        values: For each series its groups and their values, or (value, low, high) with an interval; NaN is left out.
        path: An SVG, PNG or PDF file.
        label: What the values are, with their unit.
        title: Of the chart.
        digits: After the decimal point.
        logarithmic: On a scale of powers of ten, for positive counts.

    Raises:
        InputError: Another ending, no value, or more than eight series.
        MissingExtraError: matplotlib is not installed.

    Examples:
        >>> import tempfile
        >>> from rinalmo.plots import draw_bars
        >>> f1 = {"nano-fold": {"tRNA": 1.0, "5S": 0.82}, "RNAfold": {"tRNA": 1.0, "5S": (0.3, 0.2, 0.4)}}
        >>> draw_bars(f1, tempfile.mkdtemp() + "/bars.svg", label="F1")
    """
    path = Path(path)
    check_figure(path, _BARS)
    groups = list(dict.fromkeys(group for series in values.values() for group in series))
    if not groups or len(values) > MAX_SERIES:
        raise InputError(f"{path}: can show 1 to {MAX_SERIES} series with values, but there are {len(values)}")
    height = 0.8 / len(values)
    size = (6.4, 0.9 + 0.18 * len(values) + len(groups) * (0.1 + 0.15 * len(values)))
    with figure_in(path, _BARS, figsize=size, layout="constrained") as figure:
        from matplotlib.ticker import NullFormatter

        axes = figure.subplots()
        for number, (name, series) in enumerate(values.items()):
            known = [np.broadcast_to(series.get(group, np.nan), 3) for group in groups]
            middle, low, high = np.array(known, dtype=float).T
            places = np.arange(len(groups)) + (number - (len(values) - 1) / 2) * height
            style = {"color": COLOURS[number], "hatch": _HATCHES[number], "edgecolor": WHITE, "linewidth": 0.5}
            axes.barh(places, middle, height, label=title_of(name, 40), **style)
            if np.nansum(high - low) > 0:
                axes.errorbar(middle, places, xerr=[middle - low, high - middle], fmt="none", ecolor=GREY, elinewidth=1)
            for place, value, end in zip(places, middle, np.fmax(middle, high), strict=True):
                if np.isfinite(value):
                    text, at = f"{value:,.{digits}f}", (max(end, 0.0), place)
                    axes.annotate(text, at, (2, 0), textcoords="offset points", va="center", fontsize=6.5)
        axes.set_yticks(range(len(groups)), [title_of(group, 40) for group in groups])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.08, y=0.01)
        if logarithmic:  # from below 1, so that a bar of 1 is visible; with room on the right for the numbers
            axes.set(xscale="log", xlim=(0.7, 2 * axes.dataLim.xmax))
            axes.xaxis.set_minor_formatter(NullFormatter())
        if not digits:
            axes.xaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
        axes.set_xlabel(label)
        axes.set_title(title_of(title), loc="left")
        if len(values) > 1:
            figure.legend(loc="outside upper left", ncols=2, frameon=False)


def draw_calibration(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | Path, *, bins: int = 10, noun: str = "pairs"
) -> dict[str, float]:
    """Draw a reliability diagram: of what was given a probability, how much is right.

    Args:
        series: For each name probabilities `(number,)` from 0 to 1, and whether each came true, `(number,)`.
        path: An SVG, PNG or PDF file.
        bins: Of equal width; an empty one is left out.
        noun: The name of what was predicted.

    Returns:
        The expected calibration error of each series: the mean distance of probability and share, weighted by number.

    Raises:
        InputError: Another ending, probabilities that are none, nothing to draw, or more than eight series.
        MissingExtraError: matplotlib is not installed.

    Examples:
        >>> import numpy as np, tempfile
        >>> from rinalmo.plots import draw_calibration
        >>> probabilities, right = np.array([0.1, 0.1, 0.9, 0.9]), np.array([False, False, True, True])
        >>> errors = draw_calibration({"model": (probabilities, right)}, tempfile.mkdtemp() + "/calibration.svg")
        >>> round(errors["model"], 3)
        0.1
    """
    path = Path(path)
    check_figure(path, _CALIBRATION)
    if not 1 <= len(series) <= MAX_SERIES:
        raise InputError(f"{path}: can show 1 to {MAX_SERIES} series, but there are {len(series)}")
    errors = {}
    with figure_in(path, _CALIBRATION, figsize=(4.2, 4.8), layout="constrained") as figure:
        from matplotlib.ticker import NullFormatter

        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        for number, (name, (probabilities, right)) in enumerate(series.items()):
            if not len(probabilities) or np.shape(probabilities) != np.shape(right):
                raise InputError(
                    f"{name}: {len(probabilities):,} probabilities but {len(right):,} outcomes; give equally many"
                )
            if not ((probabilities >= 0) & (probabilities <= 1)).all():
                raise InputError(f"{name}: probabilities must be between 0 and 1")
            bin_of = np.minimum((np.asarray(probabilities, dtype=float) * bins).astype(int), bins - 1)
            count = np.bincount(bin_of, minlength=bins)
            is_filled = count > 0
            total = np.maximum(count, 1)
            mean = np.bincount(bin_of, probabilities, bins) / total
            share = np.bincount(bin_of, right, bins) / total
            errors[name] = float(np.abs(mean - share) @ count / count.sum())
            centre = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
            reach = _Z * np.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2)) / (1 + _Z**2 / total)
            interval = np.maximum([share - centre + reach, centre + reach - share], 0)[:, is_filled]
            style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4}
            text = f"{title_of(name, 30)} (error {errors[name]:.3f})"
            upper.errorbar(mean[is_filled], share[is_filled], yerr=interval, elinewidth=0.8, label=text, **style)
            lower.plot(mean[is_filled], count[is_filled], **style)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel=f"fraction of {noun} that are correct")
        upper.legend(loc="upper left", frameon=False)
        lower.set(yscale="log", xlabel="predicted probability", ylabel=noun)
        lower.yaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
        lower.yaxis.set_minor_formatter(NullFormatter())
    return errors


_MOST_CLASSES, _WRITTEN = 60, 20  # numbers are written into the cells of small matrices


def draw_confusion(target: np.ndarray, predicted: np.ndarray, classes: Sequence[str], title: str, path: Path) -> None:
    """Draw how many examples of each class (row) were predicted as each (column); the shade is the share of the row.

    Args:
        target: Class ids `(examples,)`.
        predicted: Class ids `(examples,)`.
        classes: Their names; beyond 60 the last are left out.
        title: Above the figure.
        path: An SVG or PNG file.
    """
    count = min(len(classes), _MOST_CLASSES)
    table = np.zeros((count, count), int)
    counted = (target < count) & (predicted < count)
    np.add.at(table, (target[counted], predicted[counted]), 1)
    share = table / table.sum(axis=1, keepdims=True).clip(1)
    size = 1.8 + 0.34 * max(count, 4)
    with figure_in(path, _PREDICTIONS, figsize=(size + 0.9, size)) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        names = [title_of(name, 20) for name in classes[:count]]
        axes.set_xticks(range(count), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
        axes.set_yticks(range(count), names, fontsize=7)
        for (row, column), number in np.ndenumerate(table) if count <= _WRITTEN else ():
            if number:
                color = "white" if share[row, column] > 0.6 else "black"
                axes.text(column, row, str(number), ha="center", va="center", fontsize=7, color=color)
        axes.set_xlabel("predicted", fontsize=8)
        axes.set_ylabel("true", fontsize=8)
        axes.set_title(title, fontsize=8)
        figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.7)
        figure.tight_layout()


def draw_scatter(target: np.ndarray, predicted: np.ndarray, names: Sequence[str], title: str, path: Path) -> None:
    """Draw predicted over true numbers, a panel for each column; on the line they are equal.

    Args:
        target: `(examples, columns)`, NaN where there is none.
        predicted: `(examples, columns)`.
        names: Of the columns; beyond six the last are left out.
        title: Above the figure.
        path: An SVG or PNG file.
    """
    panels = min(len(names), 6)
    with figure_in(path, _PREDICTIONS, figsize=(3.2 * panels + 0.3, 3.5)) as figure:
        for index in range(panels):
            axes = figure.add_subplot(1, panels, index + 1)
            known = np.isfinite(target[:, index])
            x, y = target[known, index], predicted[known, index]
            axes.scatter(x, y, s=6, alpha=0.5, color=BLUE, linewidths=0)
            ends = [min(x.min(), y.min()), max(x.max(), y.max())] if len(x) else [0, 1]
            axes.plot(ends, ends, color=GREY, linewidth=0.8)
            axes.set_xlabel(f"true {title_of(names[index], 30)}", fontsize=8)
            axes.set_ylabel("predicted", fontsize=8)
            axes.tick_params(labelsize=7)
        figure.suptitle(title, fontsize=8)
        figure.tight_layout()
