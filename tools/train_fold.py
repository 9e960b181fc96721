"""Train nano-fold, its head and its combiner (`rinalmo.model.structure_heads`), with one command.

    python tools/train_fold.py DATA WORK --output nano-fold
    python tools/train_fold.py DATA WORK --output nano-fold --held-out archive-fold    # and one without ArchiveII
    python tools/train_fold.py DATA WORK --output combined --model RUN/model           # a combiner for a trained model

DATA holds `bprna-spot` (TR0, VL0, TS0), `rfam-14.2-seed`, `bprna-new`, `archiveII` and `pdb-rna`. WORK keeps
finished steps, so that an interrupted run resumes. Steps:

1. Families. TR0 and VL0 are assigned to families by Rfam accession (where a sequence is a seed), by source (tmRNA, SRP,
   RNase P, tRNA of their databases) and by MMseqs2 hits of any length (E < 1e-3). 35 % of the families, in strata of
   size, are held out, and a tenth of the RNAs of the others.
2. The model: `nano` is trained on TR0 with the recipe finetune-secondary-structure-cpu. So that it learns pairs rather
   than families, each head sees as many RNAs with the same structures and other letters; and 600 short RNAs that
   ViennaRNA folds as designed, since TR0 has few under 50 nt.
3. A second head is trained in the same way on the families that are not held out. Its predictions for the held-out
   families show how a head behaves on new families; those for the tenth, how it behaves on known ones.
4. The model predicts RNAs that it was not trained on: VL0, seeds of Rfam families that TR0 has, and of families that
   neither TR0 nor a test set has (except long non-coding RNAs and CD-box snoRNAs, whose consensus structures have few
   pairs or none), and other designed RNAs. Excluded are RNAs similar to one of a test set or, for known families, of
   TR0 (80 % identity over 80 % of the shorter one), and new families with any hit to TR0 or a test set.
5. A combiner is trained on about half of these families and evaluated on the others. The final one is trained in the
   same way on all of them. Test sets are never folded here.
6. With --held-out, a head is trained on TR0 without any family that ArchiveII has: without every RNA that MMseqs2 finds
   similar to one of ArchiveII, and all others of its family. Its combiner learned from none of these families either.
   `benchmarks/folding.py archiveII.csv.gz --model archive-fold` then measures families that nothing has seen.
"""

from __future__ import annotations

import argparse
import pickle
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from train_nano import join, loop, nested, redrawn, stem

from rinalmo.data.cluster import MMseqs
from rinalmo.engine.engine import Engine
from rinalmo.metrics import pair_scores
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.model.structure_heads import Combiner, Evidence
from rinalmo.rna.decoding import decode
from rinalmo.rna.structure import pairs_of
from rinalmo.rna.thermodynamics import Ensemble, ensemble
from rinalmo.tasks.base import Example
from rinalmo.tasks.evaluate import outputs, task_of
from rinalmo.training.recipes import recipe_for
from rinalmo.weights.checkpoint import convert, load, save

TESTS = {
    "TS0": "bprna-spot/TS0.csv.gz",
    "bpRNA-new": "bprna-new/bpRNA-new.csv.gz",
    "ArchiveII": "archiveII/archiveII.csv.gz",
    "PDB": "pdb-rna/pdb_rna_spot.csv.gz",
    "PDB, sincFold's": "pdb-rna/sincfold_pdb_ablation.csv.gz",
}
FAMILY_DATABASES = ("SPR", "SRP", "tmRNA", "RNP")  # sources of bpRNA with a single family each
HELD_OUT, KNOWN = 0.35, 0.1
LONGEST = 500
DESIGNED = 600
RECIPE = "finetune-secondary-structure-cpu"
LONGEST_OF_ARCHIVE_HEAD = 250  # three quarters of the nucleotides of TR0
SEED = 20261129
SHARES = {  # share of the draws in training
    "VL0, known": 0.29,
    "VL0, new": 0.04,
    "TR0, known": 0.15,
    "TR0, new": 0.30,
    "Rfam, known": 0.06,
    "Rfam, new": 0.16,
    "designed, new": 0.03,
}
JUDGING = {"VL0": 0.5, "Rfam": 0.4, "TR0": 0.15}  # of the families of each set, that the first one is judged by
UNSTRUCTURED = "lncRNA|CD-box"
MOST_OF_A_FAMILY = 40


# Families and folds.


def read_set(data: Path, name: str, file: str) -> pd.DataFrame:
    table = pd.read_csv(data / file)
    sequence = table["sequence"].str.upper().str.replace("T", "U").str.replace("[^ACGU]", "N", regex=True)
    structure = table.get("structure")
    names = table["id"] if "id" in table else pd.Series(range(len(table))).astype(str)
    return pd.DataFrame(
        {"set": name, "id": names, "sequence": sequence, "structure": structure, "family": table.get("rfam_acc")}
    )


def search(queries: pd.DataFrame, targets: pd.DataFrame, work: Path) -> pd.DataFrame:
    """MMseqs2 hits between the rows of two tables, as indices."""
    paths = work / "query.fa", work / "target.fa", work / "hits.tsv", work / "mmseqs"
    for path, table in zip(paths, (queries, targets), strict=False):
        path.write_text("".join(f">{index}\n{sequence}\n" for index, sequence in table["sequence"].items()))
    columns = "query,target,fident,alnlen,qlen,tlen"
    options = ["--search-type", "3", "-k", "9", "-e", "0.001", "--max-seqs", "1500", "--strand", "1", "-v", "1"]
    command = [MMseqs.find().binary, "easy-search", *map(str, paths), *options, "--threads", "1"]
    subprocess.run([*command, "--format-output", columns], check=True)
    hits = pd.read_csv(paths[2], sep="\t", header=None, names=columns.split(","))
    hits["coverage"] = hits["alnlen"] / np.minimum(hits["qlen"], hits["tlen"])
    return hits


def families(table: pd.DataFrame, hits: pd.DataFrame) -> np.ndarray:
    """The family number of each row; linked rows share it."""
    parent = np.arange(len(table))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    first: dict[str, int] = {}
    sources = table["id"].str.extract(r"bpRNA_([A-Za-z]+)_")[0]
    for n, (family, source) in enumerate(zip(table["family"], sources, strict=True)):
        for key in [family] * isinstance(family, str) + [source] * (source in FAMILY_DATABASES):
            parent[root(n)] = root(first.setdefault(key, n))
    for query, target in zip(hits["query"], hits["target"], strict=True):
        parent[root(query)] = root(target)
    return np.array([root(n) for n in range(len(table))])


def split(data: Path, work: Path) -> pd.DataFrame:
    """All RNAs used for the combiner, with `family`, `part` and the head that predicts them."""
    path = work / "rnas.pkl"
    if path.exists():
        return pd.read_pickle(path)
    rng = np.random.default_rng(SEED)
    seeds = pd.read_csv(data / "rfam-14.2-seed/rfam_seed.csv.gz")
    seeds["sequence"] = seeds["sequence"].str.upper().str.replace("T", "U").str.replace("[^ACGU]", "N", regex=True)
    accession = dict(zip(seeds["sequence"], seeds["rfam_acc"], strict=True))
    sets = {"TR0": "bprna-spot/TR0.csv.gz", "VL0": "bprna-spot/VL0.csv.gz", **TESTS}
    every = pd.concat([read_set(data, name, file) for name, file in sets.items()], ignore_index=True)
    every["family"] = every["family"].fillna(every["sequence"].map(accession))
    train = every[every["set"].isin(["TR0", "VL0"])].copy()
    hits = search(train, every, work)
    report_overlap(every, hits)
    known = set(every["family"][every["set"] == "TR0"].dropna())
    tested = set(every["family"][every["set"].isin(list(TESTS))].dropna())

    train["cluster"] = families(train, hits[hits["target"].isin(train.index)])
    in_archive = every["set"].to_numpy()[hits["target"]] == "ArchiveII"
    train["archive"] = train["cluster"].isin(train["cluster"][hits["query"][in_archive].unique()])
    size = train[train["set"] == "TR0"]["cluster"].value_counts()
    order = sorted(rng.permutation(train["cluster"].unique()), key=lambda c: -size.get(c, 0))
    held: set[int] = set()
    for start in range(0, len(order), 20):
        stratum = order[start : start + 20]
        held |= set(rng.choice(stratum, max(1, round(HELD_OUT * len(stratum))), replace=False).tolist())
    train["part"] = np.where(train["cluster"].isin(held), "new", "train")
    train.loc[(train["part"] == "train") & (rng.random(len(train)) < KNOWN), "part"] = "known"
    is_validation = train["set"] == "VL0"
    seen = set(train["cluster"][(train["part"] == "train") & ~is_validation])
    train.loc[(train["part"] == "known") & ~train["cluster"].isin(seen), "part"] = "new"
    # VL0 is predicted by the model itself, which was trained on all families of TR0.
    in_train = train["cluster"].isin(set(train["cluster"][~is_validation]))
    train.loc[is_validation, "part"] = np.where(in_train, "known", "new")[is_validation]
    train["head"] = np.where(is_validation, "model", "second")

    fit = seeds["sequence"].str.len().between(25, LONGEST) & ~seeds["sequence"].isin(set(every["sequence"]))
    seeds = seeds[fit].drop_duplicates("sequence")
    of_known = seeds[seeds["rfam_acc"].isin(known)].sample(frac=1, random_state=0).groupby("rfam_acc").head(6)
    structured = seeds["structure"].str.contains("(", regex=False) & ~seeds["rna_type"].str.contains(UNSTRUCTURED)
    of_new = seeds[structured & ~seeds["rfam_acc"].isin(known | tested)]
    of_new = of_new.sample(frac=1, random_state=0).groupby("rfam_acc").head(10)
    more = pd.concat([of_known.assign(part="known"), of_new.assign(part="new")])
    more = more.rename(columns={"name": "id"}).assign(set="Rfam", head="model", family=more["rfam_acc"])
    more = more.reset_index(drop=True)
    hits = search(more, every, work).assign(set=lambda h: every["set"].to_numpy()[h["target"]])
    near = (hits["fident"] >= 0.8) & (hits["coverage"] >= 0.8)
    known_of = more["part"].to_numpy()[hits["query"]] == "known"
    related = set(more["family"][hits["query"][~known_of & hits["set"].ne("VL0")]])
    archived = set(more["family"][hits["query"][hits["set"].eq("ArchiveII")]]) | set(train["family"][train["archive"]])
    more["archive"] = more["family"].isin(archived)
    drop = more.index.isin(hits["query"][near]) | (more["part"].eq("new") & more["family"].isin(related))
    print(f"Rfam: {drop.sum():,} of {len(more):,} seeds resemble TR0, VL0 or a test set; left out")
    more = more[~drop]
    more["cluster"] = more["family"]
    columns = ["set", "id", "sequence", "structure", "family", "cluster", "part", "head", "archive"]
    rnas = pd.concat([train[columns], more[columns]], ignore_index=True)
    rnas = rnas[rnas["sequence"].str.len() <= LONGEST]
    print(rnas.groupby(["set", "head", "part"]).agg(rnas=("id", "size"), families=("cluster", "nunique")))
    rnas.to_pickle(path)
    return rnas


def report_overlap(every: pd.DataFrame, hits: pd.DataFrame) -> None:
    """Print the share of each test set that is similar to TR0."""
    mine = hits[every["set"].to_numpy()[hits["query"]] == "TR0"]
    train = set(every["sequence"][every["set"] == "TR0"])
    for name in ("VL0", *TESTS):
        rows = every[every["set"] == name]
        of = mine[mine["target"].isin(rows.index)]
        near = of[(of["fident"] >= 0.8) & (of["coverage"] >= 0.8)]["target"].nunique()
        exact = rows["sequence"].isin(train).sum()
        counts = (
            f"{of['target'].nunique():,} with any hit in TR0, {near:,} at 80 % identity and coverage, {exact:,} equal"
        )
        print(f"{name}: {len(rows):,} RNAs, {counts}")


# Heads.


def designed(number: int, seed: int) -> pd.DataFrame:
    """Short RNAs that ViennaRNA folds as designed: hairpins of 3 to 12 pairs, and nested structures up to 100 nt."""
    draw, made = random.Random(seed), dict[str, str]()
    while len(made) < number:
        if draw.random() < 0.5:
            hairpin = stem(draw, draw.randint(3, 12), loop(draw, draw.randint(3, 8)), 0.03)
            flanks = [loop(draw, draw.choice((0, 0, draw.randint(1, 8)))) for _ in range(2)]
            sequence, structure = join(flanks[0], hairpin, flanks[1])
        else:
            sequence, structure = nested(draw, draw.randint(20, 85))
        if len(sequence) <= 100 and ensemble(sequence).mfe_structure == structure:
            made[sequence] = structure
    table = pd.DataFrame(made.items(), columns=["sequence", "structure"])
    names = "designed-" + table.index.astype(str)
    return table.assign(set="designed", id=names, family=None, cluster=names, part="new", head="model", archive=False)


def with_other_letters(rnas: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same structures with all or some of the pairs and unpaired letters drawn anew."""
    draw = random.Random(seed)
    made = [redrawn(draw, rna) for rna in zip(rnas["sequence"], rnas["structure"], strict=True)]
    sequences, structures = zip(*made, strict=True)
    return rnas.assign(id="redrawn-" + rnas["id"], sequence=sequences, structure=structures)


def trained_head(name: str, train: pd.DataFrame, validation: pd.DataFrame, work: Path, passes: float) -> Path:
    """A head trained on these RNAs, redrawn and designed ones, unless it exists."""
    run = work / name
    if not (run / "model").exists():
        columns, files = ["id", "sequence", "structure"], (work / f"{name}.csv", work / f"{name}-validation.csv")
        train = pd.concat([train, with_other_letters(train, 0), designed(DESIGNED, 0)])
        for path, rnas in zip(files, (train, validation.sample(120, random_state=0)), strict=True):
            rnas[columns].to_csv(path, index=False)
        per_step = recipe_for("secondary-structure", files[0], RECIPE).data.sequences_per_batch
        steps = round(passes * len(train) / per_step)
        arguments = ["finetune", "secondary-structure", str(files[0]), "--output", str(run)]
        arguments += ["--validation", str(files[1]), "--threads", "1"]
        arguments += ["--recipe", RECIPE, "--set", f"train.max_steps={steps}"]
        arguments += ["--set", "train.epochs=20", "--set", f"validation.every={steps // 3}"]
        resume = ["--resume"] if run.exists() else []
        subprocess.run([sys.executable, "-m", "rinalmo", *arguments, *resume], check=True)
    return run / "model"


# Inputs of the combiner.


@dataclass(frozen=True)
class Case:
    """The combiner's inputs for an RNA, and its true structure."""

    sequence: str
    true_pairs: tuple[tuple[int, int], ...]
    kind: str  # set and part
    cluster: str
    archive: bool  # whether ArchiveII has its family
    evidence: Evidence

    def targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Which candidates are true, and which nucleotides have no true candidate."""
        true = set(self.true_pairs)
        here = zip(self.evidence.i.tolist(), self.evidence.j.tolist(), strict=True)
        right = torch.tensor([pair in true for pair in here], dtype=torch.bool)
        free = torch.ones(len(self.sequence), dtype=torch.bool)
        free[self.evidence.i[right]] = free[self.evidence.j[right]] = False
        return right, free


class Ensembles:
    """Partition functions, cached in a file."""

    def __init__(self, path: Path) -> None:
        self.file = sqlite3.connect(path)
        self.file.execute("CREATE TABLE IF NOT EXISTS ensembles (sequence TEXT PRIMARY KEY, value BLOB)")

    def __getitem__(self, sequence: str) -> Ensemble:
        row = self.file.execute("SELECT value FROM ensembles WHERE sequence = ?", (sequence,)).fetchone()
        if row:
            return Ensemble(*pickle.loads(row[0]))  # written below, by this script
        found = ensemble(sequence)
        values = (found.length, found.i, found.j, found.values, found.mfe_structure, found.mfe, found.energy)
        with self.file:
            self.file.execute("INSERT OR REPLACE INTO ensembles VALUES (?, ?)", (sequence, pickle.dumps(values)))
        return found


def cases(rnas: pd.DataFrame, model: str | Path, ensembles: Ensembles) -> Iterator[Case]:
    """Inputs for RNAs from one head and thermodynamics."""
    engine = Engine(model, "fp32", threads=1)
    task = task_of(engine.spec)
    examples = [Example(str(row.Index), row.sequence, row) for row in rnas.itertuples()]
    examples.sort(key=lambda example: len(example.sequence))
    for example, output in outputs(examples, engine, task):
        row = example.target
        known = evidence_of(output, row.sequence, ensembles[row.sequence])
        kind, cluster = f"{row.set}, {row.part}", f"{row.head} {row.cluster}"
        yield Case(row.sequence, tuple(pairs_of(row.structure)), kind, cluster, row.archive, known)


def evidence_of(output: torch.Tensor, sequence: str, thermodynamics: Ensemble) -> Evidence:
    from rinalmo.tasks.secondary_structure import evidence_from

    return evidence_from(output, sequence, thermodynamics)


def kept_cases(name: str, rnas: pd.DataFrame, model: str | Path, work: Path) -> list[Case]:
    path = work / f"evidence-{name}.pkl"
    if not path.exists():
        start, found = time.time(), []
        for case in cases(rnas, model, Ensembles(work / "ensembles.sqlite")):
            found.append(case)
            if len(found) % 500 == 0:
                print(f"{name}: {len(found):,} of {len(rnas):,} RNAs, {time.time() - start:.0f} s", flush=True)
        path.write_bytes(pickle.dumps(found))
    return pickle.loads(path.read_bytes())


# Training.


def fit(train: Sequence[Case], chosen: argparse.Namespace) -> Combiner:
    """A combiner trained on these cases."""
    torch.manual_seed(chosen.seed)
    rng = np.random.default_rng(chosen.seed)
    combiner = Combiner(chosen.channels, chosen.blocks, chosen.dropout)
    whole = Evidence.concatenate([case.evidence for case in train])
    for name, features in (("pair", whole.pairs), ("nucleotide", whole.nucleotides)):
        getattr(combiner, f"{name}_mean").copy_(features.mean(0))
        getattr(combiner, f"{name}_std").copy_(features.std(0).clamp(min=1e-3))
    del whole
    targets = [case.targets() for case in train]
    weights = sampling_weights(train)
    steps = chosen.epochs * len(train) // chosen.batch
    optimizer = torch.optim.AdamW(combiner.parameters(), lr=chosen.lr, weight_decay=chosen.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, chosen.lr, total_steps=steps, pct_start=0.1)
    total, every = 0.0, max(1, steps // 8)
    for step in range(1, steps + 1):
        places = rng.choice(len(train), chosen.batch, p=weights)
        loss = batch_loss(combiner, [train[n].evidence for n in places], [targets[n] for n in places])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(combiner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % every == 0:
            print(f"step {step:,}/{steps:,}  loss {total / every:.4f}", flush=True)
            total = 0.0
    return combiner.eval()


def sampling_weights(train: Sequence[Case]) -> np.ndarray:
    """The sampling weight of each case: `SHARES`, and 1 / √n for each of n cases of a family."""
    sizes = Counter((case.kind, case.cluster) for case in train)
    weights = np.array([sizes[case.kind, case.cluster] ** -0.5 for case in train])
    kinds = np.array([case.kind for case in train])
    for kind in set(kinds):
        weights[kinds == kind] *= SHARES[kind] / weights[kinds == kind].sum()
    return weights / weights.sum()


def parted(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Training and evaluation cases, from different families."""
    judging: set[str] = set()
    for name, share in JUDGING.items():
        clusters = sorted({c.cluster for c in cases if c.kind.startswith(name) and c.kind != "TR0, known"})
        judging |= set(random.Random(0).sample(clusters, round(share * len(clusters))))
    rest = [case for case in cases if case.cluster not in judging or case.kind == "TR0, known"]
    return rest, [case for case in cases if case.cluster in judging]


def batch_loss(
    combiner: Combiner, evidence: Sequence[Evidence], targets: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """The mean over RNAs of the mean over nucleotides of minus the log-probability of the true partner, or of none."""
    first, second, unpaired = combiner(Evidence.concatenate(evidence))
    lengths = [len(free) for _, free in targets]
    per_pair = torch.cat([torch.full((len(right),), 1 / len(free)) for right, free in targets])
    per_nucleotide = torch.cat([torch.full((length,), 1 / length) for length in lengths])
    right, free = (torch.cat(each) for each in zip(*targets, strict=True))
    total = ((first + second) * per_pair)[right].sum() + (unpaired * per_nucleotide)[free].sum()
    return -total / len(targets)


@torch.inference_mode()
def f1(combiner: Combiner, of: Sequence[Case]) -> float:
    """Mean F1 (±1)."""
    scores = []
    for case in of:
        pairs = decode(combiner.matrix(case.evidence).numpy(), case.sequence, "nested", threshold=None)
        scores.append(pair_scores(case.true_pairs, pairs, tolerance=1).f1)
    return float(np.mean(scores))


@torch.inference_mode()
def calibration(combiner: Combiner, of: Sequence[Case]) -> list[tuple[int, float, float]]:
    """For candidates in each fifth of probability: number, mean probability and share of true pairs."""
    probabilities, right = [], []
    for case in of:
        first, second, _ = combiner(case.evidence)
        probabilities.append(((first + second) / 2).exp().numpy())
        right.append(case.targets()[0].numpy())
    p, y = np.concatenate(probabilities), np.concatenate(right)
    fifths = [(p >= low) & (p < low + 0.2) for low in np.arange(0, 1, 0.2)]
    return [(int(part.sum()), float(p[part].mean()), float(y[part].mean())) for part in fifths if part.any()]


def with_combiner(model: RiNALMo, combiner: Combiner) -> RiNALMo:
    """The same model with this combiner as one of its heads."""
    options = {"channels": combiner.pair_norm.weight.shape[0], "num_blocks": len(combiner.blocks)}
    heads = {name: value for name, value in model.spec.heads.items() if name != "combiner"}
    spec = replace(model.spec, heads={**heads, "combiner": options})
    combined = RiNALMo(spec)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("combiner.")}
    combined.load_state_dict(state | {f"combiner.{name}": value for name, value in combiner.state_dict().items()})
    return combined.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", help="a model trained on TR0 that gets a combiner [default: one is trained]")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model with the combiner")
    parser.add_argument("--held-out", type=Path, help="folder for a model that knows no family of ArchiveII")
    parser.add_argument("--passes", type=float, default=1.6, help="of a head over its RNAs and the redrawn ones")
    parser.add_argument("--held-out-passes", type=float, default=0.8, help="of the head without ArchiveII's families")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=1e-2)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rnas = split(chosen.data, chosen.work)
    first, validation = rnas[rnas["set"] == "TR0"], rnas[rnas["set"] == "VL0"]
    model = chosen.model or trained_head("model", first, validation, chosen.work, chosen.passes)
    unseen = pd.concat([rnas[rnas["head"] == "model"], designed(DESIGNED, 1)], ignore_index=True)
    by_model = kept_cases("model", unseen, model, chosen.work)
    head = trained_head("second", first[first["part"] == "train"], validation, chosen.work, chosen.passes)
    held = rnas[(rnas["head"] == "second") & (rnas["part"] != "train")]
    of_family = held[held["part"] == "new"].sample(frac=1, random_state=3).groupby("cluster").cumcount()
    held = held.drop(of_family.index[of_family >= MOST_OF_A_FAMILY])
    by_second = kept_cases("second", held, head, chosen.work)
    every = [case for case in by_model + by_second if case.true_pairs]
    print(Counter(case.kind for case in every))
    train, judging = parted(every)
    known = [case for case in judging if case.kind == "VL0, known"]
    new = capped([case for case in judging if case.kind.endswith("new")], 3)
    combiner = fit(train, chosen)
    print(f"F1 {f1(combiner, known):.4f} on known families, {f1(combiner, new):.4f} on new ones")
    for name, cases in (("known", known), ("new", new)):
        for count, mean, right in calibration(combiner, cases):
            print(f"{name}: {count:,} candidates of mean probability {mean:.3f}, {right:.3f} of them right")
    combiner = fit(every, chosen)
    save(with_combiner(load(model), combiner), chosen.work / "combined", overwrite=True)
    convert(chosen.work / "combined", chosen.output, half=True, overwrite=True)
    if chosen.held_out:
        short = first["sequence"].str.len() <= LONGEST_OF_ARCHIVE_HEAD
        first, validation = first[short & ~first["archive"]], validation[~validation["archive"]]
        head = trained_head("archive", first, validation, chosen.work, chosen.held_out_passes)
        combiner = fit([case for case in every if not case.archive], chosen)
        save(with_combiner(load(head), combiner), chosen.held_out, overwrite=True)


def capped(cases: Sequence[Case], most: int) -> list[Case]:
    """At most `most` of each family."""
    seen: Counter[str] = Counter()
    kept = []
    for case in cases:
        seen[case.cluster] += 1
        if seen[case.cluster] <= most:
            kept.append(case)
    return kept


if __name__ == "__main__":
    main()
