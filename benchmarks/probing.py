"""What probing data add to a prediction: 1M7 reactivities of EternaBench's ChemMapping set.

    python benchmarks/probing.py chem_mapping_test60.jsonl.gz [--most N]

Of each construct every other measured nucleotide is given to the program, and its predictions are judged by the
others: Spearman's correlation of the probability to be unpaired with the reactivity (mean over constructs with at least
20 such nucleotides). So no value is judged that was given. Second, with all values given, F1 (exact) against the
designed structure, of constructs that fold as designed by Eterna's own score (90 or more); that score is made from the
same reactivities, so it shows only whether data lead to the structure that they support.

The last 20 nucleotides of each construct bind the primer: the zeros there are no measurements, and are left out, as are
those behind the end of shorter constructs. 95 % intervals are of the mean.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.engine.engine import Engine
from rinalmo.inference.fold import Decoding, fold_records
from rinalmo.io.sequences import Record
from rinalmo.metrics import bootstrap_interval, pair_scores, regression_scores
from rinalmo.rna.structure import pairs_of

METHODS = (None, "deigan", "zarringhalam")
WEIGHTS = {"rinalmo": None, "RNAfold's ensemble": 1.0}
DESIGNED = 90.0
LEAST = 20
PRIMER = 20


def profile(row: dict[str, Any]) -> list[float | None]:
    """The reactivity of each nucleotide of a construct."""
    length = len(row["sequence"])
    values: list[float | None] = [None] * length
    for place, value in zip(row["seqpos"], row["reactivity"], strict=True):
        if place < length - PRIMER:
            values[place] = value
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--most", type=int, help="a random part of the constructs")
    parser.add_argument("--model", default="nano-fold")
    arguments = parser.parse_args()
    with gzip.open(arguments.data, "rt") as file:
        rows = [json.loads(line) for line in file]
    if arguments.most:
        rows = [rows[n] for n in np.random.default_rng(0).permutation(len(rows))[: arguments.most]]
    profiles = [profile(row) for row in rows]
    engine = Engine(arguments.model, "fp32", threads=1)
    correlations, scores = defaultdict(list), defaultdict(list)
    records = [Record(str(row["ID"]), "", row["sequence"]) for row in rows]
    for name, weight in WEIGHTS.items():
        for method in METHODS:
            decoding = Decoding(thermodynamics=weight, shape_method=method or "deigan")
            halves = [tuple(value if place % 2 else None for place, value in enumerate(values)) for values in profiles]
            given = [replace(r, reactivities=half if method else None) for r, half in zip(records, halves, strict=True)]
            for (structure, _), values in zip(fold_records(given, engine, decoding), profiles, strict=True):
                judged = [place for place in range(0, len(values), 2) if values[place] is not None]
                if len(judged) >= LEAST:
                    unpaired = 1 - structure.pairing_probabilities[judged]
                    measured = [values[place] for place in judged]
                    correlations[name, method].append(regression_scores(measured, unpaired).spearman)
            designed = [n for n, row in enumerate(rows) if float(row["EternaScore"] or 0) >= DESIGNED]
            whole = [replace(records[n], reactivities=tuple(profiles[n]) if method else None) for n in designed]
            for n, (structure, _) in zip(designed, fold_records(whole, engine, decoding), strict=True):
                scores[name, method].append(pair_scores(pairs_of(rows[n]["structure"]), structure.pairs).f1)
    print(
        f"{len(rows):,} constructs, {len(scores['rinalmo', None]):,} of them with an Eterna score of {DESIGNED:.0f}\n"
    )
    print("| | reactivities | correlation at the other nucleotides | F1 with the designed structure |")
    print("|---|---|---|---|")
    for name, method in correlations:
        cells = []
        for values in (correlations[name, method], scores[name, method]):
            values = [value for value in values if not np.isnan(value)]
            low, high = bootstrap_interval(values)
            cells.append(f"{np.mean(values):.3f} ({low:.3f} – {high:.3f})")
        print(f"| {name} | {method or 'none'} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
