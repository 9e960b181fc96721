"""Load test of `rinalmo web`: are all requests answered, and does the server's memory stay constant?

    python benchmarks/web_load.py                            # 20 users for 2 minutes
    python benchmarks/web_load.py --users 50 --seconds 600

Starts a server on the loopback interface. Each user is a `gradio_client` that sends one request after another: half of
them valid (compared with the first response to the same request), half invalid (the error message is checked). The
server's resident memory is read every half second. Exits with 1 if a response was wrong, or if the peak memory of the
last minute exceeds that of the first by more than 1 %.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from gradio_client import Client

TRNA = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"
FASTA = f">tRNA\n{TRNA}\n>miRNA\nUAGCUUAUCAGACUGAUGUUGA\n"
GOOD = {
    "fill mask": ("/fill_mask", "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU"),
    "fold": ("/fold", TRNA),
    "embed": ("/embed", FASTA),
    "variants": ("/variants", TRNA[:40]),
}
BAD = {
    "protein": ("MKTEFLPQ", "looks like a protein"),
    "empty": ("", "there is no sequence yet; paste an RNA"),
    "1 MB paste": ("A" * 2**20, "has 1,048,576 characters, but the web app is limited to 500,000"),
    "HTML": ("<script>alert(1)</script>", "'<' is not a nucleotide code"),
    "NUL bytes": ("AC\0\0GU", "'\\x00' is not a nucleotide code"),
    "100 kb sequence": ("ACGU" * 25_000, "has 100,000 nt, but the limit is"),
}
ENDPOINTS = [endpoint for endpoint, _ in GOOD.values()]
MINUTE, TOLERANCE = 60.0, 0.01


class Log:
    """Seconds per kind of request, and errors."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.wrong: list[str] = []
        self._answers: dict[str, Any] = {}
        self._lock = threading.Lock()

    def good(self, kind: str, answer: Any, seconds: float) -> None:
        with self._lock:
            self.seconds[kind].append(seconds)
            if not same(self._answers.setdefault(kind, answer), answer):
                self.wrong.append(f"{kind}: another answer than before: {str(answer)[:200]}")

    def bad(self, kind: str, message: str, expected: str, seconds: float) -> None:
        with self._lock:
            self.seconds[kind].append(seconds)
            if expected not in message:
                self.wrong.append(f"{kind}: {message[:200]!r} instead of {expected!r}")


def same(a: Any, b: Any) -> bool:
    """Equal except for the last digits of numbers."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and isinstance(b, float) and abs(a - b) < 1e-4)


def user(address: str, seed: int, end: float, log: Log) -> None:
    draw = random.Random(seed)
    client = Client(address, verbose=False)
    while time.monotonic() < end:
        kind = draw.choice([*GOOD, *GOOD, *GOOD, *BAD, *BAD])
        started = time.monotonic()
        try:
            if kind in GOOD:
                endpoint, text = GOOD[kind]
                answer = client.predict(text, api_name=endpoint)
                log.good(kind, answer, time.monotonic() - started)
            else:
                answer = client.predict(BAD[kind][0], api_name=draw.choice(ENDPOINTS))
                log.bad(kind, f"an answer: {answer}", BAD[kind][1], time.monotonic() - started)
        except Exception as error:
            expected = BAD[kind][1] if kind in BAD else "an answer"
            log.bad(kind, str(error), expected, time.monotonic() - started)
    client.close()


def resident(pid: int) -> float:
    """Resident memory of a process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2 * MINUTE)
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    given = parser.parse_args()
    command = [sys.executable, "-m", "rinalmo", "web", "--port", "0", "--threads", str(given.threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[2]
        log, samples = Log(), []
        start = time.monotonic()
        users = [
            threading.Thread(target=user, args=(address, seed, start + given.seconds, log))
            for seed in range(given.users)
        ]
        print(f"{resident(server.pid):.0f} MB before the first user")
        for each in users:
            each.start()
        while any(each.is_alive() for each in users):
            samples.append((time.monotonic() - start, resident(server.pid)))
            time.sleep(0.5)
        took = time.monotonic() - start
        server.terminate()
    report(log, np.array(samples), took, given.users, server.returncode)


def report(log: Log, samples: np.ndarray, took: float, users: int, code: int) -> None:
    count = sum(map(len, log.seconds.values()))
    print(f"{users} users, {took:.0f} s: {count:,} questions answered, {count / took:.1f} a second\n")
    print("| question | answers | median s | 95 % s | longest s |\n|---|---|---|---|---|")
    for kind in [*GOOD, *BAD]:
        seconds = log.seconds[kind] or [np.nan]
        middle, high = np.quantile(seconds, [0.5, 0.95])
        print(f"| {kind} | {len(log.seconds[kind])} | {middle:.2f} | {high:.2f} | {max(seconds):.2f} |")
    print("\n| second | MB (highest of 10 s) |\n|---|---|")
    for begin in range(0, int(took) + 1, 10):
        part = samples[(samples[:, 0] >= begin) & (samples[:, 0] < begin + 10), 1]
        if len(part):
            print(f"| {begin}–{begin + 10} | {part.max():.0f} |")
    first = samples[samples[:, 0] < MINUTE, 1].max()
    last = samples[samples[:, 0] >= took - MINUTE, 1].max()
    print(f"\nhighest of the first minute {first:.0f} MB, of the last {last:.0f} MB ({last / first - 1:+.1%})")
    print(f"the server ended with code {code}; wrong answers: {len(log.wrong)}")
    for line in log.wrong[:20]:
        print(f"    {line}")
    if log.wrong or code or last > first * (1 + TOLERANCE):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
