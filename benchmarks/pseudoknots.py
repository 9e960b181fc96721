"""Pseudoknots: how well each decoder predicts the pairs that cross others.

    python benchmarks/pseudoknots.py pseudobase.csv.gz TS0.csv.gz [--thermodynamics W …] [--most N]

Each file is a table with the columns `id`, `sequence` and `structure`; of files with other RNAs only those with a
pseudoknot count. A pair is pseudoknotted if it crosses another pair of the same structure. F1 of these pairs is over
all RNAs of a file together (exact); F1 of all pairs is the mean over RNAs. Confidence is compared with the share of
right pairs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from rinalmo.engine.engine import Engine
from rinalmo.errors import SequenceError
from rinalmo.inference.fold import Decoding, fold_records
from rinalmo.io.sequences import Record
from rinalmo.io.tables import read_rows
from rinalmo.metrics import pair_scores
from rinalmo.rna.structure import Structure

METHODS = ("nested", "greedy", "matching")


def crossing(pairs: tuple[tuple[int, int], ...]) -> set[tuple[int, int]]:
    """The pairs that cross another one."""
    return {(i, j) for i, j in pairs for k, m in pairs if i < k < j < m or k < i < m < j}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--thermodynamics", type=float, nargs="*", default=[], help="weights beside the default")
    parser.add_argument("--most", type=int, help="a random part of each file")
    parser.add_argument("--model", default="nano-fold")
    arguments = parser.parse_args()
    engine = Engine(arguments.model, "fp32", threads=1)
    print(
        "| RNAs | weight | decoder | pseudoknotted pairs: precision, recall, F1 | F1 of all pairs | confidence, right |"
    )
    print("|---|---|---|---|---|---|")
    for path in arguments.data:
        known, left_out = [], 0
        for _, row in read_rows(path):
            try:
                structure = Structure.from_dot_bracket(row["id"], row["sequence"].upper(), row["structure"])
            except SequenceError:  # in PseudoBase there are sequences with gaps
                left_out += 1
                continue
            if crossing(structure.pairs):
                known.append(structure)
        if left_out:
            print(f"{path.name}: {left_out:,} records cannot be read", file=sys.stderr)
        if arguments.most:
            order = np.random.default_rng(0).permutation(len(known))
            known = [known[n] for n in order[: arguments.most]]
        records = [Record(structure.name, "", structure.sequence) for structure in known]
        for weight in (None, *arguments.thermodynamics):
            for method in METHODS:
                right = predicted = 0
                all_pairs, confidence, share = [], [], []
                decoding = Decoding(method, thermodynamics=weight)
                for (structure, _), true in zip(fold_records(records, engine, decoding), known, strict=True):
                    found = crossing(structure.pairs)
                    right, predicted = right + len(found & crossing(true.pairs)), predicted + len(found)
                    scores = pair_scores(true.pairs, structure.pairs)
                    all_pairs.append(scores.f1)
                    if structure.confidence is not None:
                        confidence.append(structure.confidence)
                        share.append(scores.precision)
                total = sum(len(crossing(true.pairs)) for true in known)
                values = right / max(1, predicted), right / total, 2 * right / (predicted + total)
                shown = "default" if weight is None else f"{weight:g}"
                print(
                    f"| {len(known)} of {path.name} | {shown} | {method} | {', '.join(f'{v:.3f}' for v in values)} | "
                    f"{np.mean(all_pairs):.3f} | {np.mean(confidence):.3f}, {np.mean(share):.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
