"""Bytes that formulas say a training step keeps, against the tensors that are alive after its forward pass."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rinalmo.model.config import ModelConfig
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import ModelSpec, create

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from cost_model import activation_bytes, matrix_parameters, pretraining_parameters

LENGTHS = (9, 30, 30, 30, 41, 64, 118, 154)
SMALL = ModelConfig(hidden_size=80, num_hidden_layers=3, num_attention_heads=5)
WIDE = replace(ModelConfig.preset("micro"), num_hidden_layers=2)  # all of its layers cost the same
CONFIGS = {"small": SMALL, "nano": ModelConfig.preset("nano"), "micro": WIDE}


class Alive(TorchDispatchMode):
    """Remembers each storage that an operation makes, without keeping it."""

    def __init__(self, known):
        super().__init__()
        self.known = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in known}
        self.made = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                ref = StorageWeakRef(storage)
                self.made.setdefault(ref.cdata, (ref, storage.nbytes()))
        return out

    def bytes(self):
        return sum(size for key, (ref, size) in self.made.items() if key not in self.known and not ref.expired())


def kept(config, checkpointing):
    """Bytes alive between forward and backward, and the number of predicted positions."""
    model = create(ModelSpec(config, heads={"lm_head": {}})).train()
    model.encoder.gradient_checkpointing = checkpointing
    layout = Layout(LENGTHS)
    ids, positions = torch.randint(6, 10, (layout.total,)), torch.arange(0, layout.total, 7)
    alive = Alive([*model.parameters(), ids, positions])
    with alive:
        with torch.autocast("cpu", torch.bfloat16):
            states = model.encoder(ids, layout).last_hidden_state
            loss = torch.nn.functional.cross_entropy(model.head("lm_head")(states[positions]), ids[positions])
        del states
    assert loss.requires_grad
    return alive.bytes(), len(positions)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(
    ("name", "path", "dropout"),
    [("small", "cpu", 0.1), ("nano", "cpu", 0.0), ("nano", "sdpa", 0.0), ("micro", "cpu", 0.0), ("micro", "sdpa", 0.0)],
)
def test_activation_bytes(monkeypatch, name, path, dropout, checkpointing):
    config = replace(CONFIGS[name], hidden_dropout=dropout, attention_dropout=dropout)
    if path == "sdpa":
        monkeypatch.setattr("rinalmo.model.rinalmo.trains_on_cpu", lambda x: False)
    found, predicted = kept(config, checkpointing)
    copies = 0 if checkpointing else 2 * matrix_parameters(config)
    expected = activation_bytes(config, LENGTHS, predicted, path=path, checkpointing=checkpointing)
    assert found - copies == pytest.approx(expected, abs=1000)  # the layout's offsets and what else has no token axis


@pytest.mark.parametrize("hidden", [40, 64])
def test_parameters(hidden):
    config = ModelConfig(hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4)
    model = create(ModelSpec(config, heads={"lm_head": {}}))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert pretraining_parameters(config) == sum(sizes.values())
    matrices = [size for name, size in sizes.items() if "blocks" in name and model.get_parameter(name).dim() == 2]
    assert matrix_parameters(config) == sum(matrices)
