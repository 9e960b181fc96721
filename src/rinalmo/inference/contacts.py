"""Base pairs from the attention of any checkpoint, without training a head.

The attention of each head is made symmetric, and its average product correction (APC) takes away what a nucleotide
attends to anyway; the map of each RNA is scaled to the same size. A logistic regression on these maps, one coefficient
for each head, gives the probability of a pair. It is fitted to the bundled `known_structures.csv`, fifteen RNAs
whose structures are accepted, in seconds; no weight of the model changes. A model whose attention knows nothing of
pairs gets coefficients near zero.

References: Rao et al. 2021 (10.1101/2020.12.15.422761) for the regression, there on 20 proteins; Dunn, Wahl & Gloor
2008 (Bioinformatics 24:333) for the correction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import rinalmo
from rinalmo.engine.engine import Engine
from rinalmo.io.sequences import Record, encode
from rinalmo.model.packing import Layout, pack
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.rna.decoding import MIN_DISTANCE
from rinalmo.rna.structure import canonical_mask
from rinalmo.tasks.base import Columns
from rinalmo.tasks.secondary_structure import THERMODYNAMICS_THRESHOLD, SecondaryStructure

KNOWN = Path(rinalmo.__file__).parent / "assets" / "examples" / "known_structures.csv"
_PENALTY = 10.0  # of the squared coefficients of standardized maps


class PairRegression(NamedTuple):
    """Coefficients of the heads `(blocks, heads)` and the intercept of the log-odds of a pair."""

    coefficients: Tensor
    intercept: float


class AttentionContacts(SecondaryStructure):
    """Secondary structure by the contacts of an engine's model; the regression is fitted at the first batch."""

    def __init__(self, engine: Engine | None, window: int | None = None) -> None:
        """Without an engine only the options are of use."""
        super().__init__("pairs", **({} if window is None else {"window": window}))
        self.decoder, self._engine = "nested", engine
        self._lock, self._fitted = Lock(), dict[str, tuple[RiNALMo, PairRegression]]()

    def threshold(self, model: RiNALMo) -> float | None:
        """Each RNA has its own, since a fitted regression is calibrated."""
        return THERMODYNAMICS_THRESHOLD if self.thermodynamics else None

    def forward(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        assert self._engine is not None
        with self._lock:
            if not self._fitted:
                whole = self._engine.model.eval()
                self._fitted["model"] = whole, fit_regression(whole)
        whole, (coefficients, intercept) = self._fitted["model"]
        logits: list[Tensor] = []
        for block, maps in zip(coefficients, attention_maps(whole, ids, layout), strict=True):
            weighted = [torch.einsum("h,hij->ij", block, _scaled(part)) for part in maps]
            logits = [a + b for a, b in zip(logits, weighted, strict=True)] if logits else weighted
        return [part + intercept for part in logits]


def attention_maps(model: RiNALMo, ids: Tensor, layout: Layout) -> Iterator[list[Tensor]]:
    """For each block and sequence the corrected attention of its heads `(heads, length, length)`."""
    kept: list[list[Tensor]] = []

    def keep(weights: list[Tensor]) -> list[Tensor]:
        kept.append([_corrected(part[:, 1:-1, 1:-1].float()) for part in weights])  # without CLS and EOS
        return weights

    states = model.encoder.states(ids, layout, keep)
    next(states)
    for _ in model.encoder.blocks:
        states.send(None)
        yield kept.pop()


def _scaled(maps: Tensor) -> Tensor:
    """With a root mean square of 1: attention is spread over the sequence, and would mean less for longer RNAs."""
    return maps / maps.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-9)


def _corrected(weights: Tensor) -> Tensor:
    """The symmetric attention `(heads, length, length)` minus the average product of its row and column."""
    sums = weights + weights.transpose(1, 2)
    rows, columns, total = sums.sum(2, keepdim=True), sums.sum(1, keepdim=True), sums.sum((1, 2), keepdim=True)
    return sums - rows * columns / total


def fit_regression(model: RiNALMo, known: Path = KNOWN) -> PairRegression:
    """The logistic regression of a model's attention on the pairs of known structures; candidates are canonical."""
    device = model.encoder.embedding.weight.device
    features, labels = [], []
    for example in SecondaryStructure.read(known, Columns()):
        ids = torch.from_numpy(encode(Record(example.name, "", example.sequence), model.alphabet))
        i, j = np.nonzero(np.triu(canonical_mask(example.sequence), MIN_DISTANCE))
        with torch.inference_mode():
            maps = [_scaled(part)[:, i, j] for (part,) in attention_maps(model, *pack([ids], device))]
        features.append(torch.cat(maps).T.cpu().double())
        pairs = set(example.target)
        labels.append(torch.tensor([pair in pairs for pair in zip(i.tolist(), j.tolist(), strict=True)]).double())
    x, y = torch.cat(features).clone(), torch.cat(labels)
    scale = x.std(0).clamp(min=1e-12)
    coefficients, intercept = _logistic(x / scale, y)
    shape = model.config.num_hidden_layers, model.config.num_attention_heads
    return PairRegression((coefficients / scale).float().reshape(shape).to(device), intercept)


def _logistic(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Penalized maximum likelihood by Newton's method; the intercept is not penalized."""
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    penalty = torch.full((design.shape[1],), _PENALTY, dtype=x.dtype)
    penalty[-1] = 0.0
    w = torch.zeros_like(penalty)
    w[-1] = torch.logit(y.mean().clamp(1e-6, 1 - 1e-6))

    def loss(w: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(design @ w, y, reduction="sum") + (penalty * w**2).sum() / 2

    for _ in range(50):
        p = torch.sigmoid(design @ w)
        gradient = design.T @ (p - y) + penalty * w
        hessian = (design.T * (p * (1 - p))) @ design + torch.diag(penalty)
        step = torch.linalg.solve(hessian, gradient)
        scale = 1.0
        while loss(w - scale * step) > loss(w) and scale > 1e-4:
            scale /= 2
        w = w - scale * step
        if step.abs().max() < 1e-8:
            break
    return w[:-1], float(w[-1])
