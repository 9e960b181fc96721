"""Compare the speed of `rinalmo`'s encoder with other packages: tokens per second, without padding.

    python benchmarks/embed_speed.py                                     # multimolecule, installed on first use
    python benchmarks/embed_speed.py --official path/to/RiNALMo          # and the authors' code
    python benchmarks/embed_speed.py --widths giga --workloads mix --repeats 3

    rinalmo PRECISION    the engine, as used by all commands
    plain PRECISION      our plain PyTorch encoder (`F.linear`, `scaled_dot_product_attention`) on the same packed
                         batches, to separate the gain of packing from that of the fast encoder
    card                 multimolecule used as on its model card: fp32, one padded batch in input order
    best N               multimolecule in bf16, with `scaled_dot_product_attention`, sorted, N sequences at a time
    nested               multimolecule in bf16 on one NestedTensor
    official             the authors' code as it runs without flash-attn: fp32, one padded batch in input order
    peak                 the matrix products alone: plain bf16 `F.linear` with the model's shapes on as many tokens

With `--precisions fp32`, for processors that have no bf16, `best`, `nested` and `peak` are fp32 too.

All get the same sequences and the same weights, except the authors' code, which has another vocabulary and gets random
weights. "difference" is the distance of the CLS state of the first sequence from plain fp32 (after layer norm: size 1).
"""

from __future__ import annotations

import random
import tempfile
from math import inf
from pathlib import Path
from typing import Any

import sides
from sides import Run, Side

WIDTHS = {"nano": (320, 6), "micro": (480, 12), "giga": (1280, 2)}  # giga: 2 of its 33 layers, which all cost the same
WORKLOADS = ("mix", "equal", "long")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
BATCHES = (1, 4, 8, 32)
# Lengths of real ncRNA: the 128-quantiles (0.5/128, 1.5/128, …) of the 162,230 sequences of at most 1,022 nt out of
# 185,257 distinct ones collected from Rfam, bpRNA, miRBase, NCYPred, SILVA, GtRNAdb, GENCODE and others in 2026.
# Mean 168 nt.
MIX = (
    *(21, 33, 36, 41, 48, 51, 53, 55, 57, 59, 61, 62, 64, 65, 66, 67, 69, 70, 71, 71, 72, 72, 72, 73, 73, 73, 73, 74),
    *(74, 74, 75, 76, 76, 76, 77, 77, 78, 79, 80, 81, 82, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 95, 96, 97),
    *(98, 100, 101, 102, 104, 105, 107, 109, 110, 111, 113, 115, 116, 117, 118, 119, 120, 121, 122, 125, 127, 129),
    *(131, 133, 136, 139, 141, 144, 148, 150, 152, 154, 154, 154, 155, 155, 156, 156, 156, 158, 163, 169, 175, 181),
    *(187, 193, 201, 206, 212, 216, 221, 228, 239, 252, 264, 276, 294, 309, 328, 347, 367, 396, 431, 480, 538, 582),
    *(643, 713, 789, 852, 915, 961),
)
REAL = (*MIX, *[1023] * 18)  # with longer sequences: 12 % of all, and equally long once they are cropped


def sequences(workload: str) -> list[str]:
    """Random RNA, 32 of real lengths in random order or of 200 nt, or one of 4,096 nt.

    At most 32: padded to the longest, 128 of them need over 20 GB with multimolecule used as on its card.
    """
    draw = random.Random(0)
    mix = list(MIX[2::4])
    draw.shuffle(mix)
    lengths = {"mix": mix, "equal": [200] * 32, "long": [4096]}[workload]
    return ["".join(draw.choices("ACGU", k=length)) for length in lengths]


def rinalmo(folder: str, workload: str, width: str, precision: str) -> Run:
    from rinalmo.engine.engine import Engine

    engine = Engine(folder, precision)  # type: ignore[arg-type]
    ids = [engine.alphabet.encode(text) for text in sequences(workload)]
    last = [engine.config.num_hidden_layers]

    def compute(packed: Any, layout: Any) -> Any:
        return layout.split(engine.hidden_states(packed, layout, last)[0])

    def run() -> Any:
        first, *_ = engine.map(compute, ids)
        return first[0]

    return run


def plain(folder: str, workload: str, width: str, precision: str) -> Run:
    import torch

    from rinalmo.engine.devices import default_batch_tokens
    from rinalmo.engine.engine import map_packed
    from rinalmo.weights.checkpoint import load

    model = load(folder).eval().to(getattr(torch, DTYPES[precision]))
    ids = [model.alphabet.encode(text) for text in sequences(workload)]

    tokens = default_batch_tokens(torch.device("cpu"))

    @torch.inference_mode()
    def compute(packed: Any, layout: Any) -> Any:
        return layout.split(model(packed, layout).last_hidden_state)

    def run() -> Any:
        first, *_ = map_packed(compute, ids, batch_tokens=lambda: tokens)
        return first[0].float()

    return run


def multimolecule(
    folder: str, workload: str, width: str, precision: str = "fp32", size: int | None = None, nested: bool = False
) -> Run:
    import multimolecule as port
    import torch
    from danling import NestedTensor

    tokenizer = port.RnaTokenizer.from_pretrained(folder)
    options: Any = {"dtype": getattr(torch, DTYPES[precision]), "attn_implementation": "sdpa"} if size else {}
    model = port.RiNALMoModel.from_pretrained(folder, **options).eval()
    texts = sequences(workload)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i])) if size else list(range(len(texts)))
    step = size or len(order)

    def batch(rows: list[int]) -> Any:
        if nested:
            return {"input_ids": NestedTensor([torch.tensor(tokenizer(texts[i])["input_ids"]) for i in rows])}
        return tokenizer([texts[i] for i in rows], padding=True, return_tensors="pt")

    batches = [batch(order[start : start + step]) for start in range(0, len(order), step)]

    @torch.inference_mode()
    def run() -> Any:
        states = [state[0] for inputs in batches for state in model(**inputs).last_hidden_state]
        return states[order.index(0)].float()

    return run


def official(checkout: str, workload: str, width: str) -> Run:
    sides.use_official(checkout)
    import torch
    from rinalmo.config import model_config
    from rinalmo.data.alphabet import Alphabet
    from rinalmo.model.model import RiNALMo

    config = model_config(width)
    config.model.transformer.num_blocks = WIDTHS[width][1]
    config.model.transformer.use_flash_attn = False
    model = RiNALMo(config).eval()
    batch = torch.tensor(Alphabet().batch_tokenize(sequences(workload)))

    @torch.inference_mode()
    def run() -> None:
        model(batch)

    return run


def peak(workload: str, width: str, precision: str) -> Run:
    import torch
    import torch.nn.functional as F

    (hidden, layers), ffn = WIDTHS[width], 2 * 4 * WIDTHS[width][0] // 3
    tokens = sum(len(text) + 2 for text in sequences(workload))
    shapes = layers * [(hidden, 3 * hidden), (hidden, hidden), (hidden, 2 * ffn), (ffn, hidden)]
    dtype = getattr(torch, DTYPES[precision])
    inputs = {into: torch.randn(tokens, into, dtype=dtype) for into in (hidden, ffn)}
    weights = [torch.randn(out, into, dtype=dtype) for into, out in shapes]

    @torch.inference_mode()
    def run() -> None:
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    return run


def start(folder: str, workload: str, width: str, chosen: Any) -> dict[str, Side]:
    """All implementations by name, ready or failed."""
    work: Any = {"threads": chosen.threads, "workload": workload, "width": width}
    own = work | {"folder": folder}
    fastest = "fp32" if chosen.precisions == ["fp32"] else "bf16"
    found = {f"plain {name}": Side("plain", **own, precision=name) for name in dict.fromkeys(("fp32", fastest))}
    found |= {f"rinalmo {name}": Side("rinalmo", **own, precision=name) for name in chosen.precisions}
    if chosen.peer:
        own["python"] = chosen.peer
        found["card"] = Side("multimolecule", **own)
        sizes = BATCHES if workload != "long" else (1,)
        found |= {f"best {size}": Side("multimolecule", **own, precision=fastest, size=size) for size in sizes}
        found["nested"] = Side("multimolecule", **own, precision=fastest, size=max(BATCHES), nested=True)
    if chosen.peer and chosen.official:
        found["official"] = Side("official", **work, python=chosen.peer, checkout=chosen.official)
    return found | {"peak": Side("peak", **work, precision=fastest)}


def compare(folder: str, workload: str, width: str, chosen: Any) -> None:
    found = start(folder, workload, width, chosen)
    sides.take_turns(found.values(), chosen.repeats)
    for side in found.values():
        side.close()
    report(workload, width, found)


def report(workload: str, width: str, found: dict[str, Side]) -> None:
    hidden, layers = WIDTHS[width]
    texts = sequences(workload)
    tokens = sum(map(len, texts)) + 2 * len(texts)
    operations = 2 * layers * hidden * (4 * hidden + 3 * (2 * 4 * hidden // 3)) * tokens
    best = min((side.median for name, side in found.items() if name.startswith(("best", "nested"))), default=0)
    card = found["card"].median if "card" in found else 0
    exact, limit = found["plain fp32"], found["peak"].median
    print(f"\n{width} width, {layers} layers, {workload}: {len(texts)} sequences, {tokens:,} tokens, longest", end=" ")
    print(f"{max(map(len, texts)):,} nt. Peak: {operations / limit / 1e9:,.0f} GFLOP/s.\n")
    done = {name: side for name, side in found.items() if side.seconds and name != "peak"}
    rows = [
        (
            *(name, f"{tokens / side.median:,.0f}"),
            *(f"{base / side.median:.2f}" if 0 < base < inf else "" for base in (card, best, exact.median, limit)),
            difference(side.value, exact.value),
        )
        for name, side in done.items()
    ]
    sides.table(("", "tokens/s", "× card", "× best", "× plain fp32", "of peak", "difference"), rows)
    for name, side in found.items():
        if side.failure:
            print(f"\nNot measured: {name} ({side.failure}).")


def difference(states: list[float] | None, exact: list[float] | None) -> str:
    return (
        "" if states is None or exact is None else f"{max(abs(a - b) for a, b in zip(states, exact, strict=True)):.0e}"
    )


def make_model(width: str, folder: Path) -> None:
    """A model with random weights in a layout that both packages read."""
    from rinalmo.model.config import ModelConfig
    from rinalmo.model.rinalmo import ModelSpec, create
    from rinalmo.weights.checkpoint import save

    hidden, layers = WIDTHS[width]
    config = ModelConfig(hidden_size=hidden, num_hidden_layers=layers)
    save(create(ModelSpec(config, heads={"pooler": {}})), folder, "multimolecule", overwrite=True)


def main() -> None:
    chosen = sides.options(
        __doc__,
        widths={"nargs": "+", "choices": list(WIDTHS), "default": list(WIDTHS)},
        workloads={"nargs": "+", "choices": WORKLOADS, "default": list(WORKLOADS)},
        precisions={"nargs": "+", "default": ["fp32", "bf16", "int8"]},
    )
    sides.head("Encoder", chosen)
    with tempfile.TemporaryDirectory() as scratch:
        for width in chosen.widths:
            make_model(width, Path(scratch, width))
            for workload in chosen.workloads:
                compare(str(Path(scratch, width)), workload, width, chosen)


if __name__ == "__main__":
    serves = {f.__name__: f for f in (rinalmo, plain, multimolecule, official, peak)}
    sides.serve_or(main, serves)
