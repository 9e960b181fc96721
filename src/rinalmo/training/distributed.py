"""The processes of a run: who they are, what they add up, how the model is spread over them.

`torchrun` starts them and says in the environment who is who; without it there is one. Tensors on a CPU go over gloo,
those on a GPU over nccl, so that a few numbers can be summed without waiting for the GPU.

The surprise: nothing here depends on the number of processes but the order of floating-point sums. DDP and FSDP
average gradients over processes; the loop multiplies each loss by their number, which makes it the sum again.
"""

from __future__ import annotations

import gc
import os
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
    """This process among those of the run."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def gather(self, values: Sequence[float]) -> Tensor:
        """Everyone's numbers, fp64, one row per process. All must call it, with equally many."""
        mine = torch.tensor(values, dtype=torch.float64)
        if self.world == 1:
            return mine[None]
        rows = [torch.empty_like(mine) for _ in range(self.world)]
        with company():
            dist.all_gather(rows, mine)
        return torch.stack(rows)

    def share(self, mine: T) -> list[T]:
        """Everyone's values, of any kind, in the order of the processes."""
        if self.world == 1:
            return [mine]
        found: list[Any] = [None] * self.world
        with company():
            dist.all_gather_object(found, mine)
        return found

    def first(self, action: Callable[[], T]) -> T:
        """Let process 0 act and tell the others what came out; if it fails, all raise."""
        outcome: list[T | RinalmoError | None] = [None]
        if self.rank == 0:
            try:
                outcome[0] = action()
            except RinalmoError as error:
                outcome[0] = error
        if self.world > 1:
            with company():
                dist.broadcast_object_list(outcome, src=0)
        if isinstance(outcome[0], RinalmoError):
            raise outcome[0]
        return outcome[0]  # type: ignore[return-value]


@contextmanager
def joined(deadline: float, device: DeviceLike = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started; alone without it.

    Args:
        deadline: Seconds after which a process that waits for another one gives up.
        device: As for `rinalmo.Engine`. Of several processes on GPUs each takes its own.

    Raises:
        InputError: This machine has no such device, or not one for each process.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")), world)
    with torch.cuda.device(chosen) if chosen.type == "cuda" else nullcontext():
        if world == 1:
            yield Ranks(device=chosen)
        else:
            with _process_group(chosen, world, deadline) as ranks:
                yield ranks


@contextmanager
def _process_group(device: torch.device, world: int, deadline: float) -> Iterator[Ranks]:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=deadline)
    with company():
        store, rank, _ = next(dist.rendezvous("env://", timeout=timeout))
        store = dist.PrefixStore(start_name(store, rank, world, deadline), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    try:
        yield Ranks(dist.get_rank(), world, device)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        # What DDP holds must be gone before: if its reducer is the last to let go of a gloo group, it waits for the
        # group's threads while these wait for Python's lock, and the process never ends (seen in one run of three).
        gc.collect()
        dist.destroy_process_group()


def start_name(store: dist.Store, rank: int, world: int, deadline: float) -> str:
    """A name of this start of all processes, which no earlier one had.

    torchrun keeps one store for all its restarts, and gloo would look there for the addresses of processes that are
    dead. A count of restarts would not do: each node has its own. So process 0 invents a name, tells it to whoever
    presents itself, dead or alive, and waits until every other process has said that it heard.
    """
    mine = secrets.token_hex(8)
    if rank:
        store.set(f"rinalmo/hello/{rank}", mine)
        start = store.get(f"rinalmo/welcome/{mine}").decode()
        store.set(f"rinalmo/heard/{start}/{rank}", "")
        return start
    missing, end = set(range(1, world)), time.monotonic() + deadline
    while missing:
        for other in missing:
            hello = store.get(f"rinalmo/hello/{other}").decode()
            store.set(f"rinalmo/welcome/{hello}", mine)
        missing = {other for other in missing if not store.check([f"rinalmo/heard/{mine}/{other}"])}
        if missing and time.monotonic() > end:
            raise dist.DistStoreError(f"processes {sorted(missing)} have not come")
        time.sleep(0.01)
    return mine


def _device(given: DeviceLike, local_rank: int, world: int) -> torch.device:
    """The device of this process: of several on GPUs each takes the one of its own number."""
    device = choose_device(given)
    if world > 1 and device.type == "cuda" and str(given or "auto") in ("auto", "cuda"):
        device = choose_device(f"cuda:{local_rank}")
    if device.type == "mps" and world > 1:
        if given is None or str(given) == "auto":
            return torch.device("cpu")
        raise InputError("device mps: several processes cannot share it; start one, or use --device cpu")
    return device


@contextmanager
def company() -> Iterator[None]:
    """A process that is gone or late shows in the others as a failed exchange: one line instead of a traceback."""
    try:
        yield
    except RuntimeError as error:
        exchange = isinstance(error, dist.DistError) or "gloo" in str(error)  # gloo has no class of its own
        if isinstance(error, RinalmoError) or not exchange:
            raise
        reason = str(error).strip().splitlines()[0][:160]
        raise TrainingError(f"another process of this run is gone or late ({reason}); go on with --resume") from None


class Spread:
    """A module as the processes of a run hold it: call it as the module itself.

    Alone it is the module. With `ddp` every process has a copy; with `fsdp` the blocks are cut into shards in place,
    and each process gathers a block when it computes it.
    """

    def __init__(
        self, module: nn.Module, model: RiNALMo, recipe: TrainRecipe, ranks: Ranks, *, staged: bool = False
    ) -> None:
        """`staged` parameters begin to learn later than the others; until then no gradient of theirs is waited for."""
        self.device = ranks.device
        self.sharded = ranks.world > 1 and recipe.sharding == "fsdp"
        self.half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)
        if self.sharded and self.half == torch.float16:
            raise InputError("train.precision fp16 scales the loss, which train.sharding fsdp cannot; use ddp or fp32")
        model.encoder.gradient_checkpointing = recipe.activation_checkpointing
        self.module: nn.Module = module.to(ranks.device)
        if self.sharded:
            _shard(module, model, self.half == torch.bfloat16)
        elif ranks.world > 1:
            on = [ranks.device] if ranks.device.type == "cuda" else None
            self.module = DistributedDataParallel(
                module, on, gradient_as_bucket_view=True, find_unused_parameters=staged
            )

    @contextmanager
    def forward(self, last: bool = True) -> Iterator[nn.Module]:
        """The module to call; its gradients are exchanged in the backward pass of the `last` micro-batch of a step."""
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
        copies = isinstance(self.module, DistributedDataParallel)
        quiet = self.module.no_sync() if copies and not last else nullcontext()  # type: ignore[operator]
        # FSDP computes with bf16 copies of the weights, which is its own way to the same end.
        half = torch.autocast(self.device.type, self.half, enabled=bool(self.half) and not self.sharded)
        with quiet, half:
            yield self.module
        torch.clear_autocast_cache()  # where the caller has autocast on, its end does not do so

    def rest(self) -> None:
        """After a forward pass without a backward pass: let go of what was gathered for it."""
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def clip(self, limit: float) -> float:
        """Scale the gradient to at most this norm; returns the norm that it had."""
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _shard(module: nn.Module, model: RiNALMo, half: bool) -> None:
    """Cut the blocks, then what is left, into one shard per process."""
    bf16 = torch.bfloat16 if half else None
    # Inputs are not cast: rotary angles and the masked-LM head stay in fp32.
    policy = MixedPrecisionPolicy(param_dtype=bf16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.encoder.blocks:
        fully_shard(block, mp_policy=policy)
    for name in model.spec.heads:
        fully_shard(model.head(name), mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    fully_shard(module, mp_policy=policy)
