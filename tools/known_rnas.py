"""Fold well-known RNAs and write docs/known_rnas.md: a table, a chart, and a drawing of each with its accepted pairs.

    python tools/known_rnas.py            # update the page below its marker, and its figures
    python tools/known_rnas.py --check    # exit code 1 if the page's table says something else

The RNAs are in src/rinalmo/assets/examples/known_structures.csv. nano-fold folds them as `rinalmo fold` does by
default, in fp32; ViennaRNA's structure of minimum free energy stands beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import RNA
from run_page import EXAMPLES, matches

from rinalmo import Engine
from rinalmo.inference.fold import fold_records
from rinalmo.io.sequences import Record
from rinalmo.metrics import pair_scores
from rinalmo.plots import draw_bars, draw_structure
from rinalmo.rna.formats import read_rows
from rinalmo.rna.structure import Structure

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FIGURES = DOCS / "known_rnas.md", DOCS / "images" / "known_rnas"
MARKER = "<!-- Below this line tools/known_rnas.py writes. -->\n"
RFAM = "https://rfam.org/family/"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    engine = Engine("nano-fold", "fp32")
    rows = list(read_rows(EXAMPLES / "known_structures.csv"))
    records = [Record(accepted.name, "", accepted.sequence) for accepted, _ in rows]
    scores: dict[str, dict[str, float]] = {name: {} for name in ("nano-fold", "nano-fold ±1", "RNAfold", "RNAfold ±1")}
    sections = []
    for (accepted, row), (folded, _) in zip(rows, fold_records(records, engine), strict=True):
        title = accepted.name.replace("_", " ")
        mfe = Structure.from_dot_bracket(accepted.name, accepted.sequence, RNA.fold(accepted.sequence)[0])
        for name, structure in (("nano-fold", folded), ("RNAfold", mfe)):
            scores[name][title] = pair_scores(accepted.pairs, structure.pairs).f1
            scores[f"{name} ±1"][title] = pair_scores(accepted.pairs, structure.pairs, tolerance=1).f1
        if not is_check:
            FIGURES.mkdir(exist_ok=True)
            file = FIGURES / f"{accepted.name}.svg"
            drawn = Structure(title, folded.sequence, folded.pairs)
            draw_structure(drawn, file, reference=accepted)
            sections.append(_section(title, row, f"images/known_rnas/{file.name}"))
    lengths = {accepted.name.replace("_", " "): len(accepted) for accepted, _ in rows}
    table = _table(scores, lengths)
    head, marker, shown = PAGE.read_text(encoding="utf-8").partition(MARKER)
    if is_check:
        return 0 if matches(shown[: len(table)], table, 0.03) else 1
    exact = {name: scores[name] for name in ("nano-fold", "RNAfold")}
    draw_bars(exact, FIGURES / "f1.svg", label="F1, exact, all pairs")
    chart = "![F1 of nano-fold and RNAfold on fifteen RNAs](images/known_rnas/f1.svg)\n\n"
    PAGE.write_text(head + marker + table + "\n" + chart + "\n".join(sections), encoding="utf-8")
    return 0


def _table(scores: dict[str, dict[str, float]], lengths: dict[str, int]) -> str:
    lines = [f"| F1 | nt | {' | '.join(scores)} |", "|---|---|" + "---|" * len(scores)]
    for title, length in lengths.items():
        lines.append(f"| {title} | {length} | " + " | ".join(f"{of[title]:.2f}" for of in scores.values()) + " |")
    means = (sum(of.values()) / len(of) for of in scores.values())
    lines.append("| **mean** | | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return "\n" + "\n".join(lines) + "\n"


def _section(title: str, row: dict[str, str], picture: str) -> str:
    family, _, accession = row["source"].partition("; ")
    number = family.removeprefix("Rfam ")
    source = f"[Rfam {number}]({RFAM}{number}), {accession}" if accession else family
    return f"## {title}\n\n{row['organism']}; {source}.\n\n![{title}: predicted and accepted pairs]({picture})\n"


if __name__ == "__main__":
    raise SystemExit(main())
