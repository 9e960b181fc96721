"""Compare the speed of the decoders of `rinalmo.rna.decoding`, and of matching in rustworkx and networkx.

    python benchmarks/decoders.py

Reports seconds and the increase of memory for one matrix of each kind of `decode_speed.py`. The nested decoder should
take less than 2 s for 1,000 nt, and less than 60 s and 1 GB for 4,000 nt. networkx is measured only up to 500 nt, where
it took 5 s on 2,000 random candidates and rustworkx 0.07 s.
"""

from __future__ import annotations

from typing import Any

import sides
from decode_speed import THRESHOLD, matrices
from sides import Run, Side

MOST_FOR_NETWORKX = 500


def rinalmo(length: int, kind: str, method: str) -> Run:
    from rinalmo.rna.decoding import decode

    ((probabilities, sequence),) = matrices(length, kind, 1)
    return lambda: decode(probabilities, sequence, method, threshold=THRESHOLD)


def networkx(length: int, kind: str) -> Run:
    import networkx as nx
    import numpy as np

    from rinalmo.rna.structure import canonical_mask

    ((probabilities, sequence),) = matrices(length, kind, 1)

    def run() -> list[tuple[int, int]]:
        weights = np.triu(np.where(canonical_mask(sequence), probabilities - THRESHOLD, 0), 4)
        rows, columns = np.nonzero(weights > 0)
        graph = nx.Graph()
        graph.add_weighted_edges_from(
            zip(rows.tolist(), columns.tolist(), weights[rows, columns].tolist(), strict=True)
        )
        return sorted((min(pair), max(pair)) for pair in nx.max_weight_matching(graph))

    return run


def measured(name: str, side: Side, repeats: int) -> tuple[str, ...]:
    sides.take_turns([side], repeats)
    cells = (f"{len(side.value or ())}", f"{side.median:.3f}", f"{side.memory() / 1e6:.0f}")
    side.close()
    return (name, *(("", side.failure, "") if side.failure else cells))


def rows(length: int, kind: str, chosen: Any) -> list[tuple[str, ...]]:
    found = [
        measured(method, Side("rinalmo", chosen.threads, length=length, kind=kind, method=method), chosen.repeats)
        for method in ("greedy", "nested", "matching")
    ]
    if length <= MOST_FOR_NETWORKX:
        found.append(measured("networkx", Side("networkx", chosen.threads, length=length, kind=kind), 1))
    return [(f"{length}", kind, *cells) for cells in found]


def main() -> None:
    chosen = sides.options(
        __doc__, peers=False, lengths={"nargs": "+", "type": int, "default": [200, 500, 1000, 2000, 4000]}
    )
    sides.head("Decoders", chosen)
    found = [row for length in chosen.lengths for kind in ("clear", "crowded") for row in rows(length, kind, chosen)]
    sides.table(("nt", "", "decoder", "pairs", "s", "MB"), found)


if __name__ == "__main__":
    sides.serve_or(main, {"rinalmo": rinalmo, "networkx": networkx})
