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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
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


MIN_PROBABILITY = 0.01  # less probable pairs are no candidates
SHRINKAGE = 0.5  # share of the plain weighted mean in the probabilities: new families differ from those learned from
_FLOOR = 1e-4  # probabilities are at least this where their logarithm is taken; ViennaRNA's list ends here too
_LARGEST_COMBINED = 20.0  # scores are kept within, so that their exponentials stay within fp32
_COMBINER_REACH = 2
_PRIOR = 0.85  # a fresh combiner gives thermodynamics a weight of sigmoid(-0.85) = 0.3
_MODEL, _THERMODYNAMICS = 4, 5  # where both probabilities stand among a candidate's features
_UNPAIRED_MODEL, _UNPAIRED_THERMODYNAMICS = 0, 1  # and their logarithms among a nucleotide's

PAIR_FEATURES = 14 + len(KINDS)
NUCLEOTIDE_FEATURES = 22


@dataclass(frozen=True)
class Evidence:
    """What is known of one RNA, or of several end to end.

    Attributes:
        i: 5' positions of the candidates `(candidates,)`.
        j: Their 3' positions `(candidates,)`.
        neighbours: Numbers of the candidates around each one `(candidates, 8)`; the number of candidates where there
            is none.
        pairs: Features of the candidates `(candidates, PAIR_FEATURES)`.
        nucleotides: Features of the positions `(length, NUCLEOTIDE_FEATURES)`.
    """

    i: Int[Tensor, " candidates"]
    j: Int[Tensor, " candidates"]
    neighbours: Int[Tensor, "candidates 8"]
    pairs: Float[Tensor, "candidates pair_features"]
    nucleotides: Float[Tensor, "length nucleotide_features"]

    @classmethod
    def of(
        cls,
        log_probabilities: Float[Tensor, "length length"],
        nucleotides: Int[Tensor, " length"],
        thermodynamics: Float[Tensor, "length length"],
        in_mfe: Bool[Tensor, "length length"],
        mfe: float,
        energy: float,
    ) -> Evidence:
        """Collect the evidence of one RNA.

        Args:
            log_probabilities: What a partner head says: in row i, column j the log-probability that i pairs with j.
            nucleotides: 0 to 3 for A, C, G, U, else `UNKNOWN`.
            thermodynamics: Pair probabilities of a partition function, symmetric.
            in_mfe: The pairs of the structure of minimum free energy, symmetric.
            mfe: Its free energy in kcal/mol.
            energy: Free energy of the ensemble in kcal/mol.
        """
        length = len(nucleotides)
        log_model = log_probabilities.float()
        unpaired = log_model.diagonal().exp()
        directed = log_model.exp().fill_diagonal_(0)
        model = ((log_model + log_model.T) / 2).exp().fill_diagonal_(0)
        kinds = kind_table().to(nucleotides.device)[nucleotides[:, None], nucleotides].long()
        can = ((model > MIN_PROBABILITY) | (thermodynamics > MIN_PROBABILITY)) & (kinds >= 0)
        i, j = can.triu(MIN_DISTANCE).nonzero(as_tuple=True)
        rivals = [_rivals(source, i, j) for source in (directed, thermodynamics)]
        at = thermodynamics[i, j]
        pairs = torch.stack(
            [
                _log(model[i, j]),
                _log(directed[i, j]),
                _log(directed[j, i]),
                _log(at),
                model[i, j],
                at,
                (model[i, j] * at).sqrt(),
                in_mfe[i, j].float(),
                *(_log(rival) for both in rivals for rival in both),
                (j - i).float().log(),
                torch.full(i.shape, float(length), device=i.device).log(),
                *F.one_hot(kinds[i, j], len(KINDS)).float().T,
            ],
            dim=1,
        )
        positions = _nucleotide_features(directed, unpaired, thermodynamics, in_mfe, nucleotides, mfe, energy)
        return cls(i, j, _neighbours(i, j, length), pairs, positions)

    @classmethod
    def joined(cls, parts: Sequence[Evidence]) -> Evidence:
        """Several RNAs end to end, which do not see each other."""
        lengths = torch.tensor([0, *(len(part.nucleotides) for part in parts)]).cumsum(0).tolist()
        counts = torch.tensor([0, *(len(part.i) for part in parts)]).cumsum(0).tolist()
        neighbours = [
            torch.where(part.neighbours < len(part.i), part.neighbours + first, counts[-1])
            for part, first in zip(parts, counts[:-1], strict=True)
        ]
        starts = list(zip(parts, lengths[:-1], strict=True))
        return cls(
            torch.cat([part.i + start for part, start in starts]),
            torch.cat([part.j + start for part, start in starts]),
            torch.cat(neighbours),
            torch.cat([part.pairs for part in parts]),
            torch.cat([part.nucleotides for part in parts]),
        )


class Combiner(nn.Module):
    """Pair probabilities from the evidence of a partner head and of thermodynamics."""

    pair_mean: Tensor
    pair_std: Tensor
    nucleotide_mean: Tensor
    nucleotide_std: Tensor

    def __init__(self, channels: int = 32, num_blocks: int = 3, dropout: float = 0.0) -> None:
        """`channels` is the width of candidates and nucleotides alike; `dropout` is for training."""
        super().__init__()
        self.register_buffer("pair_mean", torch.zeros(PAIR_FEATURES))
        self.register_buffer("pair_std", torch.ones(PAIR_FEATURES))
        self.register_buffer("nucleotide_mean", torch.zeros(NUCLEOTIDE_FEATURES))
        self.register_buffer("nucleotide_std", torch.ones(NUCLEOTIDE_FEATURES))
        self.pair_input = nn.Linear(PAIR_FEATURES, channels)
        self.nucleotide_input = nn.Linear(NUCLEOTIDE_FEATURES, channels)
        self.blocks = nn.ModuleList(CombinerBlock(channels, dropout) for _ in range(num_blocks))
        self.pair_norm = nn.LayerNorm(channels)
        self.nucleotide_norm = nn.LayerNorm(channels)
        self.paired = nn.Linear(channels, 2)
        self.unpaired = nn.Linear(channels, 2)
        # A fresh one is the plain mean, so that what it learns is where to depart from it.
        for layer in (self.paired, self.unpaired):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, of: Evidence) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the partners of every nucleotide.

        Returns:
            What the 5' nucleotide of each candidate says of it, what the 3' nucleotide says `(candidates,)`, and the
            log-probability of having none of the candidates as a partner `(length,)`.
        """
        pairs = self.pair_input((of.pairs - self.pair_mean) / self.pair_std)
        nucleotides = self.nucleotide_input((of.nucleotides - self.nucleotide_mean) / self.nucleotide_std)
        for block in self.blocks:
            pairs, nucleotides = block(pairs, nucleotides, of)
        paired = _mixed(of.pairs[:, _MODEL], of.pairs[:, _THERMODYNAMICS], self.paired(F.relu(self.pair_norm(pairs))))
        both = of.nucleotides[:, _UNPAIRED_MODEL].exp(), of.nucleotides[:, _UNPAIRED_THERMODYNAMICS].exp()
        unpaired = _mixed(*both, self.unpaired(F.relu(self.nucleotide_norm(nucleotides))))
        weight = paired.exp()
        total = unpaired.exp().index_add(0, of.i, weight).index_add(0, of.j, weight).log()
        return paired - total[of.i], paired - total[of.j], unpaired - total

    def matrix(self, of: Evidence) -> Float[Tensor, "length length"]:
        """Pair probabilities of one RNA, symmetric: the mean of what was learned and of the plain weighted mean."""
        first, second, unpaired = self(of)
        share = torch.tensor(-_PRIOR).sigmoid()
        plain = (1 - share) * of.pairs[:, _MODEL] + share * of.pairs[:, _THERMODYNAMICS]
        learned = ((first + second) / 2).exp()
        matrix = unpaired.new_zeros((len(unpaired), len(unpaired)))
        matrix[of.i, of.j] = matrix[of.j, of.i] = SHRINKAGE * plain + (1 - SHRINKAGE) * learned
        return matrix


class CombinerBlock(nn.Module):
    """A residual block on candidates, then one on nucleotides."""

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.pair_norm = nn.LayerNorm(channels)
        self.nucleotide_norm = nn.LayerNorm(channels)
        self.pair_mix = nn.Linear((len(NEIGHBOURS) + 3) * channels, 2 * channels)
        self.pair_output = nn.Linear(2 * channels, channels)
        self.weight = nn.Linear(channels, 1)
        self.nucleotide_mix = nn.Linear(2 * channels, 2 * channels)
        self.nucleotide_output = nn.Linear(2 * channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pairs: Tensor, nucleotides: Tensor, of: Evidence) -> tuple[Tensor, Tensor]:
        normed, ends = self.pair_norm(pairs), self.nucleotide_norm(nucleotides)
        source = torch.cat([normed, normed.new_zeros(1, normed.shape[1])])
        around = F.embedding(of.neighbours, source).flatten(1)
        mixed = torch.cat([normed, around, ends[of.i], ends[of.j]], dim=1)
        pairs = pairs + self.pair_output(self.dropout(F.relu(self.pair_mix(mixed))))
        # The mean over a nucleotide's candidates, weighted, with a candidate of zeros so that none is divided by zero.
        weight = self.weight(normed).clamp(-_LARGEST_COMBINED, _LARGEST_COMBINED).exp()
        places, both = torch.cat([of.i, of.j]), torch.cat([weight, weight])
        total = normed.new_ones(len(nucleotides), 1).index_add(0, places, both)
        values = normed.new_zeros(len(nucleotides), normed.shape[1]).index_add(
            0, places, both * torch.cat([normed, normed])
        )
        mixed = torch.cat([ends, values / total], dim=1)
        return pairs, nucleotides + self.nucleotide_output(self.dropout(F.relu(self.nucleotide_mix(mixed))))


def _mixed(model: Tensor, thermodynamics: Tensor, chosen: Float[Tensor, "of 2"]) -> Tensor:
    """The logarithm of the weighted mean of two probabilities, with weight and addend as chosen."""
    share = (chosen[:, 0] - _PRIOR).sigmoid()
    mean = (1 - share) * model + share * thermodynamics
    return mean.clamp(min=_FLOOR).log() + chosen[:, 1].clamp(-_LARGEST_COMBINED, _LARGEST_COMBINED)


def _nucleotide_features(
    directed: Tensor,
    unpaired: Tensor,
    thermodynamics: Tensor,
    in_mfe: Tensor,
    nucleotides: Tensor,
    mfe: float,
    energy: float,
) -> Float[Tensor, "length features"]:
    length = len(nucleotides)
    thermo_unpaired = (1 - thermodynamics.sum(1)).clamp(0, 1)
    model_entropy, thermo_entropy = _entropy(directed, unpaired), _entropy(thermodynamics, thermo_unpaired)
    agreement = (directed * thermodynamics).sqrt().sum(1) + (unpaired * thermo_unpaired).sqrt()
    strongest = directed.amax(1) if length else unpaired, thermodynamics.amax(1) if length else unpaired
    letters = F.one_hot(nucleotides, UNKNOWN + 1)[:, :UNKNOWN].float()
    whole = [
        torch.tensor(float(max(length, 1))).log(),
        model_entropy.mean(),
        thermo_entropy.mean(),
        agreement.mean(),
        unpaired.mean(),
        thermo_unpaired.mean(),
        strongest[0].mean(),
        torch.tensor(mfe / max(length, 1)),
        torch.tensor((energy - mfe) / max(length, 1)),
        letters[:, 1:3].sum(1).mean(),
    ]
    return torch.stack(
        [
            _log(unpaired),
            _log(thermo_unpaired),
            *strongest,
            model_entropy,
            thermo_entropy,
            agreement,
            in_mfe.any(1).float(),
            *letters.T,
            *(value.to(unpaired).expand(length) for value in whole),
        ],
        dim=1,
    )


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=_FLOOR).log()


def _entropy(pairs: Tensor, unpaired: Tensor) -> Tensor:
    return -(torch.xlogy(pairs, pairs).sum(1) + torch.xlogy(unpaired, unpaired))


def _rivals(source: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """For the ends of each candidate the probability of their likeliest other partner."""
    if not len(i):
        return source.new_zeros(0), source.new_zeros(0)
    (best, second), (place, _) = source.topk(2, dim=1).values.T, source.topk(2, dim=1).indices.T
    return torch.where(place[i] == j, second[i], best[i]), torch.where(place[j] == i, second[j], best[j])


def _neighbours(i: Tensor, j: Tensor, length: int) -> Int[Tensor, "candidates 8"]:
    numbers = torch.full((length + 2 * _COMBINER_REACH,) * 2, len(i), dtype=torch.long, device=i.device)
    numbers[i + _COMBINER_REACH, j + _COMBINER_REACH] = torch.arange(len(i), device=i.device)
    return torch.stack([numbers[i + _COMBINER_REACH + a, j + _COMBINER_REACH + b] for a, b in NEIGHBOURS], dim=1)
