"""tools/train_nano.py: made-up RNA pairs as its structure says, and heads learn to attend to the partner."""

import csv
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rinalmo.data.store import StoreWriter, TokenStore
from rinalmo.errors import InputError
from rinalmo.rna.structure import pairs_of
from rinalmo.training.distributed import Ranks
from rinalmo.training.pretrain import build_model, pretrain
from rinalmo.training.recipes import load_recipe
from rinalmo.training.run_folder import read_log
from rinalmo.weights.checkpoint import load

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import train_nano

    return train_nano


def test_made_up_rna_pairs_as_its_structure_says(tool):
    draw = random.Random(0)
    kinds = {
        "one": lambda: tool.with_flanks(draw, tool.perfect_stems(draw, 1)),
        "more": lambda: tool.with_flanks(draw, tool.perfect_stems(draw, 3)),
        "nested": lambda: tool.nested(draw, 120),
        "redrawn": lambda: tool.redrawn(draw, ("GGGAAAUCCAAGC", "(((...)))..()")),
    }
    for name, make in kinds.items():
        for _ in range(50):
            sequence, structure = make()
            assert len(sequence) == len(structure)
            pairs = pairs_of(structure)
            assert pairs, name
            allowed = {"GC", "CG", "AU", "UA"} | (set() if name in ("one", "more") else {"GU", "UG"})
            assert {sequence[i] + sequence[j] for i, j in pairs} <= allowed, name


@pytest.fixture
def hairpins(tool, tmp_path):
    """A store of hairpins, and a table with the structures of most of them."""
    draw = random.Random(1)
    made = [tool.with_flanks(draw, tool.perfect_stems(draw, 1)) for _ in range(220)]
    with StoreWriter(tmp_path / "store", sources=["one"]) as writer:
        for number, (sequence, _) in enumerate(made):
            writer.start_cluster("train" if number < 200 else "validation")
            writer.add(str(number), sequence.encode(), 0)
    with (tmp_path / "structures.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("sequence", "structure"), *made[:150]])
    return tmp_path, dict(made[:150])


@pytest.fixture
def recipe_of(hairpins, make_recipe):
    """A recipe on the store of hairpins; keyword arguments change it."""

    def make(**changes):
        batches = {"data__sequences_per_batch": None, "data__fixed_tokens": True}
        return make_recipe(data__store=str(hairpins[0] / "store"), **batches, **changes)

    return make


def test_partners_are_those_of_the_table_in_whole_and_cropped_sequences(tool, hairpins, recipe_of):
    folder, structures = hairpins
    recipe = recipe_of(data__tokens_per_batch=512, data__micro_tokens=256, data__max_length=40)
    task = tool.paired_task([folder / "structures.csv"], [0], 0.2, 0.0, 0.7)(
        recipe, TokenStore.open(folder / "store"), build_model(recipe)[0], Ranks()
    )
    known = cropped = 0
    letters = {int(task.model.alphabet.encode(letter)[1]): letter for letter in "ACGU"}
    for batch in task.batches():
        ids = batch.ids.clone()
        ids[batch.positions] = batch.targets
        for start, length in zip(batch.layout.starts.tolist(), batch.layout.lengths, strict=True):
            partners = batch.partners[start : start + length].numpy()
            text = "".join(letters.get(int(token), "") for token in ids[start : start + length])
            whole = text in structures
            cropped += len(text) == length
            (paired,) = np.nonzero(partners > (0 if text in structures else -1))  # 0 is <cls>, of an unpaired one
            assert (partners[partners[paired]] == paired).all()
            if whole:
                expected = {p for pair in pairs_of(structures[text]) for p in pair}
                assert {p - 1 for p in paired.tolist()} == expected
                assert (partners[1:-1] >= 0).all()
                known += 1
    assert known
    assert cropped


def test_tables_that_do_not_fit_are_refused(tool, hairpins, tmp_path):
    store = TokenStore.open(hairpins[0] / "store")
    table = tmp_path / "table.csv"
    table.write_text("sequence,structure\nGGGAAACCC,(((...)))\nGGGAAACCC,(((...))).\n")
    with pytest.raises(InputError, match=r"table\.csv, line 3: 9 nucleotides, but a structure of 10"):
        tool.Partners(store, [table])
    table.write_text("sequence,structure\nGGGAAACCC,(((...)))\n")
    with pytest.raises(InputError, match="none of its sequences is in"):
        tool.Partners(store, [table])


def test_redrawn_pairs_still_pair_and_unpaired_nucleotides_stay(tool, hairpins, recipe_of):
    folder, _ = hairpins
    recipe = recipe_of(data__tokens_per_batch=512, data__micro_tokens=256, data__max_length=100)

    def originals(redraw):
        """Letters, partners and masked places of each batch, with the masks undone."""
        task = tool.paired_task([folder / "structures.csv"], [0], 0.2, redraw, 0.7)(
            recipe, TokenStore.open(folder / "store"), build_model(recipe)[0], Ranks()
        )
        alphabet = task.model.alphabet
        for batch in task.batches():
            masked = (batch.ids == alphabet.mask_id).tolist()
            ids = batch.ids.clone()
            ids[batch.positions] = batch.targets
            partners = batch.partners + batch.layout.starts[batch.layout.sequence_ids]
            yield [alphabet.tokens[token] for token in ids.tolist()], partners.tolist(), masked

    changed = 0
    for (before, partners, masked), (after, _, masked_after) in zip(originals(0.0), originals(1.0), strict=True):
        assert masked == masked_after
        for place, partner in enumerate(partners):
            if partners[partner] == place:
                assert after[place] + after[partner] in {"GC", "CG", "AU", "UA", "GU", "UG"}
                changed += before[place] != after[place]
            else:
                assert before[place] == after[place]
    assert changed


def test_heads_learn_to_attend_to_partners(tool, hairpins, recipe_of, capsys):
    folder, _ = hairpins
    tables = [folder / "structures.csv"]
    recipe = recipe_of(
        data__tokens_per_batch=1024,
        data__micro_tokens=512,
        train__max_steps=20,
        train__checkpoint_every=10,
        validation__every=10,
    )
    model = build_model(recipe)[0]
    before = model.state_dict()
    tool.teach_heads(recipe, tables, [1], 30, folder / "taught")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", capsys.readouterr().err)]
    assert len(losses) == 3
    assert losses[2] < losses[0]
    after = load(folder / "taught").state_dict()
    (changed,) = (name for name in before if not torch.equal(before[name], after[name]))
    assert changed == "encoder.blocks.1.attention.qkv.weight"
    rows = (before[changed] != after[changed]).any(dim=1).unflatten(0, (3, -1, model.config.head_size))
    assert rows[:2, 1].all()
    assert rows.sum() == rows[:2, 1].numel()

    recipe = recipe.model_copy(update={"init": str(folder / "taught")})
    task = tool.paired_task(tables, [1], 1.0, 0.5, 0.7)
    assert pretrain(recipe, folder / "run", task=task, device="cpu").finished
    losses = [line["pairs/loss"] for line in read_log(folder / "run") if "pairs/loss" in line]
    assert len(losses) == 2
    assert losses[1] < losses[0]

    tool.write_mean(folder / "run", 2, folder / "mean")
    steps = [folder / "run" / "checkpoints" / f"step-{step:08}" for step in (10, 20)]
    first, second = ({k: v for f in step.glob("*.safetensors") for k, v in load_file(f).items()} for step in steps)
    mean = load(folder / "mean").state_dict()
    for name in ("blocks.0.ffn_norm.bias", "blocks.1.attention.qkv.weight"):
        expected = (first[f"model.encoder.{name}"] + second[f"model.encoder.{name}"]) / 2
        torch.testing.assert_close(mean[f"encoder.{name}"], expected)
    with pytest.raises(InputError, match=r"checkpoints: 2 checkpoints; the mean of 3 cannot be taken"):
        tool.write_mean(folder / "run", 3, folder / "other")
    for shard in steps[0].glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"step-00000010: "):
        tool.write_mean(folder / "run", 2, folder / "other")


def test_its_recipes_load():
    train, decay = (load_recipe(str(TOOLS / f"train_nano{part}.yaml"), []) for part in ("", "_decay"))
    assert train.schedule.shape == "constant"
    assert decay.schedule.shape == "linear"
    assert decay.data.max_length > train.data.max_length
