"""Peak memory and time of folding long RNAs, and their accuracy as a whole and in windows, beside RNAfold's.

    python benchmarks/long_rnas.py memory nano-fold 4000
    python benchmarks/long_rnas.py memory pairs 4000
    python benchmarks/long_rnas.py memory nano-fold 10000 --window 1000
    python benchmarks/long_rnas.py accuracy archiveII.csv.gz --window 1000
    python benchmarks/long_rnas.py accuracy archiveII.csv.gz --names 16s --at-most 2000 --count 20

`memory` folds one RNA on one thread, decodes it with each decoder, and reports the peak memory of the process and CPU
seconds (which a busy machine changes little). The RNA is random or, with `--fasta`, the concatenated records of a file,
up to the length. `pairs` is a model of the size of `nano` with an untrained head like the paper's, shifted so that one
pair in 10,000 is likely.

`accuracy` folds the longest structures of a table, optionally up to a maximum length, as a whole and in windows, and
reports F1, exact and ±1, beside that of RNAfold's structure of minimum free energy of the whole RNA.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

MEMORY_ROW = "{:<26} {:>10} {:>8} {:>8}"


def peak() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"


def pairs_model() -> Any:
    """`nano` with the paper's structure head."""
    import numpy as np
    import torch

    import rinalmo
    from rinalmo.engine.engine import Engine
    from rinalmo.model.rinalmo import create
    from rinalmo.tasks.base import Example
    from rinalmo.tasks.evaluate import outputs
    from rinalmo.tasks.secondary_structure import SecondaryStructure

    trunk = rinalmo.load("nano")
    task = SecondaryStructure()
    spec = replace(trunk.spec, heads=task.heads(), task=task.config(), threshold=0.5)
    model = create(spec)
    model.encoder.load_state_dict(trunk.encoder.state_dict())
    engine = Engine(model, "fp32", threads=1)
    ((_, logits),) = outputs([Example("", random_rna(500))], engine, task)
    with torch.no_grad():
        model.head("structure_head").prediction.bias -= float(np.quantile(logits.numpy(), 0.9999))
    return model


def random_rna(length: int) -> str:
    return "".join(random.Random(0).choices("ACGU", k=length))


def memory(chosen: argparse.Namespace) -> None:
    from rinalmo.engine.engine import Engine
    from rinalmo.inference.fold import fold_records, folding_task
    from rinalmo.io.sequences import Record, read_fasta
    from rinalmo.rna.decoding import METHODS, decode

    letters = "".join(r.sequence for r in read_fasta(chosen.fasta)) if chosen.fasta else random_rna(chosen.length)
    rna = letters[: chosen.length]
    engine = Engine(pairs_model() if chosen.model == "pairs" else chosen.model, "fp32", threads=1)
    print(f"{chosen.model}, {len(rna):,} nt, windows of {chosen.window:,}")
    print(MEMORY_ROW.format("", "peak", "CPU s", "pairs"))
    print(MEMORY_ROW.format("model loaded", peak(), f"{time.process_time():.1f}", ""), flush=True)
    start = time.process_time()
    ((structure, found),) = fold_records([Record("rna", "", rna)], engine, window=chosen.window)
    cells = peak(), f"{time.process_time() - start:.1f}", f"{len(structure.pairs):,}"
    print(MEMORY_ROW.format("folded", *cells), flush=True)
    for method in METHODS:
        start = time.process_time()
        pairs = decode(found, rna, method, threshold=folding_task(engine.spec).threshold(engine.head_model))
        cells = peak(), f"{time.process_time() - start:.1f}", f"{len(pairs):,}"
        print(MEMORY_ROW.format(f"decoded again, {method}", *cells), flush=True)


def accuracy(chosen: argparse.Namespace) -> None:
    import numpy as np
    import RNA

    from rinalmo.engine.engine import Engine
    from rinalmo.inference.fold import fold
    from rinalmo.metrics import pair_scores
    from rinalmo.rna.formats import read_structures
    from rinalmo.rna.structure import pairs_of

    named = [rna for rna in read_structures(chosen.table) if rna.name.startswith(chosen.names)]
    taken = (rna for rna in named if chosen.at_most is None or len(rna) <= chosen.at_most)
    longest = sorted(taken, key=len, reverse=True)[: chosen.count]
    all_scores = []
    engine = Engine(chosen.model, "fp32", threads=1)
    print(f"{chosen.model}: F1 exact, ±1 (CPU s)")
    for true in longest:
        cells, scores = [], []
        for window in (None, len(true), *chosen.window):
            start = time.process_time()
            if window is None:
                pairs = pairs_of(RNA.fold(true.sequence)[0])
            else:
                pairs = list(fold(true.sequence, engine, window=window)[0].pairs)
            seconds = time.process_time() - start
            scores.append([pair_scores(true.pairs, pairs, tolerance=t).f1 for t in (0, 1)])
            name = "RNAfold" if window is None else f"{window:,}"
            cells.append("{}: {:.3f}, {:.3f} ({:.0f})".format(name, *scores[-1], seconds))
        print(f"{true.name}, {len(true):,} nt   " + "   ".join(cells), flush=True)
        all_scores.append(scores)
    means = np.mean(all_scores, axis=0)
    names = ["RNAfold", "whole", *map("{:,}".format, chosen.window)]
    rows = (f"{name}: {exact:.3f}, {near:.3f}" for name, (exact, near) in zip(names, means, strict=True))
    print(f"mean of {len(longest)}   " + "   ".join(rows))


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("memory")
    one.add_argument("model")
    one.add_argument("length", type=int)
    one.add_argument("--window", type=int, default=4096)
    one.add_argument("--fasta", type=Path)
    one.set_defaults(run=memory)
    two = kinds.add_parser("accuracy")
    two.add_argument("table", type=Path)
    two.add_argument("--model", default="nano-fold")
    two.add_argument("--window", type=int, nargs="+", default=[500, 1000, 2000])
    two.add_argument("--names", default="", metavar="PREFIX", help="only structures whose names start like this")
    two.add_argument("--at-most", type=int, metavar="NT")
    two.add_argument("--count", type=int, default=5)
    two.set_defaults(run=accuracy)
    chosen = parser.parse_args()
    chosen.run(chosen)


if __name__ == "__main__":
    main()
