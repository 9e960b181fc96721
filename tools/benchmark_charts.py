"""Draw the charts of docs/results/index.md from benchmarks/results/summary.csv, the one file of the newest results.

    python tools/benchmark_charts.py

A row is one bar: its chart, group and series, the value with an interval if there is one, the date and record of the
measurement, and the pages that quote it. A test compares those pages with the values.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from pathlib import Path

from rinalmo.plots import draw_bars

ROOT = Path(__file__).parents[1]
SUMMARY = ROOT / "benchmarks" / "results" / "summary.csv"
IMAGES = ROOT / "docs" / "images"
CHARTS = {  # label, title, digits
    "folding": ("F1, ±1", "Secondary structures", 3),
    "tasks": ("metric, higher is better", "nano, k-mers and a CNN", 3),
    "speed": ("times as fast as multimolecule", "Embedding ncRNA of real lengths, two CPU cores", 2),
    "tables": ("metric, higher is better", "Tables of 800 rows: linear models", 3),
}


def rows() -> list[dict[str, str]]:
    """The rows of the file of results."""
    with SUMMARY.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    charts: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows():
        value, *bounds = (float(row[name]) if row[name] else math.nan for name in ("value", "low", "high"))
        low, high = (value if math.isnan(bound) else bound for bound in bounds)
        charts[row["chart"]][row["series"]][row["group"]] = (value, low, high)
    for name, (label, title, digits) in CHARTS.items():
        path = IMAGES / f"benchmark_{name}.svg"
        draw_bars(charts[name], path, label=label, title=title, digits=digits)
        print(path)


if __name__ == "__main__":
    main()
