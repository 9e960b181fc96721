"""AdamW, which parameters learn from when on, and the learning rate of each step.

The paper: weight decay 0.01, linear warm-up from 1e-7 over 2,000 steps, cosine to 1e-5, gradient norm clipped at 1.0.
Its optimizer is not named there; AdamW is what those who repeated it took.

Decay applies to matrices only. A norm's gain and a swish's beta are factors around 1 and a bias is an offset: pulling
them to 0 does not make the function simpler, only different.

References: Penić et al. 2025 (arXiv:2403.00043), Loshchilov & Hutter 2019 (arXiv:1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rinalmo.training.config import OptimizerRecipe, ScheduleRecipe

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Trained:
    """Parameters that learn together: from step `start` on, at `scale` times the run's rate."""

    parameters: Sequence[nn.Parameter]
    start: int = 0
    scale: float = 1.0


def make_optimizer(trained: Sequence[Trained], recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """AdamW, matrices with weight decay and vectors without."""
    groups = [
        {
            "params": [p for p in part.parameters if (p.dim() >= 2) == decays],
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "start": part.start,
            "scale": part.scale,
        }
        for part in trained
        for decays in (True, False)
    ]
    # One pass over memory per step; the default loop takes a dozen.
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True
    )


def awaken(trained: Sequence[Trained], step: int) -> None:
    """Let those parameters learn whose time has come; the others get no gradients."""
    for part in trained:
        for parameter in part.parameters:
            parameter.requires_grad_(step >= part.start)


def moments(optimizer: torch.optim.AdamW) -> dict[int, dict[str, Tensor]]:
    """The optimizer's running means by the `id` of their parameter, zero before the first step.

    A checkpoint is loaded into them in place, so they are made here if no step has made them yet.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            for moment in MOMENTS:
                if moment not in state:
                    state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state.setdefault("step", torch.zeros((), device=parameter.device))
    return {id(parameter): state for parameter, state in optimizer.state.items()}


def set_steps(optimizer: torch.optim.AdamW, steps: int) -> None:
    """Tell the optimizer how many steps its running means have seen when the run has made this many."""
    moments(optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["step"].fill_(max(0, steps - group["start"]))


def learning_rate(step: int, peak: float, schedule: ScheduleRecipe, total_steps: int) -> float:
    """The rate of optimizer step `step`, counted from 0. After the decay it stays at `min_lr`."""
    warmup = schedule.warmup_steps
    if step < warmup:
        return schedule.start_lr + (peak - schedule.start_lr) * step / warmup
    decay = schedule.decay_steps or max(1, total_steps - warmup)
    done = min(1.0, (step - warmup) / decay)
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule.shape]
    return schedule.min_lr + (peak - schedule.min_lr) * left
