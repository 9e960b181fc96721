"""Embed real sequences on a local Ray whose workers are killed at random, and compare with the local engine.

    python benchmarks/ray_faults.py sequences.fa.gz --kills 5

Takes the first sequences below a length, writes Parquet twice, and fails unless every kill hit a busy worker, the
output has each record once and in order, and every value is within 1e-5 of the local engine's. Chunks are smaller than
usual (`--chunk`), so that there are many opportunities to kill.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

TOLERANCE = 1e-5


def main() -> None:
    chosen = _options()
    from rinalmo.engine import jobs
    from rinalmo.engine.engine import Engine
    from rinalmo.engine.ray import RayEngine
    from rinalmo.inference.embed import embed_file

    jobs.CHUNK_RECORDS = chosen.chunk
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fasta, local, many = folder / "in.fa", folder / "local.parquet", folder / "ray.parquet"
        _select(chosen, fasta)
        start = time.perf_counter()
        embed_file(fasta, local, Engine(chosen.model, chosen.precision, threads=1))
        local_seconds = time.perf_counter() - start
        with RayEngine(chosen.model, chosen.precision, threads=1, workers=chosen.workers) as engine:
            killer = _Killer(chosen.kills, chosen.seed)
            killer.start()
            start = time.perf_counter()
            embed_file(fasta, many, engine)
            ray_seconds = time.perf_counter() - start
            killer.join(timeout=1)
        _report(chosen, local, many, killer.killed, (local_seconds, ray_seconds))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("--number", type=int, default=2000, help="number of sequences")
    parser.add_argument("--below", type=int, default=300, help="only sequences shorter than this many nucleotides")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=64, help="records per chunk")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _select(chosen: argparse.Namespace, path: Path) -> None:
    from rinalmo.io.sequences import read_fasta

    short = (record for record in read_fasta(chosen.fasta) if len(record.sequence) < chosen.below)
    taken = list(islice(short, chosen.number))
    if len(taken) < chosen.number:
        sys.exit(f"{chosen.fasta}: has only {len(taken):,} sequences below {chosen.below} nt")
    path.write_text(
        "".join(f">{record.id} {record.description}\n{record.sequence}\n" for record in taken), encoding="utf-8"
    )


class _Killer(threading.Thread):
    """Kills busy workers at random moments, never the same one twice."""

    def __init__(self, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.kills, self.draw = kills, random.Random(seed)
        self.killed: list[tuple[float, int]] = []

    def run(self) -> None:
        start = time.perf_counter()
        while len(self.killed) < self.kills:
            time.sleep(self.draw.uniform(0.2, 3.0))
            struck = {pid for _, pid in self.killed}
            if computing := [pid for pid in _computing() if pid not in struck]:
                pid = self.draw.choice(computing)
                os.kill(pid, signal.SIGKILL)
                self.killed.append((time.perf_counter() - start, pid))


def _computing() -> Iterator[int]:
    """Busy workers among the descendants of this process; Ray sets the process title to the current task."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::_Worker.compute") and _is_ours(int(process.name)):
                yield int(process.name)
        except OSError:
            continue  # it has ended meanwhile


def _is_ours(pid: int) -> bool:
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        if pid == os.getpid():
            return True
    return False


def _report(
    chosen: argparse.Namespace, local: Path, many: Path, killed: list[tuple[float, int]], seconds: tuple[float, float]
) -> None:
    import numpy as np
    import pyarrow.parquet as pq
    import ray
    import torch

    expected, found = pq.read_table(local), pq.read_table(many)
    ids = found["id"].to_pylist()
    same_rows = found.drop_columns("embedding").equals(expected.drop_columns("embedding"))
    values = [np.stack(table["embedding"].to_numpy()) for table in (expected, found)]
    difference = float(np.abs(values[0] - values[1]).max()) if same_rows else float("nan")
    same_bytes = local.read_bytes() == many.read_bytes()
    print(f"ray {ray.__version__}, torch {torch.__version__}; `python benchmarks/ray_faults.py {_given()}`\n")
    rows = {
        "sequences": f"{chosen.number:,}, {sum(expected['length'].to_pylist()):,} nt",
        "chunks": f"{-(-chosen.number // chosen.chunk)}",
        "workers killed while computing, at second": ", ".join(f"{second:.1f}" for second, _ in killed),
        "rows in the output": f"{len(ids):,}",
        "ids that stand more than once": f"{sum(count > 1 for count in Counter(ids).values())}",
        "same ids, descriptions and lengths, in order": "yes" if same_rows else "NO",
        "largest difference to the local engine": f"{difference:.1e}",
        "same bytes": "yes" if same_bytes else "no",
        "seconds, local engine (one thread)": f"{seconds[0]:.1f}",
        f"seconds, Ray ({chosen.workers} workers of one thread, kills and restarts included)": f"{seconds[1]:.1f}",
    }
    print("| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    if len(killed) != chosen.kills or not same_rows or not difference <= TOLERANCE:
        sys.exit("not as it should be")


def _given() -> str:
    return " ".join(Path(part).name if "/" in part else part for part in sys.argv[1:])


if __name__ == "__main__":
    main()
