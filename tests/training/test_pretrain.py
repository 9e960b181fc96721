"""Whole runs: they learn, can be repeated, interrupted and resumed, and keep others out of their folder."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import rinalmo
from rinalmo.errors import InputError, TrainingError
from rinalmo.training.checkpoint import listed, step_of
from rinalmo.training.pretrain import pretrain
from rinalmo.training.recipes import load_recipe
from rinalmo.training.run_folder import read_log
from rinalmo.training.trainer import Listener

from ..killing import killing_at
from .processes import start, start_command, stopping, train, weights

_TIMES = {"seconds", "tokens_per_second", "mfu"}


def log(folder):
    return [{name: value for name, value in line.items() if name not in _TIMES} for line in read_log(folder)]


@pytest.fixture(scope="module")
def finished(make_recipe, tmp_path_factory):
    """A run that nobody disturbed; tests read it and leave it as it is."""
    return train(make_recipe(), tmp_path_factory.mktemp("finished") / "whole")


def test_the_loss_falls_and_the_model_is_ready_for_use(make_recipe, tmp_path):
    recipe = make_recipe(
        train__max_steps=60,
        train__precision="auto",
        model__attention_dropout=0.0,
        model__hidden_dropout=0.0,
        data__weights={"cluster_exponent": 1.0},
        data__workers=1,
        validation__every=30,
        logging__every=10,
        logging__tensorboard=True,
        logging__plots=True,
        logging__peak_flops=None,
    )
    outcome = pretrain(recipe, tmp_path / "run")
    assert outcome.finished
    lines = read_log(tmp_path / "run")
    training = [line["loss"] for line in lines if "loss" in line]
    validation = [line["validation/loss"] for line in lines if "validation/loss" in line]
    assert len(training) == 6
    assert training[0] > 2
    assert training[-1] < 1.42  # it has found out that there are four letters (ln 4 = 1.386)
    assert validation[-1] < validation[0]
    assert all(0 < line["mfu"] < 1 and line["tokens_per_second"] > 0 for line in lines if "loss" in line)
    assert {"validation/first/accuracy", "validation/second/perplexity"} <= lines[-1].keys()
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    found = rinalmo.fill_mask("GGUC<mask>CUCUGG", tmp_path / "run" / "model")
    assert {candidate.token_str for candidate in found[0][0]} >= set("ACGU")


def test_a_run_can_be_repeated_from_its_own_recipe(finished, tmp_path):
    recipe = load_recipe(finished / "recipe.yaml")
    assert recipe.data.fingerprint
    train(recipe, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(finished)
    assert log(tmp_path / "again") == log(finished)
    (entry,) = json.loads((finished / "versions.json").read_text())
    assert (entry["torch"], entry["rinalmo"]) == (torch.__version__, rinalmo.__version__)
    assert entry["store"]["fingerprint"] == recipe.data.fingerprint
    with pytest.raises(InputError, match="is not the store of this recipe"):
        pretrain(load_recipe(finished / "recipe.yaml", ["data.fingerprint=other"]), tmp_path / "third")


def test_another_seed_is_another_run(finished, make_recipe, tmp_path):
    train(make_recipe(train__seed=1), tmp_path / "other")
    assert log(tmp_path / "other")[0]["loss"] != log(finished)[0]["loss"]


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_a_resumed_run_is_the_same_to_the_bit(make_recipe, finished, tmp_path, signal_number):
    recipe = make_recipe()

    before = signal.getsignal(signal_number)
    outcome = pretrain(recipe, tmp_path / "run", listener=Listener(event=stopping(3, signal_number)))
    assert (outcome.step, outcome.finished, outcome.signal) == (4, False, signal_number)
    assert signal.getsignal(signal_number) is before
    assert not (tmp_path / "run" / "model").exists()
    notes = []
    assert pretrain(recipe, tmp_path / "run", resume=True, listener=Listener(note=notes.append)).finished
    assert notes[1:] == ["continuing after step 4"]
    assert weights(tmp_path / "run") == weights(finished)
    assert log(tmp_path / "run") == log(finished)


def kill_and_resume(recipe, folder, draw, calls):
    """Kill the run at a random durable call, again and again, until it gets through; returns how often."""
    kills = 0

    def run(number):
        killing_at(number)
        pretrain(recipe, folder, resume=True)

    while True:
        code = start(run, draw.randrange(1, calls)).wait()
        if code == 0:
            return kills
        assert code == -signal.SIGKILL
        kills += 1


@pytest.mark.posix_only
@pytest.mark.slow
def test_kills_at_random_moments_change_no_bit(make_recipe, finished, tmp_path):
    """Seeds chosen so that there are some kills; the slow test goes through a run from end to end."""
    kills = sum(
        kill_and_resume(make_recipe(), tmp_path / str(seed), random.Random(seed), calls=60) for seed in range(2)
    )
    assert kills >= 3
    for seed in range(2):
        assert weights(tmp_path / str(seed)) == weights(finished)
        assert log(tmp_path / str(seed)) == log(finished)


def test_a_damaged_checkpoint_costs_some_steps_and_nothing_else(make_recipe, finished, tmp_path):
    pretrain(make_recipe(), tmp_path / "run", listener=Listener(event=stopping(4, signal.SIGTERM)))
    newest = listed(tmp_path / "run" / "checkpoints")[-1]
    shard = next(newest.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    notes = []
    pretrain(make_recipe(), tmp_path / "run", resume=True, listener=Listener(note=notes.append))
    assert "step-00000005 is damaged" in notes[1]
    assert notes[2] == "continuing after step 4"
    assert weights(tmp_path / "run") == weights(finished)
    assert log(tmp_path / "run") == log(finished)


def test_the_best_checkpoint_stays(make_recipe, tmp_path):
    """With a rate that ruins the model, the first validation stays the best."""
    recipe = make_recipe(
        optimizer__lr=1.0, schedule__warmup_steps=5, schedule__min_lr=1.0, train__max_steps=9, checkpoint__keep_last=1
    )
    pretrain(recipe, tmp_path / "run")
    assert [step_of(path) for path in listed(tmp_path / "run" / "checkpoints")] == [3, 9]


@pytest.mark.posix_only
def test_a_run_in_use_is_left_alone_and_a_dead_ones_lock_is_not_in_the_way(make_recipe, tmp_path):
    recipe = make_recipe()

    def second():
        with pytest.raises(InputError, match="run: another process is writing this output"):
            pretrain(recipe, tmp_path / "run", resume=True)

    def compete(event):
        if event.step == 2 and "validation/loss" not in event.values:
            process = start(second)
            assert process.wait() == 0, process.error
            os.kill(os.getpid(), signal.SIGKILL)

    assert start(lambda: pretrain(recipe, tmp_path / "run", listener=Listener(event=compete))).wait() == -signal.SIGKILL
    assert (tmp_path / "run" / "lock").exists()
    assert pretrain(recipe, tmp_path / "run", resume=True).finished


def test_what_a_folder_holds_is_not_overwritten(make_recipe, finished, tmp_path):
    with pytest.raises(
        InputError, match="whole: contains a run; continue it with --resume, or discard it with --restart"
    ):
        pretrain(make_recipe(), finished)
    (tmp_path / "thesis.tex").write_text("")
    for restart in (False, True):
        with pytest.raises(InputError, match=r"contains thesis\.tex and is not a run"):
            pretrain(make_recipe(), tmp_path, restart=restart)


def test_a_restart_discards_the_run_and_nothing_else(make_recipe, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="--resume and --restart cannot be combined"):
        pretrain(make_recipe(), run, resume=True, restart=True)
    # Started from the model of the run that is discarded.
    again = make_recipe(init=str(run / "model"), train__max_steps=2, logging__every=1)
    assert pretrain(again, run, restart=True).step == 2
    assert [line["step"] for line in read_log(run) if "loss" in line] == [1, 2]
    assert len(json.loads((run / "versions.json").read_text())) == 1
    assert (run / "thesis.tex").read_text() == "mine"


def test_a_resumed_run_keeps_its_recipe_but_for_what_does_not_change_it(make_recipe, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(InputError, match=r"cannot be resumed: optimizer\.lr was 0\.01 and is now 0\.02"):
        pretrain(make_recipe(optimizer__lr=0.02), run, resume=True)
    notes = []
    longer = make_recipe(train__max_steps=8, logging__every=2)
    assert pretrain(longer, run, resume=True, listener=Listener(note=notes.append)).step == 8
    assert "train.max_steps was 6 and is 8 from now on" in notes
    assert [line["step"] for line in read_log(run) if "loss" in line] == [1, 2, 3, 4, 5, 6, 8]


def test_a_loss_that_is_no_number_ends_the_run(make_recipe, tmp_path):
    recipe = make_recipe(optimizer__lr=1e30, schedule__warmup_steps=0, schedule__min_lr=1e30, train__clip=1e30)
    with pytest.raises(TrainingError, match=r"step \d: the loss is .*; lower optimizer\.lr"):
        pretrain(recipe, tmp_path / "run")


def test_data_that_does_not_fit(make_recipe, tmp_path):
    with pytest.raises(InputError, match=r"data\.store is missing: use --set data\.store=FOLDER"):
        pretrain(make_recipe(data__store=None), tmp_path / "run")
    with pytest.raises(InputError, match="not a token store"):
        pretrain(make_recipe(data__store=str(tmp_path)), tmp_path / "run")
    with pytest.raises(InputError, match="is less than a batch"):
        pretrain(make_recipe(data__sequences_per_batch=1000), tmp_path / "run")


# as a user would


def changes(store, *more):
    settings = {
        "data.store": store,
        "data.tokens_per_batch": 512,
        "data.micro_tokens": 256,
        "train.checkpoint_every": 3,
        "logging.peak_flops": "1e12",
        "logging.every": 1,
        "logging.plots": "false",
        "model.hidden_size": 32,
        "model.num_hidden_layers": 2,
        "model.num_attention_heads": 2,
        **dict(pair.split("=") for pair in more),
    }
    return [f"{key}={value}" for key, value in settings.items()]


def command(folder, store, *more):
    sets = [part for change in changes(store, *more) for part in ("--set", change)]
    return ["pretrain", "pretrain-tiny", "--output", str(folder), *sets, "--threads", "1"]


@pytest.mark.posix_only
def test_the_command_stops_at_sigterm_and_goes_on(store, tmp_path):
    process, told = start_command(*command(tmp_path / "run", store, "train.max_steps=100000"))
    for line in told:
        if line.startswith("step"):
            process.handle.terminate()
            break
    rest = told.read()
    assert process.wait() == 0
    assert "stopped and saved after step" in rest
    assert "continue with --resume" in rest
    done = step_of(listed(tmp_path / "run" / "checkpoints")[-1])
    more = command(tmp_path / "run", store, f"train.max_steps={done + 2}")
    process, told = start_command(*more, "--resume")
    rest = told.read()
    assert process.wait() == 0
    assert f"note: continuing after step {done}" in rest
    assert f"{done + 2} of {done + 2} steps (100 %)  loss" in rest
    assert f"use it with --model {tmp_path / 'run' / 'model'}" in rest


@pytest.mark.posix_only
@pytest.mark.slow
def test_a_kill_anywhere_in_a_run_changes_no_bit(make_recipe, tmp_path):
    """At every fifth durable call from the first to the last: folders, logs, checkpoints, what is pruned, the model."""
    recipe = make_recipe(train__max_steps=9, train__checkpoint_every=3, validation__every=3)
    whole = train(recipe, tmp_path / "whole")

    def run(number, folder):
        killing_at(number)
        pretrain(recipe, folder, resume=True)

    for number in range(1, 1000, 5):
        folder = tmp_path / str(number)
        code = start(run, number, folder).wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        train(recipe, folder, resume=True)
        assert weights(folder) == weights(whole), number
        assert log(folder) == log(whole), number
    assert number > 50


@pytest.mark.posix_only
@pytest.mark.slow
def test_torchrun_starts_again_after_a_worker_was_killed(store, tmp_path):
    """The same losses as a run that nobody killed, without being told to resume; the first new start succeeds."""
    settings = ("train.max_steps=20", "train.deadline=20", "train.sharding=fsdp", "train.precision=fp32")
    train(load_recipe("pretrain-tiny", changes(store, *settings)), tmp_path / "whole", world=2)
    process, told = start_command(*command(tmp_path / "run", store, *settings), processes=2)
    for line in told:
        if line.startswith("step"):
            while not listed(tmp_path / "run" / "checkpoints"):
                time.sleep(0.01)
            workers = subprocess.run(
                ["pgrep", "--parent", str(process.handle.pid)], capture_output=True, text=True, check=True
            ).stdout.split()
            os.kill(int(workers[-1]), signal.SIGKILL)
            break
    rest = told.read()
    assert process.wait() == 0, rest
    assert "continuing after step" in rest
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a small tmpfs")
def test_a_full_disk_ends_the_run_with_one_line_and_costs_no_checkpoint(make_recipe, finished, tmp_path):
    """Room for some checkpoints, not for all that are to be kept; the run goes on once there is more."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        hungry = make_recipe(train__checkpoint_every=1, checkpoint__keep_last=100)
        with pytest.raises(
            TrainingError, match=r"step-0000000\d: cannot be written \(.*\); earlier checkpoints are kept"
        ):
            pretrain(hungry, folder)
        assert len(listed(folder / "checkpoints")) >= 2
        subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True)
        assert pretrain(hungry, folder, resume=True).finished
        assert weights(folder) == weights(finished)
        assert log(folder) == log(finished)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
