"""A small store of made-up families, and a recipe of seconds."""

import random

import pytest

from rinalmo.data.store import StoreWriter
from rinalmo.io.recipe_files import parse
from rinalmo.training.recipes import Recipe


def _mutated(sequence, draw, share):
    return "".join(draw.choice("ACGU") if draw.random() < share else letter for letter in sequence)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """40 clusters for training and 6 for validation, members 5 % apart, from two sources."""
    path, draw = tmp_path_factory.mktemp("data") / "store", random.Random(0)
    with StoreWriter(path, sources=["first", "second"]) as writer:
        for split, clusters in (("train", 40), ("validation", 6)):
            for cluster in range(clusters):
                writer.start_cluster(split)
                parent = "".join(draw.choice("ACGU") for _ in range(draw.randint(20, 60)))
                for member in range(draw.randint(1, 4)):
                    writer.add(f"{cluster}.{member}", _mutated(parent, draw, 0.05).encode(), cluster % 2)
    return path


@pytest.fixture(scope="session")
def make_recipe(store):
    """A recipe of a few steps; keyword arguments such as `train__max_steps=5` change it."""

    def make(**changes):
        values = {
            "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
            "data": {"store": str(store), "sequences_per_batch": 8, "micro_tokens": 256, "workers": 0},
            "train": {"max_steps": 6, "checkpoint_every": 2, "precision": "fp32", "deadline": 20},
            "optimizer": {"lr": 1e-2},
            "schedule": {"warmup_steps": 2, "min_lr": 1e-3},
            "validation": {"every": 3, "per_source": 4},
            "logging": {"every": 1, "plots": False, "peak_flops": 1e12},
        }
        for key, value in changes.items():
            section, _, name = key.partition("__")
            if name:
                values.setdefault(section, {})[name] = value
            else:
                values[section] = value
        return parse(Recipe, values, "test")

    return make
