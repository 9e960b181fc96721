"""Accuracy of bf16 and int8 compared with fp32, in masked-nucleotide prediction on real RNA.

    python benchmarks/precision.py heldout.fa.gz --model nano

15 % of the nucleotides of each sequence (up to 512 nt; fixed seed) are masked. Accuracy is over A, C, G, U; the logit
error is the mean absolute difference from fp32 over these four.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch

from rinalmo.engine.engine import Engine
from rinalmo.io.sequences import read_fasta
from rinalmo.weights.checkpoint import load


def masked(path: str, model, most: int) -> tuple[list[np.ndarray], np.ndarray, list[str]]:  # type: ignore[no-untyped-def]
    """Ids with masks, the true ids at the masks, and the sequences."""
    draw, nucleotides = random.Random(0), set(model.alphabet.nucleotide_ids)
    rows, answers, sequences = [], [], []
    for record in read_fasta(path):
        if len(rows) == most or len(record.sequence) > 512:
            continue
        ids = model.alphabet.encode(record.sequence)
        places = [i for i in range(1, len(ids) - 1) if ids[i] in nucleotides and draw.random() < 0.15]
        if places:
            answers.append(ids[places])
            ids[places] = model.alphabet.mask_id
            rows.append(ids)
            sequences.append(record.sequence)
    return rows, np.concatenate(answers), sequences


def logits(model, rows: list[np.ndarray], precision: str) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Logits of A, C, G, U at every mask, in input order."""
    engine, letters = Engine(model, precision), list(model.alphabet.nucleotide_ids)  # type: ignore[arg-type]
    last = [model.config.num_hidden_layers]

    @torch.inference_mode()
    def compute(ids, layout):  # type: ignore[no-untyped-def]
        where = ids == model.alphabet.mask_id
        return layout.select(where).split(model.lm_head(engine.hidden_states(ids, layout, last)[0][where])[:, letters])

    return torch.cat(list(engine.map(compute, rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--most", type=int, default=1_000_000)
    options = parser.parse_args()
    model = load(options.model)
    rows, answers, _ = masked(options.fasta, model, options.most)
    truth = torch.from_numpy(np.searchsorted(model.alphabet.nucleotide_ids, answers))
    print(f"{len(rows):,} sequences, {len(truth):,} masked nucleotides, model {options.model}\n")
    print("| precision | masked accuracy | cross-entropy | mean absolute logit error |")
    print("|---|---|---|---|")
    exact = None
    for precision in ("fp32", "bf16", "int8"):
        found = logits(model, rows, precision)
        exact = found if exact is None else exact
        accuracy = (found.argmax(dim=1) == truth).float().mean()
        loss = torch.nn.functional.cross_entropy(found, truth)
        print(f"| {precision} | {100 * accuracy:.2f} % | {loss:.4f} | {(found - exact).abs().mean():.4f} |")


if __name__ == "__main__":
    main()
