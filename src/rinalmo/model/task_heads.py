"""The heads of the paper's downstream tasks: secondary structure, ribosome load, splice site, ncRNA family.

`StructureHead` and `RibosomeLoadHead` use instance norms, whose statistics run over every position they are given:
a padded sequence would get other numbers. Here each sequence is computed on its own length.

The structure head is written twice. Where gradients are recorded, or the sequence is short, it is the plain network.
Elsewhere its map of pairs, length² × channels, is computed in blocks of rows that stay in the processor's cache (on a
GPU larger ones), and 1.5 such maps are held instead of four: the outer sum that it starts from is made whenever a block
of it is asked for, and in the end only the columns right of the diagonal are kept.

Reference: Penić et al. 2025 (arXiv:2403.00043), supplement.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rinalmo.model.heads import POOLINGS
from rinalmo.model.hooks import is_hooked
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

    def by_rows(self, x: Rows, *, upper: bool) -> Rows:
        """As `forward`, without gradients. With `upper` only what the upper triangle needs; `x` is then used up."""
        x = list(x) if upper else x
        starts = _first_columns(x) if upper else [0] * len(x)
        out = _reserve(x, starts)
        moments = self._widen(x, starts, out)
        moments = self._contract(x, starts, out, *moments.affine())
        scale, shift = moments.affine()
        for k, kept in enumerate(out):
            torch.addcmul(shift, kept, scale, out=kept).relu_().add_(x[k][..., starts[k] :])
        return out

    def _first(self, x: Rows) -> Iterator[Tensor]:
        """The first convolution with its norm, which is folded into the weight, and ReLU."""
        weight = self.conv1.weight[:, :, 0, 0]
        if isinstance(x, _OuterSum):
            return (rows.relu_() for rows in x.mixed(weight).normed())
        moments = _Moments()
        for rows in x:
            moments.add(_mix(rows, weight))
        scale, shift = moments.affine()
        return (_mix(rows, weight * scale[:, 0], shift[:, 0]).relu_() for rows in x)

    def _widen(self, x: Rows, starts: list[int], out: list[Tensor]) -> _Moments:
        """The first two convolutions, into `out`. Columns before `starts` go where nothing reads `x` again."""
        moments = _Moments()
        for k, rows in enumerate(_with_neighbours(self._first(x))):
            y = _convolve(rows, self.conv2)
            moments.add(y)
            out[k].copy_(y[..., starts[k] :])
            if starts[k]:
                x[k][..., : starts[k]] = y[..., : starts[k]]
        return moments

    def _contract(self, x: Rows, starts: list[int], out: list[Tensor], scale: Tensor, shift: Tensor) -> _Moments:
        """The last convolution, in place; of the columns before `starts` only the moments count."""
        weight, moments = self.conv3.weight[:, :, 0, 0], _Moments()
        for k, kept in enumerate(out):
            for y in (kept, x[k][..., : starts[k]]) if starts[k] else (kept,):
                z = _mix(torch.addcmul(shift, y, scale).relu_(), weight)
                moments.add(z)
                if y is kept:
                    kept.copy_(z)
        return moments


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
        if len(x) == 0:  # convolutions refuse it
            return x.new_zeros(0, 0, self.prediction.out_channels)
        first, second = self._ends(x)
        plain = torch.is_grad_enabled() or len(x) * first.numel() <= _block_size(first) or self._is_changed()
        upper = (self._plain if plain else self._by_rows)(first, second).triu(1)
        return (upper + upper.transpose(1, 2)).permute(1, 2, 0)

    def _ends(self, x: Tensor) -> tuple[Float[Tensor, "channels length"], Float[Tensor, "channels length"]]:
        """`W_a h` and `W_b h + b`, by calls of the projection, so that whatever wraps it takes part."""
        nothing = torch.zeros_like(x)
        pairs = torch.cat([torch.cat([x, nothing], dim=1), torch.cat([nothing, x], dim=1)])
        first, second, bias = self.projection(F.pad(pairs, (0, 0, 0, 1))).split([len(x), len(x), 1])
        return (first - bias).T, second.T

    def _is_changed(self) -> bool:
        """Whether somebody has hooked or replaced a convolution, whose weights are read in blocks of rows."""
        layers = [layer for block in self.blocks for layer in block.children()] + [self.prediction]
        return is_hooked(self) or any(type(layer) is not nn.Conv2d for layer in layers)

    def _plain(
        self, first: Float[Tensor, "channels length"], second: Float[Tensor, "channels length"]
    ) -> Float[Tensor, "labels length length"]:
        pairs = (first[:, :, None] + second[:, None, :])[None]
        for block in self.blocks:
            pairs = block(pairs)
        return self.prediction(pairs)[0]

    def _by_rows(
        self, first: Float[Tensor, "channels length"], second: Float[Tensor, "channels length"]
    ) -> Float[Tensor, "labels length length"]:
        pairs: Rows = _OuterSum(first, second)
        for block in self.blocks:
            assert isinstance(block, PairBlock)
            pairs = block.by_rows(pairs, upper=block is self.blocks[-1])
        length = first.shape[1]
        out = first.new_zeros(self.prediction.out_channels, length, length)
        heights = [rows.shape[1] for rows in pairs]
        for part, rows in zip(out.split(heights, dim=1), _with_neighbours(pairs), strict=True):
            y = _convolve(rows, self.prediction)
            part[..., -y.shape[2] :] = y
        return out


# A map of pairs in blocks of rows, each `(channels, rows, columns)`. Where only the upper triangle is kept, the later
# blocks lack columns on the left.
Rows = Sequence[Tensor]

BLOCK = 1 << 19  # numbers in one block: 2 MB, which fit into the cache of a core
GPU_BLOCK = 1 << 27  # a map of 1,400 nt as a whole: small blocks would leave most of a GPU idle


def _block_size(x: Tensor) -> int:
    return BLOCK if x.device.type == "cpu" else GPU_BLOCK


class _OuterSum(Sequence[Tensor]):
    """`first[:, i] + second[:, j]` for all i and j, in blocks that are computed whenever they are asked for."""

    def __init__(self, first: Float[Tensor, "channels length"], second: Float[Tensor, "channels length"]) -> None:
        self.first, self.second = first, second
        self.parts = first[:, :, None].split(max(1, _block_size(first) // first.numel()), dim=1)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, k: int) -> Tensor:  # type: ignore[override]  # no slices
        return self.parts[k] + self.second[:, None]

    def mixed(self, weight: Float[Tensor, "out channels"]) -> _OuterSum:
        """A 1 × 1 convolution of it, which is an outer sum again."""
        return _OuterSum(weight @ self.first, weight @ self.second)

    def normed(self, eps: float = 1e-5) -> _OuterSum:
        """An instance norm of it: over all pairs, means and variances of the two add up."""
        first, second = (x - x.mean(dim=1, keepdim=True) for x in (self.first, self.second))
        variance = first.square().mean(dim=1, keepdim=True) + second.square().mean(dim=1, keepdim=True)
        scale = (variance + eps).rsqrt()
        return _OuterSum(first * scale, second * scale)


class _Moments:
    """Sums over a map that comes in blocks, from which an instance norm follows; in fp64 where there is one."""

    def __init__(self) -> None:
        self.count, self.dtype = 0, torch.float32
        self.sum: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, rows: Float[Tensor, "channels rows columns"]) -> None:
        """Take one block into account."""
        flat = rows.flatten(1).float()
        self.count, self.dtype = self.count + flat.shape[1], rows.dtype
        wide = torch.float32 if flat.device.type == "mps" else torch.float64
        self.sum = self.sum + flat.sum(1).to(wide)
        self.squares = self.squares + flat.square().sum(1).to(wide)

    def affine(self, eps: float = 1e-5) -> tuple[Float[Tensor, "channels 1 1"], Float[Tensor, "channels 1 1"]]:
        """The norm as a factor and a summand for each channel."""
        mean = torch.as_tensor(self.sum) / self.count
        scale = ((self.squares / self.count - mean**2).clamp(min=0) + eps).rsqrt()
        return scale.to(self.dtype)[:, None, None], (-mean * scale).to(self.dtype)[:, None, None]


def _first_columns(blocks: Rows) -> list[int]:
    """Where each block must begin so that a 3 × 3 convolution finds all it needs right of the diagonal."""
    rows = accumulate((block.shape[1] for block in blocks[:-1]), initial=0)
    return [max(0, row - 1) for row in rows]


def _reserve(like: Rows, starts: list[int]) -> list[Tensor]:
    """Room for as many blocks of these shapes, less the columns before `starts`, in one piece that never fragments."""
    shapes = [(*block.shape[:2], block.shape[2] - start) for block, start in zip(like, starts, strict=True)]
    sizes = [channels * rows * columns for channels, rows, columns in shapes]
    parts = like[0].new_empty(sum(sizes)).split(sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _with_neighbours(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each block with the row above it and the row below it; zeros outside of the map and for columns that lack."""
    above = here = None
    for below in chain(blocks, [None]):
        if here is not None:
            columns, nothing = here.shape[2], torch.zeros_like(here[:, :1])
            top = nothing if above is None else above[..., -columns:]
            bottom = nothing if below is None else F.pad(below[:, :1], (columns - below.shape[2], 0))
            yield torch.cat((top, here, bottom), dim=1)
            above = here[:, -1:]
        here = below


def _mix(
    rows: Float[Tensor, "into rows columns"], weight: Float[Tensor, "out into"], bias: Tensor | None = None
) -> Float[Tensor, "out rows columns"]:
    """A 1 × 1 convolution."""
    flat = rows.flatten(1)
    mixed = weight @ flat if bias is None else torch.addmm(bias, weight, flat)
    return mixed.unflatten(1, rows.shape[1:])


def _convolve(rows: Float[Tensor, "into rows_and_two columns"], conv: nn.Conv2d) -> Float[Tensor, "out rows columns"]:
    """A 3 × 3 convolution of a block with its neighbours."""
    return F.conv2d(rows[None], conv.weight, conv.bias, padding=(0, 1))[0]


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
    """Two-layer network on the CLS vector, or on the mean of all tokens (`rinalmo.model.heads.POOLINGS`)."""

    def __init__(self, hidden_size: int, width: int, num_labels: int, pooling: str = "cls") -> None:
        super().__init__()
        self.pool = POOLINGS[pooling]
        self.dense = nn.Linear(hidden_size, width)
        self.decoder = nn.Linear(width, num_labels)

    def forward(self, x: Float[Tensor, "tokens hidden"], layout: Layout) -> Float[Tensor, "sequences labels"]:
        return self.decoder(F.gelu(self.dense(self.pool(x, layout))))


class SpliceSiteHead(ClassificationHead):
    """One logit: does the sequence's centre hold a splice site?"""

    def __init__(self, hidden_size: int, width: int = 128, num_labels: int = 1, pooling: str = "cls") -> None:
        super().__init__(hidden_size, width, num_labels, pooling)


class NcrnaFamilyHead(ClassificationHead):
    """One logit per family, 88 in the published benchmark."""

    def __init__(self, hidden_size: int, width: int = 256, num_labels: int = 88, pooling: str = "cls") -> None:
        super().__init__(hidden_size, width, num_labels, pooling)


def _instance_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance over the positions of each channel.

    `torch.nn.functional.instance_norm` refuses a single position in training; here it becomes 0, as in evaluation.
    """
    return F.instance_norm(x, use_input_stats=True, eps=eps) if x[0, 0].numel() > 1 else torch.zeros_like(x)
