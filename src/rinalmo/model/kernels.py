"""How the encoder's arithmetic is computed fast: rotary positions, attention backends, compiled regions, CPU training.

Rotary positions (Su et al. 2021, arXiv:2104.09864) use base 10,000 over the whole head. Dimension `i` is rotated with
`i + head/2`, not with its neighbour: the interleaved form gives other outputs. Angles are computed in fp32 from the
positions at every call, so no buffer exists that a cast to bfloat16 or a load on the meta device could spoil.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from functools import cache, wraps
from threading import RLock
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as global_hooks

from rinalmo.errors import InputError
from rinalmo.model.packing import Layout, PaddedLayout, gather_heads, scatter_heads

# --- Rotary positions ---

ROPE_BASE = 10_000.0
Packed = Float[Tensor, "tokens heads head"]


class Rotation(NamedTuple):
    """Cosine and sine of each token's angles, fp32, one column per pair of dimensions."""

    cos: Float[Tensor, "tokens 1 half"]
    sin: Float[Tensor, "tokens 1 half"]


def rotation(positions: Int[Tensor, " tokens"], head_size: int) -> Rotation:
    """The rotation of each position, shared by all heads and layers."""
    exponent = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    angles = positions.float()[:, None] * (1.0 / ROPE_BASE**exponent)
    return Rotation(angles.cos()[:, None, :], angles.sin()[:, None, :])


def rotate(x: Packed, rope: Rotation) -> Packed:
    """Apply rotary positions to queries or keys, in fp32 (fp64 if they are); the result has the type of `x`."""
    a, b = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat((a * rope.cos - b * rope.sin, b * rope.cos + a * rope.sin), dim=-1).to(x.dtype)


def channels_first(rope: Rotation, dtype: torch.dtype) -> Rotation:
    """The rotation with the tokens last, `(half, tokens)`, in another type, for `rotate_channels_first`."""
    cos, sin = rope
    return Rotation(cos[:, 0].t().contiguous().to(dtype), sin[:, 0].t().contiguous().to(dtype))


def rotate_channels_first(
    x: Float[Tensor, "two heads head tokens"], cos: Float[Tensor, "half tokens"], sin: Float[Tensor, "half tokens"]
) -> Float[Tensor, "two heads head tokens"]:
    """As `rotate` with the tokens last, in the type of `x`."""
    a, b = x.unflatten(2, (2, -1)).unbind(2)
    out = torch.empty_like(x)
    first, second = out.unflatten(2, (2, -1)).unbind(2)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return out


# --- Attention backends ---

Backend = Literal["auto", "sdpa", "nested", "varlen", "flash", "eager"]
WeightsHook = Callable[[list[Tensor]], list[Tensor]]
"""Takes one layer's attention weights, per sequence `(heads, length, length)`; returns those to compute with."""


def attend(
    q: Packed, k: Packed, v: Packed, layout: Layout, *, dropout: float = 0.0, backend: Backend = "auto"
) -> Packed:
    """Softmax attention within each sequence, in both directions, scaled by 1/√head.

    `dropout` acts on the attention weights; pass 0 outside training, since the kernels ignore the module's mode.
    """
    if isinstance(layout, PaddedLayout):
        return _padded(q, k, v, layout, dropout)
    if backend == "auto":
        backend = "sdpa" if layout.has_padding else best_backend(q.device, q.dtype, q.shape[-1], dropout > 0)
    if backend == "eager":
        return attend_with_weights(q, k, v, layout, dropout=dropout)[0]
    if backend not in _KERNELS:
        raise InputError(f"no attention backend {backend!r}; there are {', '.join(get_args(Backend))}")
    return _KERNELS[backend](q, k, v, layout, dropout)


@cache
def best_backend(device: torch.device, dtype: torch.dtype, head_size: int, dropout: bool = False) -> Backend:
    """The fastest backend that runs on this device and agrees with `eager`; a warning names one that fails."""
    if device.type != "cuda":
        return "sdpa"
    layout = Layout((5, 17), device)
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = torch.randn(3, layout.total, 2, head_size, device=device, generator=generator).to(dtype)
    expected = attend_with_weights(q.float(), k.float(), v.float(), layout)[0]
    for name in candidates(dtype, head_size, dropout):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors is in prototype stage")
                error = float((_KERNELS[name](q, k, v, layout, 0.0).float() - expected).abs().max())
        except (RuntimeError, ImportError, NotImplementedError, TypeError, ValueError) as problem:
            message = (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]
            warnings.warn(f"attention backend {name!r} is not used: {message}", stacklevel=2)
            continue
        # Half precision rounds probabilities and sums of values of size 1.
        if error <= (1e-3 if dtype == torch.float32 else 5e-2):
            return name
        warnings.warn(f"attention backend {name!r} is not used: its results are off by {error:.1g}", stacklevel=2)
    return "sdpa"


def candidates(dtype: torch.dtype, head_size: int, dropout: bool) -> list[Backend]:
    """Backends other than `sdpa` that may run on CUDA, fastest first, by installed packages and kernel limits."""
    if head_size % 8 or head_size > 256 or dtype == torch.float64:
        return []
    names: list[Backend] = []
    if dtype in (torch.float16, torch.bfloat16):
        names += ["flash"] if _is_importable("flash_attn", "flash_attn_varlen_func") else []
        names += ["varlen"] if not dropout and _is_importable("torch.nn.attention.varlen", "varlen_attn") else []
    return [*names, "nested"]


def sum_dtype(device: torch.device) -> torch.dtype:
    """The type for long sums on a device: fp64, or fp32 on MPS, which has no fp64."""
    return torch.float32 if device.type == "mps" else torch.float64


@cache
def _is_importable(module: str, name: str) -> bool:
    # flash-attn 4, alone, is a `flash_attn` without this function.
    try:
        return hasattr(importlib.import_module(module), name)
    except (ImportError, OSError):  # the latter where its library was built for another torch
        return False


def attend_with_weights(
    q: Packed, k: Packed, v: Packed, layout: Layout, *, dropout: float = 0.0, hook: WeightsHook | None = None
) -> tuple[Packed, list[Tensor]]:
    """As `attend`, written out, and for each sequence its attention weights `(heads, length, length)`."""
    outputs, weights, values = [], [], []
    parts = zip(layout.split(q), layout.split(k), layout.split(v), layout.valid_lengths, strict=True)
    for qs, ks, vs, valid in parts:
        scores = torch.einsum("ihd,jhd->hij", qs, ks[:valid]) * q.shape[-1] ** -0.5
        weights.append(scores.softmax(dim=-1))
        values.append(vs[:valid])
    weights = hook(weights) if hook is not None else weights
    for probabilities, vs in zip(weights, values, strict=True):
        outputs.append(torch.einsum("hij,jhd->ihd", F.dropout(probabilities, dropout, training=dropout > 0), vs))
    return (torch.cat(outputs) if outputs else torch.zeros_like(q)), weights


def _sdpa(q: Packed, k: Packed, v: Packed, layout: Layout, dropout: float) -> Tensor:
    # Split, not sliced: the gradient of a slice is as large as the whole.
    sizes = [group.stop - group.start for group in layout.groups]
    outputs = []
    for qs, ks, vs, group in zip(q.split(sizes), k.split(sizes), v.split(sizes), layout.groups, strict=True):
        shape, valid = (group.count, group.length), group.valid_length
        keys, values = ks.unflatten(0, shape).transpose(1, 2), vs.unflatten(0, shape).transpose(1, 2)
        if valid < group.length:
            keys, values = keys[:, :, :valid], values[:, :, :valid]
        out = F.scaled_dot_product_attention(qs.unflatten(0, shape).transpose(1, 2), keys, values, dropout_p=dropout)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs) if outputs else torch.zeros_like(q)


def _padded(q: Packed, k: Packed, v: Packed, layout: PaddedLayout, dropout: float) -> Tensor:
    qs, ks, vs = (x.unflatten(0, layout.mask.shape).transpose(1, 2) for x in (q, k, v))
    mask = layout.mask | ~layout.mask.any(dim=1, keepdim=True)  # a row without tokens stays finite
    out = F.scaled_dot_product_attention(qs, ks, vs, attn_mask=mask[:, None, None], dropout_p=dropout)
    return out.transpose(1, 2).flatten(0, 1)


def _nested(q: Packed, k: Packed, v: Packed, layout: Layout, dropout: float) -> Tensor:
    if not layout.total:
        return torch.zeros_like(q)
    # Without the shortest and longest length, torch would fetch them from the device.
    extremes: Any = {"min_seqlen": min(filter(None, layout.lengths)), "max_seqlen": layout.max_seqlen}

    def jagged(x: Tensor) -> Tensor:
        x = torch.nested.nested_tensor_from_jagged(x.contiguous(), layout.nonempty_offsets, **extremes)
        return x.transpose(1, 2)

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


_KERNELS = {"sdpa": _sdpa, "nested": _nested, "varlen": _varlen, "flash": _flash}

# --- Compiled regions ---

COMPILE_VARIABLE = "RINALMO_COMPILE"
COMPILE_BACKEND = "inductor"
WORTHWHILE_TOKENS = 1 << 21
"""Inference on CUDA is compiled after this many tokens: for fewer, compilation takes longer than it saves."""

# Each combination of model, device, type and mode is compiled separately; torch's limit of 8 counts them together.
_RECOMPILE_LIMIT = 64

LOCK = RLock()
"""Held while a region is called, and around a whole pass by those who compute in several threads: torch.compile is not
thread-safe, and while one thread compiles, not all of torch works in another."""

_compile_error: str | None = None


def should_compile(
    device: torch.device, explicit: bool | None = None, *, training: bool = False, tokens: int = 0
) -> bool:
    """Whether to compile regions.

    Args:
        device: Where they are computed.
        explicit: The caller's choice; None leaves it to the environment variable.
        training: Whether gradients are recorded; training is long, so it is compiled at once.
        tokens: How many tokens the model has seen in inference.

    Raises:
        InputError: If the environment variable is neither 0 nor 1.
    """
    if _compile_error is not None:
        return False
    if explicit is not None:
        return explicit
    variable = os.environ.get(COMPILE_VARIABLE, "")
    if variable not in ("", "0", "1"):
        raise InputError(f"{COMPILE_VARIABLE} is {variable!r}; use 1 (compile), 0 (do not), or leave it unset")
    if variable:
        return variable == "1"
    return device.type == "cuda" and (training or tokens >= WORTHWHILE_TOKENS)


def compile_error() -> str | None:
    """Why compilation was given up in this process; None if it was not."""
    return _compile_error


def compiled_region(function: Callable[..., Any]) -> Callable[..., Any]:
    """Fuse a function of a module and of tensors whose first axis is the tokens.

    It is computed eagerly where compilation fails, and where there are fewer than two tokens: torch.compile takes a
    size of 0 or 1 for a constant.
    """
    compiled: Callable[..., Any] | None = None

    @wraps(function)
    def call(*args: Any) -> Any:
        nonlocal compiled
        global _compile_error
        tensors = [argument for argument in args if isinstance(argument, Tensor)]
        if _compile_error is not None or any(len(tensor) < 2 for tensor in tensors):
            return function(*args)
        with LOCK:
            for tensor in tensors:
                torch._dynamo.mark_dynamic(tensor, 0)
            if compiled is None:
                config: Any = torch._dynamo.config
                config.recompile_limit = max(config.recompile_limit, _RECOMPILE_LIMIT)
                compiled = torch.compile(function, fullgraph=True, backend=COMPILE_BACKEND)
            try:
                return compiled(*args)
            # Only errors of compilation: others, such as those of checkpointing, are meant for the caller.
            except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                _compile_error = f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"
                message = f"torch.compile does not work here, computing goes on without it ({_compile_error})"
                warnings.warn(message, stacklevel=2)
        return function(*args)

    return call


def is_hooked(module: nn.Module) -> bool:
    """Whether a module or a submodule has forward or backward hooks, or a replaced `forward` (as accelerate does).

    Code that reads a layer's weight instead of calling the layer asks here first.
    """
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        return True
    return any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        or "forward" in vars(part)
        for part in module.modules()
    )


# --- Training on a CPU: attention and swish with backward passes of their own ---


def attend_in_training(
    qkv: Float[Tensor, "tokens three_hidden"], layout: Layout, rope: Rotation, head_size: int, dropout: float
) -> Float[Tensor, "tokens hidden"]:
    """Rotary positions and softmax attention within each sequence; `dropout` on the attention weights."""
    with torch.autocast("cpu", enabled=False):
        return _TrainingAttention.apply(qkv, channels_first(rope, qkv.dtype), layout, head_size, dropout)


class _TrainingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rope: Rotation, layout: Layout, head_size: int, dropout: float) -> Tensor:
        tokens, (cos, sin) = len(qkv), rope
        channels = qkv.t().contiguous().view(3, -1, head_size, tokens)
        rotated = rotate_channels_first(channels[:2], cos, sin)
        q, k, v = rotated[0].mul_(head_size**-0.5), rotated[1], channels[2]
        out, saved = torch.empty_like(v), []
        for group in layout.groups:
            qs, ks, vs = gather_heads(q, group), gather_heads(k, group), gather_heads(v, group)
            weights = torch.bmm(qs.transpose(1, 2), ks).softmax(-1)
            dropped, mask = torch.native_dropout(weights, dropout, True) if dropout else (weights, None)
            scatter_heads(out, group, torch.bmm(vs, dropped.transpose(1, 2)))
            saved += [qs, ks, vs, weights, *([dropped, mask] if dropout else [])]
        ctx.save_for_backward(cos, sin, *saved)
        ctx.groups, ctx.head_size, ctx.dropout = layout.groups, head_size, dropout
        return out.view(-1, tokens).t().contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, *saved = ctx.saved_tensors
        tokens, hidden_size = grad.shape
        heads, per_group = hidden_size // ctx.head_size, 6 if ctx.dropout else 4
        grad_out = grad.t().contiguous().view(heads, ctx.head_size, tokens)
        grad_qkv = torch.empty(3, heads, ctx.head_size, tokens, dtype=grad.dtype)
        for number, group in enumerate(ctx.groups):
            qs, ks, vs, weights, *dropped = saved[per_group * number : per_group * (number + 1)]
            grads = gather_heads(grad_out, group)
            scatter_heads(grad_qkv[2], group, torch.bmm(grads, dropped[0] if dropped else weights))
            grad_weights = torch.bmm(grads.transpose(1, 2), vs)
            if dropped:
                grad_weights.mul_(dropped[1]).div_(1 - ctx.dropout)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            scatter_heads(grad_qkv[0], group, torch.bmm(ks, grad_scores.transpose(1, 2)))
            scatter_heads(grad_qkv[1], group, torch.bmm(qs, grad_scores))
        grad_qkv[0].mul_(ctx.head_size**-0.5)
        grad_qkv[:2] = rotate_channels_first(grad_qkv[:2], cos, -sin)
        return grad_qkv.view(-1, tokens).t().contiguous(), None, None, None, None


def gated_swish(
    gate: Float[Tensor, "tokens ffn"], up: Float[Tensor, "tokens ffn"], beta: Float[Tensor, 1]
) -> Float[Tensor, "tokens ffn"]:
    """`gate · σ(beta · gate) · up`."""
    with torch.autocast("cpu", enabled=False):
        return _GatedSwish.apply(gate, up, beta)


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
