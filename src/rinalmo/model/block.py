"""One encoder layer of RiNALMo: bidirectional self-attention, then a SwiGLU feed-forward network.

All tensors are packed: the sequences of a batch lie end to end along one axis, without padding.
Axis names used throughout `rinalmo.model`:

    tokens   all real tokens of the batch
    hidden   model width

References: Penić et al. 2025 (arXiv:2403.00043) for the model, Shazeer 2020 (arXiv:2002.05202) for SwiGLU.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rinalmo.model.attention import Attention, trains_on_cpu
from rinalmo.model.backends import WeightsHook
from rinalmo.model.compiling import Region
from rinalmo.model.config import ModelConfig
from rinalmo.model.cpu_training import gated_swish
from rinalmo.model.hooks import is_hooked
from rinalmo.model.packing import Layout
from rinalmo.model.rotary import Rotation


class SwiGLU(nn.Module):
    """Gated feed-forward network whose swish has a learned slope, `beta`.

    `gate_up` is one matrix: the gate's rows (which go through the swish), then those it multiplies.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eager = False  # written out, so that it can be differentiated twice
        self.beta = nn.Parameter(torch.ones(1))
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.ffn_size)
        self.down = nn.Linear(config.ffn_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens hidden"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        if not self.eager and trains_on_cpu(gate):
            return self.down(gated_swish(gate, up, self.beta))
        return self.down(gate * torch.sigmoid(self.beta * gate) * up)


class EncoderBlock(nn.Module):
    """Self-attention and feed-forward network, each with a residual connection.

    This is not quite pre-norm. The first residual starts from the *normalised* input, and the
    published weights were trained that way, so the textbook form would give other outputs.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn = SwiGLU(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        x: Float[Tensor, "tokens hidden"],
        layout: Layout,
        by: Rotation,
        weights: WeightsHook | None = None,
        compiled: bool = False,
    ) -> Float[Tensor, "tokens hidden"]:
        """The block's output; `compiled` fuses what is not attention (`rinalmo.model.compiling`)."""
        if compiled and weights is None and not self._is_changed():
            x, q, k, v = _before_attention.compiled(self, x, *by)
            return _after_attention.compiled(self, x, self.attention.attend(q, k, v, layout))
        x = self.attention_norm(x)
        return self._feed_forward(x + self.dropout(self.attention(x, layout, by, weights)))

    def _is_changed(self) -> bool:
        """Whether regions would pass by what somebody has hooked or replaced. The block's own hooks are honoured."""
        return type(self.attention) is not Attention or any(map(is_hooked, self.children()))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


# Without annotations: the tests' checker of shapes would be traced along.


@Region
def _before_attention(block, x, cos, sin):  # type: ignore[no-untyped-def]
    """The normed input, on which the residual starts, and queries, keys and values."""
    x = block.attention_norm(x)
    return x, *block.attention.heads(block.attention.qkv(x), Rotation(cos, sin))


@Region
def _after_attention(block, x, y):  # type: ignore[no-untyped-def]
    return block._feed_forward(x + block.dropout(block.attention.output(y)))
