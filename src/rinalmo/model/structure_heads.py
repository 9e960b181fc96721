"""Structure heads on candidate pairs: `PartnerHead` from the encoder's states, `Combiner` with thermodynamics.

A candidate of `PartnerHead` is a pair AU, GC or GU, its ends at least `MIN_DISTANCE` apart, that can stack on another
such pair. Of all pairs of positions that is an eighth, so length² costs an eighth of what a map of all pairs does. (Of
the pairs in bpRNA 87 % are candidates; 10 % are not canonical, 3 % have no neighbour to stack on.)

    states ─► features of candidates ─► blocks: each candidate and its eight neighbours ─► a score for each candidate
                                                                                        └► a score for staying unpaired

A softmax over a nucleotide's candidates and the unpaired state makes them one distribution: they compete. The
probability of a pair is the geometric mean of its two nucleotides' probabilities.

`Combiner` takes such probabilities and those of a partition function; a pair that either of them finds likely is its
candidate. It weighs the two sources against each other by features of candidates and nucleotides.
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

# --- Candidates and their neighbours ---

MIN_DISTANCE = 4  # a hairpin loop has at least three nucleotides
KINDS = ("AU", "GC", "GU", "UA", "CG", "UG")  # of candidates, 5' end first
UNKNOWN = 4  # a nucleotide that pairs with nothing; 0 to 3 are A, C, G, U
# Index in `KINDS` of each pair of A, C, G, U and an unknown nucleotide; -1 for those that do not pair.
KIND_TABLE = [[KINDS.index(a + b) if a + b in KINDS else -1 for b in "ACGU?"] for a in "ACGU?"]
DISTANCES = 48
_EXACT = 24  # distances up to here have an embedding each
_CHUNK = 1 << 10  # candidates a CPU computes at once where no gradients are recorded: what they gather stays in cache
_GPU_CHUNK = 1 << 16
_MAP = 1 << 25  # numbers of the map that candidates are taken from, held at once
_MAX_SCORE = 20.0  # scores are clamped to ±20, so that their exponentials stay within fp32

# Offsets of a neighbour's ends. Each is followed by its opposite: if b is a's neighbour k, a is b's neighbour k ^ 1.
NEIGHBOURS = ((1, -1), (-1, 1), (2, -2), (-2, 2), (1, -2), (-1, 2), (2, -1), (-2, 1))
_REACH = 2


def _neighbours(i: Tensor, j: Tensor, length: int) -> Int[Tensor, "candidates 8"]:
    """The index of each candidate's neighbours; the number of candidates where there is none."""
    numbers = torch.full((length + 2 * _REACH,) * 2, len(i), dtype=torch.int32, device=i.device)
    numbers[i + _REACH, j + _REACH] = torch.arange(len(i), dtype=torch.int32, device=i.device)
    return torch.stack([numbers[i + _REACH + a, j + _REACH + b] for a, b in NEIGHBOURS], dim=1)


def _gather_rows(x: Float[Tensor, "candidates channels"], indices: Tensor) -> Float[Tensor, "rows many_channels"]:
    """Rows of `x` side by side; zeros for an index of `len(x)`, which is "no neighbour"."""
    return F.embedding(indices, F.pad(x, (0, 0, 0, 1))).flatten(1)


def _log_partition(paired: Tensor, unpaired: Tensor, i: Tensor, j: Tensor) -> Float[Tensor, " length"]:
    """For each nucleotide the logarithm of the sum of e^score over its candidates and the unpaired state."""
    weight = paired.exp()
    return unpaired.exp().index_add(0, i, weight).index_add(0, j, weight).log()


@dataclass(frozen=True)
class Candidates:
    """The candidates of one sequence, in order of `i`, then `j`.

    i, j        (candidates,) positions, i < j
    kind        (candidates,) index in `KINDS`
    distance    (candidates,) bucket of j - i: one for each distance below 24, then five per doubling
    neighbours  (candidates, 8) indices of the neighbours; the number of candidates where there is none
    """

    i: Tensor
    j: Tensor
    kind: Tensor
    distance: Tensor
    neighbours: Tensor

    @classmethod
    def of(cls, nucleotides: Int[Tensor, " length"]) -> Candidates:
        """The candidates of a sequence, given as 0 to 3 for A, C, G, U and `UNKNOWN`."""
        length = len(nucleotides)
        kinds = torch.tensor(KIND_TABLE, dtype=torch.int8, device=nucleotides.device)[nucleotides[:, None], nucleotides]
        can = (kinds >= 0).triu(MIN_DISTANCE)
        wide = F.pad(can, (1, 1, 1, 1))
        can &= wide[2:, :-2] | wide[:-2, 2:]  # the pair around it, the pair within
        i, j = can.nonzero(as_tuple=True)
        distance = j - i
        doublings = (_EXACT + 5 * torch.log2(distance.clamp(min=_EXACT) / _EXACT)).long()
        bucket = torch.where(distance < _EXACT, distance, doublings).clamp(max=DISTANCES - 1)
        return cls(i, j, kinds[i, j].long(), bucket, _neighbours(i, j, length))


# --- The head on the encoder's states ---


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
            paired = self.paired(F.relu(self.final_norm(x)))[:, 0].clamp(-_MAX_SCORE, _MAX_SCORE)
            unpaired = self.unpaired(states)[:, 0].clamp(-_MAX_SCORE, _MAX_SCORE)
            i, j, diagonal = candidates.i, candidates.j, torch.arange(len(states), device=states.device)
            total = _log_partition(paired, unpaired, i, j)
            rows, columns = torch.cat([i, j, diagonal]), torch.cat([j, i, diagonal])
            values = torch.cat([paired - total[i], paired - total[j], unpaired - total])
            return values.new_full((len(states),) * 2, -torch.inf).index_put((rows, columns), values)

    def _features(
        self, states: Float[Tensor, "length hidden"], candidates: Candidates
    ) -> Float[Tensor, "candidates channels"]:
        i, j, left, right = candidates.i, candidates.j, self.left(states), self.right(states)
        five_prime, three_prime = self.ends(states).chunk(2, dim=1)
        products = self._products(left, right, i, j) if torch.is_grad_enabled() else self._gathered(left, right, i, j)
        x = products / math.sqrt(self.rank)
        return x + five_prime[i] + three_prime[j] + self.distance(candidates.distance) + self.kind(candidates.kind)

    def _gathered(self, left: Tensor, right: Tensor, i: Tensor, j: Tensor) -> Float[Tensor, "candidates channels"]:
        """The products of the two ends of each candidate, some candidates at a time."""
        out = left.new_empty(len(i), self.channels)
        for part in _chunks(out):
            products = (left[i[part]] * right[j[part]]).view(-1, self.channels, self.rank)
            torch.sum(products, dim=2, out=out[part])
        return out

    def _products(self, left: Tensor, right: Tensor, i: Tensor, j: Tensor) -> Float[Tensor, "candidates channels"]:
        """The same from the map of all pairs, some rows of it at a time: its gradient is a product again."""
        shape = len(left), self.channels, self.rank
        left, right = left.view(shape).transpose(0, 1), right.view(shape).transpose(0, 1)
        rows = max(1, _MAP // max(1, self.channels * shape[0]))
        starts = torch.arange(0, max(shape[0], 1) + rows, rows, device=i.device)
        products = []
        for number, (first, last) in enumerate(itertools.pairwise(torch.searchsorted(i, starts).tolist())):
            start, stop = number * rows, (number + 1) * rows
            products.append(_PickPairs.apply(left[:, start:stop] @ right.mT, i[first:last] - start, j[first:last]))
        return torch.cat(products)


class _Linear(nn.Linear):
    """A linear layer by oneDNN where no gradients are recorded: on AMD processors twice as fast as torch's own."""

    def forward(self, input: Tensor) -> Tensor:
        fp32_on_cpu = input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        if fp32_on_cpu and not torch.is_grad_enabled() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            output: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
            return output
        return super().forward(input)


class CandidateBlock(nn.Module):
    """A residual block on candidates: norm, a layer over each one and its neighbours, ReLU, a layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mix = _Linear((len(NEIGHBOURS) + 1) * channels, channels)
        self.output = _Linear(channels, channels)

    def forward(
        self, x: Float[Tensor, "candidates channels"], neighbours: Int[Tensor, "candidates 8"]
    ) -> Float[Tensor, "candidates channels"]:
        y = self.norm(x)
        if torch.is_grad_enabled():
            mixed = torch.cat([_GatherNeighbours.apply(y, neighbours), y], dim=1)
            return x + self.output(F.relu(self.mix(mixed)))
        source, out = F.pad(y, (0, 0, 0, 1)), torch.empty_like(x)
        itself = torch.arange(len(x), device=x.device, dtype=neighbours.dtype)
        for part in _chunks(x):
            mixed = F.embedding(torch.cat([neighbours[part], itself[part, None]], dim=1), source).flatten(1)
            torch.add(x[part], self.output(F.relu(self.mix(mixed))), out=out[part])
        return out


def _chunks(rows: Tensor) -> Iterator[slice]:
    """Slices of the rows that are computed at once where no gradients are recorded."""
    chunk = _CHUNK if rows.device.type == "cpu" else _GPU_CHUNK
    for start in range(0, len(rows), chunk):
        yield slice(start, start + chunk)


class _GatherNeighbours(torch.autograd.Function):
    """Rows of neighbours side by side. The gradient of a row is gathered from its neighbours too, not scattered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, neighbours: Tensor) -> Tensor:
        ctx.save_for_backward(neighbours)
        return _gather_rows(x, neighbours)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (neighbours,) = ctx.saved_tensors
        count, width = neighbours.shape
        rows = F.pad(gradient.reshape(count * width, gradient.shape[1] // width), (0, 0, 0, 1))
        total = torch.zeros_like(rows[:count])
        for k in range(width):
            other = neighbours[:, k ^ 1].long()
            total += rows[torch.where(other < count, other * width + k, count * width)]
        return total, None


class _PickPairs(torch.autograd.Function):
    """`x[:, i, j].T`. No element is picked twice, so the gradient is written, not added up."""

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


# --- The head that combines a partner head with thermodynamics ---

MIN_PROBABILITY = 0.01  # less probable pairs are no candidates
SHRINKAGE = 0.5  # share of the fixed weighted mean in the probabilities: new families differ from those of training
_FLOOR = 1e-4  # probabilities are clamped to this before their logarithm; ViennaRNA's list ends here too
_PRIOR = 0.85  # a fresh combiner gives thermodynamics a weight of sigmoid(-0.85) = 0.3
_MODEL, _THERMODYNAMICS = 4, 5  # columns of both probabilities among a candidate's features
_UNPAIRED_MODEL, _UNPAIRED_THERMODYNAMICS = 0, 1  # and of their logarithms among a nucleotide's

PAIR_FEATURES = 14 + len(KINDS)
NUCLEOTIDE_FEATURES = 22


@dataclass(frozen=True)
class Evidence:
    """Features of one RNA, or of several end to end, from which a `Combiner` predicts.

    Attributes:
        i: 5' positions of the candidates `(candidates,)`.
        j: Their 3' positions `(candidates,)`.
        neighbours: Indices of each candidate's neighbours `(candidates, 8)`; the number of candidates where there is
            none.
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
        """The features of one RNA.

        Args:
            log_probabilities: Output of a partner head: in row i, column j the log-probability that i pairs with j.
            nucleotides: 0 to 3 for A, C, G, U, else `UNKNOWN`.
            thermodynamics: Pair probabilities of a partition function, symmetric.
            in_mfe: The pairs of the structure of minimum free energy, symmetric.
            mfe: Its free energy in kcal/mol.
            energy: Free energy of the ensemble in kcal/mol.
        """
        length, log_model = len(nucleotides), log_probabilities.float()
        model_unpaired, thermo_unpaired = log_model.diagonal().exp(), (1 - thermodynamics.sum(1)).clamp(0, 1)
        directed = log_model.exp().fill_diagonal_(0)
        model = ((log_model + log_model.T) / 2).exp().fill_diagonal_(0)
        kinds = torch.tensor(KIND_TABLE, device=nucleotides.device)[nucleotides[:, None], nucleotides]
        can = ((model > MIN_PROBABILITY) | (thermodynamics > MIN_PROBABILITY)) & (kinds >= 0)
        i, j = can.triu(MIN_DISTANCE).nonzero(as_tuple=True)
        thermo = thermodynamics[i, j]
        pair_features = [
            _log(model[i, j]),
            _log(directed[i, j]),
            _log(directed[j, i]),
            _log(thermo),
            model[i, j],
            thermo,
            (model[i, j] * thermo).sqrt(),
            in_mfe[i, j].float(),
            *_log_best_alternatives(directed, i, j),
            *_log_best_alternatives(thermodynamics, i, j),
            (j - i).float().log(),
            torch.full(i.shape, float(length), device=i.device).log(),
            *F.one_hot(kinds[i, j], len(KINDS)).float().T,
        ]
        model_entropy = -(torch.xlogy(directed, directed).sum(1) + torch.xlogy(model_unpaired, model_unpaired))
        thermo_entropy = -(
            torch.xlogy(thermodynamics, thermodynamics).sum(1) + torch.xlogy(thermo_unpaired, thermo_unpaired)
        )
        agreement = (directed * thermodynamics).sqrt().sum(1) + (model_unpaired * thermo_unpaired).sqrt()
        strongest = directed.amax(1) if length else model_unpaired
        thermo_strongest = thermodynamics.amax(1) if length else model_unpaired
        letters = F.one_hot(nucleotides, UNKNOWN + 1)[:, :UNKNOWN].float()
        # Features of the whole RNA: length, means over its nucleotides, energies per nucleotide, GC content.
        count = max(length, 1)
        whole = [
            model_unpaired.new_tensor(count).log(),
            model_entropy.mean(),
            thermo_entropy.mean(),
            agreement.mean(),
            model_unpaired.mean(),
            thermo_unpaired.mean(),
            strongest.mean(),
            model_unpaired.new_tensor(mfe / count),
            model_unpaired.new_tensor((energy - mfe) / count),
            letters[:, 1:3].sum(1).mean(),
        ]
        nucleotide_features = [
            _log(model_unpaired),
            _log(thermo_unpaired),
            strongest,
            thermo_strongest,
            model_entropy,
            thermo_entropy,
            agreement,
            in_mfe.any(1).float(),
            *letters.T,
            *torch.stack(whole)[:, None].expand(-1, length),
        ]
        pairs, positions = torch.stack(pair_features, dim=1), torch.stack(nucleotide_features, dim=1)
        return cls(i, j, _neighbours(i, j, length), pairs, positions)

    @classmethod
    def concatenate(cls, parts: Sequence[Evidence]) -> Evidence:
        """Several RNAs end to end, which do not interact."""
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
        # Fresh weights give the fixed weighted mean: training only learns where to depart from it.
        for layer in (self.paired, self.unpaired):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, evidence: Evidence) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the partners of every nucleotide.

        Returns:
            For each candidate the log-probability from its 5' nucleotide's distribution, then from its 3' nucleotide's
            `(candidates,)`, and for each nucleotide that of pairing with no candidate `(length,)`.
        """
        i, j = evidence.i, evidence.j
        pairs = self.pair_input((evidence.pairs - self.pair_mean) / self.pair_std)
        nucleotides = self.nucleotide_input((evidence.nucleotides - self.nucleotide_mean) / self.nucleotide_std)
        for block in self.blocks:
            pairs, nucleotides = block(pairs, nucleotides, evidence)
        paired = _mixed(
            evidence.pairs[:, _MODEL],
            evidence.pairs[:, _THERMODYNAMICS],
            self.paired(F.relu(self.pair_norm(pairs))),
        )
        unpaired = _mixed(
            evidence.nucleotides[:, _UNPAIRED_MODEL].exp(),
            evidence.nucleotides[:, _UNPAIRED_THERMODYNAMICS].exp(),
            self.unpaired(F.relu(self.nucleotide_norm(nucleotides))),
        )
        total = _log_partition(paired, unpaired, i, j)
        return paired - total[i], paired - total[j], unpaired - total

    def matrix(self, evidence: Evidence) -> Float[Tensor, "length length"]:
        """Symmetric pair probabilities of one RNA: the mean of the network's and of the fixed weighted mean."""
        first, second, unpaired = self(evidence)
        share = torch.tensor(-_PRIOR).sigmoid()
        fixed = (1 - share) * evidence.pairs[:, _MODEL] + share * evidence.pairs[:, _THERMODYNAMICS]
        probabilities = SHRINKAGE * fixed + (1 - SHRINKAGE) * ((first + second) / 2).exp()
        matrix = unpaired.new_zeros((len(unpaired), len(unpaired)))
        matrix[evidence.i, evidence.j] = matrix[evidence.j, evidence.i] = probabilities
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

    def forward(self, pairs: Tensor, nucleotides: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        i, j = evidence.i, evidence.j
        normed, ends = self.pair_norm(pairs), self.nucleotide_norm(nucleotides)
        mixed = torch.cat([normed, _gather_rows(normed, evidence.neighbours), ends[i], ends[j]], dim=1)
        pairs = pairs + self.pair_output(self.dropout(F.relu(self.pair_mix(mixed))))
        # The mean over a nucleotide's candidates, weighted, with a candidate of zeros so that none is divided by zero.
        weight = self.weight(normed).clamp(-_MAX_SCORE, _MAX_SCORE).exp()
        positions, weights = torch.cat([i, j]), torch.cat([weight, weight])
        total = normed.new_ones(len(nucleotides), 1).index_add(0, positions, weights)
        weighted = weights * torch.cat([normed, normed])
        values = normed.new_zeros(len(nucleotides), normed.shape[1]).index_add(0, positions, weighted)
        mixed = torch.cat([ends, values / total], dim=1)
        return pairs, nucleotides + self.nucleotide_output(self.dropout(F.relu(self.nucleotide_mix(mixed))))


def _mixed(model: Tensor, thermodynamics: Tensor, output: Float[Tensor, "any 2"]) -> Tensor:
    """The logarithm of the weighted mean of two probabilities; the network's output gives weight and addend."""
    share = (output[:, 0] - _PRIOR).sigmoid()
    mean = (1 - share) * model + share * thermodynamics
    return _log(mean) + output[:, 1].clamp(-_MAX_SCORE, _MAX_SCORE)


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=_FLOOR).log()


def _log_best_alternatives(probabilities: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """For both ends of each candidate the log-probability of their likeliest other partner."""
    if not len(i):
        return probabilities.new_zeros(0), probabilities.new_zeros(0)
    values, partners = probabilities.topk(2, dim=1)
    (best, second), partner = values.T, partners[:, 0]
    other = torch.where(partner[i] == j, second[i], best[i]), torch.where(partner[j] == i, second[j], best[j])
    return _log(other[0]), _log(other[1])
