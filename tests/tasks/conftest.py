"""A tiny backbone, and tables of made-up sequences whose targets can be read off them."""

import random

import pytest

import rinalmo
from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A model of two narrow blocks with fresh weights, in a folder."""
    model = create(ModelSpec(ModelConfig(32, 2, 2), heads={"lm_head": {}}), seed=1)
    return rinalmo.save(model, tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="session")
def sequences():
    """60 sequences of 12 to 30 nucleotides, of different composition."""
    draw = random.Random(0)
    weights = [[draw.random() for _ in "ACGU"] for _ in range(60)]
    return ["".join(draw.choices("ACGU", weight, k=draw.randint(12, 30))) for weight in weights]


@pytest.fixture
def make_table(tmp_path):
    """Write a CSV file of rows; keyword arguments are columns."""

    def make(name="table.csv", **columns):
        path = tmp_path / name
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")
        return path

    return make


def gc(sequence):
    """Share of G and C."""
    return (sequence.count("G") + sequence.count("C")) / len(sequence)
