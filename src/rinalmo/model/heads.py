"""General heads on top of the encoder: masked LM, per sequence, per token, per pair of tokens.

All take packed hidden states. Where a head speaks of nucleotides only, CLS and EOS (`ends`) are left out first.
The masked-LM head always computes in fp32: in bf16 its logits would come in steps of about 0.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rinalmo.errors import InputError
from rinalmo.model.config import ModelConfig
from rinalmo.model.packing import Layout

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
}

# Above this many numbers the pairwise product of hidden states is built in blocks of rows.
_PAIR_BLOCK = 1 << 24


@dataclass(frozen=True)
class HeadConfig:
    """Shape of a `LabelHead`: optional transform, then one linear layer."""

    num_labels: int = 1
    transform: str | None = None  # None, "linear" or "nonlinear"
    transform_act: str = "gelu"
    act: str | None = None
    bias: bool = True
    dropout: float = 0.0
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.transform not in (None, "linear", "nonlinear"):
            raise InputError(f"head transform {self.transform!r} is unknown; use None, 'linear' or 'nonlinear'")
        for name in (self.transform_act, self.act):
            if name is not None and name not in ACTIVATIONS:
                raise InputError(f"activation {name!r} is unknown; there are {', '.join(ACTIVATIONS)}")


class Transform(nn.Module):
    """Linear layer, activation (nonlinear form only), layer norm."""

    def __init__(self, hidden_size: int, activation: str | None, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = ACTIVATIONS[activation] if activation else None
        self.norm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, x: Float[Tensor, "*any hidden"]) -> Float[Tensor, "*any hidden"]:
        x = self.dense(x)
        return self.norm(self.activation(x) if self.activation else x)


class Fp32Linear(nn.Linear):
    """Computes in fp32 whatever the type of its weights."""

    def forward(self, input: Float[Tensor, "*any into"]) -> Float[Tensor, "*any out"]:
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), _fp32(self.weight), None if self.bias is None else _fp32(self.bias))


class Fp32LayerNorm(nn.LayerNorm):
    """Computes in fp32 whatever the type of its weights."""

    def forward(self, input: Float[Tensor, "*any hidden"]) -> Float[Tensor, "*any hidden"]:
        with torch.autocast(input.device.type, enabled=False):
            return F.layer_norm(input.float(), self.normalized_shape, _fp32(self.weight), _fp32(self.bias), self.eps)


def _fp32(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float32 else weight.float()


class MaskedLMHead(nn.Module):
    """Logits over the vocabulary, in fp32. The decoder is not tied to the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = Fp32Linear(config.hidden_size, config.hidden_size)
        self.norm = Fp32LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = Fp32Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Float[Tensor, "*any hidden"]) -> Float[Tensor, "*any vocabulary"]:
        with torch.autocast(x.device.type, enabled=False):
            return self.decoder(self.norm(F.gelu(self.dense(x.float()))))


class Pooler(nn.Module):
    """One vector per sequence: tanh of a linear layer on its first token (CLS), or on the mean of all (`POOLINGS`)."""

    def __init__(self, config: ModelConfig, pooling: str = "cls") -> None:
        super().__init__()
        self.pool = POOLINGS[pooling]
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "tokens hidden"], layout: Layout) -> Float[Tensor, "sequences hidden"]:
        return torch.tanh(self.dense(self.pool(x, layout)))


class LabelHead(nn.Module):
    """Dropout, optional transform, linear layer: the part that all prediction heads share."""

    def __init__(self, hidden_size: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        activation = config.transform_act if config.transform == "nonlinear" else None
        self.transform = Transform(hidden_size, activation, config.layer_norm_eps) if config.transform else None
        self.decoder = nn.Linear(hidden_size, config.num_labels, bias=config.bias)

    def forward(self, x: Float[Tensor, "*any hidden"]) -> Float[Tensor, "*any labels"]:
        x = self.dropout(x)
        x = self.decoder(self.transform(x) if self.transform is not None else x)
        return ACTIVATIONS[self.config.act](x) if self.config.act else x


class SequenceHead(LabelHead):
    """Labels per sequence, from the pooled vector `(sequences, hidden)`."""


class TokenHead(LabelHead):
    """Labels per nucleotide, from hidden states without CLS and EOS `(tokens, hidden)`."""


class ContactHead(LabelHead):
    """Labels per pair of nucleotides of one sequence, from the product of their hidden states."""

    def forward(self, x: Float[Tensor, "length hidden"]) -> Float[Tensor, "length length labels"]:
        """Without a transform the product is folded into a bilinear form: no length² × hidden tensor.

        The decoder is affine, so that its values at the unit vectors say what it does to any product. It is called
        for these, not read, so that whatever wraps it (LoRA, offloading, quantisation) takes part.
        """
        if self.transform is None:
            return self._bilinear(self.dropout(x))
        rows = max(1, _PAIR_BLOCK // max(1, x.numel()))
        scores = torch.cat([super(ContactHead, self).forward(block[:, None] * x) for block in x.split(rows)])
        return (scores + scores.transpose(0, 1)) / 2

    def _bilinear(self, x: Tensor) -> Tensor:
        points = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            bias, values = self.decoder(torch.cat([torch.zeros_like(points[:1]), points])).split([1, len(points)])
            weights = (values - bias).T
        scores = torch.stack([(x * weight) @ x.T for weight in weights], dim=-1) + bias[0]
        # Floating-point sums need not be symmetric to the last bit; averaging makes them so.
        scores = (scores + scores.transpose(0, 1)) / 2
        return ACTIVATIONS[self.config.act](scores) if self.config.act else scores


def first_tokens(x: Float[Tensor, "tokens hidden"], layout: Layout) -> Float[Tensor, "sequences hidden"]:
    """The hidden state of each sequence's first token; an empty sequence has none and is refused."""
    if 0 in layout.lengths:
        raise InputError(f"sequence {layout.lengths.index(0) + 1} of the batch has no token")
    return x[layout.cu_seqlens[:-1].long()]


def mean_tokens(x: Float[Tensor, "tokens hidden"], layout: Layout) -> Float[Tensor, "sequences hidden"]:
    """The mean of each sequence's hidden states, CLS and EOS included; an empty sequence is refused."""
    if 0 in layout.lengths:
        raise InputError(f"sequence {layout.lengths.index(0) + 1} of the batch has no token")
    return torch.stack([states.mean(dim=0) for states in layout.split(x)])


# How the tokens of a sequence become one vector. All published models use CLS.
POOLINGS: dict[str, Callable[[Tensor, Layout], Tensor]] = {"cls": first_tokens, "mean": mean_tokens}


def ends(
    ids: Int[Tensor, " tokens"], layout: Layout, config: ModelConfig
) -> tuple[Bool[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """Where each sequence's leading CLS and trailing EOS are, if it has them; heads on nucleotides leave them out."""
    last = layout.cu_seqlens.long().diff()[layout.sequence_ids] - 1
    leading = (layout.indices == 0) & (ids == config.cls_token_id)
    return leading, (layout.indices == last) & (ids == config.eos_token_id)
