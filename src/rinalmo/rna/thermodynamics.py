"""Thermodynamics of an RNA by ViennaRNA (extra `fold`): partition function, pair probabilities, free energies.

Reference: Lorenz et al. 2011 (Algorithms Mol Biol 6:26); McCaskill 1990 (Biopolymers 29:1105).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from operator import attrgetter

import numpy as np

from rinalmo.errors import MissingExtraError

MIN_PROBABILITY = 1e-4  # less probable pairs are left out


@dataclass(frozen=True)
class Ensemble:
    """The Boltzmann ensemble of an RNA's structures at 37 °C.

    Attributes:
        length: Nucleotides of the RNA.
        i: 5' positions of the pairs more probable than `MIN_PROBABILITY`, counted from 0.
        j: Their 3' positions.
        values: Their probabilities, fp32.
        mfe_structure: Structure of minimum free energy in dot-bracket notation.
        mfe: Its free energy in kcal/mol.
        energy: Free energy of the whole ensemble in kcal/mol.
    """

    length: int
    i: np.ndarray
    j: np.ndarray
    values: np.ndarray
    mfe_structure: str
    mfe: float
    energy: float

    def matrix(self) -> np.ndarray:
        """The pair probabilities as a symmetric fp32 matrix `(length, length)`."""
        matrix = np.zeros((self.length, self.length), dtype=np.float32)
        matrix[self.i, self.j] = matrix[self.j, self.i] = self.values
        return matrix


def has_vienna() -> bool:
    """Whether ViennaRNA is installed."""
    return find_spec("RNA") is not None


def need_vienna() -> None:
    """Raise MissingExtraError if ViennaRNA is not installed."""
    if not has_vienna():
        raise MissingExtraError("ViennaRNA", "fold", "folding with thermodynamics")


def ensemble(sequence: str) -> Ensemble:
    """Compute the partition function of an RNA at 37 °C, in time that grows with the third power of its length.

    T reads as U, in either case; letters other than A, C, G and U pair with nothing.
    """
    try:
        import RNA
    except ImportError:
        need_vienna()
        raise
    compound = RNA.fold_compound(re.sub("[^ACGU]", "N", sequence.upper().replace("T", "U")))
    structure, mfe = compound.mfe()
    compound.exp_params_rescale(mfe)  # or numbers overflow where RNAs are long
    _, energy = compound.pf()
    pairs = list(map(attrgetter("i", "j", "p"), compound.plist_from_probs(MIN_PROBABILITY)))
    i, j, values = np.array(pairs, dtype=np.float64).reshape(-1, 3).T
    places = i.astype(np.int64) - 1, j.astype(np.int64) - 1
    return Ensemble(len(sequence), *places, values.astype(np.float32), structure, mfe, energy)


def pair_probabilities(sequence: str) -> np.ndarray:
    """The probability of each pair in thermal equilibrium, `(length, length)` in fp32, symmetric; see `ensemble`."""
    return ensemble(sequence).matrix()
