"""Attention over packed sequences behind one function, `attend`.

    sdpa     torch's scaled_dot_product_attention, once per run of equal-length sequences; any device, any dtype
    varlen   torch.nn.attention.varlen; CUDA, half precision, no dropout
    flash    flash-attn's variable-length kernel; CUDA, half precision
    eager    written out; the only one that returns the attention weights

`auto` takes flash, then varlen, where they apply, and sdpa everywhere else. The two CUDA kernels have not been run
on a GPU by this project; `sdpa` is what its tests and numbers rest on. None of them ever builds an L × L matrix
across sequences, and only `eager` builds one within a sequence.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rinalmo.errors import InputError
from rinalmo.model.packing import Layout, Run

Backend = Literal["auto", "sdpa", "varlen", "flash", "eager"]
Packed = Float[Tensor, "tokens heads head"]


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
    if not q.is_cuda or q.dtype not in (torch.float16, torch.bfloat16):
        return "sdpa"
    if _installed("flash_attn"):
        return "flash"
    return "varlen" if dropout == 0.0 and _installed("torch.nn.attention.varlen") else "sdpa"


def attend_with_weights(
    q: Float[Tensor, "tokens heads head"],
    k: Float[Tensor, "tokens heads head"],
    v: Float[Tensor, "tokens heads head"],
    layout: Layout,
    *,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "tokens heads head"], list[Tensor]]:
    """As `attend`, written out, and for each sequence its attention weights `(heads, length, length)`."""
    outputs, weights = [], []
    for qs, ks, vs in _sequences(q, k, v, layout):
        scores = torch.einsum("ihd,jhd->hij", qs, ks) * q.shape[-1] ** -0.5
        probabilities = scores.softmax(dim=-1)
        weights.append(probabilities)
        outputs.append(torch.einsum("hij,jhd->ihd", F.dropout(probabilities, dropout, training=dropout > 0), vs))
    return (torch.cat(outputs) if outputs else torch.zeros_like(q)), weights


def _sequences(q: Packed, k: Packed, v: Packed, layout: Layout) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each sequence's queries, and the keys and values that they may see."""
    parts = zip(layout.split(q), layout.split(k), layout.split(v), layout.real_lengths, strict=True)
    return ((qs, ks[:real], vs[:real]) for qs, ks, vs, real in parts)


def _sdpa(q: Packed, k: Packed, v: Packed, layout: Layout, dropout: float) -> Tensor:
    if layout.real is not None:
        return torch.cat([_sdpa_one(*sequence, dropout) for sequence in _sequences(q, k, v, layout)])
    if q.requires_grad and q.dtype == torch.bfloat16 and not q.is_cuda:
        # The fused kernel's backward pass on a CPU takes 2–6 times as long in bf16 as in fp32 (heads of 16, AMX).
        with torch.autocast("cpu", enabled=False):
            return _sdpa(q.float(), k.float(), v.float(), layout, dropout).to(q.dtype)
    # Split, not sliced: the backward pass of a slice fills and adds a tensor as long as the whole batch.
    sizes = [run.count * run.length for run in layout.runs]
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), layout.runs, strict=True)
    outputs = [_sdpa_run(*part, dropout) for part in parts]
    return torch.cat(outputs) if outputs else torch.zeros_like(q)


def _sdpa_run(q: Packed, k: Packed, v: Packed, run: Run, dropout: float) -> Tensor:
    def block(x: Tensor) -> Tensor:
        return x.unflatten(0, (run.count, run.length)).transpose(1, 2)

    out = F.scaled_dot_product_attention(block(q), block(k), block(v), dropout_p=dropout)
    return out.transpose(1, 2).flatten(0, 1)


def _sdpa_one(q: Packed, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(0, 1)


def _varlen(q: Packed, k: Packed, v: Packed, layout: Layout, dropout: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if dropout:
        raise InputError("attention backend 'varlen' has no dropout; use 'flash' or 'sdpa' to train with dropout")
    longest, cu_seqlens = layout.max_seqlen, layout.cu_seqlens
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest)
    return out[0] if isinstance(out, tuple) else out


def _flash(q: Packed, k: Packed, v: Packed, layout: Layout, dropout: float) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    longest, cu_seqlens = layout.max_seqlen, layout.cu_seqlens
    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, longest, longest, dropout_p=dropout)


_KERNELS: dict[str, Callable[[Packed, Packed, Packed, Layout, float], Tensor]] = {
    "sdpa": _sdpa,
    "varlen": _varlen,
    "flash": _flash,
}


@cache
def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
