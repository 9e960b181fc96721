"""Spearman's correlation of the scores of `rinalmo score` with deep mutational scans.

    python benchmarks/variant_effect.py SCANS
    python benchmarks/variant_effect.py SCANS --model giga --precision bf16 --most-pll 0

SCANS is a folder of tables (.csv, .csv.gz) with a column `sequence` and one of measurements, `fitness` or `activity`;
the wild type is the most common letter at each position. There are two baselines: the share of G and C in the mutant,
and the number of mutations (fewer is better), which cannot rank mutants with the same number.

The pseudo-log-likelihood takes length × mutants passes, so it is computed for a random sample (`--seed`): up to
`--most-pll` mutants of each number of mutations, whose proportions differ from those of the scan. The other scores are
computed for all mutants, and also for the same sample.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rinalmo.engine.engine import Engine
from rinalmo.inference.fill_mask import NucleotideScorer
from rinalmo.inference.variants import Method, Variant, compare, score_variants
from rinalmo.io.tables import open_table
from rinalmo.metrics import regression_scores

MEASUREMENTS = ("fitness", "activity")
MARGINALS: tuple[Method, ...] = ("masked-marginals", "wild-type-marginals")


@dataclass(frozen=True)
class Scan:
    """Mutants of one RNA and their measurements."""

    name: str
    variants: list[Variant]
    measured: np.ndarray

    def part(self, keep: Sequence[int]) -> Scan:
        return Scan(self.name, [self.variants[n] for n in keep], self.measured[keep])


def read(path: Path) -> Scan:
    table = open_table(path)
    measurement = next(name for name in MEASUREMENTS if name in table.columns)
    table.require("sequence")
    pairs = [(row["sequence"].upper().replace("T", "U"), float(row[measurement])) for _, row in table.rows]
    letters = zip(*(sequence for sequence, _ in pairs), strict=True)
    wild_type = "".join(Counter(letter).most_common(1)[0][0] for letter in letters)
    variants = [compare(wild_type, sequence, file=str(path)) for sequence, _ in pairs]
    return Scan(path.name.split(".")[0], variants, np.array([value for _, value in pairs]))


def scores(scan: Scan, model: NucleotideScorer, methods: Sequence[Method]) -> dict[str, np.ndarray]:
    sequences = [variant.sequence for variant in scan.variants]
    found = {method: np.array(list(score_variants(scan.variants, model, method))) for method in methods}
    return {
        **found,
        "GC": np.array([(s.count("G") + s.count("C")) / len(s) for s in sequences]),
        "fewer mutations": np.array([-len(variant.changes) for variant in scan.variants]),
    }


def table(scan: Scan, found: dict[str, np.ndarray]) -> None:
    """One line per number of mutations, and one for all."""
    mutations = np.array([len(variant.changes) for variant in scan.variants])
    groups = [(str(number), mutations == number) for number in sorted(set(mutations.tolist()) - {0})]
    for name, group in [*groups, ("all", mutations > 0)] if len(groups) > 1 else groups:
        values = [regression_scores(scan.measured[group], score[group]).spearman for score in found.values()]
        cells = ["–" if np.isnan(value) else f"{value:.3f}" for value in values]
        print(f"| {scan.name} | {name} | {group.sum():,} | {' | '.join(cells)} |", flush=True)


def head(methods: Sequence[str]) -> None:
    print(f"\n| scan | mutations | n | {' | '.join(methods)} | GC | fewer mutations |")
    print("|---" * (5 + len(methods)) + "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder of tables")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--precision", default="fp32", choices=("auto", "fp32", "bf16", "int8"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most-pll", type=int, default=300, help="mutants of each number of mutations; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = NucleotideScorer(Engine(options.model, options.precision, threads=options.threads))
    scans = [read(path) for path in sorted(options.scans.iterdir()) if path.name.endswith((".csv", ".csv.gz"))]
    print(f"Spearman's correlation, model {options.model}, {options.precision}, seed {options.seed}")
    head(MARGINALS)
    for scan in scans:
        table(scan, scores(scan, model, MARGINALS))
    head((*MARGINALS, "pll"))
    for scan in scans:
        part = sample(scan, options.most_pll, options.seed)
        table(part, scores(part, model, (*MARGINALS, "pll")))


def sample(scan: Scan, most: int, seed: int) -> Scan:
    """Up to `most` mutants of each number of mutations, in the order of the scan; all of it for 0."""
    groups: dict[int, list[int]] = {}
    for number, variant in enumerate(scan.variants):
        groups.setdefault(len(variant.changes), []).append(number)
    draw = random.Random(seed)
    kept = [draw.sample(group, min(most, len(group))) if most else group for _, group in sorted(groups.items())]
    return scan.part(sorted(number for group in kept for number in group))


if __name__ == "__main__":
    main()
