"""What a language model knows of RNA, beside the same network with untrained weights.

    python benchmarks/knowledge.py heldout.fa.gz rfam_seed.csv.gz --model nano

The FASTA file holds RNAs of families that were not in training, with the family in the description. The table has the
columns `sequence` and `structure`, the consensus structure of the family laid on each sequence.

pairing     Up to `--positions` paired nucleotides of each RNA are predicted three times: masked alone, with the partner
            masked as well, and with the nucleotide masked that lies as far away on the other side (or another paired
            one of the RNA, if there is none). A model that uses base pairs loses most without the partner.
contacts    Structures from attention alone (`rinalmo fold --zero-shot`) of up to two RNAs of each family with up to 200
            nt and at least five pairs: mean F1 (±1) against the consensus, beside RNAfold.
neighbors   Mean-pooled embeddings of up to 20 RNAs of each family: how often the nearest other RNA (cosine) is of the
            same family; beside it the frequencies of 4-mers.
tRNA        Pseudo-log-likelihoods of yeast tRNA-Phe: a compensatory double mutant of each pair of the acceptor stem
            against the better of its two single mutants.

Cross-entropy is in nats over A, C, G, U, with the 95 % bootstrap interval of the difference.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import product

import numpy as np
import RNA

from rinalmo.engine.engine import Engine
from rinalmo.inference.embed import embed_records
from rinalmo.inference.fill_mask import NucleotideScorer
from rinalmo.inference.fold import Decoding, fold
from rinalmo.io.sequences import Record, read_fasta
from rinalmo.io.tables import read_rows
from rinalmo.metrics import bootstrap_interval, pair_scores
from rinalmo.model.rinalmo import create
from rinalmo.rna.structure import Pairs, pairs_of
from rinalmo.weights.checkpoint import load

MAX_LENGTH = 512
TRNA_PHE = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"
ACCEPTOR = [(n, 71 - n) for n in range(7)]
COMPLEMENT = dict(zip("ACGU", "UGCA", strict=True))


def pairing(records: list[Record], structures: dict[str, str], model: NucleotideScorer, count: int, seed: int) -> str:
    """A table row: cross-entropy and accuracy of paired nucleotides with three kinds of masks."""
    draw = random.Random(seed)
    queries: list[tuple[str, int, tuple[int, int, int]]] = []
    for record in records:
        if record.sequence not in structures:
            continue
        partner = {a: b for i, j in pairs_of(structures[record.sequence]) for a, b in ((i, j), (j, i))}
        known = sorted(i for i in partner if record.sequence[i] in "ACGU" and record.sequence[partner[i]] in "ACGU")
        for i in draw.sample(known, min(count, len(known))):
            mirror = 2 * i - partner[i]
            others = [k for k in known if k not in (i, partner[i])]
            if not 0 <= mirror < len(record.sequence):
                mirror = draw.choice(others) if others else i
            queries.append((record.sequence, i, (i, partner[i], mirror)))
    cells, losses = [], []
    for kind in range(3):
        # Masks are predicted in order of their positions.
        masks = [sorted({i, others[kind]}) for _, i, others in queries]
        items = ((sequence, places) for (sequence, _, _), places in zip(queries, masks, strict=True))
        rows = zip(model.masked(items), queries, masks, strict=True)
        chosen = np.array([values[places.index(i)] for values, (_, i, _), places in rows])
        truth = np.array(["ACGU".index(sequence[i]) for sequence, i, _ in queries])
        losses.append(-chosen[np.arange(len(truth)), truth])
        cells.append(f"{losses[-1].mean():.4f} ({100 * (chosen.argmax(axis=1) == truth).mean():.1f} %)")
    difference = losses[1] - losses[2]
    sample = np.random.default_rng(seed).choice(difference, (1000, len(difference))).mean(axis=1)
    low, high = np.quantile(sample, (0.025, 0.975))
    return f"{len(queries):,} | {' | '.join(cells)} | {difference.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def contacts(records: list[Record], structures: dict[str, str], predicted: Iterable[Pairs]) -> str:
    """A table row: the mean F1 (±1) of predicted pairs, and its 95 % bootstrap interval."""
    known = [pairs_of(structures[record.sequence]) for record in records]
    f1 = [pair_scores(true, pairs, tolerance=1).f1 for true, pairs in zip(known, predicted, strict=True)]
    low, high = bootstrap_interval(f1)
    return f"{np.mean(f1):.3f} ({low:.3f} to {high:.3f})"


def purity(vectors: np.ndarray, families: list[str]) -> float:
    """The share of vectors whose nearest other vector, by cosine, is of the same family."""
    unit = vectors - vectors.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True) + 1e-9
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    names = np.array(families)
    return float((names[similar.argmax(axis=1)] == names).mean())


def kmer_frequencies(sequence: str, size: int = 4) -> np.ndarray:
    """Frequencies of all words of `size` nucleotides."""
    counts = Counter(sequence[n : n + size] for n in range(len(sequence) - size + 1))
    return np.array([counts["".join(word)] for word in product("ACGU", repeat=size)]) / max(1, len(sequence) - size + 1)


def compensation(model: NucleotideScorer) -> tuple[int, int]:
    """How many double mutants that keep a pair of the acceptor stem score above both single ones, and of how many."""
    mutants: list[tuple[str, str, str]] = []
    for i, j in ACCEPTOR:
        for letter in "ACGU":
            if letter != TRNA_PHE[i] and COMPLEMENT[letter] != TRNA_PHE[j]:
                first = TRNA_PHE[:i] + letter + TRNA_PHE[i + 1 :]
                second = TRNA_PHE[:j] + COMPLEMENT[letter] + TRNA_PHE[j + 1 :]
                mutants.append((first, second, first[:j] + COMPLEMENT[letter] + first[j + 1 :]))
    scores = np.array(list(model.pseudo_log_likelihoods([text for mutant in mutants for text in mutant]))).reshape(
        -1, 3
    )
    return int((scores[:, 2] > scores[:, :2].max(axis=1)).sum()), len(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta")
    parser.add_argument("structures")
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--positions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    records = [record for record in read_fasta(options.fasta) if len(record.sequence) <= MAX_LENGTH]
    structures = {str(row["sequence"]): str(row["structure"]) for _, row in read_rows(options.structures)}
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.description].append(record)
    few = [record for group in groups.values() if len(group) > 1 for record in group[:20]]
    families = [record.description for record in few]
    networks = {name: load(name) for name in options.model}
    networks |= {f"{name}, untrained": create(network.spec, 0) for name, network in list(networks.items())}
    engines = {name: Engine(network, "fp32", threads=options.threads) for name, network in networks.items()}
    print("| model | positions | masked alone | with the partner masked | with another masked | partner − another |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, engine in engines.items():
        row = pairing(records, structures, NucleotideScorer(engine), options.positions, options.seed)
        print(f"| {name} | {row} |", flush=True)
    folded: list[Record] = []
    for group in groups.values():
        known = [record for record in group if record.sequence in structures and len(record.sequence) <= 200]
        folded += [record for record in known if len(pairs_of(structures[record.sequence])) >= 5][:2]
    print(f"\nContacts: {len(folded):,} RNAs.\n\n| | F1 (±1) |\n|---|---|", flush=True)
    for name, engine in engines.items():
        predicted = fold(folded, engine, Decoding(zero_shot=True))
        print(f"| {name} | {contacts(folded, structures, (each.pairs for each in predicted))} |", flush=True)
    thermodynamic = (pairs_of(RNA.fold(record.sequence)[0]) for record in folded)
    print(f"| RNAfold, minimum free energy | {contacts(folded, structures, thermodynamic)} |", flush=True)
    print(f"\nNearest neighbors: {len(few):,} RNAs of {len(set(families))} families.\n")
    print("| | same family |\n|---|---|", flush=True)
    for name, engine in engines.items():
        vectors = np.stack([vector for _, vector in embed_records(few, engine)])
        print(f"| {name} | {purity(vectors, families):.3f} |", flush=True)
    frequencies = np.stack([kmer_frequencies(record.sequence) for record in few])
    print(f"| frequencies of 4-mers | {purity(frequencies, families):.3f} |")
    print("\n| compensatory mutants of tRNA-Phe's acceptor stem above both single ones | |\n|---|---|", flush=True)
    for name, engine in engines.items():
        better, total = compensation(NucleotideScorer(engine))
        print(f"| {name} | {better} of {total} |", flush=True)


if __name__ == "__main__":
    main()
