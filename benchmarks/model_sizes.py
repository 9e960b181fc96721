"""What each model size needs: CPU time and memory to embed ncRNAs of real lengths.

    python benchmarks/model_sizes.py                                    # all sizes, in fp32, bf16 and int8
    python benchmarks/model_sizes.py --models nano giga --precisions bf16

The command is `rinalmo embed`, from a cold start, on 128 random sequences with the lengths of real ncRNAs (the
quantiles in `embed_speed.py`, 168 nt on average), with random weights: neither changes the cost. CPU seconds are those
of all threads, without start-up (the same command on one sequence); on a quiet machine with N threads the run takes
about an N-th of them. Memory is the peak without mapped file pages, which can be dropped.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import sides
from embed_speed import MIX


def make_model(preset: str, folder: Path) -> None:
    """A model of a published size with random weights."""
    from rinalmo.model.config import ModelConfig
    from rinalmo.model.rinalmo import ModelSpec, create
    from rinalmo.weights.checkpoint import save

    save(create(ModelSpec(ModelConfig.preset(preset))), folder)


def main() -> None:
    chosen = sides.options(
        __doc__,
        peers=False,
        models={"nargs": "+", "default": ["nano", "micro", "mega", "giga"]},
        precisions={"nargs": "+", "default": ["fp32", "bf16", "int8"]},
    )
    sides.head("What each model size needs", chosen)
    draw = random.Random(0)
    records = [f">{n}\n{''.join(draw.choices('ACGU', k=length))}\n" for n, length in enumerate(MIX)]
    tokens = sum(MIX) + 2 * len(MIX)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        one, mix = Path(scratch, "one.fa"), Path(scratch, "mix.fa")
        one.write_text(records[0], encoding="utf-8")
        mix.write_text("".join(records), encoding="utf-8")
        for preset in chosen.models:
            folder = Path(scratch, preset)
            make_model(preset, folder)
            size = sum(path.stat().st_size for path in folder.iterdir())
            for precision in chosen.precisions:
                command = [sys.executable, "-m", "rinalmo", "embed", "--model", str(folder), "--precision", precision]
                command += ["--threads", str(chosen.threads), "-o"]
                runs = []
                for n in range(chosen.repeats):
                    start, all_of_it = (
                        sides.spend(
                            [*command, f"{scratch}/{preset}-{precision}-{n}-{path.stem}.npz", str(path)], chosen.threads
                        )
                        for path in (one, mix)
                    )
                    runs.append((all_of_it.cpu - start.cpu, all_of_it.anonymous))
                seconds, memory = min(runs)
                each = seconds / len(MIX)
                rows.append(
                    (
                        preset,
                        sides.megabytes(size),
                        precision,
                        f"{1000 * each:,.1f}",
                        f"{tokens / seconds:,.0f}",
                        sides.megabytes(memory),
                    )
                )
        sides.table(("model", "on disk", "precision", "CPU seconds per 1,000 RNAs", "tokens/s", "memory"), rows)


if __name__ == "__main__":
    main()
