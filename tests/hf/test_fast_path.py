"""The Hugging Face classes compute with the engine's encoder where they may, and only there."""

import copy

import pytest
import torch

import rinalmo
from rinalmo.engine.devices import packs_weights
from rinalmo.hf.fast_path import FastPath, sample

pytestmark = pytest.mark.skipif(not packs_weights("fp32"), reason="RINALMO_CPU=plain")


@pytest.fixture
def model():
    return rinalmo.RiNALMoForMaskedLM.from_pretrained(str(rinalmo.resolve("nano")))


@pytest.fixture
def inputs():
    tokenizer = rinalmo.RnaTokenizer.from_pretrained(str(rinalmo.resolve("nano")))
    return tokenizer(["GGUC<mask>CUCUGG", "ACGU"], padding=True, return_tensors="pt")


def packed(model):
    """The packed form of the model's encoder, if it may be used now."""
    return FastPath().of(model.encoder)


@torch.no_grad()
def test_same_numbers_as_the_plain_encoder(model, inputs):
    fast = model(**inputs, output_hidden_states=True)
    assert packed(model) is not None
    model.set_attn_implementation("eager")
    plain = model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(fast.logits, plain.logits, atol=1e-4, rtol=1e-5)
    assert len(fast.hidden_states) == len(plain.hidden_states)
    for one, other in zip(fast.hidden_states, plain.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_half_precision_keeps_its_type(model, inputs):
    states = model.to(torch.bfloat16)(**inputs, output_hidden_states=True).hidden_states
    assert {layer.dtype for layer in states} == {torch.bfloat16}


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.mul_(1.5),
        lambda weight: weight.data.mul_(1.5),
        lambda weight: setattr(weight, "data", weight * 1.5),
    ],
    ids=["in place", "in place through data", "new data"],
)
def test_changed_weights_are_seen(model, inputs, change):
    before = model(**inputs).logits
    change(model.encoder.blocks[2].ffn.down.weight)
    after = model(**inputs).logits
    assert not torch.allclose(before, after)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(after, model(**inputs).logits, atol=1e-4, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.data[7].mul_(1.5),
        lambda weight: weight.data[:, 7].mul_(1.5),
        lambda weight: weight.numpy().__setitem__(7, 1.5),
    ],
    ids=["row", "column", "row through numpy"],
)
def test_parts_changed_behind_torchs_back_are_seen(model, inputs, change):
    for name in ("attention.qkv", "attention.output", "ffn.gate_up", "ffn.down"):
        weight = model.encoder.blocks[2].get_submodule(name).weight
        before = model(**inputs).logits
        change(weight)
        assert not torch.equal(before, model(**inputs).logits), name


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 1), (1, 3), (4, 10), (10, 4), (6, 4), (26, 480), (30, 30)])
def test_the_sample_meets_every_row_and_column(shape):
    rows, columns = shape
    met = sample(torch.arange(rows * columns).view(shape))
    assert set((met // columns).tolist()) == set(range(rows))
    assert set((met % columns).tolist()) == set(range(columns))


@torch.no_grad()
def test_nan_is_packed_once(model):
    model.encoder.blocks[0].ffn.down.weight[0, 0] = torch.nan
    path = FastPath()
    assert path.of(model.encoder) is path.of(model.encoder)


@torch.no_grad()
def test_hooks_on_all_modules_are_honoured(model):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert packed(model) is None
    finally:
        handle.remove()
    assert packed(model) is not None


def test_training_and_gradients_take_the_plain_encoder(model, inputs):
    assert packed(model) is None  # gradients are wanted
    model(**inputs).logits.sum().backward()
    assert model.encoder.embedding.weight.grad is not None
    with torch.no_grad():
        assert packed(model) is not None
        assert packed(model.train()) is None
    model.eval().requires_grad_(False)
    assert packed(model) is not None


@torch.no_grad()
def test_hooks_and_replaced_layers_are_honoured(model, inputs):
    seen = []
    handle = model.encoder.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    model(**inputs)
    handle.remove()
    assert seen == [1]

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    before = model(**inputs).logits
    model.encoder.blocks[0].ffn.down.__class__ = Doubled
    assert not torch.allclose(before, model(**inputs).logits)


def test_frozen_states_can_train_a_head(model, inputs):
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
    head = torch.nn.Linear(states.shape[-1], 1)
    head(states).sum().backward()
    assert head.weight.grad is not None


@torch.no_grad()
def test_a_copy_has_its_own(model, inputs):
    model(**inputs)
    twin = copy.deepcopy(model)
    twin.encoder.embedding.weight.zero_()
    assert not torch.allclose(model(**inputs).logits, twin(**inputs).logits)
