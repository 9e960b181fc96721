"""Fixtures shared by all tests: where the reference numbers are, and a loaded small model."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; threads of what they start would be in the way

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("untimed")

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items) -> None:
    if hasattr(os, "fork"):
        return
    for item in items:
        if item.get_closest_marker("posix_only"):
            item.add_marker(pytest.mark.skip(reason="needs forks, signals, shells or devices of POSIX systems"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what names a precision that `RINALMO_CPU` forbids; what it does not forbid is computed, fast or not."""
    from rinalmo.engine.devices import check_precision
    from rinalmo.errors import InputError

    for mark in item.iter_markers("precision"):
        try:
            check_precision(mark.args[0])
        except InputError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A test run in the background ignores SIGINT, and so would the processes that tests start and interrupt."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A model of two narrow blocks with fresh weights, in a folder: for tests of all but what a model says."""
    import rinalmo
    from rinalmo.model.config import ModelConfig
    from rinalmo.model.rinalmo import ModelSpec, create

    model = create(ModelSpec(ModelConfig(32, 2, 2), heads={"lm_head": {}}), seed=1)
    return rinalmo.save(model, tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="session")
def nano():
    from rinalmo.weights.checkpoint import load

    return load("nano")
