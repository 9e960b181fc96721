"""Training in a process that has other things to do: what is the caller's is as it was, and any thread will do."""

import csv
import random
import signal
import threading
import warnings

import numpy as np
import pytest
import torch

import rinalmo
from rinalmo.training.pretrain import pretrain

from .processes import weights


def process_state():
    """Whatever a run could change in its process, as one comparable value."""
    return (
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        csv.field_size_limit(),
        list(warnings.filters),
    )


def in_thread(function):
    """Call it in another thread than the main one; its exception is raised here."""
    failures = []

    def call():
        try:
            function()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def test_a_run_leaves_the_process_as_it_was(make_recipe, tmp_path):
    before = process_state()
    pretrain(make_recipe(), tmp_path / "run")
    assert process_state() == before


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_any_thread_and_any_mode_give_the_same_weights(make_recipe, tmp_path, precision):
    """Weights that autocast has cast must not outlive a step, whoever's autocast is the outermost."""
    recipe = make_recipe(train__precision=precision)
    torch.manual_seed(1)
    pretrain(recipe, tmp_path / "main")
    torch.manual_seed(2)
    before = process_state()
    in_thread(lambda: pretrain(recipe, tmp_path / "thread"))
    assert process_state() == before
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        pretrain(recipe, tmp_path / "inference")
        assert torch.is_autocast_enabled("cpu")
    assert weights(tmp_path / "main") == weights(tmp_path / "thread") == weights(tmp_path / "inference")


def test_finetune_in_a_thread(backbone, tmp_path):
    draw = random.Random(0)
    rows = [{"sequence": "".join(draw.choices("ACGU", k=20)), "y": number / 10} for number in range(40)]
    overrides = ["train.epochs=1", "backbone.mode=frozen", "logging.plots=false"]
    before = process_state()[1:]  # beartype, which checks shapes in the tests, draws from `random`
    in_thread(
        lambda: rinalmo.finetune("table", rows, tmp_path / "run", model=backbone, target="y", overrides=overrides)
    )
    assert process_state()[1:] == before
    assert (tmp_path / "run" / "model").is_dir()


def test_a_handler_that_was_not_set_from_python_is_left_alone(make_recipe, tmp_path, monkeypatch):
    """Python says None for such a handler, and cannot put it back."""
    real = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else real(number))
    before = real(signal.SIGTERM)
    assert pretrain(make_recipe(train__max_steps=2), tmp_path / "run").finished
    assert real(signal.SIGTERM) is before
