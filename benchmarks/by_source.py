"""Masked-nucleotide prediction on the validation split of a token store, source by source.

    python benchmarks/by_source.py STORE --model nano --model other_folder

15 % of the nucleotides of up to `--per-source` sequences of each source are masked (whole sequences up to `--length`
nt, otherwise crops; fixed seed). Cross-entropy in nats and accuracy are over A, C, G, U, in bf16.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from rinalmo.data.batches import DataRecipe, FixedMasked
from rinalmo.data.sampling import Masking
from rinalmo.data.store import TokenStore
from rinalmo.model.rinalmo import create
from rinalmo.training.distributed import Ranks
from rinalmo.training.pretrain import MaskedLM, sums_by_source
from rinalmo.weights.checkpoint import load


class OverNucleotides(MaskedLM):
    """Predictions of A, C, G and U alone."""

    def forward(self, *inputs: Any) -> Tensor:
        logits = super().forward(*inputs).float()
        nucleotides = torch.tensor(self.model.alphabet.nucleotide_ids)
        return torch.full_like(logits, -torch.inf).index_copy(1, nucleotides, logits[:, nucleotides])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--untrained", action="store_true", help="the first model with random weights, too")
    parser.add_argument("--per-source", type=int, default=200)
    parser.add_argument("--length", type=int, default=254)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    store = TokenStore.open(options.store)
    models = {name: load(name).eval() for name in options.model}
    if options.untrained:
        models["untrained"] = create(models[options.model[0]].spec, 0).eval()
    data = DataRecipe(max_length=options.length, masking=Masking(selected=0.15))
    tables = {}
    for name, model in models.items():
        held_out = FixedMasked(store, model.alphabet, data, options.per_source)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            tables[name] = sums_by_source(OverNucleotides(model), held_out, Ranks())
    print("| source | nucleotides | " + " | ".join(tables) + " |")
    print("|---" * (2 + len(tables)) + "|")
    for source, name in [(slice(n, n + 1), name) for n, name in enumerate(store.sources)] + [(slice(None), "all")]:
        rows = [table[source].sum(dim=0).tolist() for table in tables.values()]
        if rows[0][2]:
            values = " | ".join(f"{loss / count:.3f} ({100 * right / count:.1f} %)" for loss, right, count in rows)
            print(f"| {name} | {rows[0][2]:,.0f} | {values} |")


if __name__ == "__main__":
    main()
