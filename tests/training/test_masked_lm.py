"""The masked-LM task: its loss and its figures against ones written out here, and where its weights come from."""

import math
from itertools import pairwise

import pytest
import torch

from rinalmo.data.store import TokenStore
from rinalmo.errors import InputError
from rinalmo.model.packing import pack
from rinalmo.training.distributed import Ranks
from rinalmo.training.pretrain import MaskedLMTask, build_model
from rinalmo.training.trainer import Trainer, training_flops
from rinalmo.weights.checkpoint import load, save


@pytest.fixture
def make_task(make_recipe):
    def make(**changes):
        recipe = make_recipe(**{"model__attention_dropout": 0.0, "model__hidden_dropout": 0.0, **changes})
        store = TokenStore.open(recipe.data.store)
        return recipe, MaskedLMTask(recipe, store, build_model(recipe)[0], Ranks())

    return make


def losses_one_by_one(model, batches):
    """Cross-entropy of every selected token, each sequence through the model on its own."""
    found = []
    for batch in batches:
        for first, last in pairwise(batch.layout.offsets):
            here = (batch.positions >= first) & (batch.positions < last)
            ids, layout = pack([batch.ids[first:last]])
            logits = model.lm_head(model(ids, layout).last_hidden_state)
            log_probabilities = logits.log_softmax(dim=-1)
            for position, target in zip(batch.positions[here] - first, batch.targets[here], strict=True):
                found.append(-log_probabilities[position, target])
    return torch.stack(found)


def test_the_first_loss_and_gradient_are_those_written_out(make_task):
    """Over several micro-batches of different sizes: a mean over all selected tokens, not a mean of means."""
    recipe, task = make_task()
    batches = task.source.batch(task.source.place)
    assert len({len(batch.targets) for batch in batches}) > 1
    expected = losses_one_by_one(task.model, batches).mean()
    gradients = torch.autograd.grad(expected, list(task.module.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    trainer = Trainer(task, recipe, Ranks(), checkpoints=None)
    trainer.step()
    assert trainer.progress.losses[0] == pytest.approx(expected.item(), rel=1e-5)
    assert trainer.norm == pytest.approx(norm.item(), rel=1e-4)


def test_micro_batches_do_not_change_the_steps(make_task):
    runs = []
    for micro_tokens in (64, 256, 4096):
        recipe, task = make_task(data__micro_tokens=micro_tokens)
        trainer = Trainer(task, recipe, Ranks(), checkpoints=None)
        for _ in range(5):
            trainer.step()
        runs.append(trainer.progress.losses)
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)
    assert runs[0] == pytest.approx(runs[2], abs=1e-5)


def test_recomputed_activations_change_nothing(make_task):
    runs = []
    for recompute in (False, True):
        recipe, task = make_task(train__activation_checkpointing=recompute, model__hidden_dropout=0.1)
        trainer = Trainer(task, recipe, Ranks(), checkpoints=None)
        for _ in range(3):
            trainer.step()
        runs.append(trainer.progress.losses)
    assert runs[0] == runs[1]


def test_figures_over_all_and_by_source(make_task):
    _, task = make_task(data__micro_tokens=100)
    task.module.eval()
    with torch.no_grad():
        figures = dict(task.evaluate(task.module, Ranks()))
        assert dict(task.evaluate(task.module, Ranks())) == figures  # the same masks each time
        batches = task.held_out.batches()
        losses = losses_one_by_one(task.model, batches)
        sources = torch.cat([batch.target_sources for batch in batches])
        right = torch.cat([task.module(b.ids, b.layout, b.positions).argmax(-1) == b.targets for b in batches])
    for name, chosen in [("", sources >= 0), ("/first", sources == 0), ("/second", sources == 1)]:
        loss = losses[chosen].mean().item()
        assert figures[f"validation{name}/loss"] == pytest.approx(loss, rel=1e-5)
        assert figures[f"validation{name}/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert figures[f"validation{name}/accuracy"] == pytest.approx(right[chosen].float().mean().item())
    assert len(figures) == 9


def test_an_unselected_batch_adds_nothing(make_task):
    _, task = make_task()
    silent = task.source.batch(task.source.place)[0].without_targets()
    loss = task.loss(task.module, silent)
    loss.backward()
    assert loss.item() == 0.0
    assert all((parameter.grad == 0).all() for parameter in task.module.parameters())


def test_steps_of_a_run(make_task):
    assert make_task(train__max_steps=None, train__epochs=3)[1].steps == 3 * (40 // 8)
    by_tokens = {"data__sequences_per_batch": None, "data__tokens_per_batch": 512}
    assert make_task(train__max_steps=None, train__epochs=3, **by_tokens)[1].steps in range(8, 13)  # 40 × 42 tokens


def test_arithmetic_of_a_step(make_task):
    """Against torch's own count of the matrix products in a forward and a backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    _, task = make_task()
    task.model.encoder.set_attention_backend("eager")  # the counter does not see into the fused one
    batch = task.source.batch(task.source.place)[0]
    with FlopCounterMode(display=False) as counter:
        task.loss(task.module, batch).backward()
    ours = training_flops(task.model.config, batch.layout.lengths, len(batch.targets))
    assert ours == pytest.approx(counter.get_total_flops(), rel=1e-3)


# where the weights come from


def same(model, other, names):
    return all(torch.equal(model.state_dict()[name], other.state_dict()[name]) for name in names)


@pytest.mark.parametrize("layout", ["rinalmo", "multimolecule", "official"])
def test_init_from_any_layout(make_recipe, nano, tmp_path, layout):
    target = save(nano, tmp_path / ("model.pt" if layout == "official" else "model"), layout)
    model, notes = build_model(make_recipe(init=str(target), model={"hidden_dropout": 0.0}))
    assert notes == []
    assert same(model, load(target), [name for name in nano.state_dict() if not name.startswith("pooler")])
    assert (model.config.hidden_dropout, model.config.attention_dropout) == (0.0, nano.config.attention_dropout)
    assert list(model.spec.heads) == ["lm_head"]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_init_without_a_masked_lm_head_gets_a_fresh_one(make_recipe, golden):
    folder = golden / "multimolecule" / "sequence-binary"
    model, notes = build_model(make_recipe(init=str(folder), model={}))
    assert "has no masked-LM head; a new one is trained" in notes[0]
    assert model.lm_head.decoder.weight.std() > 0
    given = load(folder)
    assert same(model, given, [name for name in given.state_dict() if name.startswith("encoder")])


def test_init_of_another_size_is_refused(make_recipe):
    with pytest.raises(InputError, match=r"init nano has hidden_size 320, but the recipe has 480.*model\.preset=null"):
        build_model(make_recipe(init="nano", model={"preset": "micro"}))
