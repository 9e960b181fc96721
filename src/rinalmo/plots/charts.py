"""Charts of results: bars for comparisons, and reliability diagrams of probabilities.

Reference: Niculescu-Mizil & Caruana 2005 (ICML) for reliability diagrams, Naeini et al. 2015 (AAAI) for the expected
calibration error, Wilson 1927 for the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rinalmo.errors import InputError
from rinalmo.plots.style import COLOURS, GREY, MARKERS, WHITE, check_figure, figure_in, title_of

MAX_SERIES = len(COLOURS)
_HATCHES = ("", "////", "", "", "||||", "xxxx", "\\\\\\\\", "++++")  # where a neighbour is as dark
_BARS, _CALIBRATION = "drawing bars", "drawing calibration"
_Z = 1.96  # of 95 % intervals
Value = float | tuple[float, float, float]


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
