"""A structure head that asks each nucleotide for its partner, and looks at pairs that could be real only.

A candidate is a pair AU, GC or GU, its ends at least `MIN_DISTANCE` apart, that can stack on another such pair. Of all
pairs of positions that is an eighth, so length² costs an eighth of what a map of all pairs does. (Of the pairs in bpRNA
87 % are candidates; 10 % are not canonical, 3 % have no neighbour to stack on.)

    states ─► features of candidates ─► blocks: each candidate and its eight neighbours ─► a score for each candidate
                                                                                        └► one for staying unpaired

The scores of a nucleotide's candidates, and of staying unpaired, are made one distribution by a softmax: what it gives
to one partner it takes from the others. The probability of a pair is the geometric mean of what its two ends say.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

MIN_DISTANCE = 4  # a hairpin loop has at least three nucleotides
KINDS = ("AU", "GC", "GU", "UA", "CG", "UG")  # of candidates, 5' end first
UNKNOWN = 4  # the nucleotide that pairs with nothing; 0 to 3 are A, C, G, U
DISTANCES = 48
_EXACT = 24  # distances up to here have an embedding each
_CHUNK = 1 << 10  # candidates a CPU computes at once where no gradients are recorded: what they gather stays in cache
_CHUNK_ELSEWHERE = 1 << 16
_MAP = 1 << 25  # numbers of the map that candidates are taken from, held at once
_LARGEST = 20.0  # scores are kept within, so that their exponentials stay within fp32

# Where a neighbour's ends lie. Each is followed by its opposite: if b is a's neighbour k, a is b's neighbour k ^ 1.
NEIGHBOURS = ((1, -1), (-1, 1), (2, -2), (-2, 2), (1, -2), (-1, 2), (2, -1), (-2, 1))
_REACH = 2


def kind_table() -> Tensor:
    """Which of `KINDS` two nucleotides make, by their numbers; -1 for those that do not pair."""
    table = torch.full((5, 5), -1, dtype=torch.int8)
    for number, kind in enumerate(KINDS):
        table["ACGU".index(kind[0]), "ACGU".index(kind[1])] = number
    return table


@dataclass(frozen=True)
class Candidates:
    """The candidates of one sequence, in order of `i`, then `j`.

    i, j        (candidates,) positions, i < j
    kind        (candidates,) which of `KINDS`
    distance    (candidates,) bucket of j - i
    neighbours  (candidates, 8) their numbers; the number of candidates where there is none
    """

    length: int
    i: Tensor
    j: Tensor
    kind: Tensor
    distance: Tensor
    neighbours: Tensor

    @classmethod
    def of(cls, nucleotides: Int[Tensor, " length"]) -> Candidates:
        """Those of a sequence of 0 to 3 for A, C, G, U and `UNKNOWN`."""
        length, device = len(nucleotides), nucleotides.device
        kinds = kind_table().to(device)[nucleotides[:, None], nucleotides]
        can = (kinds >= 0).triu(MIN_DISTANCE)
        wide = F.pad(can, (1, 1, 1, 1))
        can &= wide[2:, :-2] | wide[:-2, 2:]  # the pair around it, the pair within
        i, j = can.nonzero(as_tuple=True)
        numbers = torch.full((length + 2 * _REACH,) * 2, len(i), dtype=torch.int32, device=device)
        numbers[i + _REACH, j + _REACH] = torch.arange(len(i), dtype=torch.int32, device=device)
        neighbours = torch.stack([numbers[i + _REACH + a, j + _REACH + b] for a, b in NEIGHBOURS], dim=1)
        return cls(length, i, j, kinds[i, j].long(), _bucket(j - i), neighbours)

    def __len__(self) -> int:
        return len(self.i)

    def parts(self, rows: int) -> Iterator[tuple[slice, int, int]]:
        """Candidates with `i` in `start:stop`, `rows` of them at a time."""
        starts = torch.arange(0, max(self.length, 1) + rows, rows, device=self.i.device)
        borders = torch.searchsorted(self.i, starts).tolist()
        for number, (first, last) in enumerate(itertools.pairwise(borders)):
            yield slice(first, last), number * rows, min((number + 1) * rows, self.length)


class PartnerHead(nn.Module):
    """For each nucleotide the log-probabilities of its partners."""

    def __init__(self, hidden_size: int, channels: int = 48, num_blocks: int = 6, rank: int = 8) -> None:
        """`rank` is the number of products of the two ends' states that make each channel."""
        super().__init__()
        self.channels, self.rank = channels, rank
        self.norm = nn.LayerNorm(hidden_size)
        self.ends = nn.Linear(hidden_size, 2 * channels)
        self.left = nn.Linear(hidden_size, channels * rank)
        self.right = nn.Linear(hidden_size, channels * rank)
        self.distance = nn.Embedding(DISTANCES, channels)
        self.kind = nn.Embedding(len(KINDS), channels)
        self.blocks = nn.ModuleList(CandidateBlock(channels) for _ in range(num_blocks))
        self.final_norm = nn.LayerNorm(channels)
        self.paired = nn.Linear(channels, 1)
        self.unpaired = nn.Linear(hidden_size, 1)

    def forward(
        self, states: Float[Tensor, "length hidden"], nucleotides: Int[Tensor, " length"]
    ) -> Float[Tensor, "length length"]:
        """In row i, column j the log-probability that i pairs with j; on the diagonal, that it pairs with none.

        Rows are distributions; what is no candidate has -inf. fp32 in and out, whatever the encoder's precision.
        """
        with torch.autocast(states.device.type, enabled=False):
            states = self.norm(states.float())
            candidates = Candidates.of(nucleotides)
            x = self._features(states, candidates)
            for block in self.blocks:
                x = block(x, candidates.neighbours)
            paired = self.paired(F.relu(self.final_norm(x)))[:, 0]
            return _distributions(paired, self.unpaired(states)[:, 0], candidates)

    def _features(self, states: Tensor, of: Candidates) -> Tensor:
        left, right = (self._products(layer, states) for layer in (self.left, self.right))
        rows = max(1, _MAP // max(1, self.channels * of.length))
        products = [
            _Picked.apply(left[:, start:stop] @ right.mT, of.i[part] - start, of.j[part])
            for part, start, stop in of.parts(rows)
        ]
        first, second = self.ends(states).chunk(2, dim=1)
        x = torch.cat(products) / math.sqrt(self.rank)
        return x + first[of.i] + second[of.j] + self.distance(of.distance) + self.kind(of.kind)

    def _products(self, layer: nn.Linear, states: Tensor) -> Float[Tensor, "channels length rank"]:
        return layer(states).view(len(states), self.channels, self.rank).transpose(0, 1)


class CandidateBlock(nn.Module):
    """A residual block on candidates: norm, a layer over each one and its neighbours, ReLU, a layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mix = nn.Linear((len(NEIGHBOURS) + 1) * channels, channels)
        self.output = nn.Linear(channels, channels)

    def forward(
        self, x: Float[Tensor, "candidates channels"], neighbours: Int[Tensor, "candidates 8"]
    ) -> Float[Tensor, "candidates channels"]:
        y = self.norm(x)
        if torch.is_grad_enabled():
            return x + self._update(_Neighbours.apply(y, neighbours), y)
        source, out = _with_none(y), torch.empty_like(x)
        chunk = _CHUNK if x.device.type == "cpu" else _CHUNK_ELSEWHERE
        for start in range(0, len(x), chunk):
            part = slice(start, start + chunk)
            itself = torch.arange(start, min(start + chunk, len(x)), device=x.device, dtype=neighbours.dtype)
            around = _gathered(source, torch.cat([neighbours[part], itself[:, None]], dim=1))
            torch.add(x[part], self.output(F.relu(self.mix(around))), out=out[part])
        return out

    def _update(self, around: Tensor, y: Tensor) -> Tensor:
        return self.output(F.relu(self.mix(torch.cat([around, y], dim=1))))


class _Neighbours(torch.autograd.Function):
    """Rows of neighbours side by side. The gradient of a row is gathered from its neighbours too, not scattered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, neighbours: Tensor) -> Tensor:
        ctx.save_for_backward(neighbours)
        return _gathered(_with_none(x), neighbours)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (neighbours,) = ctx.saved_tensors
        count, width = neighbours.shape
        rows = _with_none(gradient.reshape(count * width, gradient.shape[1] // width))
        total = torch.zeros_like(rows[:count])
        for k in range(width):
            other = neighbours[:, k ^ 1].long()
            total += rows[torch.where(other < count, other * width + k, count * width)]
        return total, None


class _Picked(torch.autograd.Function):
    """`x[:, i, j].T`. No place is picked twice, so the gradient is written, not added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, i: Tensor, j: Tensor) -> Tensor:
        ctx.save_for_backward(i, j)
        ctx.shape = x.shape
        return x.flatten(1).index_select(1, i * x.shape[2] + j).T.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        i, j = ctx.saved_tensors
        whole = gradient.new_zeros(ctx.shape)
        whole.flatten(1)[:, i * ctx.shape[2] + j] = gradient.T
        return whole, None, None


def _with_none(x: Tensor) -> Tensor:
    """With a row of zeros at the end, for "no neighbour"."""
    return torch.cat([x, x.new_zeros(1, x.shape[1])])


def _gathered(source: Tensor, neighbours: Tensor) -> Tensor:
    return F.embedding(neighbours, source).flatten(1)


def _bucket(distance: Tensor) -> Tensor:
    """One for each distance below 24, then five for each doubling."""
    far = (_EXACT + 5 * torch.log2(distance.clamp(min=_EXACT) / _EXACT)).long()
    return torch.where(distance < _EXACT, distance, far).clamp(max=DISTANCES - 1)


def _distributions(paired: Tensor, unpaired: Tensor, of: Candidates) -> Float[Tensor, "length length"]:
    paired, unpaired = paired.clamp(-_LARGEST, _LARGEST), unpaired.clamp(-_LARGEST, _LARGEST)
    weight = paired.exp()
    total = unpaired.exp().index_add(0, of.i, weight).index_add(0, of.j, weight).log()
    place = torch.arange(of.length, device=paired.device)
    rows, columns = torch.cat([of.i, of.j, place]), torch.cat([of.j, of.i, place])
    values = torch.cat([paired - total[of.i], paired - total[of.j], unpaired - total])
    return values.new_full((of.length, of.length), -torch.inf).index_put((rows, columns), values)
