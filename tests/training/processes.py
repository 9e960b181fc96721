"""Runs in processes of their own, to be killed or to be several.

They are forked, so that none of them pays for importing torch again, nor for what an optimizer's first step imports;
what happens in them is the real thing.
"""

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch._dynamo  # noqa: F401
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rinalmo.cli import main
from rinalmo.training.pretrain import pretrain

# Windows does not fork; what does so there is marked posix_only.
_FORK = multiprocessing.get_context("fork" if hasattr(os, "fork") else None)


@dataclass
class Process:
    """A forked process: its exit code (negative: the signal that ended it) and the error that ended it, if one did."""

    handle: multiprocessing.Process
    errors: multiprocessing.SimpleQueue

    def wait(self):
        self.handle.join(60)
        assert self.handle.exitcode is not None, "still running after a minute"
        return self.handle.exitcode

    @cached_property
    def error(self):
        return self.errors.get() if not self.errors.empty() else None


def start(function, *arguments, environment=None):
    """Call a function in a forked process."""
    errors = _FORK.SimpleQueue()

    def call():
        os.environ.update(environment or {})
        try:
            function(*arguments)
        except BaseException as error:
            errors.put(f"{type(error).__name__}: {error}")
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    handle = _FORK.Process(target=call)
    handle.start()
    return Process(handle, errors)


def start_ranks(world, function, *arguments):
    """Call a function in as many processes as torchrun would start, with the environment it would set."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(function, *arguments, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]


def start_command(*words, processes=1):
    """`rinalmo WORDS` in a forked process, by torchrun's agent if there are several; gives what it writes as errors."""
    read, write = os.pipe()

    def command():
        sys.argv = ["rinalmo", *words]
        sys.stderr = os.fdopen(write, "w", 1)
        main()

    def torchrun():
        config = LaunchConfig(
            1, 1, processes, max_restarts=1, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork"
        )
        elastic_launch(config, command)()

    process = start(command if processes == 1 else torchrun)
    os.close(write)
    return process, os.fdopen(read)


def train(recipe, folder, world=1, resume=False):
    """A whole run in processes of its own; all of them must end well. Without forks, one runs in this process."""
    if world == 1 and not hasattr(os, "fork"):
        pretrain(recipe, folder, resume=resume)
        return folder

    def run():
        pretrain(recipe, folder, resume=resume)

    processes = [start(run)] if world == 1 else start_ranks(world, run)
    codes = [process.wait() for process in processes]
    assert codes == [0] * world, [process.error for process in processes]
    return folder


def weights(folder):
    """The bytes of a finished run's model."""
    return (Path(folder) / "model" / "model.safetensors").read_bytes()


def stopping(step, number):
    """A listener that sends this process a signal once it hears of the step, so that the next one is the last."""

    def listen(event):
        if event.step == step and "loss" in event.values:
            signal.raise_signal(number)

    return listen
