"""Bidirectional multi-head self-attention with rotary positions; no biases.

Query, key and value are one matrix, stacked in that order, as in the published weights.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rinalmo.model import cpu_training
from rinalmo.model.backends import Backend, WeightsHook, attend, attend_with_weights
from rinalmo.model.config import ModelConfig
from rinalmo.model.packing import Layout
from rinalmo.model.rotary import Rotation, rotate


class Attention(nn.Module):
    """Self-attention within each sequence of a packed batch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.dropout = config.attention_dropout
        self.backend: Backend = "auto"
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, x: Float[Tensor, "tokens hidden"], layout: Layout, by: Rotation, weights: WeightsHook | None = None
    ) -> Float[Tensor, "tokens hidden"]:
        """With `weights` given, the written-out path runs and passes this layer's attention through it."""
        qkv = self.qkv(x)
        dropout = self.dropout if self.training else 0.0
        if weights is None and self.backend == "auto" and layout.real is None and trains_on_cpu(qkv):
            return self.output(cpu_training.attend(qkv, layout, by, x.shape[-1] // self.head_size, dropout))
        q, k, v = self.heads(qkv, by)
        if weights is None:
            return self.output(self.attend(q, k, v, layout))
        y, _ = attend_with_weights(q, k, v, layout, dropout=dropout, hook=weights)
        return self.output(y.flatten(1))

    def heads(self, qkv: Float[Tensor, "tokens three_hidden"], by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both rotated) and values, each `(tokens, heads, head)`."""
        q, k, v = qkv.unflatten(-1, (3, -1, self.head_size)).unbind(1)
        return rotate(q, by), rotate(k, by), v

    def attend(
        self,
        q: Float[Tensor, "tokens heads head"],
        k: Float[Tensor, "tokens heads head"],
        v: Float[Tensor, "tokens heads head"],
        layout: Layout,
    ) -> Float[Tensor, "tokens hidden"]:
        """What the heads say of each token, before the output projection."""
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, layout, dropout=dropout, backend=self.backend).flatten(1)


def trains_on_cpu(x: Tensor) -> bool:
    """Whether `cpu_training` serves best: gradients are wanted, on a CPU."""
    return x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
