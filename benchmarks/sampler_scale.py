"""Time the token store and its sampler at the size of the paper's data: 36 million sequences, 17 million clusters.

    python benchmarks/sampler_scale.py --folder /scratch

The store is written once as by `data prepare`, but each sequence has 8 nucleotides instead of some 400, to save disk
space. The cost of opening the store, starting an epoch and drawing does not depend on the length. Everything is
measured in a new process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rinalmo.data.batches import DataRecipe, MaskedBatches, Place
from rinalmo.data.sampling import ClusterSampler, Weights
from rinalmo.data.store import COLUMNS, StoreWriter, TokenStore

BATCH = 1344


def write(path: Path, sequences: int, clusters: int) -> None:
    """Write a store with cluster sizes as in ncRNA: most have one sequence, a few have very many."""
    rng = np.random.default_rng(0)
    sizes = np.ones(clusters, dtype=np.int64)
    more = rng.zipf(1.9, clusters // 3) - 1
    extra = np.minimum(more, 100_000) * (sequences - clusters) / np.minimum(more, 100_000).sum()
    sizes[: len(extra)] += extra.astype(np.int64)
    sizes[0] += sequences - sizes.sum()
    order = rng.permutation(clusters)
    start = time.perf_counter()
    with StoreWriter(path, sources=["a", "b", "c", "d", "e"], families=["", "f"]) as writer:
        number = 0
        for size in sizes[order].tolist():
            writer.start_cluster()
            for _ in range(size):
                writer.add(f"URS{number:010X}", b"ACGUACGU", number % 5, number % 2)
                number += 1
    seconds = time.perf_counter() - start
    print(f"writing: {seconds:.0f} s, {sequences / seconds:,.0f} sequences/s")
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"on disk: {size / sequences:.1f} bytes a sequence, 8 of them letters and {len('URS0123456789')} the name")


def memory() -> tuple[float, float]:
    """Own and mapped memory in MB."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return tuple(int(lines[name].split()[0]) / 1e3 for name in ("RssAnon", "RssFile"))  # type: ignore[return-value]


def timed(what: str, work, repeat: int = 1):  # type: ignore[no-untyped-def]
    """Call the function; print seconds and the memory that it added."""
    before, start = memory(), time.perf_counter()
    for _ in range(repeat):
        result = work()
    seconds = (time.perf_counter() - start) / repeat
    own, mapped = (after - earlier for after, earlier in zip(memory(), before, strict=True))
    print(f"| {what} | {seconds * 1e3:,.2f} | {own:+.0f} | {mapped:+.0f} |")
    return result


def measure(path: Path) -> None:
    """Open the store and draw from it."""
    from rinalmo.rna.alphabet import Alphabet

    print("\n| what | ms | own MB | mapped MB |\n|---|---|---|---|")
    store = timed("open the store", lambda: TokenStore.open(path))
    sampler = timed("start an epoch", lambda: ClusterSampler(store, 0))
    position = iter(range(0, 10**9, BATCH))
    timed(f"first {BATCH:,} items", lambda: sampler.items(0, next(position), BATCH))
    timed(f"{BATCH:,} items, mean of 200", lambda: sampler.items(0, (p := next(position)), p + BATCH), 200)
    timed("next epoch, first items", lambda: sampler.items(1, 0, BATCH))
    weights = Weights(source={"a": 2.0}, cluster_exponent=0.5)
    weighted = timed("start an epoch with weights", lambda: ClusterSampler(store, 0, weights))
    timed(f"{BATCH:,} weighted items, mean of 50", lambda: weighted.items(0, (p := next(position)), p + BATCH), 50)
    batches = MaskedBatches(store, Alphabet(), DataRecipe(sequences_per_batch=BATCH))
    places = iter([Place(0, 0, position) for position in range(0, 10**7, BATCH)])
    timed(f"plan a step of {BATCH:,}, mean of 50", lambda: batches.plan(next(places)), 50)
    timed(f"make a step of {BATCH:,}, mean of 20", lambda: batches.batch(next(places)), 20)
    index = sum((path / f"{name}.bin").stat().st_size for name in COLUMNS)
    print(f"\nindex files: {index / len(store):.1f} bytes a sequence; {store}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=36_000_000)
    parser.add_argument("--clusters", type=int, default=17_000_000)
    parser.add_argument("--folder")
    parser.add_argument("--store", help="measure this store instead of writing one")
    options = parser.parse_args()
    if options.store:
        measure(Path(options.store))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write(Path(folder) / "store", options.sequences, options.clusters)
        subprocess.run([sys.executable, __file__, "--store", str(Path(folder) / "store")], check=True)


if __name__ == "__main__":
    main()
