"""Regions of the network that `torch.compile` may fuse: everything between two matrix products becomes one kernel.

A region is compiled once for any number of tokens, and since its module is an argument, once for all blocks. Attention
itself stays outside, where its kernels are chosen by `rinalmo.model.backends`.

Whether regions are compiled is decided by `wanted`: by the caller, by the environment variable `RINALMO_COMPILE`
(0 or 1), and else by what pays. Where compilation fails, one warning says so and everything is computed as written.

`torch.compile` is only imported when it is first used; it takes seconds.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from threading import RLock
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from rinalmo.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

VARIABLE = "RINALMO_COMPILE"
WORTHWHILE_TOKENS = 1 << 21
"""Inference on CUDA is compiled once a model has seen so many tokens: a short run would wait longer than it saves."""

# Each combination of model, device, type and mode is a compilation of its own; torch's limit of 8 counts them together.
_RECOMPILE_LIMIT = 64

BACKEND = "inductor"

LOCK = RLock()
"""Held while a region is called, and around a whole pass by those who compute in several threads: torch.compile is not
thread-safe, and while one thread compiles, not all of torch works in another."""

_problem: str | None = None


def wanted(device: torch.device, *, explicit: bool | None = None, training: bool = False, tokens: int = 0) -> bool:
    """Whether regions are to be compiled.

    Args:
        device: Where they are computed.
        explicit: What the caller asked for; None leaves it to the environment.
        training: Whether gradients are recorded; training is long, so it is compiled at once.
        tokens: How many tokens the model has seen in inference.

    Raises:
        InputError: If the environment variable is neither 0 nor 1.
    """
    if _problem is not None:
        return False
    if explicit is None:
        explicit = _from_environment()
    if explicit is None:
        return device.type == "cuda" and (training or tokens >= WORTHWHILE_TOKENS)
    return explicit


def _from_environment() -> bool | None:
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise InputError(f"{VARIABLE} is {value!r}; use 1 (compile), 0 (do not), or leave it unset")
    return None if value == "" else value == "1"


def problem() -> str | None:
    """Why compilation was given up in this process; None if it was not."""
    return _problem


class Region(Generic[P, R]):
    """A function of a module and of tensors whose first axis is the tokens, to be compiled or computed as written."""

    def __init__(self, function: Callable[P, R]) -> None:
        self.as_written = function
        self._compiled: Callable[P, R] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function as written."""
        return self.as_written(*args, **kwargs)

    def compiled(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function, fused; as written where that fails, and where there are too few tokens to be any number."""
        tensors = [argument for argument in args if isinstance(argument, Tensor)]
        if _problem is not None or any(len(tensor) < 2 for tensor in tensors):
            return self.as_written(*args, **kwargs)
        with LOCK:
            for tensor in tensors:
                torch._dynamo.mark_dynamic(tensor, 0)
            try:
                return self._made()(*args, **kwargs)
            # Only what compilation raises: other errors, such as those of checkpointing, are meant for the caller.
            except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
                _give_up(error)
        return self.as_written(*args, **kwargs)

    def _made(self) -> Callable[P, R]:
        if self._compiled is None:
            config: Any = torch._dynamo.config
            config.recompile_limit = max(config.recompile_limit, _RECOMPILE_LIMIT)
            self._compiled = torch.compile(self.as_written, fullgraph=True, backend=BACKEND)
        return self._compiled


def _give_up(error: Exception) -> None:
    global _problem
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    _problem = f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"
    warnings.warn(f"torch.compile does not work here, computing goes on without it ({_problem})", stacklevel=3)
