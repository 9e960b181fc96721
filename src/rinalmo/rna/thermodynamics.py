"""What thermodynamics says of base pairs: the probabilities of ViennaRNA's partition function (extra `fold`).

Reference: Lorenz et al. 2011 (Algorithms Mol Biol 6:26); McCaskill 1990 (Biopolymers 29:1105).
"""

from __future__ import annotations

import re
from importlib.util import find_spec

import numpy as np

from rinalmo.errors import MissingExtraError

LEAST = 1e-4  # less probable pairs are left out


def need_vienna() -> None:
    """Raise MissingExtraError if ViennaRNA is not installed."""
    if find_spec("RNA") is None:
        raise MissingExtraError("ViennaRNA", "fold", "folding with thermodynamics")


def pair_probabilities(sequence: str) -> np.ndarray:
    """The probability of each pair in thermal equilibrium at 37 °C, `(length, length)` in fp32, symmetric.

    T reads as U, in either case; other letters than A, C, G and U pair with nothing. Time grows with the third power
    of the length. Raises MissingExtraError without ViennaRNA.
    """
    need_vienna()
    import RNA

    found = np.zeros((len(sequence), len(sequence)), dtype=np.float32)
    compound = RNA.fold_compound(re.sub("[^ACGU]", "N", sequence.upper().replace("T", "U")))
    _, energy = compound.mfe()
    compound.exp_params_rescale(energy)  # or numbers overflow where RNAs are long
    compound.pf()
    for pair in compound.plist_from_probs(LEAST):
        found[pair.i - 1, pair.j - 1] = found[pair.j - 1, pair.i - 1] = pair.p
    return found
