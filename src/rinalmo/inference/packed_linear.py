"""Linear layers for inference on a CPU, their weights packed for oneDNN once, in fp32, bf16 or 8 bits.

fp32 is never bf16 inside, whatever torch's global setting. In 8 bits activations are unsigned bytes around 128, with
one scale per call after a layer norm and one per token elsewhere; weights have one scale per output.

oneDNN's operators are looked up when a layer is made or called, and never at import: torch on a Mac has none. There
`PlainLinear` and `PlainTransposedLinear` do the same in fp32 by torch's own products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Linear:
    """A linear layer packed for oneDNN; the last argument of `__call__` is fused into the multiplication."""

    def __init__(self, weight: Float[Tensor, "out into"], bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
        self.bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: Float[Tensor, "tokens into"], then: str = "none") -> Float[Tensor, "tokens out"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], "")

    def add_to(self, x: Float[Tensor, "tokens into"], y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens out"]:
        """`y` plus the product. The bias is added first: oneDNN takes 3 ms more for it beside a second operand."""
        y = y if self.bias is None else y.add_(self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, y, self.weight, None, "add")


class TransposedLinear:
    """A linear layer without bias whose result comes out channels first: the tokens are the "weights" here."""

    def __init__(self, weight: Float[Tensor, "out into"], dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype)

    def __call__(self, x: Float[Tensor, "tokens into"]) -> Float[Tensor, "out tokens"]:
        return torch.ops.mkldnn._linear_pointwise(self.weight, x, None, "none", [], "")


class PlainLinear:
    """As `Linear` in fp32, without oneDNN's operators."""

    def __init__(self, weight: Float[Tensor, "out into"], bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype, copy=True)
        self.bias = None if bias is None else bias.to(dtype, copy=True)

    def __call__(self, x: Float[Tensor, "tokens into"], then: str = "none") -> Float[Tensor, "tokens out"]:
        y = F.linear(x, self.weight, self.bias)
        return F.silu(y, inplace=True) if then == "swish" else y

    def add_to(self, x: Float[Tensor, "tokens into"], y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens out"]:
        """`y`, to which the product has been added in place."""
        y = y if self.bias is None else y.add_(self.bias)
        return y.addmm_(x, self.weight.t())


class PlainTransposedLinear:
    """As `TransposedLinear`, without oneDNN's operators."""

    def __init__(self, weight: Float[Tensor, "out into"], dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype, copy=True)

    def __call__(self, x: Float[Tensor, "tokens into"]) -> Float[Tensor, "out tokens"]:
        return self.weight @ x.t()


@dataclass(frozen=True)
class Quantised:
    """Activations as unsigned bytes around 128; `scale` is one number or a column with one per token."""

    values: Tensor
    scale: Tensor


class LinearInt8:
    """As `Linear`, with weights of one byte and one scale per output."""

    def __init__(self, weight: Float[Tensor, "out into"], bias: Tensor | None) -> None:
        weight = weight.float()
        self.scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.weight = torch.ops.onednn.qlinear_prepack((weight / self.scale[:, None]).round().to(torch.int8), None)
        self.zero = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = bias

    def __call__(self, x: Quantised, then: str = "none") -> Float[Tensor, "tokens out"]:
        return self._product(x.values, x.scale.item(), self.bias, then)

    def add_to(self, x: Quantised, y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens out"]:
        """`y`, to which the product has been added in place."""
        y = y if self.bias is None else y.add_(self.bias)
        return y.addcmul_(self._product(x.values, 1.0, None, "none"), x.scale)

    def _product(self, x: Tensor, scale: float, bias: Tensor | None, then: str) -> Tensor:
        weight, out = (self.weight, self.scale, self.zero), torch.bfloat16
        return torch.ops.onednn.qlinear_pointwise(x, scale, 128, *weight, bias, 1.0, 0, out, then, [], "")


def quantise(x: Float[Tensor, "tokens hidden"], *, per_token: bool) -> Quantised:
    """Round to 253 steps between minus and plus the largest magnitude, of each token or of all."""
    largest = x.abs().amax(1, keepdim=True) if per_token else torch.stack(x.aminmax()).abs().amax()
    scale = largest.clamp(min=1e-12) / 126  # not 127: the scale is itself rounded to bf16, and 128 would wrap round
    # By way of int8: torch's conversion of bf16 to uint8 is five times as slow.
    return Quantised((x / scale).round_().to(torch.int8).view(torch.uint8).add_(128), scale)
