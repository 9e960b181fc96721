"""Time `RnaTokenizer` beside multimolecule's: padded tensors of random sequences, sequences per second.

    python benchmarks/tokenize_speed.py                                    # makes a venv for the peer, 2 minutes
    python benchmarks/tokenize_speed.py --peer-python path/to/bin/python   # one that has multimolecule

Each side runs in a process of its own. The two take turns, so that a busy machine slows both; the medians count.
Before timing, the two must give the same ids.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

PEER = ("multimolecule==0.2.2", "torch==2.13.0")
MODULES = {"rinalmo": "rinalmo.hf.tokenization", "multimolecule": "multimolecule"}


def sequences(count: int, length: int, ragged: bool) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("ACGU", k=draw.randint(1, length) if ragged else length)) for _ in range(count)]


def serve(name: str, count: int, length: int, ragged: bool) -> None:
    """Tokenise once per line of standard input; answer with the seconds and a checksum of the ids."""
    import importlib

    tokenizer = importlib.import_module(MODULES[name]).RnaTokenizer()
    batch = sequences(count, length, ragged)
    for _ in sys.stdin:
        start = time.perf_counter()
        encoded = tokenizer(batch, padding=True, return_tensors="pt")
        seconds = time.perf_counter() - start
        ids = encoded["input_ids"]
        checksum = int((ids * (1 + ids.new_tensor(range(ids.shape[1])))).sum())
        print(seconds, checksum, flush=True)


class Side:
    """One tokenizer in its own process."""

    def __init__(self, name: str, python: str, workload: list[str]) -> None:
        self.name = name
        self.seconds: list[float] = []
        command = [python, "-W", "ignore", __file__, "--serve", name, *workload]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if len(answer) != 2:
            sys.exit(f"{self.name} stopped; its message is above")
        self.seconds.append(float(answer[0]))
        return answer[1]

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def peer_python(directory: str) -> str:
    venv.create(directory, with_pip=True)
    python = str(Path(directory, "bin", "python"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
    return python


def compare(python: str, repeats: int, workload: list[str]) -> tuple[Side, Side]:
    ours, peer = Side("rinalmo", sys.executable, workload), Side("multimolecule", python, workload)
    if ours.run() != peer.run():
        sys.exit("the two tokenizers give different ids")
    for side in (ours, peer):
        side.seconds.clear()  # the first run was the warm-up
    for _ in range(repeats):
        ours.run()
        peer.run()
    for side in (ours, peer):
        side.close()
    return ours, peer


def report(python: str, repeats: int, count: int, length: int) -> None:
    print(f"{count} random sequences, padding=True, return_tensors='pt', median of {repeats} runs, sequences/s\n")
    print(f"| {'nucleotides':<12} | {'rinalmo':>9} | {'multimolecule':>13} | ratio |")
    print(f"|{'-' * 14}|{'-' * 11}|{'-' * 15}|{'-' * 7}|")
    for label, ragged in ((str(length), False), (f"1 to {length}", True)):
        workload = ["--count", str(count), "--length", str(length), *(["--ragged"] if ragged else [])]
        ours, peer = (count / statistics.median(side.seconds) for side in compare(python, repeats, workload))
        print(f"| {label:<12} | {ours:>9,.0f} | {peer:>13,.0f} | {ours / peer:>5.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="a Python that has multimolecule; default: install one in a new venv")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--ragged", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=MODULES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.count, args.length, args.ragged)
    elif args.peer_python:
        report(args.peer_python, args.repeats, args.count, args.length)
    else:
        with tempfile.TemporaryDirectory() as directory:
            report(peer_python(directory), args.repeats, args.count, args.length)


if __name__ == "__main__":
    main()
