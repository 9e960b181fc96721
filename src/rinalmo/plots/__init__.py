"""Pictures of structures (drawing, arcs, map of pair probabilities), a sequence logo; one style for every picture here.

    draw_structure(structure, "x.svg", probabilities)     letters, helices, loops
    draw_arcs(structure, "x.png", reference)              each pair an arc, what is right above what is true
    draw_pair_map(structure, probabilities, "x.svg")      every pair's probability
    draw_logo(probabilities, sequence, "x.svg")           what is expected at each place

No torch: a `Structure` and a numpy matrix are enough. The drawing needs ViennaRNA (extra `draw`), the others matplotlib
(extra `plots`).
"""

from rinalmo.plots.arcs import draw_arcs
from rinalmo.plots.drawing import draw_structure
from rinalmo.plots.logo import draw_logo
from rinalmo.plots.pair_map import draw_pair_map

__all__ = ["draw_arcs", "draw_logo", "draw_pair_map", "draw_structure"]
