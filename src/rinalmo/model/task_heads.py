"""The heads of the paper's downstream tasks: secondary structure, ribosome load, splice site, ncRNA family.

`StructureHead` and `RibosomeLoadHead` use instance norms, whose statistics run over every position they are given:
a padded sequence would get other numbers. Here each sequence is computed on its own length.

Reference: Penić et al. 2025 (arXiv:2403.00043), supplement.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rinalmo.model.heads import first_tokens
from rinalmo.model.packing import Layout


class PairBlock(nn.Module):
    """Bottleneck residual block on a map of pairs: three convolutions, each with instance norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "1 channels length length"]) -> Float[Tensor, "1 channels length length"]:
        y = x
        for conv in (self.conv1, self.conv2, self.conv3):
            y = F.relu(_instance_norm(conv(y)), inplace=True)
        return x + y


class StructureHead(nn.Module):
    """Pairing logits of one sequence.

    The paper projects the concatenation [h_i; h_j] of every pair. Splitting the projection in two,
    `W_a h_i + W_b h_j + b`, gives the same numbers without the length² × 2·hidden tensor.
    """

    def __init__(self, hidden_size: int, channels: int = 64, num_blocks: int = 2, num_labels: int = 1) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * hidden_size, channels)
        self.blocks = nn.ModuleList(PairBlock(channels) for _ in range(num_blocks))
        self.prediction = nn.Conv2d(channels, num_labels, 3, padding=1)

    def forward(self, x: Float[Tensor, "length hidden"]) -> Float[Tensor, "length length labels"]:
        """Symmetric logits; only the map's upper triangle is used, the diagonal is 0."""
        left, right = self.projection.weight.chunk(2, dim=1)
        first, second = (x @ left.T).T, (x @ right.T).T + self.projection.bias[:, None]
        pairs = (first[:, :, None] + second[:, None, :])[None]
        for block in self.blocks:
            pairs = block(pairs)
        upper = self.prediction(pairs)[0].triu(1)
        return (upper + upper.transpose(1, 2)).permute(1, 2, 0)


class SequenceBlock(nn.Module):
    """Residual block along the sequence: two convolutions of width 3, each with instance norm and ELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "1 channels length"]) -> Float[Tensor, "1 channels length"]:
        y = F.elu(_instance_norm(self.conv1(x)))
        return x + F.elu(_instance_norm(self.conv2(y)))


class RibosomeLoadHead(nn.Module):
    """One number per sequence, for ribosome load, translation efficiency and expression.

    The network predicts the standardised target; `forward` scales it back with the stored mean and deviation.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(self, hidden_size: int, channels: int = 32, num_blocks: int = 6, dropout: float = 0.2) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, channels)
        self.blocks = nn.ModuleList(SequenceBlock(channels) for _ in range(num_blocks))
        self.dropout = nn.Dropout(dropout)
        self.prediction = nn.Linear(channels, 1)
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_std", torch.ones(()))

    def standardised(self, x: Float[Tensor, "tokens hidden"], layout: Layout) -> Float[Tensor, " sequences"]:
        """The prediction in units of the training targets' standard deviation, which the loss compares.

        The mean is over each sequence's own tokens, CLS and EOS included. The published model was trained on
        sequences filled up to 102 tokens, and its instance norms see the filling: `pack_padded` reproduces that.
        """
        parts = zip(layout.split(x), layout.real_lengths, strict=True)
        return torch.stack([self._one(states, real) for states, real in parts])

    def forward(self, x: Float[Tensor, "tokens hidden"], layout: Layout) -> Float[Tensor, " sequences"]:
        """The prediction in the targets' own units."""
        return self.standardised(x, layout) * self.target_std + self.target_mean

    def _one(self, states: Tensor, real: int) -> Tensor:
        y = self.projection(states).T[None]
        for block in self.blocks:
            y = block(y)
        out: Tensor = self.prediction(self.dropout(y[0, :, :real].mean(dim=1)))
        return out[0]


class ClassificationHead(nn.Module):
    """Two-layer network on the CLS vector."""

    def __init__(self, hidden_size: int, width: int, num_labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, width)
        self.decoder = nn.Linear(width, num_labels)

    def forward(self, x: Float[Tensor, "tokens hidden"], layout: Layout) -> Float[Tensor, "sequences labels"]:
        return self.decoder(F.gelu(self.dense(first_tokens(x, layout))))


class SpliceSiteHead(ClassificationHead):
    """One logit: does the sequence's centre hold a splice site?"""

    def __init__(self, hidden_size: int, width: int = 128, num_labels: int = 1) -> None:
        super().__init__(hidden_size, width, num_labels)


class NcrnaFamilyHead(ClassificationHead):
    """One logit per family, 88 in the published benchmark."""

    def __init__(self, hidden_size: int, width: int = 256, num_labels: int = 88) -> None:
        super().__init__(hidden_size, width, num_labels)


def _instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance over the positions of each channel.

    `torch.nn.functional.instance_norm` refuses a single position in training; here it becomes 0, as in evaluation.
    """
    return F.instance_norm(x, use_input_stats=True, eps=eps) if x[0, 0].numel() > 1 else torch.zeros_like(x)
