"""Fixtures shared by all tests: where the reference numbers are, and a loaded small model."""

import signal
import threading
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


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
def nano():
    from rinalmo.weights.checkpoint import load

    return load("nano")
