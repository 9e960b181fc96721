"""Measure how the engine scales: time per token by batch size, length and number of sequences, and memory by length and
number.

    python benchmarks/scaling.py --width giga --precision bf16

Random weights and sequences. Memory is the growth of the process while it computes once, after a first run; results
(hidden states) are discarded as they arrive, as when they are written to a file.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import sides
from embed_speed import WIDTHS, make_model
from sides import Run, Side

TOKENS = 8192  # per run, by default
AXES: dict[str, list[dict[str, int]]] = {
    "batch_tokens": [{"length": 100, "batch_tokens": n} for n in (128, 512, 1024, 2048, 4096, 8192)],
    "length": [{"length": n} for n in (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)],
    "number": [{"length": 100, "number": n} for n in (1, 4, 16, 64, 256, 1024)],
}


def engine(folder: str, precision: str, length: int, number: int = 0, batch_tokens: int = 0) -> Run:
    """Time `number` sequences of `length`, by default as many as make up `TOKENS`."""
    from rinalmo.engine.engine import Engine

    given = {"batch_tokens": batch_tokens} if batch_tokens else {}
    prepared = Engine(folder, precision, **given)  # type: ignore[arg-type]
    draw, last = random.Random(0), [prepared.model.config.num_hidden_layers]
    texts = ["".join(draw.choices("ACGU", k=length)) for _ in range(number or max(1, TOKENS // (length + 2)))]
    ids = [prepared.model.alphabet.encode(text) for text in texts]

    def compute(packed: Any, layout: Any) -> Any:
        return layout.split(prepared.hidden_states(packed, layout, last)[0])

    def run() -> None:
        for _ in prepared.map(compute, ids):
            pass

    return run


def measure(axis: str, folder: str, chosen: Any) -> None:
    cases = AXES[axis]
    found = [Side("engine", chosen.threads, folder=folder, precision=chosen.precision, **case) for case in cases]
    sides.take_turns(found, chosen.repeats)
    rows = []
    for case, side in zip(cases, found, strict=True):
        number = case.get("number") or max(1, TOKENS // (case["length"] + 2))
        tokens = number * (case["length"] + 2)
        cost = side.failure or f"{1e6 * side.median / tokens:.2f}"
        rows.append((f"{case[axis]:,}", f"{number:,} × {case['length']:,} nt", cost, sides.megabytes(side.memory())))
        side.close()
    print(f"\nAgainst {axis}:\n")
    sides.table((axis, "sequences", "µs per token", "memory"), rows)


def main() -> None:
    chosen = sides.options(
        __doc__,
        peers=False,
        width={"choices": list(WIDTHS), "default": "nano"},
        precision={"default": "bf16"},
        axes={"nargs": "+", "choices": list(AXES), "default": list(AXES)},
    )
    sides.head("Scaling", chosen)
    print(f"{chosen.width} width, {WIDTHS[chosen.width][1]} layers, {chosen.precision}")
    with tempfile.TemporaryDirectory() as scratch:
        make_model(chosen.width, Path(scratch, "model"))
        for axis in chosen.axes:
            measure(axis, str(Path(scratch, "model")), chosen)


if __name__ == "__main__":
    sides.serve_or(main, {"engine": engine})
