"""Which nucleotides the model has to predict, and what it sees in their place.

Every nucleotide is selected on its own with probability 15 %; of the selected ones 80 % are shown as `<mask>`, 10 % as
another nucleotide, 10 % as they are. A nucleotide is A, C, G or U: neither special tokens nor IUPAC codes of several
nucleotides are selected, since there would be nothing to learn. A short sequence may have nothing selected (7 % of
those with 16 nt); it then adds nothing to the loss, and leaves no bias that forcing one selection would.

Reference: Devlin et al. 2019 (arXiv:1810.04805), with the change of the model card that a random token is different.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rinalmo.alphabet import Alphabet
from rinalmo.data import draws
from rinalmo.errors import InputError

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Masking:
    """Share of the nucleotides that are selected, and of those the shares shown as `<mask>` and as another one."""

    selected: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.selected, self.masked, self.replaced)
        if not all(0 <= share <= 1 for share in shares) or self.masked + self.replaced > 1 + 1e-9:
            raise InputError(f"masking shares {shares}: each is between 0 and 1, and masked + replaced at most 1")


class Masked(NamedTuple):
    """Ids as the model sees them `(tokens,)`, and the positions and true ids of the selected ones `(selected,)`."""

    ids: Ids
    positions: Ids
    targets: Ids


def mask(ids: Ids, lengths: Ids, keys: draws.Keys, alphabet: Alphabet, options: Masking | None = None) -> Masked:
    """Mask packed sequences: ids `(tokens,)`, the tokens of each sequence and a random key for each `(sequences,)`.

    What happens to a sequence depends on its key alone, not on its neighbours. `ids` is not changed.
    """
    options = options or Masking()
    nucleotides = np.array(alphabet.nucleotide_ids)
    code = np.full(alphabet.size, -1)
    code[nucleotides] = np.arange(4)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = np.arange(len(ids)) - starts  # in its sequence
    token_keys = np.repeat(keys, lengths)
    selected = (code[ids] >= 0) & (draws.uniform(token_keys, 2 * place) < options.selected)
    positions = np.flatnonzero(selected)
    targets = ids[positions]
    fate = draws.bits(token_keys[positions], 2 * place[positions] + 1)
    share = (fate >> np.uint64(32)) * 2.0**-32
    other = nucleotides[(code[targets] + 1 + (fate & np.uint64(0xFFFFFFFF)).astype(np.int64) % 3) % 4]
    seen = np.where(share < options.masked + options.replaced, other, targets)
    shown = ids.copy()
    shown[positions] = np.where(share < options.masked, alphabet.mask_id, seen)
    return Masked(shown, positions, targets)
