"""The learning rate of each step, and which parameters decay."""

import math

import pytest
import torch

from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create
from rinalmo.training.recipes import OptimizerRecipe, ScheduleRecipe, load_recipe
from rinalmo.training.trainer import ParameterGroup, learning_rate, make_optimizers, moments, set_steps


def test_the_papers_schedule():
    schedule = load_recipe("pretrain-giga").schedule
    rate = lambda step: learning_rate(step, 5e-5, schedule, 75_900)  # noqa: E731
    assert rate(0) == 1e-7
    assert rate(1000) == pytest.approx((1e-7 + 5e-5) / 2)
    assert rate(1999) < rate(2000) == 5e-5
    assert rate(102_000) == pytest.approx(3e-5)  # half of the cosine
    assert rate(75_900) == pytest.approx(3.8e-5, rel=0.01)  # where six epochs end
    assert rate(202_000) == rate(500_000) == 1e-5


def test_without_its_own_length_the_cosine_ends_with_the_run():
    schedule = ScheduleRecipe(warmup_steps=10, start_lr=0.0, min_lr=1e-3)
    rates = [learning_rate(step, 1e-2, schedule, 110) for step in range(111)]
    assert rates[5] == pytest.approx(5e-3)
    assert rates[110] == 1e-3
    assert rates[35] == pytest.approx(1e-3 + 9e-3 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_no_warm_up():
    assert learning_rate(0, 1e-2, ScheduleRecipe(warmup_steps=0, min_lr=0.0), 5) == 1e-2


@pytest.fixture
def model():
    return create(ModelSpec(ModelConfig(32, 1, 2), heads={"lm_head": {}}))


def test_matrices_decay_and_vectors_do_not(model):
    (optimizer,) = make_optimizers([ParameterGroup(list(model.parameters()))], OptimizerRecipe(lr=0.5), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert groups[0] | groups[1] == set(names.values())
    assert not groups[0] & groups[1]
    assert "encoder.blocks.0.ffn.beta" in groups[1]
    assert all(name.endswith(("bias", "norm.weight", "beta")) for name in groups[1])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (1 - 0.5 * 0.01) if name in groups[0] else before[name]
        torch.testing.assert_close(parameter.detach(), expected)


def test_muon_has_the_matrices_of_the_blocks_and_makes_updates_of_adamw_size(model):
    group = ParameterGroup(list(model.parameters()), scale=0.1)
    muon, adamw = make_optimizers([group], OptimizerRecipe(name="muon", lr=1e-2, weight_decay=0.0), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    mine = {names[id(p)] for part in muon.param_groups for p in part["params"]}
    assert mine == {
        f"encoder.blocks.0.{name}.weight" for name in ("attention.qkv", "attention.output", "ffn.gate_up", "ffn.down")
    }
    assert mine | {names[id(p)] for part in adamw.param_groups for p in part["params"]} == set(names.values())
    assert {part["scale"] for part in muon.param_groups + adamw.param_groups} == {0.1}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-3
    muon.step()
    for name, parameter in model.named_parameters():
        update = (parameter.detach() - before[name]).float()
        if name not in mine:
            assert not update.any()
            continue
        # All singular values are equal up to the iteration's accuracy (0.7 to 1.2), whatever the gradient's size.
        values = torch.linalg.svdvals(update) / (1e-2 * 0.2 * max(update.shape) ** 0.5)
        assert values.min() > 0.5, name
        assert values.max() < 1.3, name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_are_there_before_the_first_step_and_change_nothing(model, name):
    """A checkpoint is loaded into them; an optimizer that made its own must do the same."""
    steps = []
    for prepared in (False, True):
        copy = create(model.spec)
        recipe = OptimizerRecipe(name=name, lr=1e-2)
        optimizers = make_optimizers([ParameterGroup(list(copy.parameters()))], recipe, copy)
        if prepared:
            assert set(moments(optimizers)) == {id(parameter) for parameter in copy.parameters()}
            set_steps(optimizers, 0)
        for seed in range(3):
            torch.manual_seed(seed)
            for parameter in copy.parameters():
                parameter.grad = torch.randn_like(parameter)
            for optimizer in optimizers:
                optimizer.step()
        steps.append(copy.state_dict())
    assert all(torch.equal(steps[0][name], steps[1][name]) for name in steps[0])
