"""Compare the speed of `RnaTokenizer` with multimolecule's: sequences per second into padded tensors.

    python benchmarks/tokenize_speed.py

Both must give the same ids.
"""

from __future__ import annotations

import importlib
import random
from typing import Any

import sides
from sides import Run, Side


def sequences(count: int, length: int, ragged: bool) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("ACGU", k=draw.randint(1, length) if ragged else length)) for _ in range(count)]


def tokenizer(module: str, count: int, length: int, ragged: bool) -> Run:
    tokenizer = importlib.import_module(module).RnaTokenizer()
    batch = sequences(count, length, ragged)

    def run() -> Any:
        ids = tokenizer(batch, padding=True, return_tensors="pt")["input_ids"]
        return (ids * (1 + ids.new_tensor(range(ids.shape[1])))).sum()

    return run


def row(length: int, ragged: bool, chosen: Any) -> tuple[str, ...]:
    work: Any = {"count": chosen.count, "length": length, "ragged": ragged}
    found = [Side("tokenizer", chosen.threads, module="rinalmo.hf.tokenization", **work)]
    if chosen.peer:
        found.append(Side("tokenizer", chosen.threads, chosen.peer, module="multimolecule", **work))
    sides.take_turns(found, chosen.repeats)
    for side in found:
        side.close()
    rates = [chosen.count / side.median for side in found]
    ratio = [f"{rates[0] / rates[1]:.0f}", "yes" if found[0].value == found[1].value else "NO"] if chosen.peer else []
    return (f"1 to {length}" if ragged else f"{length}", *(f"{rate:,.0f}" for rate in rates), *ratio)


def main() -> None:
    settings: dict[str, Any] = {"type": int}
    chosen = sides.options(__doc__, count=settings | {"default": 10_000}, length=settings | {"default": 200})
    sides.head("Tokenizer", chosen)
    print(f"{chosen.count:,} random sequences, padding=True, return_tensors='pt', sequences per second\n")
    columns = ("nt", "rinalmo", "multimolecule", "ratio", "same ids")[: 5 if chosen.peer else 2]
    sides.table(columns, [row(chosen.length, ragged, chosen) for ragged in (False, True)])


if __name__ == "__main__":
    sides.serve_or(main, {"tokenizer": tokenizer})
