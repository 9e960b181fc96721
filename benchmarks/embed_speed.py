"""Time `rinalmo`'s engine beside multimolecule's RiNALMo: real tokens per second through the encoder.

    python benchmarks/embed_speed.py                                    # makes a venv for the peer
    python benchmarks/embed_speed.py --peer-python path/to/bin/python   # one that has multimolecule

Both sides get the same random weights (through a folder in the port's layout) and the same sequences, an ncRNA-like
mix of lengths, equal lengths, or one long sequence. The peer runs as its card uses it (fp32, one padded batch in
input order) and at its best (bf16, sorted, the best of several batch sizes, one by one included). Each side runs in a
process of its own with the same number of threads; they take turns, and medians count.

"Peak" is what plain bf16 `F.linear` calls of the same shapes reach in the same run, for the tokens of one batch.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

PEER = ("multimolecule==0.2.2", "torch==2.13.0")
WIDTHS = {"nano": (320, 6), "micro": (480, 12), "giga": (1280, 2)}
WORKLOADS = {"mix": 32, "equal": 32, "long": 1}
PEER_BATCHES = (1, 4, 8, 32)


def sequences(workload: str) -> list[str]:
    """Random RNA: lognormal lengths of 20 to 815 nt, 200 nt each, or one of 4,096 nt."""
    draw = random.Random(0)
    count = WORKLOADS[workload]
    lengths = {
        "mix": [min(815, max(20, round(draw.lognormvariate(5.0, 0.75)))) for _ in range(count)],
        "equal": [200] * count,
        "long": [4096],
    }[workload]
    return ["".join(draw.choices("ACGU", k=length)) for length in lengths]


def serve_rinalmo(folder: str, texts: list[str], precision: str) -> None:
    from rinalmo.inference.engine import Engine

    engine = Engine(folder, precision)  # type: ignore[arg-type]
    ids = [engine.model.alphabet.encode(text) for text in texts]
    last = [engine.model.config.num_hidden_layers]

    def run() -> None:
        for _ in engine.map(lambda packed, layout: layout.split(engine.hidden_states(packed, layout, last)[0]), ids):
            pass

    answer(run)


def serve_peer(folder: str, texts: list[str], mode: str) -> None:
    import multimolecule
    import torch

    tokenizer = multimolecule.RnaTokenizer.from_pretrained(folder)
    card = mode == "card"
    options = {} if card else {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
    model = multimolecule.RiNALMoModel.from_pretrained(folder, **options).eval()
    if not card:
        texts = sorted(texts, key=len)
    size = len(texts) if card else int(mode)

    @torch.inference_mode()
    def run() -> None:
        for start in range(0, len(texts), size):
            model(**tokenizer(texts[start : start + size], padding=True, return_tensors="pt"))

    answer(run)


def serve_peak(hidden: str, tokens: str) -> None:
    import torch
    import torch.nn.functional as F

    d, f, n = int(hidden), 2 * 4 * int(hidden) // 3, int(tokens)
    shapes = [(d, 3 * d), (d, d), (d, 2 * f), (f, d)]
    pairs = [(torch.randn(n, i).bfloat16(), torch.randn(o, i).bfloat16()) for i, o in shapes]

    def run() -> None:
        for x, weight in pairs:
            F.linear(x, weight)

    answer(run)


def answer(run) -> None:  # type: ignore[no-untyped-def]
    """Run once per line of standard input and print the seconds."""
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


class Side:
    """One way of computing, in its own process."""

    def __init__(self, python: str, arguments: list[str], threads: int) -> None:
        self.seconds: list[float] = []
        environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PATH": "/usr/bin:/bin"}
        self.process = subprocess.Popen(
            [python, "-W", "ignore", __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def wait_ready(self) -> bool:
        while (line := self.line()) != "ready":
            if not line and self.process.poll() is not None:
                return False
        return True

    def run(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.seconds.append(float(self.line()))

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def compare(width: str, workload: str, folder: Path, peer: str, threads: int, repeats: int) -> None:
    texts = sequences(workload)
    tokens = sum(map(len, texts)) + 2 * len(texts)
    (folder.parent / "texts.json").write_text(json.dumps(texts))
    hidden, layers = WIDTHS[width]
    sides = {
        f"rinalmo {precision}": Side(sys.executable, ["rinalmo", str(folder), precision], threads)
        for precision in ("fp32", "bf16", "int8")
    }
    sides["peer card"] = Side(peer, ["peer", str(folder), "card"], threads)
    batches = PEER_BATCHES if workload != "long" else (1,)
    sides |= {f"peer best {n}": Side(peer, ["peer", str(folder), str(n)], threads) for n in batches}
    sides["peak"] = Side(sys.executable, ["peak", str(hidden), str(min(tokens, 8192))], threads)
    ready = {name: side for name, side in sides.items() if side.wait_ready()}
    for _ in range(repeats):
        for side in ready.values():
            side.run()
    for side in ready.values():
        side.close()
    report(width, workload, tokens, layers, hidden, {name: side.median for name, side in ready.items()})


def report(width: str, workload: str, tokens: int, layers: int, hidden: int, medians: dict[str, float]) -> None:
    rate = {name: tokens / seconds for name, seconds in medians.items() if name != "peak"}
    best = max(value for name, value in rate.items() if name.startswith("peer best"))
    matrix = 2 * layers * hidden * (4 * hidden + 3 * (2 * 4 * hidden // 3))  # operations per token
    peak = (matrix / layers) * min(tokens, 8192) / medians["peak"]
    print(f"\n{width} ({layers} layers × {hidden}), {workload}: {tokens:,} tokens")
    print(f"| {'':16} | tokens/s | × card | × best | of the bf16 peak |")
    print("|---|---|---|---|---|")
    for name, value in rate.items():
        print(
            f"| {name:16} | {value:8,.0f} | {value / rate['peer card']:6.2f} | {value / best:6.2f} | "
            f"{value * matrix / peak:.2f} |"
        )


def make_model(width: str, folder: Path) -> None:
    from rinalmo.model.config import ModelConfig
    from rinalmo.model.rinalmo import ModelSpec, create
    from rinalmo.weights.checkpoint import save

    hidden, layers = WIDTHS[width]
    config = ModelConfig(hidden_size=hidden, num_hidden_layers=layers)
    save(create(ModelSpec(config, heads={"pooler": {}})), folder, "multimolecule", overwrite=True)


def peer_python(given: str | None, scratch: Path) -> str:
    if given:
        return given
    venv.create(scratch / "peer", with_pip=True)
    python = str(scratch / "peer" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
    return python


def main() -> None:
    if sys.argv[1:2] in (["rinalmo"], ["peer"]):
        texts = json.loads((Path(sys.argv[2]).parent / "texts.json").read_text())
        {"rinalmo": serve_rinalmo, "peer": serve_peer}[sys.argv[1]](sys.argv[2], texts, sys.argv[3])
        return
    if sys.argv[1:2] == ["peak"]:
        serve_peak(*sys.argv[2:4])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="a Python that has multimolecule 0.2.2")
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        peer = peer_python(options.peer_python, scratch)
        for width in options.widths:
            for workload in options.workloads:
                make_model(width, scratch / "model")
                compare(width, workload, scratch / "model", peer, options.threads, options.repeats)


if __name__ == "__main__":
    main()
