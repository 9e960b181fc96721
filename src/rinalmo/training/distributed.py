"""The processes of a run, and the model as they hold it: alone, as copies (DDP) or in shards (FSDP2).

`torchrun` starts the processes and describes them in the environment; without it there is one. Tensors on a CPU go over
gloo, those on a GPU over nccl, so that a few numbers can be summed without waiting for the GPU.

Nothing here depends on the number of processes but the order of floating-point sums.
"""

from __future__ import annotations

import gc
import os
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rinalmo.engine.devices import DeviceLike, choose_device
from rinalmo.errors import InputError, RinalmoError, TrainingError
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.training.recipes import TrainRecipe

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. All processes call each method together."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def all_gather(self, values: Sequence[float]) -> Tensor:
        """The numbers of all processes, fp64, one row per process; each process gives equally many."""
        own = torch.tensor(values, dtype=torch.float64)
        if self.world == 1:
            return own[None]
        rows = [torch.empty_like(own) for _ in range(self.world)]
        with peer_failures():
            dist.all_gather(rows, own)
        return torch.stack(rows)

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all processes, of any kind, in the order of the processes."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with peer_failures():
            dist.all_gather_object(values, value)
        return values

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """Call `action` in process 0 and return its result in all; if it fails, all raise."""
        outcome: list[T | RinalmoError | None] = [None]
        if self.rank == 0:
            try:
                outcome[0] = action()
            except RinalmoError as error:
                outcome[0] = error
        if self.world > 1:
            with peer_failures():
                dist.broadcast_object_list(outcome, src=0)
        if isinstance(outcome[0], RinalmoError):
            raise outcome[0]
        return outcome[0]  # type: ignore[return-value]


@contextmanager
def init_distributed(deadline: float, device: DeviceLike = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun there is one.

    Args:
        deadline: Seconds after which a process that waits for another one gives up.
        device: As for `rinalmo.Engine`. Of several processes on GPUs each takes its own.

    Raises:
        InputError: This machine has no such device, or not one for each process.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    requested = str(device or "auto")
    chosen = choose_device(device)
    if world > 1 and chosen.type == "cuda" and requested in ("auto", "cuda"):
        chosen = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    if world > 1 and chosen.type == "mps":
        if requested != "auto":
            raise InputError("device mps: several processes cannot share it; start one, or use --device cpu")
        chosen = torch.device("cpu")
    with ExitStack() as stack:
        if chosen.type == "cuda":
            stack.enter_context(torch.cuda.device(chosen))
        if world > 1:
            rank = stack.enter_context(_process_group(chosen, world, deadline))
            yield Ranks(rank, world, chosen)
        else:
            yield Ranks(device=chosen)


@contextmanager
def _process_group(device: torch.device, world: int, deadline: float) -> Iterator[int]:
    """The process group of the run; gives the rank of this process."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=deadline)
    with peer_failures():
        store, rank, _ = next(dist.rendezvous("env://", timeout=timeout))
        store = dist.PrefixStore(start_name(store, rank, world, deadline), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    try:
        yield rank
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        # What DDP holds must be gone before: if its reducer is the last to let go of a gloo group, it waits for the
        # group's threads while these wait for Python's lock, and the process never ends (seen in one run of three).
        gc.collect()
        dist.destroy_process_group()


def start_name(store: dist.Store, rank: int, world: int, deadline: float) -> str:
    """A name for this start of all processes that no earlier start had.

    torchrun keeps one store for all its restarts, and gloo would find the addresses of dead processes there. A count of
    restarts does not help: each node has its own. So process 0 draws a name, answers each process that says hello, dead
    or alive, and waits until every other process has confirmed the name.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(f"rinalmo/hello/{rank}", own)
        start = store.get(f"rinalmo/welcome/{own}").decode()
        store.set(f"rinalmo/heard/{start}/{rank}", "")
        return start
    missing, end = set(range(1, world)), time.monotonic() + deadline
    while missing:
        for other in missing:
            hello = store.get(f"rinalmo/hello/{other}").decode()
            store.set(f"rinalmo/welcome/{hello}", own)
        missing = {other for other in missing if not store.check([f"rinalmo/heard/{own}/{other}"])}
        if missing and time.monotonic() > end:
            raise dist.DistStoreError(f"processes {sorted(missing)} did not join")
        time.sleep(0.01)
    return own


@contextmanager
def peer_failures() -> Iterator[None]:
    """Turn a failed exchange with a dead or late process into a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        exchange = isinstance(error, dist.DistError) or "gloo" in str(error)  # gloo has no class of its own
        if isinstance(error, RinalmoError) or not exchange:
            raise
        reason = str(error).strip().splitlines()[0][:160]
        raise TrainingError(f"another process of this run died or is late ({reason}); continue with --resume") from None


class ParallelModel:
    """A module spread over the processes of a run.

    One process holds the module itself. With `ddp` every process has a copy; with `fsdp` the blocks are cut into shards
    in place, and each process gathers a block when it computes it.
    """

    def __init__(
        self, module: nn.Module, model: RiNALMo, recipe: TrainRecipe, ranks: Ranks, *, staged: bool = False
    ) -> None:
        """With `staged`, some parameters are trained later than others; until then DDP does not wait for them."""
        self.device = ranks.device
        self.sharded = ranks.world > 1 and recipe.sharding == "fsdp"
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)
        if self.sharded and self.half == torch.float16:
            raise InputError(
                "train.precision=fp16 needs loss scaling, which train.sharding=fsdp does not support; use ddp or fp32"
            )
        model.encoder.gradient_checkpointing = recipe.activation_checkpointing
        self.module: nn.Module = module.to(ranks.device)
        if self.sharded:
            # Inputs of blocks are not cast, since rotary angles stay in fp32; heads compute in fp32, from cast states.
            policy = MixedPrecisionPolicy(self.half, reduce_dtype=torch.float32, cast_forward_inputs=False)
            for block in model.encoder.blocks:
                fully_shard(block, mp_policy=policy)
            for name in model.spec.heads:
                fully_shard(model.head(name), mp_policy=MixedPrecisionPolicy(torch.float32))
            fully_shard(module, mp_policy=policy)
        elif ranks.world > 1:
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            self.module = DistributedDataParallel(
                module, devices, gradient_as_bucket_view=True, find_unused_parameters=staged
            )

    @contextmanager
    def forward(self, last: bool = True) -> Iterator[nn.Module]:
        """The module to call; gradients are exchanged in the backward pass of the `last` micro-batch of a step."""
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
        copies = isinstance(self.module, DistributedDataParallel)
        sync = self.module.no_sync() if copies and not last else nullcontext()  # type: ignore[operator]
        # FSDP computes with bf16 copies of the weights, which is its own way to the same end.
        half = torch.autocast(self.device.type, self.half, enabled=bool(self.half) and not self.sharded)
        with sync, half:
            yield self.module
        torch.clear_autocast_cache()  # where the caller has autocast on, its end does not do so

    def reshard(self) -> None:
        """Free the gathered blocks after a forward pass without a backward pass."""
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def clip(self, limit: float) -> float:
        """Scale the gradient to at most this norm; returns the norm before."""
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
