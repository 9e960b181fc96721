"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), base 10,000, over the whole head.

Halves are rotated against each other (dimension `i` with `i + head/2`), not neighbours: the interleaved form gives
other outputs. Angles are computed in fp32 from the positions at every call, so there is no buffer that a cast to
bfloat16 or a load on the meta device could spoil.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
