"""Tables of made-up sequences whose targets can be read off them."""

import random

import pytest


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
