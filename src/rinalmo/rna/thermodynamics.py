"""Thermodynamics of an RNA by ViennaRNA (extra `fold`): partition function, pair probabilities, free energies.

Reference: Lorenz et al. 2011 (Algorithms Mol Biol 6:26); McCaskill 1990 (Biopolymers 29:1105).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from rinalmo.errors import MissingExtraError, SequenceError
from rinalmo.rna.constraints import Conditions, shape_parameters

if TYPE_CHECKING:
    import RNA

MIN_PROBABILITY = 1e-4  # less probable pairs are left out
_NO_VALUE = -999.0  # ViennaRNA's reactivity of a nucleotide without one
_MAX_ENERGY = 9e4  # ViennaRNA's energy of what is not possible is 1e5 kcal/mol


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


def _compound(sequence: str, conditions: Conditions | None, *, evaluate_only: bool = False) -> RNA.fold_compound:
    try:
        import RNA
    except ImportError:
        need_vienna()
        raise
    details = RNA.md()
    if conditions is not None and conditions.max_span is not None:
        details.max_bp_span = conditions.max_span
    letters = re.sub("[^ACGU]", "N", sequence.upper().replace("T", "U"))
    compound = RNA.fold_compound(letters, details, RNA.OPTION_EVAL_ONLY if evaluate_only else RNA.OPTION_DEFAULT)
    if conditions is None:
        return compound
    if conditions.constraint is not None and not evaluate_only:
        text = conditions.constraint.for_vienna()
        compound.hc_add_from_db(text, RNA.CONSTRAINT_DB_DEFAULT | RNA.CONSTRAINT_DB_ENFORCE_BP)
    if conditions.reactivities is not None:
        values = [_NO_VALUE, *(_NO_VALUE if value is None else value for value in conditions.reactivities)]
        method, parameters = shape_parameters(conditions.shape_method)
        if method == "D":
            compound.sc_add_SHAPE_deigan(values, parameters["m"], parameters["b"])
        else:  # unknown nucleotides are as likely paired as not, and the conversion is RNAfold's default
            compound.sc_add_SHAPE_zarringhalam(values, parameters["b"], 0.5, "O")
    return compound


def ensemble(sequence: str, conditions: Conditions | None = None) -> Ensemble:
    """Compute the partition function of an RNA at 37 °C, in time that grows with the third power of its length.

    T reads as U, in either case; letters other than A, C, G and U pair with nothing. Energies include the
    pseudo-energies of reactivities. A constraint is enforced, but for pseudoknots, whose ends are unpaired here.

    Raises:
        SequenceError: No structure meets the constraint.
    """
    compound = _compound(sequence, conditions)
    structure, mfe = compound.mfe()
    if mfe > _MAX_ENERGY:
        raise SequenceError("no structure without pseudoknots satisfies the constraint; relax it")
    compound.exp_params_rescale(mfe)  # or numbers overflow where RNAs are long
    _, energy = compound.pf()
    pairs = list(map(attrgetter("i", "j", "p"), compound.plist_from_probs(MIN_PROBABILITY)))
    i, j, values = np.array(pairs, dtype=np.float64).reshape(-1, 3).T
    places = i.astype(np.int64) - 1, j.astype(np.int64) - 1
    return Ensemble(len(sequence), *places, values.astype(np.float32), structure, mfe, energy)


def free_energy(sequence: str, dot_bracket: str, conditions: Conditions | None = None) -> float | None:
    """The free energy of a structure in kcal/mol, as `RNAeval` gives it; None if the model has none for a loop.

    Pairs in other brackets than round ones count as unpaired. The pseudo-energies of reactivities are included.

    Examples:
        >>> from rinalmo.rna.thermodynamics import free_energy
        >>> round(free_energy("GGGGGAAAACCCCC", "(((((....)))))"), 2)
        -8.7
    """
    nested = re.sub(r"[^().]", ".", dot_bracket)
    energy = float(_compound(sequence, conditions, evaluate_only=True).eval_structure(nested))
    return energy if energy < _MAX_ENERGY else None


def pair_probabilities(sequence: str) -> np.ndarray:
    """The probability of each pair in thermal equilibrium, `(length, length)` in fp32, symmetric; see `ensemble`."""
    return ensemble(sequence).matrix()
