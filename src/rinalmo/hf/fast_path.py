"""Inference of the Hugging Face classes with the engine's fast encoder.

`FastPath` caches an encoder's packed weights as long as they are current. The plain encoder computes in training, with
gradients, off the CPU, and where a module was changed, wrapped or hooked (LoRA, quantisation, activation hooks).
"""

from __future__ import annotations

from functools import cache
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from rinalmo.engine.cpu_encoder import FastEncoder, PackedPrecision
from rinalmo.engine.devices import packs_weights
from rinalmo.model.kernels import is_hooked
from rinalmo.model.rinalmo import Attention, Embedding, Encoder, EncoderBlock, SwiGLU, functorch_transforms

_OURS = {Encoder, Embedding, EncoderBlock, Attention, SwiGLU, nn.ModuleList, nn.LayerNorm, nn.Linear, nn.Dropout}
_PRECISIONS: dict[torch.dtype, PackedPrecision] = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class FastPath:
    """The packed form of one encoder, made when it is first needed and again when its weights have changed."""

    def __init__(self) -> None:
        self._stamp: Any = None
        self._packed: FastEncoder | None = None

    def forget(self) -> None:
        """Drop the packed weights."""
        self._stamp = self._packed = None

    def of(self, encoder: Encoder) -> FastEncoder | None:
        """The packed encoder, or None where the plain one has to compute."""
        precision = _precision(encoder)
        if precision is None:
            self.forget()
            return None
        if self._stamp != (stamp := _stamp(encoder)):
            self._packed, self._stamp = FastEncoder(encoder, precision), stamp
        return self._packed

    def __deepcopy__(self, memo: Any) -> FastPath:
        return FastPath()

    def __reduce__(self) -> Any:
        return FastPath, ()


def _precision(encoder: Encoder) -> PackedPrecision | None:
    """The precision of the fast encoder, or None where the plain one has to compute."""
    parameters = list(encoder.parameters())
    if encoder.training or torch.compiler.is_compiling() or functorch_transforms():
        return None
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
        return None
    if any(type(parameter) is not nn.Parameter for parameter in parameters):  # of torchao, sharded, …
        return None
    kinds = {(parameter.device.type, parameter.dtype) for parameter in parameters}
    if len(kinds) != 1:
        return None
    if is_hooked(encoder) or any(type(module) not in _OURS for module in encoder.modules()):
        return None
    device, dtype = kinds.pop()
    if device != "cpu" or torch.is_autocast_enabled("cpu"):
        return None
    precision = _PRECISIONS.get(dtype)
    return precision if precision and packs_weights(precision) else None


def _stamp(encoder: Encoder) -> tuple[Any, ...]:
    """Changes with the weights: by assignment, in place, and (which torch does not count) through `.data` or numpy."""
    parameters = [parameter.detach() for parameter in encoder.parameters()]
    bits = torch.cat([sample(parameter) for parameter in parameters]).view(torch.uint8)
    versions = [(each.data_ptr(), -1 if each.is_inference() else each._version) for each in parameters]
    return tuple(versions), bits.numpy().tobytes()


def sample(parameter: Tensor) -> Tensor:
    """A sample of every row and every column; all of a vector."""
    if parameter.dim() < 2:
        return parameter.flatten()
    columns = parameter.shape[-1]
    return parameter.flatten()[:: _stride(parameter.numel() // columns, columns)]


@cache
def _stride(rows: int, columns: int) -> int:
    """The longest stride that skips no row (at most `columns`) and no column (coprime to it, at most `rows`)."""
    return next(stride for stride in range(min(rows, columns), 0, -1) if gcd(stride, columns) == 1)
