"""How fast a run is: real tokens per second, and the share of the machine's matrix peak that they use (MFU).

Only the model's own matrix products count, forward once and backward twice; what activation checkpointing computes
again does not. The peak is what one large matrix product reaches on this machine in the run's precision, with the
run's threads, while the other processes measure theirs.

Reference: MFU as in Chowdhery et al. 2022 (arXiv:2204.02311), appendix B.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rinalmo.model.config import ModelConfig

_FORWARD_AND_BACKWARD = 3
_SIDE = {"cpu": 2048, "cuda": 8192, "mps": 4096}
_REPEATS = 5


@dataclass
class Work:
    """What has been computed in some time, by all processes together."""

    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def add(self, tokens: float, flops: float, seconds: float) -> None:
        """Count one more step."""
        self.tokens += tokens
        self.flops += flops
        self.seconds += seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def utilisation(self, peak: float) -> float:
        """Share of `peak` FLOP/s."""
        return self.flops / self.seconds / peak if self.seconds else 0.0


def training_flops(config: ModelConfig, lengths: Sequence[int], predicted: int) -> float:
    """FLOPs of one training step over sequences of these many tokens, with this many positions through the LM head."""
    d, tokens = config.hidden_size, sum(lengths)
    linear = tokens * (4 * d * d + 3 * d * config.ffn_size)
    attention = 2 * d * sum(length * length for length in lengths)
    head = predicted * d * (d + config.vocab_size)
    return _FORWARD_AND_BACKWARD * 2.0 * (config.num_hidden_layers * (linear + attention) + head)


def measure_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of this process in a large matrix product: the best of a few, well under a second."""
    side = _SIDE[device.type]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = min(_seconds(a) for _ in range(_REPEATS + 1))
    return 2.0 * side**3 / best


def _seconds(a: torch.Tensor) -> float:
    start = time.perf_counter()
    (a @ a)[0, 0].item()  # waits for a GPU
    return time.perf_counter() - start
