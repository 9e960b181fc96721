"""Fixtures shared by all tests: where the reference numbers are, and a loaded small model."""

from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def starter():
    from rinalmo.weights.checkpoint import load

    return load("starter")
