"""Seconds and peak memory from the start of a process to the first embedding with all of giga, from a warm disk cache.

    python benchmarks/load_speed.py                         # writes 2 × 2.6 GB of random weights temporarily
    python benchmarks/load_speed.py --folder path/to/keep   # or keeps them for the next run

Columns:

    peak        peak memory of the process (VmHWM), including mapped pages of the weight file
    anonymous   peak of its anonymous memory; unlike mapped pages, it cannot be dropped
    × bf16      both as multiples of the size of the weights in bf16
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sides
from sides import Run, Spent

SEQUENCE = "GGGGAUGUAGCUCAGUGGUAGAGCGCAUGCUUCGCAUGUAUGAGGCCCCGGGUUCGAUCCCCGGCAUCUCCACCA"


def rinalmo(folder: str, precision: str) -> Run:
    def run() -> None:
        from rinalmo import embed
        from rinalmo.engine.engine import Engine

        embed([SEQUENCE], Engine(folder, precision))  # type: ignore[arg-type]

    return run


def multimolecule(folder: str, precision: str) -> Run:
    def run() -> None:
        import torch
        from multimolecule import RiNALMoModel, RnaTokenizer

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        tokenizer = RnaTokenizer.from_pretrained(folder)
        model = RiNALMoModel.from_pretrained(folder, dtype=dtype).eval()
        with torch.inference_mode():
            model(**tokenizer([SEQUENCE], return_tensors="pt")).last_hidden_state[0, 1:-1].mean(dim=0)

    return run


def make_models(folder: Path, preset: str, peers: bool) -> int:
    """Write random weights in both layouts unless they exist; returns the size of the encoder in bf16."""
    from rinalmo.model.config import ModelConfig
    from rinalmo.model.rinalmo import ModelSpec, create
    from rinalmo.weights.checkpoint import save

    config = ModelConfig.preset(preset)
    wanted = {"rinalmo": {"lm_head": {}}, "multimolecule": {"pooler": {}}}
    for layout, heads in wanted.items():
        target = folder / f"{preset}-{layout}"
        if not target.exists() and (peers or layout == "rinalmo"):
            save(create(ModelSpec(config, heads=heads)), target, layout)  # type: ignore[arg-type]
    return 2 * config.encoder_parameters


def measure(ways: dict[str, Callable[[], Spent]], repeats: int) -> dict[str, list[Spent]]:
    """Measure in turns; the first round only warms the disk cache."""
    rounds = [{name: way() for name, way in ways.items()} for _ in range(repeats + 1)]
    return {name: [found[name] for found in rounds[1:]] for name in ways}


def compare(folder: Path, chosen: Any) -> None:
    size = make_models(folder, chosen.preset, bool(chosen.peer))
    ours, theirs = (str(folder / f"{chosen.preset}-{layout}") for layout in ("rinalmo", "multimolecule"))

    def way(serve: str, **arguments: Any) -> Callable[[], Spent]:
        return lambda: sides.once(serve, chosen.threads, **arguments)

    ways = {f"rinalmo {name}": way("rinalmo", folder=ours, precision=name) for name in chosen.precisions}
    if chosen.peer:
        for name in ("fp32", "bf16"):
            ways[f"multimolecule {name}"] = way("multimolecule", python=chosen.peer, folder=theirs, precision=name)
    rows = []
    for name, spent in measure(ways, chosen.repeats).items():
        seconds = statistics.median(one.seconds for one in spent)
        most = (statistics.median(one.peak for one in spent), statistics.median(one.anonymous for one in spent))
        memory = [text for bytes in most for text in (sides.megabytes(bytes), f"{bytes / size:.2f}")]
        rows.append((name, f"{seconds:.2f}", *memory))
    print(f"{chosen.preset}, weights in bf16: {sides.megabytes(size)}\n")
    sides.table(("", "seconds", "peak", "× bf16", "anonymous", "× bf16"), rows)


def main() -> None:
    chosen = sides.options(
        __doc__,
        preset={"default": "giga"},
        folder={"type": Path, "help": "where the weights are, or are to stay"},
        precisions={"nargs": "+", "default": ["bf16", "fp32", "int8"]},
    )
    sides.head("Load", chosen)
    with tempfile.TemporaryDirectory() as scratch:
        compare(chosen.folder or Path(scratch), chosen)


if __name__ == "__main__":
    sides.serve_or(main, {"rinalmo": rinalmo, "multimolecule": multimolecule})
