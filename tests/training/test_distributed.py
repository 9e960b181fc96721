"""One process, two, copies and shards: the same losses; and what happens when one of them dies."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch.distributed as dist

from rinalmo.training.distributed import start_name
from rinalmo.training.pretrain import pretrain
from rinalmo.training.run_folder import read_log
from rinalmo.training.trainer import Listener

from ..killing import killing_at
from .processes import start_ranks, stopping, train, weights

pytestmark = pytest.mark.posix_only  # processes are forked


def losses(folder):
    return [line[name] for line in read_log(folder) for name in ("loss", "validation/loss") if name in line]


@pytest.fixture
def twenty_steps(make_recipe):
    """Half of the micro-batches for each of two processes, so that they draw the same dropout as one alone."""

    def make(**changes):
        batch = {"data__sequences_per_batch": None, "data__tokens_per_batch": 512, "data__fixed_tokens": True}
        return make_recipe(
            **batch,
            data__micro_tokens=128,
            train__max_steps=20,
            train__checkpoint_every=7,
            validation__every=10,
            **changes,
        )

    return make


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
@pytest.mark.parametrize("sharding", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_have_the_losses_of_one_and_each_goes_on_with_the_others_run(
    twenty_steps, tmp_path, sharding, optimizer
):
    """Dropout included. The run of two is then continued by one, which sees the weights, moments and data of both."""
    own = {"optimizer__name": optimizer}
    scale = {"adamw": 1.0, "muon": 10.0}[optimizer]  # Muon rounds to bf16, so that sums in another order differ more
    alone = train(twenty_steps(**own), tmp_path / "alone")
    two = train(twenty_steps(**own, train__sharding=sharding), tmp_path / "two", world=2)
    assert len(losses(two)) == 20 + 2
    assert losses(two) == pytest.approx(losses(alone), abs=1e-5 * scale)
    for folder in (two, alone):
        longer = twenty_steps(**own, train__sharding=sharding) if folder == alone else twenty_steps(**own)
        longer = longer.model_copy(update={"train": longer.train.model_copy(update={"max_steps": 24})})
        train(longer, folder, world=2 if folder == alone else 1, resume=True)
    assert len(losses(two)) == len(losses(alone)) == 24 + 3
    assert losses(two)[-5:] == pytest.approx(losses(alone)[-5:], abs=1e-6 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_stop_and_a_resume_of_two_processes_change_no_bit(make_recipe, tmp_path, sharding):
    """The first of the two hears a signal after the third step; both save and end well."""
    recipe = make_recipe(train__sharding=sharding, train__checkpoint_every=100)
    whole = train(recipe, tmp_path / "whole", world=2)

    def run():
        assert pretrain(recipe, tmp_path / "parts", listener=Listener(event=stopping(3, signal.SIGTERM))).step == 4

    processes = start_ranks(2, run)
    assert [process.wait() for process in processes] == [0, 0], [process.error for process in processes]
    train(recipe, tmp_path / "parts", world=2, resume=True)
    assert weights(tmp_path / "parts") == weights(whole)
    assert losses(tmp_path / "parts") == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_a_lost_process_is_noticed_soon_and_one_alone_goes_on(make_recipe, tmp_path, sharding):
    """The second of two is killed: under ddp between two steps, under fsdp while it writes a checkpoint."""
    recipe = make_recipe(train__sharding=sharding)

    def kill_the_other(event):
        if event.step == 3 and sharding == "ddp":
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    def run():
        if os.environ["RANK"] == "1":
            (tmp_path / "pid").write_text(str(os.getpid()))
            killing_at(2 if sharding == "fsdp" else 1000)  # its second shard
        pretrain(recipe, tmp_path / "run", listener=Listener(event=kill_the_other))

    started = time.monotonic()
    first, second = start_ranks(2, run)
    assert (first.wait(), second.wait()) == (1, -signal.SIGKILL)
    assert time.monotonic() - started < recipe.train.deadline + 10
    assert first.error.startswith("TrainingError: ")
    assert "resume" in first.error
    train(recipe, tmp_path / "run", resume=True)
    assert read_log(tmp_path / "run")[-1]["step"] == 6


def test_a_start_has_a_name_of_its_own_in_a_store_that_the_dead_have_used():
    """torchrun keeps its store when it starts the processes again."""
    store = dist.HashStore()
    for rank in range(1, 3):
        store.set(f"rinalmo/hello/{rank}", "dead")

    def names():
        with ThreadPoolExecutor(3) as pool:
            return set(pool.map(lambda rank: start_name(store, rank, world=3, deadline=20), range(3)))

    first, second = names(), names()
    assert (len(first), len(second), len(first | second)) == (1, 1, 2)
    with pytest.raises(dist.DistStoreError, match=r"processes \[1, 2\] did not join"):
        start_name(store, 0, world=3, deadline=0.1)


def test_two_runs_in_one_folder_end_all_processes_of_the_second(make_recipe, tmp_path):
    recipe = make_recipe()
    train(recipe, tmp_path / "run")

    def run():
        pretrain(recipe, tmp_path / "run")

    processes = start_ranks(2, run)
    assert [process.wait() for process in processes] == [1, 1]
    assert all("contains a run; continue it with --resume" in process.error for process in processes)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["table", "ribosome-load"])
def test_heads_compute_in_fp32_where_blocks_are_sharded_in_bf16(tmp_path, task):
    table = tmp_path / "table.csv"
    rows = [f"{'ACGU' * 5}{'ACGU'[n % 4] * 4},{n / 10}" for n in range(24)]
    table.write_text("\n".join(["sequence,y", *rows, ""]))
    settings = ["train.sharding=fsdp", "train.precision=bf16", "train.epochs=1", "backbone.mode=full"]
    command = ["finetune", task, table, "--target", "y", "--output", tmp_path / "run"]
    options = [part for setting in settings for part in ("--set", setting)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rinalmo"]
    subprocess.run([sys.executable, *launcher, *command, *options], check=True)
    losses = [line["validation/loss"] for line in read_log(tmp_path / "run") if "validation/loss" in line]
    assert losses
    assert np.isfinite(losses).all()
