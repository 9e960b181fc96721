"""Gradients that are written out by hand against those that torch derives."""

import pytest
import torch
import torch.nn.functional as F

from rinalmo.model.config import ModelConfig
from rinalmo.model.kernels import attend_in_training, gated_swish, rotation
from rinalmo.model.packing import Layout, pack
from rinalmo.model.rinalmo import ModelSpec, create


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_by_finite_differences(dropout):
    layout, heads, size = Layout((3, 3, 2, 1)), 2, 4
    rope = rotation(layout.indices, size)

    def forward(qkv):
        torch.manual_seed(1)
        return attend_in_training(qkv, layout, rope, size, dropout)

    qkv = torch.randn(layout.total, 3 * heads * size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(forward, (qkv,))


@pytest.mark.parametrize("beta", [-1.5, 0.0, 1.0, 3.0])
def test_gate_by_finite_differences(beta):
    gate, up = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    slope = torch.tensor([beta], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gated_swish, (gate, up, slope))
    torch.testing.assert_close(gated_swish(gate, up, slope), gate * torch.sigmoid(slope * gate) * up)


def gradients(model, sequences, **autocast):
    model.zero_grad()
    ids, layout = pack(sequences)
    with torch.autocast("cpu", **autocast):
        states = model.encoder(ids, layout).last_hidden_state
    (states.float() * torch.linspace(-1, 1, states.shape[-1])).sin().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("autocast", "tolerance"), [({"enabled": False}, 1e-5), ({"dtype": torch.bfloat16}, 3e-2)], ids=["fp32", "bf16"]
)
def test_whole_model(monkeypatch, autocast, tolerance):
    config = ModelConfig(
        hidden_size=80, num_hidden_layers=2, num_attention_heads=5, attention_dropout=0.0, hidden_dropout=0.0
    )
    model = create(ModelSpec(config)).train()
    for number, encoder_block in enumerate(model.encoder.blocks):
        encoder_block.ffn.beta.data.fill_(1.3 - number)
        encoder_block.attention.qkv.weight.data.mul_(5)
    sequences = [[1, *[6, 7, 8, 9] * n, 2] for n in (3, 5, 5, 9)]
    found = gradients(model, sequences, **autocast)
    monkeypatch.setattr("rinalmo.model.rinalmo.trains_on_cpu", lambda x: False)
    for name, expected in gradients(model, sequences, **autocast).items():
        assert F.cosine_similarity(found[name].flatten(), expected.flatten(), dim=0) > 1 - tolerance, name
        torch.testing.assert_close(found[name].norm(), expected.norm(), rtol=tolerance, atol=tolerance)
