"""Time the CPU attention implementations of the engine: microseconds per token of one layer.

    python benchmarks/attention_speed.py                              # fp32, and bf16 where the processor has it
    python benchmarks/attention_speed.py --sizes 64 --lengths 512 4096 --precisions fp32

    channels   queries, keys and values as `(rows, tokens)`
    tokens     the same as `(tokens, rows)`
    products   batched matrix products, weights as 2^score
    kernel     torch's `scaled_dot_product_attention`

All four combinations apply rotary embeddings to the same queries and keys, with ten heads; head sizes 16, 24, 32 and 64
are those of nano, micro, mega and giga. "Difference" is the largest difference between their results, which are means
of values with standard deviation 1. `rinalmo.engine.cpu_encoder` chooses its implementation from these results.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import sides

HEADS = 10
TOKENS = 4096  # in a batch of sequences of one length
WAYS = ("channels, products", "channels, kernel", "tokens, products", "tokens, kernel")


def prepared(size: int, length: int, precision: str) -> list[tuple[Any, Any, Any]]:
    """The attention function of each implementation, its queries, keys and values, and its plan of a batch."""
    import torch

    from rinalmo.engine.cpu_encoder import ChannelsFirst, TokensFirst, make_plan
    from rinalmo.model.packing import Layout

    hidden, layout = HEADS * size, Layout((length,) * max(1, TOKENS // length))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(3 * hidden, hidden, generator=draw) / hidden**0.5
    x = torch.randn(layout.total, hidden, generator=draw)
    found: list[tuple[Any, Any, Any]] = []
    for kind in (ChannelsFirst, TokensFirst):
        for long in (None, 0):
            attention: Any = kind(HEADS, size, dtype)
            attention.long = long
            plan = make_plan(layout, attention)
            padded = torch.zeros(plan.total, hidden)
            padded[plan.index] = x
            qkv = (padded @ attention.arrange(weight).t()).to(dtype)
            found.append((attention, qkv.t().contiguous() if attention.is_channels_first else qkv, plan))
    return found


def measured(size: int, length: int, precision: str, repeats: int) -> tuple[list[float], float]:
    """Median microseconds per token of each implementation, and the largest difference between their results."""
    ways = prepared(size, length, precision)
    results = [attention(qkv, plan)[plan.index].float() for attention, qkv, plan in ways]
    difference = max((result - results[0]).abs().max().item() for result in results)
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for spent, (attention, qkv, plan) in zip(seconds, ways, strict=True):
            start = time.perf_counter()
            attention(qkv, plan)
            spent.append(time.perf_counter() - start)
    return [1e6 * statistics.median(each) / len(results[0]) for each in seconds], difference


def main() -> None:
    chosen = sides.options(
        __doc__,
        peers=False,
        sizes={"type": int, "nargs": "+", "default": [16, 24, 32, 64], "metavar": "CHANNELS"},
        lengths={"type": int, "nargs": "+", "default": [64, 128, 256, 512, 1024, 2048, 4096], "metavar": "NT"},
        precisions={"nargs": "+", "choices": ["fp32", "bf16"], "help": "default: what the processor has"},
    )
    import torch

    from rinalmo.engine.devices import native_precision

    torch.set_num_threads(chosen.threads)
    torch.set_grad_enabled(False)
    native = native_precision(torch.device("cpu"))
    sides.head("Attention", chosen)
    for precision in chosen.precisions or sorted({"fp32", native}, reverse=True):
        print(f"\n{precision}, µs per token:\n")
        rows = []
        for size in chosen.sizes:
            for length in chosen.lengths:
                times, difference = measured(size, length, precision, chosen.repeats)
                fastest = WAYS[times.index(min(times))]
                rows.append([str(size), str(length), *(f"{each:.2f}" for each in times), fastest, f"{difference:.0e}"])
        sides.table(["head size", "nt", *WAYS, "fastest", "difference"], rows)


if __name__ == "__main__":
    main()
