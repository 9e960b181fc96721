"""Compute the cost of training: the tables of docs/scaling.md.

    python benchmarks/cost_model.py                            # print them
    python benchmarks/cost_model.py --write docs/scaling.md    # update them on the page

The formulas are below and in `rinalmo.training.trainer`. Measured and published
values are constants below, each with its source; everything else is computed. Nothing is timed here.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import sides
from embed_speed import REAL
from rinalmo.model.config import PRESETS, ModelConfig
from rinalmo.model.packing import Layout
from rinalmo.training.trainer import training_flops

Rows = list[tuple[str, ...]]  # the header first


def cropped(limit: int) -> list[int]:
    """Tokens of the real lengths: crops have no CLS and EOS."""
    return [length + 2 if length <= limit else limit for length in REAL]


SELECTED = 0.15
CONFIGS = {name: ModelConfig.preset(name) for name in PRESETS}
GIGA = CONFIGS["giga"]
MIX = cropped(1022)
LOADS = {"real lengths": MIX, "all of 1,022 nt": [1022] * len(MIX)}

# Published: NVIDIA's datasheet of the A100 (80 GB, SXM; one direction of NVLink); Penić et al. 2025; Linclust's code.
A100_FLOPS, A100_BYTES, NVLINK = 312e12, 80e9, 300e9
GPUS, SEQUENCES, CLUSTERS, EPOCHS, HOURS = 7, 1344, 17e6, 6, 14 * 24
KMERS, KMERS_PER_LETTER, KMER_BYTES = 21, 0.2, 16
LINKS = {"200 Gb/s": 25e9, "400 Gb/s": 50e9, "8 × 200 Gb/s": 200e9}  # of a node of 8 GPUs

MFU = (0.3, 0.4, 0.5)  # assumed
MICRO = 65536  # tokens of a micro-batch in recipes/pretrain-giga.yaml
LARGE = 64 * SEQUENCES // GPUS  # sequences per step on 64 GPUs, each with the paper's number of sequences per GPU


class Point(NamedTuple):
    """A measured speed. `peak` is the range of the speed of matrix products with the same threads on the same days."""

    what: str
    config: ModelConfig
    lengths: Sequence[int]
    passes: int  # 1 forward, 3 forward and backward
    speed: int
    peak: tuple[float, float]


# Measured: docs/log.md, benchmarks/results/2026-11-24-xeon-amx-2-cores.md and 2026-11-28-epyc-training.md.
PEAK, HALF, AVX2 = (1.8e12, 3.3e12), (0.9e12, 1.65e12), (135e9, 135e9)
SHORT, EMBEDDED = cropped(254), [tokens for tokens in MIX if tokens != 1022]
WIDE = ModelConfig(hidden_size=1280, num_hidden_layers=2)
POINTS = (
    Point("nano, training, 1 thread", CONFIGS["nano"], SHORT, 3, 3580, HALF),
    Point("nano, training, 1 process of 2 threads", CONFIGS["nano"], SHORT, 3, 5265, PEAK),
    Point("nano, training, 2 processes of 1 thread", CONFIGS["nano"], SHORT, 3, 6300, PEAK),
    Point("micro, training, 2 processes, fp32 AVX2", CONFIGS["micro"], SHORT, 3, 443, AVX2),
    Point("nano, embedding, 2 threads", CONFIGS["nano"], EMBEDDED, 1, 19445, PEAK),
    Point("micro, embedding, 2 threads", CONFIGS["micro"], EMBEDDED, 1, 9378, PEAK),
    Point("2 layers of giga, embedding, 2 threads", WIDE, EMBEDDED, 1, 13626, PEAK),
)
# Measured: anonymous memory after a number of steps of pretrain-nano-cpu, the larger of two processes.
PROCESS = {150: 3.4e9, 980: 4.6e9, 1520: 4.6e9}
# Measured: benchmarks/results/2026-11-24-xeon-data.md; sequences per second of one thread, and bytes.
PREPARE = {"read": 110_000, "remove duplicates": 496_000, "cluster (MMseqs2)": 7_200, "write the store": 169_000}
LETTERS, NAME, RAM = 412.5, 13, 50
MMSEQS = (884_366, 569, 1.827e9)  # sequences, mean length, memory
WEIGHTED = (36e6, 1.1984, 291e6)  # sequences, seconds, memory of a start with weights


def per_token(config: ModelConfig, lengths: Sequence[int]) -> float:
    """FLOPs of a training step, per token."""
    return training_flops(config, lengths, round(SELECTED * sum(lengths))) / sum(lengths)


def states(config: ModelConfig) -> float:
    """Bytes of fp32 weights, gradients and AdamW's two moments, and of bf16 copies of the matrices during a step."""
    return 16 * pretraining_parameters(config) + 2 * matrix_parameters(config)


def kept(
    config: ModelConfig, path: Literal["cpu", "sdpa"], checkpointing: bool = False, lengths: Sequence[int] = MIX
) -> float:
    """Activation bytes per token; with checkpointing, including the one block that is being recomputed."""
    tokens, predicted = sum(lengths), round(SELECTED * sum(lengths))
    whole = activation_bytes(config, lengths, predicted, path=path)
    if not checkpointing:
        return whole / tokens
    inputs = activation_bytes(config, lengths, predicted, path=path, checkpointing=True)
    return (inputs + whole / config.num_hidden_layers) / tokens


def exchanged(parameters: float, ranks: int, micro_batches: int = 0) -> float:
    """Bytes that each of `ranks` sends per step, in a ring.

    DDP: fp32 gradients, reduce-scattered and gathered. FSDP, if a number of micro-batches is given: bf16 weights
    gathered twice for each, fp32 gradients reduce-scattered once.
    """
    return (ranks - 1) / ranks * parameters * (2 * 2 * micro_batches + 4 if micro_batches else 2 * 4)


# The tables.


def arithmetic() -> Rows:
    rows: Rows = [("", "parameters", "MFLOPs per token", "6 × parameters", "attention at 130 tokens", "at 1,024")]
    for name, config in CONFIGS.items():
        parameters, width = pretraining_parameters(config), 12 * config.num_hidden_layers * config.hidden_size
        shares = (percent(width * length / per_token(config, [length])) for length in (130, 1024))
        flops = (f"{value / 1e6:,.0f}" for value in (per_token(config, MIX), 6 * parameters))
        rows.append((name, f"{parameters / 1e6:,.1f} M", *flops, *shares))
    return rows


def speeds() -> Rows:
    rows: Rows = [("measured", "tokens/s", "MFLOPs per token", "GFLOP/s", "of the peak", "bound, tokens/s")]
    for what, config, lengths, passes, speed, peak in POINTS:
        flops = per_token(config, lengths) * passes / 3
        share = " to ".join(dict.fromkeys(percent(flops * speed / limit) for limit in reversed(peak)))
        alone = " to ".join(dict.fromkeys(f"{limit / flops:,.0f}" for limit in peak))
        rows.append((what, f"{speed:,}", f"{flops / 1e6:,.0f}", f"{flops * speed / 1e9:,.0f}", share, alone))
    return rows


def memory() -> Rows:
    head = ("", "states, DDP", "FSDP, 8", "FSDP, 64", "CPU, KB per token", "GPU", "GPU, checkpointed")
    rows: Rows = [(*head, "tokens in 80 GB", "checkpointed")]
    for name, config in CONFIGS.items():
        sizes = [kept(config, "cpu"), kept(config, "sdpa"), kept(config, "sdpa", True)]
        room = (f"{(0.9 * A100_BYTES - states(config)) / size:,.0f}" for size in sizes[1:])
        shares = (16 * pretraining_parameters(config) / ranks for ranks in (8, 64))
        rows.append((name, *map(size_of, (states(config), *shares)), *(f"{s / 1e3:,.0f}" for s in sizes), *room))
    return rows


def process() -> Rows:
    """Memory of a pretrain-nano-cpu process, which has short crops and a model without dropout."""
    config = replace(CONFIGS["nano"], hidden_dropout=0.0, attention_dropout=0.0)
    tensors = 4096 * kept(config, "cpu", lengths=SHORT)
    whole = tensors + states(config)
    rows: Rows = [("", "activations, formula", "states, formula", "process, measured", "× formula")]
    for step, found in PROCESS.items():
        sizes = map(size_of, (tensors, states(config), found))
        rows.append((f"after {step:,} steps", *sizes, f"{found / whole:.1f}"))
    return rows


def exchange() -> Rows:
    head = ("", "processes", "DDP", "FSDP, 1 micro-batch", "FSDP, 4", "DDP over 10 Gb/s", "over 200 Gb/s")
    rows: Rows = [(*head, "over NVLink")]
    for name, ranks in (("nano", 2), ("micro", 2), ("micro", 8), ("giga", GPUS), ("giga", 64)):
        sent = [exchanged(pretraining_parameters(CONFIGS[name]), ranks, parts) for parts in (0, 1, 4)]
        times = (f"{1e3 * sent[0] / link:,.1f} ms" for link in (1.25e9, 25e9, NVLINK))
        rows.append((name, str(ranks), *map(size_of, sent), *times))
    return rows


def paper() -> Rows:
    hours = " / ".join(percent(mfu) for mfu in MFU)
    rows: Rows = [("", "tokens", "FLOPs", f"hours at {hours} MFU", "two weeks are", "communication, of a step at 40 %")]
    machine, steps = GPUS * A100_FLOPS, EPOCHS * CLUSTERS / SEQUENCES
    for name, lengths in LOADS.items():
        tokens = EPOCHS * CLUSTERS * statistics.mean(lengths)
        seconds = tokens * per_token(GIGA, lengths) / machine
        spent = " / ".join(f"{seconds / mfu / 3600:,.0f}" for mfu in MFU)
        sent = exchanged(pretraining_parameters(GIGA), GPUS) / NVLINK
        published, share = percent(seconds / HOURS / 3600), percent(sent / (seconds / 0.4 / steps))
        rows.append((name, f"{tokens:.1e}", f"{seconds * machine:.1e}", spent, f"{published} MFU", share))
    return rows


def paper_batches() -> Rows:
    head = ("", "sequences per GPU", "tokens per GPU and step", "micro-batches", "memory of one, checkpointed")
    rows: Rows = [(*head, "with the states")]
    for name, lengths in LOADS.items():
        tokens = SEQUENCES // GPUS * statistics.mean(lengths)
        parts = math.ceil(tokens / MICRO)
        held = tokens / parts * kept(GIGA, "sdpa", True)
        sizes = (size_of(held), size_of(held + states(GIGA)))
        rows.append((name, f"{SEQUENCES // GPUS}", f"{tokens:,.0f}", str(parts), *sizes))
    return rows


def many() -> Rows:
    """64 GPUs in 8 nodes: traffic over a node's link, and its share of a step without overlap."""
    rows: Rows = [
        ("sequences per step", "method", "compute", *(f"communication, {link}" for link in LINKS), "tokens/s")
    ]
    parameters = pretraining_parameters(GIGA)
    for sequences in (SEQUENCES, LARGE):
        tokens = sequences * statistics.mean(MIX)
        compute = tokens * per_token(GIGA, MIX) / (64 * A100_FLOPS * 0.4)
        for how, parts in {"DDP; FSDP with 1 micro-batch": 0, "FSDP with 4": 4}.items():
            crossing, inside = (exchanged(parameters, 8, parts) / speed for speed in (1.0, NVLINK))
            spent = [crossing / link + inside for link in LINKS.values()]
            shares = (f"{1e3 * time:,.0f} ms, {percent(time / (time + compute))}" for time in spent)
            slow, fast = tokens / (compute + spent[0]), tokens / max(compute, spent[-1])
            rows.append((f"{sequences:,}", how, f"{1e3 * compute:,.0f} ms", *shares, f"{slow:,.0f} to {fast:,.0f}"))
    return rows


def batches() -> Rows:
    head = ("sequences per step", "steps of 6 epochs", "a warm-up of 2,000 is", "rate, by √", "rate, in proportion")
    rows: Rows = [head]
    for sequences in (SEQUENCES, LARGE):
        count, ratio = EPOCHS * CLUSTERS / sequences, sequences / SEQUENCES
        rates = (f"{5e-5 * factor:.1e}" for factor in (math.sqrt(ratio), ratio))
        rows.append((f"{sequences:,}", f"{count:,.0f}", percent(2000 / count), *rates))
    return rows


def billion(number: float = 1e9) -> Rows:
    """A number of sequences like those measured, with the paper's ratio of clusters to sequences."""
    rows: Rows = [("", "time", "memory", "disk")]
    store, index = number * (LETTERS + NAME + 16 + 10), 10 * number + 8 * number * CLUSTERS / WEIGHTED[0]
    for step, speed in PREPARE.items():
        own = "see below" if "MMseqs2" in step else f"at most {size_of(RAM * number)}"
        rows.append((step, f"{number / speed / 3600:,.1f} h of one thread", own, ""))
    start, held = (value * number / WEIGHTED[0] for value in WEIGHTED[1:])
    rows.append(("the store", "", f"{size_of(index)} mapped", size_of(store + 8 * number * CLUSTERS / WEIGHTED[0])))
    rows.append(("start of an epoch with weights", f"{start:,.0f} s", f"{size_of(held)} per process", ""))
    return rows


def mmseqs() -> Rows:
    rows: Rows = [("sequences", "mean nt", "k-mers each", "table", "parts of 400 GB", "of 1.5 TB", "measured")]
    measured = (*MMSEQS[:2], size_of(MMSEQS[2]))
    for number, length, found in (measured, (36e6, LETTERS, ""), (1e9, LETTERS, "")):
        taken = KMERS + KMERS_PER_LETTER * length
        table = KMER_BYTES * number * taken
        parts = (str(math.ceil(table / limit)) for limit in (400e9, 1.5e12))
        rows.append((f"{number:,.0f}", f"{length:.0f}", f"{taken:.0f}", size_of(table), *parts, found))
    return rows


def percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def size_of(count: float) -> str:
    power = min(4, max(2, int(math.log10(count)) // 3))
    return f"{count / 1000**power:,.{0 if count >= 100 * 1000**power else 1}f} {'  MGT'[power]}B"


MAKERS = (arithmetic, speeds, memory, process, exchange, paper, paper_batches, many, batches, billion, mmseqs)
TABLES: dict[str, Callable[[], Rows]] = {make.__name__: make for make in MAKERS}


def filled(page: str) -> str:
    """The page with every table after a mark `<!-- cost_model: NAME -->` replaced by a new one."""

    def table(mark: re.Match[str]) -> str:
        head, *rows = TABLES[mark[2]]()
        return f"{mark[1]}\n{sides.markdown(head, rows)}\n\n"

    return re.sub(r"(<!-- cost_model: (\w+) -->\n)\n(?:\|.*\n)*\n?", table, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="PAGE", type=Path, help="a Markdown page with a mark before each table")
    options = parser.parse_args()
    if options.write:
        options.write.write_text(filled(options.write.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for name, make in TABLES.items():
        head, *rows = make()
        print(f"\n{name}\n\n{sides.markdown(head, rows)}")


def pretraining_parameters(config: ModelConfig) -> int:
    """Number of parameters of encoder and masked-LM head."""
    d, vocabulary = config.hidden_size, config.vocab_size
    return config.encoder_parameters + d * d + 3 * d + vocabulary * (d + 1)


def matrix_parameters(config: ModelConfig) -> int:
    """Number of parameters in the blocks' matrices, of which autocast makes bf16 copies."""
    return config.num_hidden_layers * (4 * config.hidden_size**2 + 3 * config.hidden_size * config.ffn_size)


def activation_bytes(
    config: ModelConfig,
    lengths: Sequence[int],
    predicted: int,
    *,
    path: Literal["cpu", "sdpa"] = "cpu",
    checkpointing: bool = False,
) -> int:
    """Bytes that a training step stores for its backward pass, with a packed batch, bf16 autocast and fp32 residuals.

    `predicted` positions go through the masked-LM head. `path` is the implementation of a block: the kernels for
    training on a CPU (`rinalmo.model.kernels`), or plain torch with fused attention, as on a GPU. With `checkpointing`
    only each block's input is stored; the backward pass then also needs one block at a time, which is not counted here.
    """
    layout, d = Layout(tuple(lengths)), config.hidden_size
    tokens = layout.total
    inside = {"cpu": _cpu_block_bytes, "sdpa": _sdpa_block_bytes}[path]
    block = 4 * tokens * d if checkpointing else inside(config, layout)
    angles = 4 * config.head_size * tokens if checkpointing or path == "sdpa" else 0
    ends = tokens * (4 * d + 8) + 21 * tokens  # final norm; positions, sequence numbers, masks, factors
    head = predicted * (16 * d + 8 + 4 * config.vocab_size)
    return config.num_hidden_layers * block + angles + ends + head


def _cpu_block_bytes(config: ModelConfig, layout: Layout) -> int:
    """One block on a CPU.

    A group with a single sequence stores views, and with them all rotated queries and keys (4) and the whole output of
    the projection (6); a group with several stores copies of its part (6).
    """
    tokens, d, ffn = layout.total, config.hidden_size, config.ffn_size
    single = any(group.count == 1 for group in layout.groups)
    copied = sum(group.count * group.length for group in layout.groups if group.count > 1)
    attention = d * (10 * tokens * single + 6 * copied) + 2 * config.head_size * tokens
    squares = config.num_attention_heads * sum(length * length for length in layout.lengths)
    weights = squares * (5 if config.attention_dropout else 2)
    dropout = 4 * tokens * d if config.hidden_dropout else 0
    return _norms_and_inputs(config, tokens) + attention + weights + 10 * ffn * tokens + dropout


def _sdpa_block_bytes(config: ModelConfig, layout: Layout) -> int:
    """One block in plain torch: the projection (6), rotated queries and keys (4), attention's output (2), statistics.

    The swish is in fp32 because its slope is (4 for gate and up, 4 the sigmoid, 4 the product, 2 its bf16 copy).
    Dropout masks take one byte per element, as on a GPU.
    """
    tokens, d = layout.total, config.hidden_size
    attention = tokens * (12 * d + 4 * config.num_attention_heads)
    dropout = 2 * tokens * d if config.hidden_dropout else 0
    return _norms_and_inputs(config, tokens) + attention + 14 * config.ffn_size * tokens + dropout


def _norms_and_inputs(config: ModelConfig, tokens: int) -> int:
    """Two norms store their fp32 inputs and two statistics; three projections of width `hidden` their bf16 inputs."""
    return tokens * (2 * (4 * config.hidden_size + 8) + 3 * 2 * config.hidden_size)


if __name__ == "__main__":
    main()
