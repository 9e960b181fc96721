"""Speed and memory of each step of `rinalmo data prepare`, on sequences simulated from real families.

    python benchmarks/prepare_speed.py families.fa.gz --count 1000000 --no-cluster
    python benchmarks/prepare_speed.py families.fa.gz --count 250000 --threads 1

Each simulated sequence is a real one with up to 15 % of its letters replaced; one in ten is an exact copy of another.
They are split into three sources. Memory is anonymous memory of this process, without mapped pages, which the system
can reclaim; for MMseqs2 it is that of its largest process.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rinalmo.data.prepare import prepare
from rinalmo.data.sources import Report, load_recipe
from rinalmo.io.sequences import read_fasta

LETTERS = np.frombuffer(b"ACGU", dtype=np.uint8)
SOURCES = ("rnacentral", "rfam", "ensembl")


def simulate(families: str, count: int, folder: Path) -> int:
    """Write the sources; returns the number of nucleotides."""
    rng = np.random.default_rng(0)
    parents = [
        np.frombuffer(r.sequence.encode(), dtype=np.uint8) for r in read_fasta(families) if len(r.sequence) < 8192
    ]
    files = [(folder / f"{name}.fa").open("wb") for name in SOURCES]
    recent: list[bytes] = []
    total = 0
    for number in range(count):
        if recent and number % 10 == 0:
            letters = recent[int(rng.integers(len(recent)))]
        else:
            parent = parents[int(rng.integers(len(parents)))]
            changed = rng.random(len(parent), dtype=np.float32) < rng.uniform(0, 0.15)
            letters = np.where(changed, LETTERS[rng.integers(0, 4, len(parent), dtype=np.int8)], parent).tobytes()
            recent = [*recent[-999:], letters] if number % 100 == 0 else recent
        files[number % len(files)].write(b">sequence%d simulated\n%s\n" % (number, letters))
        total += len(letters)
    for file in files:
        file.close()
    return total


class Meter:
    """Seconds and peak memory of each step."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, float]] = []
        self._peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, own_memory())
            time.sleep(0.01)

    @contextmanager
    def __call__(self, what: str) -> Iterator[Report]:
        self._peak, start = own_memory(), time.perf_counter()
        yield lambda count: None
        self.rows.append((what, time.perf_counter() - start, self._peak / 1e6))


def own_memory() -> int:
    """Bytes of memory that belong to this process alone."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", help="FASTA of real families")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--no-cluster", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="working folder (default: the system's temporary folder)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        nucleotides = simulate(options.families, options.count, folder)
        print(f"{options.count:,} sequences, {nucleotides:,} nucleotides; before: {own_memory() / 1e6:.0f} MB")
        meter, start = Meter(), time.perf_counter()
        store = prepare(
            folder / "store",
            [(name, folder / f"{name}.fa") for name in SOURCES],
            recipe=load_recipe(None, ["clustering.method=none"] if options.no_cluster else []),
            threads=options.threads,
            progress=meter,
        )
        total = time.perf_counter() - start
        print("\n| step | seconds | sequences/s | peak MB |\n|---|---|---|---|")
        for what, seconds, peak in meter.rows:
            count = options.count / (len(SOURCES) if what.startswith("reading") else 1)
            print(f"| {what} | {seconds:.1f} | {count / seconds:,.0f} | {peak:.0f} |")
        print(f"| all | {total:.1f} | {options.count / total:,.0f} | {max(peak for *_, peak in meter.rows):.0f} |")
        size = sum(path.stat().st_size for path in store.path.iterdir() if path.is_file())
        letters = store.manifest["nucleotides"]
        print(f"\n{store}: {size / len(store):.1f} bytes a sequence, {letters / len(store):.1f} of them letters")
        if not options.no_cluster:
            print(f"MMseqs2: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3:.0f} MB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
