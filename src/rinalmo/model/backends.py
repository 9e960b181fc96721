"""Attention over packed sequences behind one function, `attend`.

    sdpa     torch's scaled_dot_product_attention, once per run of equal-length sequences; any device, any dtype
    nested   the same on a nested (jagged) tensor, one kernel for all sequences: flash in half precision,
             memory-efficient in fp32, both with dropout; meant for CUDA, slow elsewhere
    varlen   torch.nn.attention.varlen; CUDA, half precision, no dropout
    flash    flash-attn's variable-length kernel; CUDA, half precision
    eager    written out; the only one that returns the attention weights

`auto` takes sdpa off CUDA. On CUDA it takes the first of flash, varlen and nested that serves the type, the size of the
heads and the dropout, and that gives the numbers of `eager` on a small example, tried once; else sdpa. The three have
not been run on a GPU by this project. None of them ever builds an L × L matrix across sequences, and only `eager`
builds one within a sequence.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rinalmo.errors import InputError
from rinalmo.model.packing import Layout, Run

Backend = Literal["auto", "sdpa", "nested", "varlen", "flash", "eager"]
Packed = Float[Tensor, "tokens heads head"]
WeightsHook = Callable[[list[Tensor]], list[Tensor]]
"""Takes one layer's attention weights, per sequence `(heads, length, length)`; returns those to compute with."""


def attend(
    q: Float[Tensor, "tokens heads head"],
    k: Float[Tensor, "tokens heads head"],
    v: Float[Tensor, "tokens heads head"],
    layout: Layout,
    *,
    dropout: float = 0.0,
    backend: Backend = "auto",
) -> Float[Tensor, "tokens heads head"]:
    """Softmax attention of each sequence to itself, in both directions, scaled by 1/√head.

    `dropout` acts on the attention probabilities; pass 0 outside training, since the kernels do not know the mode.
    """
    if backend == "auto":
        backend = "sdpa" if layout.real is not None else best_backend(q, dropout)
    if backend == "eager":
        return attend_with_weights(q, k, v, layout, dropout=dropout)[0]
    if backend not in _KERNELS:
        raise InputError(f"no attention backend {backend!r}; there are {', '.join(get_args(Backend))}")
    return _KERNELS[backend](q, k, v, layout, dropout)


def best_backend(q: Packed, dropout: float = 0.0) -> Backend:
    """The fastest backend that can serve these queries."""
    if not q.is_cuda:
        return "sdpa"
    return _best_on_cuda(q.device, q.dtype, q.shape[-1], dropout > 0)


@cache
def _best_on_cuda(device: torch.device, dtype: torch.dtype, head_size: int, dropout: bool) -> Backend:
    return next(
        (name for name in candidates(dtype, head_size, dropout) if _agrees(name, device, dtype, head_size)), "sdpa"
    )


def candidates(dtype: torch.dtype, head_size: int, dropout: bool) -> list[Backend]:
    """What may serve queries on CUDA beside `sdpa`, fastest first, by what is installed and what kernels take."""
    if head_size % 8 or head_size > 256 or dtype == torch.float64:
        return []
    names: list[Backend] = []
    if dtype in (torch.float16, torch.bfloat16):
        names += ["flash"] if _has("flash_attn", "flash_attn_varlen_func") else []
        names += ["varlen"] if not dropout and _has("torch.nn.attention.varlen", "varlen_attn") else []
    return [*names, "nested"]


def _agrees(name: Backend, device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether a backend runs here and gives the numbers of `eager`; a warning says so if not."""
    layout = Layout((5, 17), device)
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = torch.randn(3, layout.total, 2, head_size, device=device, generator=generator).to(dtype)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors is in prototype stage")
            found = _KERNELS[name](q, k, v, layout, 0.0).float()
        expected = attend_with_weights(q.float(), k.float(), v.float(), layout)[0]
        error = float((found - expected).abs().max())
    except (RuntimeError, ImportError, NotImplementedError, TypeError, ValueError) as problem:
        warnings.warn(f"attention by {name!r} is left out: {_first_line(problem)}", stacklevel=2)
        return False
    # Half precision rounds probabilities and sums of values of size 1.
    if error > (1e-3 if dtype == torch.float32 else 5e-2):
        warnings.warn(f"attention by {name!r} is left out: it is off by {error:.1g}", stacklevel=2)
        return False
    return True


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]


def attend_with_weights(
    q: Float[Tensor, "tokens heads head"],
    k: Float[Tensor, "tokens heads head"],
    v: Float[Tensor, "tokens heads head"],
    layout: Layout,
    *,
    dropout: float = 0.0,
    hook: WeightsHook | None = None,
) -> tuple[Float[Tensor, "tokens heads head"], list[Tensor]]:
    """As `attend`, written out, and for each sequence its attention weights `(heads, length, length)`."""
    outputs, weights, values = [], [], []
    for qs, ks, vs in _sequences(q, k, v, layout):
        scores = torch.einsum("ihd,jhd->hij", qs, ks) * q.shape[-1] ** -0.5
        weights.append(scores.softmax(dim=-1))
        values.append(vs)
    weights = hook(weights) if hook is not None else weights
    for probabilities, vs in zip(weights, values, strict=True):
        outputs.append(torch.einsum("hij,jhd->ihd", F.dropout(probabilities, dropout, training=dropout > 0), vs))
    return (torch.cat(outputs) if outputs else torch.zeros_like(q)), weights


def _sequences(q: Packed, k: Packed, v: Packed, layout: Layout) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each sequence's queries, and the keys and values that they may see."""
    parts = zip(layout.split(q), layout.split(k), layout.split(v), layout.real_lengths, strict=True)
    return ((qs, ks[:real], vs[:real]) for qs, ks, vs, real in parts)


def _sdpa(q: Packed, k: Packed, v: Packed, layout: Layout, dropout: float) -> Tensor:
    if layout.real is not None:
        return torch.cat([_sdpa_one(*sequence, dropout) for sequence in _sequences(q, k, v, layout)])
    # Split, not sliced: the gradient of a slice is as large as the whole.
    sizes = [run.stop - run.start for run in layout.runs]
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), layout.runs, strict=True)
    outputs = [_sdpa_run(qs, ks, vs, run, dropout) for qs, ks, vs, run in parts]
    return torch.cat(outputs) if outputs else torch.zeros_like(q)


def _sdpa_run(q: Packed, k: Packed, v: Packed, run: Run, dropout: float) -> Tensor:
    def block(x: Tensor) -> Tensor:
        return x.unflatten(0, (run.count, run.length)).transpose(1, 2)

    out = F.scaled_dot_product_attention(block(q), block(k), block(v), dropout_p=dropout)
    return out.transpose(1, 2).flatten(0, 1)


def _sdpa_one(q: Packed, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(0, 1)


def _nested(q: Packed, k: Packed, v: Packed, layout: Layout, dropout: float) -> Tensor:
    lengths = [length for length in layout.lengths if length]
    if not lengths:
        return torch.zeros_like(q)
    # Extremes are given because they would be fetched from the device otherwise.
    shortest, longest = min(lengths), max(lengths)

    def jagged(x: Tensor) -> Tensor:
        whole = torch.nested.nested_tensor_from_jagged(
            x.contiguous(), layout.nonempty_offsets, min_seqlen=shortest, max_seqlen=longest
        )
        return whole.transpose(1, 2)

    out = F.scaled_dot_product_attention(jagged(q), jagged(k), jagged(v), dropout_p=dropout)
    return out.transpose(1, 2).values()


def _varlen(q: Packed, k: Packed, v: Packed, layout: Layout, dropout: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if dropout:
        raise InputError("attention backend 'varlen' has no dropout; use 'nested' or 'flash' to train with dropout")
    longest, cu_seqlens = layout.max_seqlen, layout.cu_seqlens
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest)
    return out[0] if isinstance(out, tuple) else out


def _flash(q: Packed, k: Packed, v: Packed, layout: Layout, dropout: float) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    longest, cu_seqlens = layout.max_seqlen, layout.cu_seqlens
    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, longest, longest, dropout_p=dropout)


_KERNELS: dict[str, Callable[[Packed, Packed, Packed, Layout, float], Tensor]] = {
    "sdpa": _sdpa,
    "nested": _nested,
    "varlen": _varlen,
    "flash": _flash,
}


@cache
def _has(module: str, name: str) -> bool:
    """Whether a module is there and has this function. flash-attn 4, alone, is a `flash_attn` without it."""
    try:
        return hasattr(importlib.import_module(module), name)
    except (ImportError, OSError):  # the latter where its library was built for another torch
        return False
