"""Which sequences are usable: by length, by letters, by what is unknown in them. Whatever is dropped has a reason."""

from __future__ import annotations

from rinalmo.data.recipe import FilterRecipe
from rinalmo.rna.fasta import IUPAC_LETTERS

ANY_LETTER = "".join(map(chr, range(33, 127)))
"""For `read_fasta`: here a letter that is none drops its sequence, and does not stop the reading of a database."""

_RNA = IUPAC_LETTERS.replace("T", "").encode()


class Filters:
    """The filters of a recipe, with a name for each."""

    def __init__(self, recipe: FilterRecipe) -> None:
        self._recipe = recipe
        self._short = f"shorter than {recipe.min_length} nt"
        self._long = f"longer than {recipe.max_length} nt"
        self._unknown = f"more than {recipe.max_unknown:.0%} N or X"

    def reason(self, letters: bytes) -> str | None:
        """Why a sequence (upper case, U for T) is dropped, or None if it is kept."""
        if len(letters) < self._recipe.min_length:
            return self._short
        if len(letters) > self._recipe.max_length:
            return self._long
        if letters.translate(None, _RNA):
            return "other letters than IUPAC codes"
        unknown = letters.count(b"N") + letters.count(b"X")
        return self._unknown if unknown > self._recipe.max_unknown * len(letters) else None
