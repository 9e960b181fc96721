"""Masked-nucleotide prediction on the validation split of a token store, source by source.

    python benchmarks/by_source.py STORE --model nano --model other_folder

15 % of the nucleotides of up to `--per-source` sequences of each source are masked (whole sequences up to `--length`
nt, otherwise crops; fixed seed). Cross-entropy in nats and accuracy are over A, C, G, U, in bf16.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from rinalmo.data.batches import DataRecipe, FixedMasked
from rinalmo.data.sampling import Masking
from rinalmo.data.store import TokenStore
from rinalmo.model.rinalmo import RiNALMo, create
from rinalmo.weights.checkpoint import load


@torch.no_grad()
def sums(model: RiNALMo, store: TokenStore, options: argparse.Namespace) -> np.ndarray:
    """Cross-entropy, correct predictions and masked nucleotides of each source, `(sources, 3)`."""
    data = DataRecipe(max_length=options.length, masking=Masking(selected=0.15))
    letters = torch.tensor(model.alphabet.nucleotide_ids)
    found = np.zeros((len(store.sources), 3))
    for batch in FixedMasked(store, model.alphabet, data, options.per_source).batches():
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.encoder(batch.ids, batch.layout).last_hidden_state
            logits = model.lm_head(hidden[batch.positions])[:, letters].float()
        truth = (batch.targets[:, None] == letters).int().argmax(dim=1)
        losses = F.cross_entropy(logits, truth, reduction="none")
        right = (logits.argmax(dim=1) == truth).float()
        values = torch.stack([losses, right, torch.ones_like(right)], dim=1)
        np.add.at(found, batch.target_sources.numpy(), values.double().numpy())
    return found


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
    tables = {name: sums(model, store, options) for name, model in models.items()}
    print("| source | nucleotides | " + " | ".join(tables) + " |")
    print("|---" * (2 + len(tables)) + "|")
    for source, name in [(slice(n, n + 1), name) for n, name in enumerate(store.sources)] + [(slice(None), "all")]:
        rows = [table[source].sum(axis=0) for table in tables.values()]
        if rows[0][2]:
            values = " | ".join(f"{loss / count:.3f} ({100 * right / count:.1f} %)" for loss, right, count in rows)
            print(f"| {name} | {rows[0][2]:,.0f} | {values} |")


if __name__ == "__main__":
    main()
