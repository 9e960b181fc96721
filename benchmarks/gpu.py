"""Check and measure this package on one GPU, in under 6 minutes: correctness, speed and memory.

    python benchmarks/gpu.py                                    # the first CUDA device; a table, and gpu.json
    python benchmarks/gpu.py --output h200.json --parts speed training
    python benchmarks/gpu.py --device cpu --tiny                # the same code at toy sizes, to test this script

Needs no network and no installation: torch 2.9 or newer, numpy, safetensors, transformers, and this package's core
dependencies. multimolecule is measured beside it where it is installed.

    right      states, logits, every head and the gradients of a training step against fp64 on the CPU; backends of
               attention against each other; a sequence alone, with others, in any order; no synchronization
               within the encoder
    speed      tokens/s of giga (all 33 layers) on the real length mix, at 200 nt and at 4 kb, and of nano, beside the
               matrix peak of the same run
    training   a step of micro and of giga: forward, backward, AdamW
    folding    RNAs of 500 nt per second, decoded by CPU processes
    cold       time from the start of Python to the first embedding
    peer       multimolecule at its best on the same mix
    memory     of weights, tokens and training

Each part runs in its own process: if one fails, even by a crash of the device, the others are still measured, and its
row says what failed. Random weights replace giga's, because the cost is the same; lengths are drawn from the
quantiles of the ncRNA set of this project (185,257 sequences, mean 406 nt).
"""

# ruff: noqa: E402  (a checkout that is not installed must be added to the path first)

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1] / "src"
try:
    import rinalmo
except ImportError:
    sys.path.insert(0, str(SOURCE))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    import rinalmo

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cost_model import activation_bytes
from rinalmo.engine.devices import native_precision
from rinalmo.engine.engine import Engine, to_host
from rinalmo.engine.gpu_encoder import GpuEncoder
from rinalmo.inference.embed import mean_of_nucleotides
from rinalmo.model import kernels
from rinalmo.model.config import ModelConfig, count_macs
from rinalmo.model.packing import Layout, pack
from rinalmo.model.rinalmo import ModelSpec, RiNALMo, initialise
from rinalmo.training.trainer import training_flops

# Every 5 %, then 96 to 100 %, of the lengths of the ncRNA set.
QUANTILES = (16, 54, 66, 72, 74, 78, 84, 92, 101, 112, 120, 135, 154, 157, 200, 253, 377, 771, 1408, 2161)
TAIL = (2712, 2890, 2934, 3322, 8158)

# Seconds that a part may take; unused time goes to the later parts.
PARTS = {"right": 100, "speed": 90, "training": 75, "folding": 40, "cold": 30, "peer": 60, "memory": 40}
TOTAL = 345

HEADS: dict[str, dict[str, Any]] = {
    "lm_head": {},
    "pooler": {},
    "sequence_head": {"num_labels": 3},
    "token_head": {"num_labels": 3},
    "contact_head": {"num_labels": 2},
    "structure_head": {},
    "partner_head": {},
    "ribosome_load_head": {},
    "splice_site_head": {},
    "ncrna_family_head": {},
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What to measure on which device. Toy sizes run through the same code."""

    device: str
    tiny: bool

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def half(self) -> str:
        """The reduced precision of the GPU; bf16 on a CPU."""
        native = "bf16" if self.device == "cpu" else native_precision(self.torch_device)
        return "fp16" if native == "fp32" else native

    def config(self, name: str, **changes: Any) -> ModelConfig:
        if self.tiny:
            return ModelConfig(hidden_size=80, num_hidden_layers=2, num_attention_heads=5, **changes)
        return ModelConfig.preset(name, **changes)

    def fuses(self, name: str = "", precision: str = "") -> bool:
        """Whether to compile here; the toy run compiles once, because it takes half a minute each time on a CPU."""
        return precision in ("", self.half) and (not self.tiny or name == "giga")

    def sized(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        elif self.device == "mps":
            torch.mps.synchronize()


class Report:
    """Sends a row for each result, also for one that could not be measured."""

    def __init__(self, send: Callable[[dict[str, Any]], None], deadline: float) -> None:
        self._send, self._deadline = send, deadline

    def left(self) -> float:
        return self._deadline - time.monotonic()

    def add(self, name: str, value: float, unit: str = "", aim: str = "", note: str = "") -> None:
        row = {"name": name, "value": value, "unit": unit, "aim": aim, "note": note}
        if aim:
            bound = float(aim.split()[1])
            row["reached"] = bool(value <= bound if aim.startswith("<=") else value >= bound)
        self._send(row)

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """A measurement that may fail, or be skipped when the time of the part is over."""
        try:
            if self.left() < 0:
                raise TimeoutError("left out: the time of this part is over")
            yield
        except Exception as error:
            traceback.print_exc()
            self._send({"name": name, "failed": f"{type(error).__name__}: {str(error).strip()[:300]}"})


# Computations.


def mix(tokens: int, longest: int = 10**9, seed: int = 0) -> list[int]:
    """Lengths as in the real set, until `tokens` is reached."""
    draw, lengths = random.Random(seed), []
    points = [*((number / 20, value) for number, value in enumerate(QUANTILES))]
    points += [((96 + number) / 100, value) for number, value in enumerate(TAIL)]
    while sum(lengths) < tokens:
        share = draw.random()
        right = next(i for i, (q, _) in enumerate(points) if q > share)
        (q0, v0), (q1, v1) = points[right - 1], points[right]
        lengths.append(min(longest, round(v0 + (v1 - v0) * (share - q0) / (q1 - q0))))
    return lengths


def rnas(lengths: Sequence[int], seed: int = 0, masks: bool = False) -> list[np.ndarray]:
    """Token ids of random RNAs, of any alphabet of ours, with CLS and EOS."""
    draw = np.random.default_rng(seed)
    letters = np.array([6, 7, 8, 9, 4] if masks else [6, 7, 8, 9])
    return [np.concatenate([[1], draw.choice(letters, max(1, length)), [2]]) for length in lengths]


def packed(sequences: Sequence[np.ndarray], device: torch.device | str = "cpu") -> tuple[Tensor, Layout]:
    return pack([torch.from_numpy(sequence) for sequence in sequences], device)


def random_model(config: ModelConfig, device: torch.device, heads: dict[str, dict[str, Any]]) -> RiNALMo:
    """Random weights, created on the device: giga's take a while on a CPU."""
    with torch.device("meta"):
        model = RiNALMo(ModelSpec(config, heads=heads))
    model.to_empty(device=device)
    torch.manual_seed(0)
    initialise(model, config.initializer_range)
    return model.eval()


def in_fp64(model: RiNALMo) -> RiNALMo:
    """A copy on the CPU."""
    config = dataclasses.replace(model.config, attention_dropout=0.0, hidden_dropout=0.0)
    twin = RiNALMo(dataclasses.replace(model.spec, config=config))
    twin.load_state_dict({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    return twin.double().train(model.training)


def token_error(found: Tensor, expected: Tensor) -> float:
    """The largest relative error of a row."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-9)).max())


def whole_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The relative error of all numbers together."""
    pairs = [(a.detach().cpu().double(), b.detach().cpu().double()) for a, b in zip(found, expected, strict=True)]
    squares = [(float((a - b).square().sum()), float(b.square().sum())) for a, b in pairs]
    return math.sqrt(sum(error for error, _ in squares) / max(1e-30, sum(size for _, size in squares)))


def matrix_peak(setting: Setting, precision: str) -> float:
    """FLOP/s of a large matrix product, the best of several."""
    side = setting.sized(8192, 256)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = torch.randn(2, side, side, device=setting.device).to(dtype)
    for _ in range(3):
        a @ b
    best = math.inf
    for _ in range(8):
        setting.wait()
        start = time.perf_counter()
        for _ in range(setting.sized(10, 1)):
            a @ b
        setting.wait()
        best = min(best, (time.perf_counter() - start) / setting.sized(10, 1))
    return 2.0 * side**3 / best


def inference_flops(config: ModelConfig, lengths: Sequence[int]) -> float:
    return 2.0 * sum(count_macs(config, length + 2) for length in lengths)


# The parts.


def right(setting: Setting, report: Report) -> None:
    device = setting.torch_device
    torch.backends.cudnn.allow_tf32 = False  # heads with convolutions; the encoder has none
    with report.trying("attention"):
        _attention(setting, report)
    nano = rinalmo.load("nano", device=device).eval()
    with_heads = random_model(dataclasses.replace(nano.config), device, HEADS)
    with_heads.encoder.load_state_dict(nano.encoder.state_dict())
    with report.trying("heads"):
        _heads(setting, report, with_heads)
    lengths = [20, 75, 75, 160] if not setting.tiny else [20, 31, 31]
    for name in ("nano", "giga"):
        with report.trying(name):
            lm_head = {"lm_head": {}}
            model = nano if name == "nano" else random_model(setting.config("giga"), device, lm_head)
            _states(setting, report, name, model, rnas(lengths, masks=True))
            _gradients(setting, report, name, model, rnas(lengths[:2]))


def _states(setting: Setting, report: Report, name: str, model: RiNALMo, sequences: list[np.ndarray]) -> None:
    layers = sorted({0, 1, model.config.num_hidden_layers // 2, model.config.num_hidden_layers})
    with torch.no_grad():
        exact = in_fp64(model)
        ids, layout = packed(sequences)
        out = exact.encoder(ids, layout, output_hidden_states=True)
        assert out.hidden_states is not None
        logits = exact.head("lm_head").double()
        expected_logits = _written_out(logits, out.last_hidden_state)
    on_device = packed(sequences, setting.torch_device)
    for precision, aim in (("fp32", "<= 1e-4"), (setting.half, "<= 2e-2")):
        encoder = GpuEncoder(model.encoder, precision, compile=False)
        states = encoder(*on_device, layers)
        error = max(token_error(a, out.hidden_states[layer]) for a, layer in zip(states, layers, strict=True))
        report.add(f"{name}: states in {precision} against fp64", error, "", aim, f"layers {layers}")
        with torch.no_grad():
            error = token_error(model.head("lm_head")(states[-1]), expected_logits)
        report.add(f"{name}: logits in {precision} against fp64", error, "", aim)
        if setting.fuses(name, precision):
            fused = GpuEncoder(model.encoder, precision, compile=True)
            error = token_error(fused(*on_device, layers)[-1], out.hidden_states[-1])
            report.add(f"{name}: states in {precision}, compiled", error, "", aim, kernels.compile_error() or "")
        alone = [encoder(*packed([sequence], setting.torch_device), [layers[-1]])[0] for sequence in sequences]
        backwards = encoder(*packed(sequences[::-1], setting.torch_device), [layers[-1]])[0]
        error = max(
            token_error(states[-1], torch.cat(alone)),
            token_error(torch.cat(layout.split(states[-1].cpu())[::-1]), backwards),
        )
        report.add(f"{name}: alone, in a batch, reversed order, {precision}", error, "", aim)
    if setting.device.startswith("cuda"):
        with report.trying(f"{name}: no wait within the encoder"):
            torch.cuda.set_sync_debug_mode("error")
            try:
                encoder(*packed(sequences, setting.torch_device), layers)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            report.add(f"{name}: waits within the encoder", 0, "", "<= 0")


def _written_out(head: Any, states: Tensor) -> Tensor:
    """The masked-LM head in fp64 instead of fp32."""
    y = F.gelu(F.linear(states, head.dense.weight, head.dense.bias))
    y = F.layer_norm(y, head.norm.normalized_shape, head.norm.weight, head.norm.bias, head.norm.eps)
    return F.linear(y, head.decoder.weight, head.decoder.bias)


def _gradients(setting: Setting, report: Report, name: str, model: RiNALMo, sequences: list[np.ndarray]) -> None:
    """Gradients of the masked-LM loss, without dropout."""
    model.train().requires_grad_()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "qkv"):
            module.dropout = 0.0
    try:
        expected = _gradient(in_fp64(model), "cpu", sequences, None)
        for precision, aim in (("fp32", "<= 1e-3"), (setting.half, "<= 1e-1")):
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
            for fuse in (False, True) if setting.fuses("gradients", precision) else (False,):
                model.encoder.fuse = fuse
                found = _gradient(model, setting.device, sequences, dtype)
                how = ", compiled" if fuse else ""
                report.add(f"{name}: gradients in {precision}{how}", whole_error(found, expected), "", aim)
    finally:
        model.encoder.fuse = None
        model.zero_grad()
        model.eval()


def _gradient(model: RiNALMo, device: str, sequences: list[np.ndarray], dtype: torch.dtype | None) -> list[Tensor]:
    model.zero_grad()
    ids, layout = packed(sequences, device)
    places = torch.arange(1, len(ids), 7, device=device)
    masked = ids.clone()
    masked[places] = model.alphabet.mask_id
    scale = 1024.0 if dtype == torch.float16 else 1.0
    with torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
        states = model.encoder(masked, layout).last_hidden_state[places]
        logits = _written_out(model.head("lm_head"), states) if states.dtype == torch.float64 else None
        logits = model.head("lm_head")(states) if logits is None else logits
        (F.cross_entropy(logits, ids[places]) * scale).backward()
    return [parameter.grad / scale for parameter in model.parameters() if parameter.grad is not None]


def _attention(setting: Setting, report: Report) -> None:
    device = setting.torch_device
    layout = Layout((7, 64, 64, 200, 1), device)
    for precision in ("fp32", setting.half):
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        for head_size in (16, 64):
            q, k, v = torch.randn(3, layout.total, 4, head_size, device=device).to(dtype)
            exact = [x.cpu().double().requires_grad_() for x in (q, k, v)]
            expected = kernels.attend_with_weights(*exact, Layout(layout.lengths))[0]
            expected.square().sum().backward()
            on_cuda = kernels.candidates(dtype, head_size, False) if device.type == "cuda" else ["nested"]
            for backend in ("sdpa", *on_cuda):
                what = f"attention by {backend}, {precision}, heads of {head_size}"
                with report.trying(what):
                    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
                    found = kernels.attend(*leaves, layout, backend=backend)
                    found.float().square().sum().backward()
                    aim = "<= 1e-4" if precision == "fp32" else "<= 2e-2"
                    report.add(what, whole_error([found], [expected.detach()]), "", aim)
                    gradients = [x.grad for x in exact if x.grad is not None]
                    error = whole_error([x.grad for x in leaves if x.grad is not None], gradients)
                    report.add(f"{what}: gradients", error, "", aim)
            chosen = {drop: _chosen(device, dtype, head_size, drop) for drop in (0.0, 0.1)}
            report.add(f"attention chosen, {precision}, heads of {head_size}", 0, "", "", str(chosen))


def _chosen(device: torch.device, dtype: torch.dtype, head_size: int, dropout: float) -> str:
    return kernels.best_backend(device, dtype, head_size, dropout > 0)


def _heads(setting: Setting, report: Report, model: RiNALMo) -> None:
    """Each head on the same states, in fp32 on the device and in fp64 on the CPU (the partner head in fp32)."""
    exact = in_fp64(model)
    ids, layout = packed(rnas([24, 40]))
    with torch.no_grad():
        states = exact.encoder(ids, layout).last_hidden_state
        for name in HEADS:
            with report.trying(f"head {name}"):
                expected = _apply(exact, name, states, ids, layout)
                here = Layout(layout.lengths, setting.torch_device)
                found = _apply(model, name, states.float().to(setting.device), ids.to(setting.device), here)
                report.add(f"nano: {name} in fp32 against fp64", whole_error(found, expected), "", "<= 1e-4")


def _apply(model: RiNALMo, name: str, states: Tensor, ids: Tensor, layout: Layout) -> list[Tensor]:
    head = model.head(name)
    inner = [part[1:-1] for part in layout.split(states)]
    if name == "lm_head" and states.dtype == torch.float64:
        return [_written_out(head, states)]
    if name in ("lm_head", "token_head"):
        return [head(states)]
    if name == "sequence_head":
        return [head(model.head("pooler")(states, layout))]
    if name in ("contact_head", "structure_head"):
        return [head(part) for part in inner]
    if name == "partner_head":
        head.float()
        return [head(p.float(), part[1:-1] - 6).exp() for p, part in zip(inner, layout.split(ids), strict=True)]
    return [head(states, layout)]


def speed(setting: Setting, report: Report) -> None:
    device, half = setting.torch_device, setting.half
    peak = matrix_peak(setting, half)
    report.add(f"matrix peak in {half}", peak / 1e12, "TFLOP/s")
    os.environ[kernels.COMPILE_VARIABLE] = "1"
    for name in ("giga", "nano"):
        with report.trying(name):
            config = setting.config(name)
            model = random_model(config, device, {})
            tokens = setting.sized(1_500_000 if name == "giga" else 6_000_000, 3_000)
            work = {"real mix": mix(tokens), "200 nt": [200] * (tokens // 200)}
            if name == "giga":
                work["4 kb"] = [setting.sized(4000, 300)] * max(2, tokens // 8000)
            engine = Engine(model, half if setting.device != "cpu" else "fp32", device=device)
            _embed_speed(setting, report, name, engine, work, peak)
            _bare_speed(setting, report, name, model, peak)
            del engine, model


def _embed_speed(
    setting: Setting, report: Report, name: str, engine: Engine, work: dict[str, list[int]], peak: float
) -> None:
    """Speed including packing, copies, encoder, mean over nucleotides and results on the host."""
    last = engine.config.num_hidden_layers

    def compute(ids: Tensor, layout: Layout) -> list[np.ndarray]:
        states = engine.hidden_states(ids, layout, [last])[0]
        return list(to_host(mean_of_nucleotides(states, layout))[0].numpy())

    start = time.perf_counter()
    for _ in engine.map(compute, rnas(work["real mix"][: setting.sized(400, 10)])):
        pass
    report.add(f"{name}: first batches, compilation included", time.perf_counter() - start, "s")
    for what, lengths in work.items():
        with report.trying(f"{name}: {what}"):
            sequences = rnas(lengths)
            setting.wait()
            start = time.perf_counter()
            count = sum(1 for _ in engine.map(compute, sequences))
            setting.wait()
            seconds = time.perf_counter() - start
            assert count == len(sequences)
            tokens = sum(map(len, sequences))
            aim = ">= 0.55" if name == "giga" and what == "real mix" else ""
            report.add(f"{name}: embedding, {what}", tokens / seconds, "tokens/s", "", f"{engine.batch_tokens} a batch")
            share = inference_flops(engine.config, lengths) / seconds / peak
            report.add(f"{name}: share of the matrix peak, {what}", share, "", aim)


def _bare_speed(setting: Setting, report: Report, name: str, model: RiNALMo, peak: float) -> None:
    """Speed of the encoder alone, on batches that are already on the device, compiled and uncompiled."""
    lengths = sorted(mix(setting.sized(65_536, 500)))
    ids, layout = packed(rnas(lengths), setting.torch_device)
    for fuse in (True, False) if setting.fuses() else (False,):
        how = "compiled" if fuse else "as written"
        with report.trying(f"{name}: encoder alone, {how}"):
            encoder = GpuEncoder(model.encoder, setting.half, compile=fuse)
            for _ in range(2):
                encoder(ids, layout, [model.config.num_hidden_layers])
            setting.wait()
            rounds = setting.sized(6, 1)
            start = time.perf_counter()
            for _ in range(rounds):
                encoder(ids, Layout(layout.lengths, layout.device), [model.config.num_hidden_layers])
            setting.wait()
            seconds = (time.perf_counter() - start) / rounds
            report.add(f"{name}: encoder alone, {how}", layout.total / seconds, "tokens/s")
            share = inference_flops(model.config, lengths) / seconds / peak
            report.add(f"{name}: encoder alone, {how}, share of the matrix peak", share)
    if problem := kernels.compile_error():
        report.add(f"{name}: torch.compile", 0, "", "", problem)


def training(setting: Setting, report: Report) -> None:
    peak = matrix_peak(setting, setting.half)
    for name, most, checkpointing in (("micro", 65_536, False), ("giga", 32_768, False), ("giga", 65_536, True)):
        tokens = most if checkpointing else min(most, _fitting(setting, name))
        what = f"{name}, {tokens} tokens{', checkpointing' if checkpointing else ''}"
        with report.trying(what):
            lengths = sorted(mix(setting.sized(tokens, 300), longest=setting.sized(1022, 60)))
            seconds, flops, memory = _training_step(setting, name, lengths, checkpointing)
            total = sum(lengths) + 2 * len(lengths)
            report.add(f"{what}: training", total / seconds, "tokens/s", "", f"{memory / 2**30:.1f} GB at most")
            aim = ">= 0.45" if not checkpointing else ""
            report.add(f"{what}: share of the matrix peak", flops / seconds / peak, "", aim)


def _fitting(setting: Setting, name: str) -> int:
    """Number of tokens whose activations fit into half of the memory, without checkpointing."""
    if not setting.device.startswith("cuda"):
        return 65_536
    lengths = [400] * 10
    each = activation_bytes(setting.config(name), lengths, sum(lengths) // 7, path="sdpa") / sum(lengths)
    return int(torch.cuda.get_device_properties(setting.torch_device).total_memory / 2 / each) // 1024 * 1024


def _training_step(
    setting: Setting, name: str, lengths: Sequence[int], checkpointing: bool
) -> tuple[float, float, int]:
    """Seconds and useful FLOPs of a step, and the peak of memory: dropout 0.1, reduced precision, fused AdamW."""
    device = setting.torch_device
    model = random_model(setting.config(name), device, {"lm_head": {}}).train()
    model.encoder.gradient_checkpointing = checkpointing
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids, layout = packed(rnas(lengths), device)
    places = torch.arange(0, len(ids), 7, device=device)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[setting.half]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        fresh = Layout(layout.lengths, device)
        with torch.autocast(device.type, half):
            logits = model.head("lm_head")(model.encoder(ids, fresh).last_hidden_state[places])
        F.cross_entropy(logits, ids[places]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(setting.sized(2, 1)):
        step()
    setting.wait()
    rounds = setting.sized(4, 1)
    start = time.perf_counter()
    for _ in range(rounds):
        step()
    setting.wait()
    seconds = (time.perf_counter() - start) / rounds
    return seconds, training_flops(model.config, layout.lengths, len(places)), _most_memory(device)


def folding(setting: Setting, report: Report) -> None:
    from rinalmo.inference.fold import fold_records
    from rinalmo.io.sequences import Record
    from rinalmo.rna.decoding import Decoder, other_processes

    draw = random.Random(0)
    count, length = setting.sized(600, 4), setting.sized(500, 60)
    records = [Record(f"r{n}", "", "".join(draw.choices("ACGU", k=length))) for n in range(count)]
    engine = Engine("nano-fold", device=setting.device)
    with Decoder(0 if setting.tiny or setting.torch_device.type == "cpu" else other_processes()) as decoder:
        list(fold_records(records[: 4 * max(1, decoder.processes)], engine, decoder=decoder))
        setting.wait()
        start = time.perf_counter()
        pairs = sum(len(structure.pairs) for structure, _ in fold_records(records, engine, decoder=decoder))
        seconds = time.perf_counter() - start
        note = f"{decoder.processes} processes decode, {pairs} pairs"
    report.add(f"nano-fold: RNAs of {length} nt", count / seconds, "RNAs/s", "", note)
    with report.trying("decoding in this process"):
        few = records[: setting.sized(60, 4)]
        start = time.perf_counter()
        list(fold_records(few, engine))
        report.add("nano-fold: the same, decoded in one process", len(few) / (time.perf_counter() - start), "RNAs/s")


_COLD = """
import sys, time
import rinalmo
vector = rinalmo.embed("GGGAAAUCCC", "nano", device=sys.argv[1])
print(vector.shape)
"""


def cold(setting: Setting, report: Report) -> None:
    for switch in ("", "1") if not setting.tiny else ("",):
        environment = {**os.environ, kernels.COMPILE_VARIABLE: switch}
        start = time.perf_counter()
        command = [sys.executable, "-W", "ignore", "-c", _COLD, setting.device]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        what = "nano: first embedding from a cold start" + (", compiled" if switch else "")
        report.add(what, time.perf_counter() - start, "s")


def peer(setting: Setting, report: Report) -> None:
    try:
        import multimolecule
    except ImportError as error:
        report.add("multimolecule", 0, "", "", f"is not installed here, so not measured ({error})")
        return
    lengths = sorted(mix(setting.sized(400_000, 2_000)))
    tokens = sum(lengths) + 2 * len(lengths)
    config = setting.config("giga")
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[setting.half]
    best, note = 0.0, ""
    for kind in ("sdpa", "flash_attention_2") if version("flash_attn") else ("sdpa",):
        theirs = multimolecule.RiNALMoConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            attn_implementation=kind,
        )
        for budget in (4_096, 16_384, 65_536) if not setting.tiny else (512,):
            what = f"multimolecule, {kind}, {budget} padded tokens a batch"
            with report.trying(what):
                with torch.device(setting.device):
                    model = multimolecule.RiNALMoModel(theirs).to(half).eval()
                batches = list(_padded(rnas(lengths), budget))
                seconds = min(_peer_seconds(setting, model, batches) for _ in range(2))
                report.add(what, tokens / seconds, "tokens/s", "", f"giga, {setting.half}, sorted by length")
                best, note = max((best, note), (tokens / seconds, what))
            model = None
    os.environ[kernels.COMPILE_VARIABLE] = "1"
    engine = Engine(random_model(config, setting.torch_device, {}), "fp32" if setting.device == "cpu" else setting.half)
    engine_rows: dict[str, float] = {}
    ours = Report(lambda row: engine_rows.setdefault(row["name"], row.get("value", 0.0)), math.inf)
    _embed_speed(setting, ours, "giga", engine, {"real mix": lengths}, 1.0)
    ratio = engine_rows["giga: embedding, real mix"] / best
    report.add("giga against multimolecule at its best", ratio, "×", ">= 3", note)


def _padded(sequences: list[np.ndarray], budget: int) -> Iterator[tuple[Tensor, Tensor]]:
    batch: list[np.ndarray] = []
    for sequence in [*sequences, None]:
        if sequence is None or (batch and len(sequence) * (len(batch) + 1) > budget):
            width = max(map(len, batch))
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, one in enumerate(batch):
                ids[row, : len(one)], mask[row, : len(one)] = torch.from_numpy(one), 1
            yield ids, mask
            batch = []
        if sequence is not None:
            batch.append(sequence)


@torch.inference_mode()
def _peer_seconds(setting: Setting, model: Any, batches: list[tuple[Tensor, Tensor]]) -> float:
    setting.wait()
    start = time.perf_counter()
    for ids, mask in batches:
        ids, mask = ids.to(setting.device), mask.to(setting.device)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).float().cpu()
    return time.perf_counter() - start


def memory(setting: Setting, report: Report) -> None:
    device = setting.torch_device
    with report.trying("giga"):
        model = random_model(setting.config("giga"), device, {})
        encoder = GpuEncoder(model.encoder, setting.half)
        del model.encoder.blocks
        report.add("giga: weights", _memory_now(device) / 2**30, "GB")
        for what, lengths in {
            "a batch of the real mix": mix(setting.sized(65_536, 500)),
            "one RNA of 100,000 nt": [setting.sized(100_000, 700)],
        }.items():
            with report.trying(what):
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                before = _memory_now(device)
                ids, layout = packed(rnas(lengths), device)
                encoder(ids, layout, [model.config.num_hidden_layers])
                setting.wait()
                most = _most_memory(device) - before
                report.add(f"giga: {what}", most / layout.total / 2**10, "kB a token", "", f"{most / 2**30:.2f} GB")


def _memory_now(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    return torch.mps.current_allocated_memory() if device.type == "mps" else _most_memory(device)


def _most_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


FUNCTIONS: dict[str, Callable[[Setting, Report], None]] = {
    function.__name__: function for function in (right, speed, training, folding, cold, peer, memory)
}


# The parent's end.


def child(name: str, setting: Setting, seconds: float, end: Any) -> None:
    report = Report(end.send, time.monotonic() + seconds)
    with report.trying(name):
        FUNCTIONS[name](setting, report)
    end.send({"done": True})
    end.close()


def run_part(name: str, setting: Setting, seconds: float) -> list[dict[str, Any]]:
    """The rows of a part; if the part did not finish, the last row says what failed."""
    # This process has not touched the GPU, so a fork may use it; a fork saves importing torch.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(name, setting, 0.85 * seconds, theirs))
    process.start()
    theirs.close()
    rows, end, failure = [], time.monotonic() + seconds, ""
    try:
        while True:
            if not ours.poll(max(0.0, end - time.monotonic())):
                failure = f"TimeoutError: did not end within {seconds:.0f} s"
                break
            row = ours.recv()
            if row.get("done"):  # processes that the part has started may hold the pipe open
                break
            rows.append({"part": name, **row})
            show(rows[-1])
    except EOFError:
        process.join(10)
        if process.exitcode:
            failure = f"the process ended with code {process.exitcode}"
    process.join(0 if failure else 10)
    if process.is_alive():
        process.kill()
    process.join()
    if failure:
        rows.append({"part": name, "name": name, "failed": failure})
        show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    if "failed" in row:
        value = f"FAILED: {row['failed']}"
    else:
        number = f"{row['value']:,.0f}" if row["value"] >= 1000 else f"{row['value']:.3g}"
        verdict = f"(aim {row['aim']}: {'yes' if row['reached'] else 'NO'})" if row["aim"] else ""
        value = " ".join(filter(None, (number, row["unit"], verdict, row["note"] and f"[{row['note']}]")))
    print(f"| {row['part']:<8} | {row['name']:<64} | {value} |", flush=True)


_MACHINE = """
import json, sys, torch
of = torch.cuda.get_device_properties(torch.device(sys.argv[1]))
about = {"name": of.name, "memory_GB": round(of.total_memory / 2**30, 1), "capability": f"{of.major}.{of.minor}"}
print(json.dumps({**about, "multiprocessors": of.multi_processor_count}))
"""


def machine(setting: Setting) -> dict[str, Any]:
    """The device, queried in other processes so that this one does not touch the GPU."""
    about: dict[str, Any] = {
        "device": setting.device,
        "tiny": setting.tiny,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "rinalmo": rinalmo.__version__,
        "packages": {name: version(name) for name in ("triton", "flash_attn", "transformers", "multimolecule")},
    }
    if not setting.device.startswith("cuda"):
        return about
    asked = [sys.executable, "-W", "ignore", "-c", _MACHINE, setting.device]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    about["gpu"] = json.loads(answer.stdout) if answer.returncode == 0 else f"FAILED: {answer.stderr.strip()[-300:]}"
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
        about["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        about["driver"] = None
    return about


def version(name: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, mps or cpu (default: cuda)")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="the JSON file (default: gpu.json)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for everything (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that the script runs")
    chosen = parser.parse_args()
    started = time.monotonic()
    setting = Setting(chosen.device, chosen.tiny)
    about = machine(setting)
    for key, value in about.items():
        print(f"{key}: {value}")
    print(f"\n| {'part':<8} | {'what':<64} | value |\n|{'-' * 10}|{'-' * 66}|-------|", flush=True)
    rows: list[dict[str, Any]] = []
    for part in chosen.parts:
        left = chosen.seconds - (time.monotonic() - started)
        if left < 5:
            rows.append({"part": part, "name": part, "failed": "left out: the time is over"})
            show(rows[-1])
        else:
            rows += run_part(part, setting, min(left, PARTS[part]))
    seconds = time.monotonic() - started
    failed = sum("failed" in row for row in rows)
    missed = sum(not row.get("reached", True) for row in rows)
    print(f"\n{len(rows)} rows, {failed} failed, {missed} aims missed, {seconds:.0f} s; written to {chosen.output}")
    report = {"machine": about, "seconds": seconds, "rows": rows}
    chosen.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
