"""Combine what a partner head and thermodynamics say of the base pairs of an RNA.

The head (`rinalmo.model.partner_head`) is the better guide on RNAs of families that it was trained on, thermodynamics
on those of others. Which is right about which pair is learned by a small network from RNAs of both kinds, none of which
the head was trained on. It sees only evidence, never the states of the encoder, so that it cannot recognise families:

    pair evidence         of each candidate: both probabilities, those of its rivals, kind, distance, MFE
    nucleotide evidence   of each position: how sure both are, how far they agree, the whole RNA's numbers
                                ▼
    blocks: each candidate, its eight neighbours (stacked and shifted pairs) and both its nucleotides;
            each nucleotide and the likeliest of its candidates
                                ▼
    for each nucleotide a distribution over its candidates and being unpaired: the mean of both sources with a weight
    that the network chooses, times a factor that it chooses; half of the way there from the mean with a fixed weight

Candidates are the pairs to which either source gives more than `MIN_PROBABILITY`. The probability of a pair is the
geometric mean of what its two nucleotides say, as in the partner head, averaged with the plain weighted mean.

Reference: Wolpert 1992 (Neural Networks 5:241) for learning on top of held-out predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rinalmo.model.partner_head import KINDS, MIN_DISTANCE, NEIGHBOURS, UNKNOWN, kind_table

MIN_PROBABILITY = 0.01  # less probable pairs are no candidates
SHRINKAGE = 0.5  # share of the plain weighted mean in the probabilities: new families differ from those learned from
_FLOOR = 1e-4  # probabilities are at least this where their logarithm is taken; ViennaRNA's list ends here too
_LARGEST = 20.0  # scores are kept within, so that their exponentials stay within fp32
_REACH = 2
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
        weight = self.weight(normed).clamp(-_LARGEST, _LARGEST).exp()
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
    return mean.clamp(min=_FLOOR).log() + chosen[:, 1].clamp(-_LARGEST, _LARGEST)


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
    numbers = torch.full((length + 2 * _REACH,) * 2, len(i), dtype=torch.long, device=i.device)
    numbers[i + _REACH, j + _REACH] = torch.arange(len(i), device=i.device)
    return torch.stack([numbers[i + _REACH + a, j + _REACH + b] for a, b in NEIGHBOURS], dim=1)
