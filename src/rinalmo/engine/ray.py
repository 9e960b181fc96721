"""`RayEngine`: many engines on Ray, on this machine or on a cluster. The only file that imports Ray.

Each worker is an actor: a process with an `Engine` of its own. A worker computes one item, a chunk of records, at a
time and sends its result back; it writes no file. If it dies, another worker computes its item, so each result arrives
exactly once. An item that kills several workers is set aside until all others are computed; then its records are
computed one by one, to name the one that kills workers.

Plain actors rather than Ray Data, which needs a unique id for each record and a file system shared by all machines to
resume, and whose output is a folder of files: docs/ray.md.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import torch

from rinalmo.engine.devices import DeviceLike, Precision
from rinalmo.engine.engine import Advance, Engine, Work
from rinalmo.errors import InputError, RinalmoError, ToolError, import_extra
from rinalmo.io.files import counted
from rinalmo.model.rinalmo import ModelSpec

_CONNECT_SECONDS = 5
_START_SECONDS = 600  # a cluster that grows on demand takes minutes
ATTEMPTS = 4  # the first, and three again

Item = TypeVar("Item", bound=Sequence[Any])
R = TypeVar("R")


class RayEngine:
    """Engines in many processes, to be used in a `with`.

    A Ray that this process is connected to already is used and left running.

    Args:
        model: A catalog name, or a path that every machine of the cluster has.
        precision: As for an `Engine`.
        adapter: As for an `Engine`; a path that every machine of the cluster has.
        threads: CPU threads of each worker; 1 if None.
        batch_tokens: As for an `Engine`.
        device: Of each worker, as for an `Engine`. None or "auto": a GPU where workers have one, else the CPU.
        address: HOST:PORT of a running Ray, "auto" for the one on this machine, None to start one for this process.
        workers: Number of workers; None: as many as there are CPUs and GPUs for. Those that get none are not awaited.
        gpus_per_worker: GPUs of each worker; with a fraction such as 0.5 workers share one. None: 1 where the cluster
            has GPUs and `device` is not "cpu", else 0.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: No Ray answers at the address, or no machine has that many threads or GPUs.
        ToolError: No worker could be started.
    """

    fingerprint: str
    precision: Precision
    device: torch.device
    spec: ModelSpec

    def __init__(
        self,
        model: str | Path = "nano",
        precision: Precision = "auto",
        *,
        adapter: str | Path | None = None,
        threads: int | None = None,
        batch_tokens: int | None = None,
        device: DeviceLike = None,
        address: str | None = None,
        workers: int | None = None,
        gpus_per_worker: float | None = None,
    ) -> None:
        self._threads = threads or 1
        _check_gpus(gpus_per_worker, device)
        self._settings = {
            # A worker has another working folder.
            "model": str(Path(model).absolute()) if Path(model).exists() else str(model),
            "precision": precision,
            "adapter": None if adapter is None else str(Path(adapter).absolute()),
            "threads": self._threads,
            "batch_tokens": batch_tokens,
            "device": None if device is None else str(device),
        }
        self._ray = import_extra("ray", "ray", "--engine ray")
        self._owns_ray = _connect(self._ray, address, None if workers is None else workers * self._threads)
        self._workers: list[Any] = []
        try:
            self._start(workers, gpus_per_worker)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []
        if self._owns_ray:
            self._ray.shutdown()
            self._owns_ray = False

    def run(self, job: Work[Item, R], items: Iterable[tuple[int, Item]], advance: Advance) -> Iterator[tuple[int, R]]:
        """The job on numbered items, each result once, in the order in which they are finished.

        `advance` is called with the size of each finished item. What the job raises is raised here. Raises ToolError
        in the end if there are items at which several workers died; it names the first of their records that kills
        a worker.
        """
        tasks = (_Task(number, item) for number, item in items)
        waiting: deque[_Task] = deque()
        set_aside: list[_Task] = []
        idle: list[Any] = []
        calls: dict[Any, tuple[Any, _Task | None]] = {
            worker.start.remote(job): (worker, None) for worker in self._workers
        }
        while True:
            if not waiting:
                waiting.extend(islice(tasks, 1))
            if not waiting and not any(task for _, task in calls.values()):
                break
            if waiting and idle:
                worker, task = idle.pop(), waiting.popleft()
                calls[worker.compute.remote(task.item)] = (worker, task)
                continue
            (ready,), _ = self._ray.wait([*calls], num_returns=1)
            worker, finished = calls.pop(ready)
            try:
                answer = self._answer(ready)
            except _LostError:
                if finished is not None:
                    again = replace(finished, deaths=finished.deaths + 1)
                    (set_aside.append if again.deaths == ATTEMPTS else waiting.appendleft)(again)
                new = self._replaced(worker)
                calls[new.start.remote(job)] = (new, None)
                continue
            idle.append(worker)
            if finished is None:
                if answer != self._about:
                    raise InputError(
                        f"{self._settings['model']}: workers differ in the model, its precision or the device "
                        f"({self.precision} on {self.device}, {answer.precision} on {answer.device}); give every "
                        "machine the same files, and set --precision, --device and --batch-tokens"
                    )
            else:
                yield finished.number, answer
                advance(len(finished.item))
        if set_aside:
            size, fatal = sum(len(task.item) for task in set_aside), self._fatal_record(job, set_aside[0].item)
            raise ToolError(
                f"{ATTEMPTS} workers died on the same {size:,} records{fatal}; all others are finished and saved. If "
                "memory ran out, continue with --resume and fewer --workers or --batch-tokens; otherwise leave out "
                "such records"
            )

    def _fatal_record(self, job: Work[Any, Any], item: Sequence[Any]) -> str:
        """The first record of an item that kills a worker by itself, in words; empty if there is none."""
        worker, record = self._replaced(self._workers[0]), None
        try:
            self._answer(worker.start.remote(job))
            for record in item:
                self._answer(worker.compute.remote([record]))
        except _LostError:
            if record is None:
                return ""
            name = getattr(record, "id", None) or " ".join(map(str, getattr(record, "cells", ())))
            length = len(getattr(record, "sequence", "") or getattr(record, "wild_type", ""))
            return f", and one on record {name} ({length:,} nt) alone"
        return ""

    def _start(self, workers: int | None, gpus_per_worker: float | None) -> None:
        """Start the workers; the first that answers describes the model."""
        resources = self._ray.cluster_resources()
        gpus = gpus_per_worker
        if gpus is None:
            wants_gpu = not str(self._settings["device"] or "auto").startswith(("cpu", "mps"))
            gpus = 1.0 if wants_gpu and resources.get("GPU", 0) >= 1 else 0.0
        if not gpus and self._settings["device"] in (None, "auto"):
            self._settings["device"] = "cpu"
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if (largest := max(node.get("CPU", 0) for node in nodes)) < self._threads:
            raise InputError(
                f"--threads {self._threads}: the largest machine of this Ray cluster has {largest:.0f} CPUs"
            )
        if (largest := max(node.get("GPU", 0) for node in nodes)) < gpus:
            raise InputError(
                f"--gpus-per-worker {gpus:g}: no machine of this Ray cluster has more than "
                f"{counted(int(largest), 'GPU')}"
            )
        room = int(resources["CPU"]) // self._threads
        room = max(1, min(room, int(resources.get("GPU", 0) / gpus)) if gpus else room)
        self._actor = self._ray.remote(num_cpus=self._threads, num_gpus=gpus)(_RayWorker)
        self._workers = [self._actor.remote(self._settings) for _ in range(workers or room)]
        self._about = self._first_answer({worker.about.remote(): worker for worker in self._workers})
        self.fingerprint, self.precision, self.spec, self.batch_tokens, device = self._about
        self.device = torch.device(device)

    def describe(self) -> str:
        """Workers, device and precision in a few words, such as `2 Ray workers on cpu, bf16`."""
        count = len(self._workers)
        return f"{count} Ray worker{'s' * (count > 1)} on {self.device.type}, {self.precision}"

    def _first_answer(self, calls: dict[Any, Any]) -> _About:
        lost = 0
        while True:
            ready, _ = self._ray.wait([*calls], num_returns=1, timeout=_START_SECONDS)
            if not ready:
                raise ToolError(f"Ray started no worker in {_START_SECONDS // 60} minutes; are its CPUs all in use?")
            worker = calls.pop(ready[0])
            try:
                return self._answer(ready[0])  # type: ignore[no-any-return]
            except _LostError as error:
                lost += 1
                if lost == ATTEMPTS:
                    raise ToolError(f"{lost} workers died while loading the model ({error})") from None
                new = self._replaced(worker)
                calls[new.about.remote()] = new

    def _answer(self, call: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(call)
        except errors.RayTaskError as error:
            if isinstance(error.cause, RinalmoError | OSError | MemoryError):
                raise error.cause from None
            raise
        except errors.RayError as error:
            raise _LostError(str(error).strip().partition("\n")[0]) from None

    def _replaced(self, worker: Any) -> Any:
        """A new worker, in the place of one that cannot be reached, if it is not dead already."""
        self._ray.kill(worker)
        self._workers.remove(worker)
        self._workers.append(self._actor.remote(self._settings))
        return self._workers[-1]


class _About(NamedTuple):
    """Properties that all workers must have in common."""

    fingerprint: str
    precision: Precision
    spec: ModelSpec
    batch_tokens: int
    device: str  # its kind, without a number: each worker counts its own GPUs


class _RayWorker:
    """One process with an engine.

    The engine is not made in `__init__`: Ray would report what is raised there as the death of the process.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._engine: Engine | None = None

    def about(self) -> _About:
        if self._engine is None:
            self._engine = Engine(**self._settings)
        engine = self._engine
        return _About(engine.fingerprint, engine.precision, engine.spec, engine.batch_tokens, engine.device.type)

    def start(self, job: Work[Any, Any]) -> _About:
        about = self.about()
        assert self._engine is not None
        self._compute: Callable[[Any], Any] = job(self._engine, lambda more: None)
        return about

    def compute(self, item: Any) -> Any:
        return self._compute(item)


@dataclass(frozen=True)
class _Task:
    """An item, and how many workers died at it."""

    number: int
    item: Sequence[Any]
    deaths: int = 0


class _LostError(Exception):
    """A worker died, or cannot be reached."""


def _connect(ray: Any, address: str | None, cpus: int | None) -> bool:
    """Connect to a running Ray or start one; False if this process is connected already."""
    if address not in (None, "auto"):
        # Ray itself would try for two minutes to reach a machine that is not there.
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdigit():
            raise InputError(f"--address {address}: give HOST:PORT, such as 10.0.0.1:6379, or auto")
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"--address {address}: no Ray answers there ({error}); is it running?") from None
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        return True
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--address {address}: {str(error).partition('. ')[0]}; is a Ray running there?") from None
    return True


def _check_gpus(gpus: float | None, device: DeviceLike) -> None:
    """Raise InputError for a number of GPUs that Ray cannot give, or that contradicts the device."""
    if gpus is None:
        return
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise InputError(f"--gpus-per-worker {gpus:g}: give 0, a fraction of 1 such as 0.5, or a whole number")
    if not gpus and str(device).startswith("cuda"):
        raise InputError(
            f"--gpus-per-worker 0 gives workers no GPU, but --device is {device}; use 1 or more, or --device cpu"
        )
    if gpus and str(device) in ("cpu", "mps"):
        raise InputError(f"--gpus-per-worker {gpus:g} needs CUDA, but --device is {device}; leave out one of them")


EngineLike = Engine | RayEngine | AbstractContextManager[Engine | RayEngine]
"""An engine, or a context manager that makes one."""
