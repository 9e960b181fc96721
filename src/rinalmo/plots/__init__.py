"""Figures: structures drawn, as arcs, as a map of pair probabilities; logos; maps of embeddings; curves; charts.

    draw_structure(structure, "x.svg", probabilities)     letters, helices, loops
    draw_arcs(structure, "x.png", reference)              each pair an arc, predicted above, reference below
    draw_pair_map(structure, probabilities, "x.svg")      every pair's probability
    draw_embedding_map(embeddings, "x.svg", labels)       sequences in two dimensions
    draw_curves({"run": log}, "x.svg")                    metrics by step
    draw_bars({"model": {"TS0": 0.67}}, "x.svg")          a bar per value, with or without intervals
    draw_calibration({"model": (p, right)}, "x.svg")      how much of what was given a probability is right
    draw_logo(probabilities, sequence, "x.svg")           the nucleotides expected at each position

They take a `Structure`, numpy arrays or a log, and need no torch. `draw_structure` needs ViennaRNA (extra `draw`), all
else, and PNG and PDF, matplotlib (extra `plots`).
"""

from rinalmo.plots.charts import draw_bars, draw_calibration, draw_curves
from rinalmo.plots.drawing import draw_structure
from rinalmo.plots.embedding_map import draw_embedding_map
from rinalmo.plots.pairs import draw_arcs, draw_pair_map
from rinalmo.plots.positions import draw_logo

__all__ = [
    "draw_arcs",
    "draw_bars",
    "draw_calibration",
    "draw_curves",
    "draw_embedding_map",
    "draw_logo",
    "draw_pair_map",
    "draw_structure",
]
