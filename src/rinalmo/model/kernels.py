"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), base 10,000, over the whole head.

Halves are rotated against each other (dimension `i` with `i + head/2`), not neighbours: the interleaved form gives
other outputs. Angles are computed in fp32 from the positions at every call, so there is no buffer that a cast to
bfloat16 or a load on the meta device could spoil.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from threading import RLock
from typing import Any, Generic, Literal, NamedTuple, ParamSpec, TypeVar, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rinalmo.errors import InputError
from rinalmo.model.packing import EqualLengthGroup, Layout, planes, put_planes

BASE = 10_000.0


class Rotation(NamedTuple):
    """Cosine and sine of each token's angles, fp32, one column per pair of dimensions."""

    cos: Float[Tensor, "tokens 1 half"]
    sin: Float[Tensor, "tokens 1 half"]


def rotation(positions: Int[Tensor, " tokens"], head_size: int) -> Rotation:
    """The rotation of each position, shared by all heads and layers."""
    exponent = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    angles = positions.float()[:, None] * (1.0 / BASE**exponent)
    return Rotation(angles.cos()[:, None, :], angles.sin()[:, None, :])


def rotate(x: Float[Tensor, "tokens heads head"], by: Rotation) -> Float[Tensor, "tokens heads head"]:
    """Turn queries or keys by their positions; computed in fp32 (fp64 if they are), returned in the type of `x`."""
    a, b = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat((a * by.cos - b * by.sin, b * by.cos + a * by.sin), dim=-1).to(x.dtype)


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


def _sdpa_run(q: Packed, k: Packed, v: Packed, run: EqualLengthGroup, dropout: float) -> Tensor:
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


P = ParamSpec("P")
R = TypeVar("R")

VARIABLE = "RINALMO_COMPILE"
WORTHWHILE_TOKENS = 1 << 21
"""Inference on CUDA is compiled once a model has seen so many tokens: a short run would wait longer than it saves."""

# Each combination of model, device, type and mode is a compilation of its own; torch's limit of 8 counts them together.
_RECOMPILE_LIMIT = 64

BACKEND = "inductor"

LOCK = RLock()
"""Held while a region is called, and around a whole pass by those who compute in several threads: torch.compile is not
thread-safe, and while one thread compiles, not all of torch works in another."""

_problem: str | None = None


def wanted(device: torch.device, *, explicit: bool | None = None, training: bool = False, tokens: int = 0) -> bool:
    """Whether regions are to be compiled.

    Args:
        device: Where they are computed.
        explicit: What the caller asked for; None leaves it to the environment.
        training: Whether gradients are recorded; training is long, so it is compiled at once.
        tokens: How many tokens the model has seen in inference.

    Raises:
        InputError: If the environment variable is neither 0 nor 1.
    """
    if _problem is not None:
        return False
    if explicit is None:
        explicit = _from_environment()
    if explicit is None:
        return device.type == "cuda" and (training or tokens >= WORTHWHILE_TOKENS)
    return explicit


def _from_environment() -> bool | None:
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise InputError(f"{VARIABLE} is {value!r}; use 1 (compile), 0 (do not), or leave it unset")
    return None if value == "" else value == "1"


def problem() -> str | None:
    """Why compilation was given up in this process; None if it was not."""
    return _problem


class Region(Generic[P, R]):
    """A function of a module and of tensors whose first axis is the tokens, to be compiled or computed as written."""

    def __init__(self, function: Callable[P, R]) -> None:
        self.as_written = function
        self._compiled: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function as written."""
        return self.as_written(*args, **kwargs)

    def compiled(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function, fused; as written where that fails, and where there are too few tokens to be any number."""
        tensors = [argument for argument in args if isinstance(argument, Tensor)]
        if _problem is not None or any(len(tensor) < 2 for tensor in tensors):
            return self.as_written(*args, **kwargs)
        with LOCK:
            for tensor in tensors:
                torch._dynamo.mark_dynamic(tensor, 0)
            try:
                return self._made()(*args, **kwargs)
            # Only what compilation raises: other errors, such as those of checkpointing, are meant for the caller.
            except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                _give_up(error)
        return self.as_written(*args, **kwargs)

    def _made(self) -> Callable[P, R]:
        if self._compiled is None:
            config: Any = torch._dynamo.config
            config.recompile_limit = max(config.recompile_limit, _RECOMPILE_LIMIT)
            self._compiled = torch.compile(self.as_written, fullgraph=True, backend=BACKEND)
        return self._compiled


def _give_up(error: Exception) -> None:
    global _problem
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    _problem = f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"
    warnings.warn(f"torch.compile does not work here, computing goes on without it ({_problem})", stacklevel=3)


def attend_in_training(
    qkv: Float[Tensor, "tokens three_hidden"], layout: Layout, by: Rotation, heads: int, dropout: float
) -> Float[Tensor, "tokens hidden"]:
    """Rotary positions and softmax attention of each sequence to itself; `dropout` on the attention weights."""
    cos, sin = (table[:, 0].t().to(qkv.dtype).contiguous() for table in by)
    with torch.autocast("cpu", enabled=False):
        return _Attention.apply(qkv, cos, sin, layout.runs, heads, dropout)


def gated_swish(
    gate: Float[Tensor, "tokens ffn"], up: Float[Tensor, "tokens ffn"], beta: Float[Tensor, 1]
) -> Float[Tensor, "tokens ffn"]:
    """`gate · σ(beta · gate) · up`."""
    with torch.autocast("cpu", enabled=False):
        return _GatedSwish.apply(gate, up, beta)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, runs: tuple[EqualLengthGroup, ...], heads: int, dropout: float
    ) -> Tensor:
        tokens, rows = qkv.shape
        size = rows // (3 * heads)
        channels = qkv.t().contiguous().view(3, heads, size, tokens)
        turned = _rotate(channels[:2], cos, sin)
        q, k, v = turned[0].mul_(size**-0.5), turned[1], channels[2]
        out, kept = torch.empty_like(v), []
        for run in runs:
            qs, ks, vs = planes(q, run), planes(k, run), planes(v, run)
            weights = torch.bmm(qs.transpose(1, 2), ks).softmax(-1)
            seen, mask = torch.native_dropout(weights, dropout, True) if dropout else (weights, None)
            put_planes(out, run, torch.bmm(vs, seen.transpose(1, 2)))
            kept += [qs, ks, vs, weights, *([seen, mask] if dropout else [])]
        ctx.save_for_backward(cos, sin, *kept)
        ctx.runs, ctx.heads, ctx.dropout = runs, heads, dropout
        return out.view(-1, tokens).t().contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, *kept = ctx.saved_tensors
        tokens, hidden = grad.shape
        size, each = hidden // ctx.heads, 6 if ctx.dropout else 4
        outer = grad.t().contiguous().view(ctx.heads, size, tokens)
        inner = torch.empty(3, ctx.heads, size, tokens, dtype=grad.dtype)
        for number, run in enumerate(ctx.runs):
            qs, ks, vs, weights, *dropped = kept[each * number : each * (number + 1)]
            outs = planes(outer, run)
            put_planes(inner[2], run, torch.bmm(outs, dropped[0] if dropped else weights))
            found = torch.bmm(outs.transpose(1, 2), vs)
            if dropped:
                found.mul_(dropped[1]).div_(1 - ctx.dropout)
            scores = torch._softmax_backward_data(found, weights, -1, weights.dtype)
            put_planes(inner[0], run, torch.bmm(ks, scores.transpose(1, 2)))
            put_planes(inner[1], run, torch.bmm(qs, scores))
        inner[0].mul_(size**-0.5)
        inner[:2] = _rotate(inner[:2], cos, -sin)
        return inner.view(-1, tokens).t().contiguous(), None, None, None, None, None


class _GatedSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, beta: Tensor) -> Tensor:
        scaled = gate * beta.to(gate.dtype)
        swish = scaled.sigmoid().mul_(gate)
        ctx.save_for_backward(gate, up, scaled, swish)
        ctx.beta_dtype = beta.dtype
        return swish * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, scaled, swish = ctx.saved_tensors
        inner = grad * up
        # d swish / d gate is the derivative of x·σ(x) at beta·gate; d swish / d beta is gate² σ (1 − σ).
        slope = (inner * swish).mul_(gate - swish).sum(dtype=ctx.beta_dtype).view(1)
        return torch.ops.aten.silu_backward(inner, scaled), grad * swish, slope


def _rotate(x: Float[Tensor, "two heads head tokens"], cos: Tensor, sin: Tensor) -> Tensor:
    """`rinalmo.model.kernels.rotate` with the tokens last, in the type of `x`."""
    a, b = x.unflatten(2, (2, -1)).unbind(2)
    out = torch.empty_like(x)
    first, second = out.unflatten(2, (2, -1)).unbind(2)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return out
