"""Compare the speed of `rinalmo.rna.decoding.decode` with the authors' `prob_mat_to_sec_struct`.

    python benchmarks/decode_speed.py --official path/to/RiNALMo

Both get the same symmetric probability matrices and the same threshold, and must give the same pairs. There are two
kinds of matrices:

    clear     helices of 3 to 8 pairs of high probability over a low background, as from a trained model
    crowded   the same, with one background pair in ten above the threshold: many candidates

multimolecule has no decoder; its pipeline keeps every pair above the threshold.
"""

from __future__ import annotations

from typing import Any

import sides
from sides import Run, Side

THRESHOLD = 0.13
MATRICES = 4  # decoded in one run


def matrices(length: int, kind: str, number: int = MATRICES) -> list[tuple[Any, str]]:
    """Random matrices and sequences."""
    import numpy as np

    draw = np.random.default_rng(length)
    return [_matrix(draw, length, share=0.1 if kind == "crowded" else 0.002) for _ in range(number)]


def _matrix(draw: Any, length: int, share: float) -> tuple[Any, str]:
    import numpy as np

    letters = draw.choice(list("ACGU"), length)
    # The background is skewed towards 0 so that `share` of it lies above the threshold.
    values = draw.random((length, length)) ** (np.log(THRESHOLD) / np.log(1 - share))
    partner = {"A": "U", "U": "A", "G": "C", "C": "G"}
    for _ in range(length // 20):
        size = draw.integers(3, 9)
        i, j = sorted(draw.choice(length, 2, replace=False))
        for step in range(min(size, (j - i) // 2 - 2)):
            letters[j - step] = partner[letters[i + step]]
            values[i + step, j - step] = draw.uniform(0.5, 1.0)
    upper = np.triu(values, 1)
    return upper + upper.T, "".join(letters)


def rinalmo(length: int, kind: str) -> Run:
    from rinalmo.rna.decoding import decode

    given = matrices(length, kind)
    return lambda: [decode(probabilities, sequence, threshold=THRESHOLD) for probabilities, sequence in given]


def official(length: int, kind: str, checkout: str) -> Run:
    sides.use_official(checkout)

    from rinalmo.utils.sec_struct import prob_mat_to_sec_struct

    given = matrices(length, kind)
    # The function overwrites its input.
    return lambda: [prob_mat_to_sec_struct(matrix.copy(), sequence, THRESHOLD) for matrix, sequence in given]


def pairs(structure: list[list[int]]) -> list[list[int]]:
    """A 0/1 matrix as pairs."""
    return [[i, j] for i, row in enumerate(structure) for j, paired in enumerate(row) if paired and i < j]


def row(length: int, kind: str, chosen: Any) -> tuple[str, ...]:
    found = [Side("rinalmo", chosen.threads, length=length, kind=kind)]
    if chosen.peer and chosen.official:
        python, checkout = chosen.peer, chosen.official
        found.append(Side("official", chosen.threads, python, length=length, kind=kind, checkout=checkout))
    sides.take_turns(found, chosen.repeats)
    for side in found:
        side.close()
    ours, *theirs = found
    number = sum(map(len, ours.value)) / MATRICES
    own = (f"{length}", kind, f"{number:.0f}", f"{1e3 * ours.median / MATRICES:.2f}")
    if not theirs or theirs[0].failure:
        return (*own, theirs[0].failure if theirs else "", "", "")
    same = ours.value == [pairs(structure) for structure in theirs[0].value]
    ratio = theirs[0].median / ours.median
    return (*own, f"{1e3 * theirs[0].median / MATRICES:.2f}", f"{ratio:.0f}", "yes" if same else "NO")


def main() -> None:
    chosen = sides.options(__doc__, lengths={"nargs": "+", "type": int, "default": [100, 200, 500]})
    sides.head("Decoding", chosen)
    rows = [row(length, kind, chosen) for length in chosen.lengths for kind in ("clear", "crowded")]
    sides.table(("nt", "", "pairs", "rinalmo, ms", "official, ms", "ratio", "same pairs"), rows)


if __name__ == "__main__":
    sides.serve_or(main, {"rinalmo": rinalmo, "official": official})
