"""The learning rate of each step, and which parameters decay."""

import math

import pytest
import torch

from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create
from rinalmo.training.recipes import OptimizerRecipe, ScheduleRecipe, load_recipe
from rinalmo.training.trainer import ParameterGroup, learning_rate, make_optimizer, moments, set_steps


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
    optimizer = make_optimizer([ParameterGroup(list(model.parameters()))], OptimizerRecipe(lr=0.5))
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


def test_moments_are_there_before_the_first_step_and_change_nothing(model):
    """A checkpoint is loaded into them; an optimizer that made its own must do the same."""
    steps = []
    for prepared in (False, True):
        copy = create(model.spec)
        optimizer = make_optimizer([ParameterGroup(list(copy.parameters()))], OptimizerRecipe(lr=1e-2))
        if prepared:
            assert set(moments(optimizer)) == {id(parameter) for parameter in copy.parameters()}
            set_steps(optimizer, 0)
        for seed in range(3):
            torch.manual_seed(seed)
            for parameter in copy.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        steps.append(copy.state_dict())
    assert all(torch.equal(steps[0][name], steps[1][name]) for name in steps[0])
