"""Whole fine-tuning runs: they learn, are interrupted and resumed, and their models predict what they predicted."""

import json
import re
import signal

import numpy as np
import pytest
import torch

import rinalmo
from rinalmo.engine.engine import Engine
from rinalmo.errors import CheckpointError, InputError
from rinalmo.inference.fold import fold
from rinalmo.inference.predict import predict
from rinalmo.io.recipe_files import load as load_recipe
from rinalmo.tasks.evaluate import evaluate
from rinalmo.training.checkpoint import listed
from rinalmo.training.finetune import finetune_from_recipe
from rinalmo.training.recipes import FinetuneRecipe
from rinalmo.training.run_folder import read_log
from rinalmo.training.trainer import Listener
from rinalmo.weights.checkpoint import convert, load

from .conftest import gc


@pytest.fixture
def make_recipe(backbone):
    """The recipe of a task on the tiny backbone, a few steps long; keyword arguments such as `train__epochs=2`."""

    def make(task, data, **changes):
        values = {
            "init": backbone,
            "data.train": data,
            "data.sequences_per_batch": 8,
            "data.micro_tokens": 128,
            "train.epochs": 3,
            "train.precision": "fp32",
            "optimizer.lr": 3e-3,
            "logging.every": 1,
            "logging.plots": "false",
            "logging.peak_flops": 1e12,
            "schedule.warmup_steps": 0,
            **({"backbone.mode": "full"} if task == "table" else {}),
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        return load_recipe(FinetuneRecipe, f"finetune-{task}", [f"{key}={value}" for key, value in values.items()])

    return make


def stopping(step):
    """Send SIGTERM after a step."""

    def listen(event):
        if event.step == step and "loss" in event.values:
            signal.raise_signal(signal.SIGTERM)

    return Listener(event=listen)


def weights(folder):
    return {name: tensor.clone() for name, tensor in load(folder / "model").state_dict().items()}


def test_it_learns_and_its_model_says_the_same_later(make_recipe, make_table, sequences, tmp_path):
    data = make_table(sequence=sequences, label=[round(gc(s), 4) for s in sequences])
    notes = []
    listener = Listener(note=notes.append)
    assert finetune_from_recipe(
        make_recipe("table", data, train__epochs=12), tmp_path / "run", listener=listener
    ).finished
    assert "label: regression, for each sequence" in notes
    lines = [line for line in read_log(tmp_path / "run") if "validation/r2" in line]
    assert lines[-1]["validation/loss"] < lines[0]["validation/loss"]
    assert max(line["validation/r2"] for line in lines) > 0.5
    model = tmp_path / "run" / "model"
    together = predict(sequences, model)
    assert [row["id"] for row in together] == [str(place) for place in range(1, 61)]
    alone = [predict(sequence, model)[0]["label"] for sequence in sequences[:5]]
    np.testing.assert_allclose([row["label"] for row in together[:5]], alone, atol=1e-5)
    assert json.loads((model / "config.json").read_text())["task"]["name"] == "table"
    # The Hugging Face class says the same, in the units of the column.
    hf = rinalmo.RiNALMoForSequencePrediction.from_pretrained(model)
    tokenizer = rinalmo.RnaTokenizer.from_pretrained(model)
    assert hf(**tokenizer(sequences[0], return_tensors="pt")).logits.item() == pytest.approx(alone[0], abs=1e-5)
    assert (hf.config.problem_type, hf.config.id2label) == ("regression", {0: "label"})


@pytest.mark.parametrize(
    "backbone_mode",
    [
        {"backbone__mode": "full"},
        pytest.param({"backbone__mode": "frozen"}, marks=pytest.mark.slow),
        pytest.param(
            {"backbone__mode": "gradual", "backbone__stages": "[{epoch: 1, blocks: 1}, {epoch: 2}]"},
            marks=pytest.mark.slow,
        ),
        pytest.param({"backbone__mode": "lora", "backbone__rank": 2}, marks=pytest.mark.slow),
    ],
    ids=["full", "frozen", "gradual", "lora"],
)
def test_interrupted_and_resumed_equals_uninterrupted(backbone_mode, make_recipe, make_table, sequences, tmp_path):
    if backbone_mode["backbone__mode"] == "lora":
        pytest.importorskip("peft")
    data = make_table(sequence=sequences, mrl=[gc(s) for s in sequences])
    recipe = make_recipe("ribosome-load", data, **backbone_mode)
    assert finetune_from_recipe(recipe, tmp_path / "whole").finished
    outcome = finetune_from_recipe(recipe, tmp_path / "parts", listener=stopping(12))
    assert (outcome.step, outcome.finished) == (13, False)  # the signal comes while the next step is made
    assert finetune_from_recipe(recipe, tmp_path / "parts", resume=True).finished
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    # With cached states the model's products are not computed, and their share of the peak would mean nothing.
    told = any("mfu" in line for line in read_log(tmp_path / "whole"))
    assert told == (backbone_mode["backbone__mode"] != "frozen")


def test_computing_frozen_states_tells_how_far_it_is(make_recipe, make_table, sequences, tmp_path, monkeypatch):
    monkeypatch.setattr("rinalmo.training.finetune.NOTE_SECONDS", -1.0)
    recipe = make_recipe(
        "ribosome-load",
        make_table(sequence=sequences, mrl=[gc(s) for s in sequences]),
        backbone__mode="frozen",
        train__max_steps=1,
        data__micro_tokens=128,
    )
    notes = []
    finetune_from_recipe(recipe, tmp_path / "run", listener=Listener(note=notes.append))
    told = [note for note in notes if note.startswith("frozen states: ")]
    assert len(told) > 1
    assert re.fullmatch(r"frozen states: [\d,]+ of [\d,]+ tokens \(\d+ %\), \d+ s left", told[0])
    assert "(100 %), 0 s left" in told[-1]


def test_gradual_thawing_leaves_what_is_frozen(make_recipe, make_table, sequences, backbone, tmp_path):
    data = make_table(sequence=sequences, mrl=[gc(s) for s in sequences])
    stages = "[{epoch: 1, blocks: 1}]"
    changes = {"backbone__mode": "gradual", "backbone__stages": stages, "checkpoint__keep_best": "false"}
    finetune_from_recipe(make_recipe("ribosome-load", data, train__max_steps=14, **changes), tmp_path / "run")
    before, after = dict(load(backbone).state_dict()), weights(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("encoder.blocks.1.") for name in changed)
    assert "encoder.final_norm.weight" in changed
    assert not any(name.startswith(("encoder.blocks.0.", "encoder.embedding", "lm_head")) for name in changed)


def test_the_best_state_is_written_with_its_threshold(make_recipe, make_table, tmp_path):
    hairpins = ["GGGC" + "AAAA" + "GCCC" + "A" * (n % 5) for n in range(30)]
    structures = ["((((....))))" + "." * (n % 5) for n in range(30)]
    data = make_table(sequence=hairpins, structure=structures)
    recipe = make_recipe("secondary-structure", data, backbone__mode="full", train__epochs=4)
    finetune_from_recipe(recipe, tmp_path / "run")
    lines = [line for line in read_log(tmp_path / "run") if "validation/f1_relaxed" in line]
    best = max(lines, key=lambda line: line["validation/f1_relaxed"])
    assert load(tmp_path / "run" / "model").spec.threshold == best["validation/threshold"]
    assert best["validation/f1"] > 0.9
    (row,) = predict(hairpins[0].lower().replace("u", "t"), tmp_path / "run" / "model")
    assert row["structure"] == structures[0]


@pytest.mark.parametrize("half", [False, True])
def test_partners_are_learnt_and_survive_half_precision(half, make_recipe, make_table, tmp_path):
    draw = np.random.default_rng(0)
    stems = ["".join(draw.choice(list("ACGU"), 5)) for _ in range(40)]
    other = str.maketrans("ACGU", "UGCA")
    sequences = [stem + "GAAA" + stem[::-1].translate(other) + "A" * (n % 3) for n, stem in enumerate(stems)]
    structures = ["(((((....)))))" + "." * (n % 3) for n in range(40)]
    data = make_table(sequence=sequences, structure=structures)
    options = {"options__head": "partners", "options__channels": 12, "options__num_blocks": 2}
    finetune_from_recipe(
        make_recipe("secondary-structure", data, backbone__mode="full", train__epochs=3, **options), tmp_path / "run"
    )
    folder = tmp_path / "run" / "model"
    if half:
        convert(folder, tmp_path / "half", half=True)
        assert directory_size(tmp_path / "half") < 0.6 * directory_size(folder)
        folder = tmp_path / "half"
    model = load(folder)
    assert model.spec.task == {"name": "secondary-structure", "head": "partners", "channels": 12, "num_blocks": 2}
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    found = fold(sequences, model)
    assert np.mean([s.dot_bracket == expected for s, expected in zip(found, structures, strict=True)]) > 0.8
    loose = make_table("loose.csv", sequence=["AAAAAAAA", *sequences[:3]], structure=["." * 8, *structures[:3]])
    assert evaluate(loose, model).metrics["f1"].value < 1  # what has no pairs scores 0
    assert [s.pairs for s in fold(sequences[::-1], model)][::-1] == [s.pairs for s in found]


def directory_size(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_classes_and_their_probabilities(make_recipe, make_table, sequences, tmp_path):
    labels = ["rich" if gc(s) > 0.5 else "poor" for s in sequences]
    data = make_table(sequence=sequences, label=labels, group=[s[0] for s in sequences])
    recipe = make_recipe("ncrna-family", data, data__test=data, train__epochs=8, data__columns__group="group")
    found = finetune_from_recipe(recipe, tmp_path / "run").evaluation
    assert found.count == 60
    losses = [line["loss"] for line in read_log(tmp_path / "run") if "loss" in line]
    assert np.mean(losses[-8:]) < np.mean(losses[:8])
    assert found.metrics["accuracy"].low <= found.metrics["accuracy"].value <= found.metrics["accuracy"].high
    assert sum(group.count for group in found.groups.values()) == 60
    rows = predict(sequences, tmp_path / "run" / "model")
    assert all(row["p(poor)"] + row["p(rich)"] == pytest.approx(1) for row in rows)
    right = np.mean([row["family"] == label for row, label in zip(rows, labels, strict=True)])
    assert right == pytest.approx(found.metrics["accuracy"].value)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["count"] == 60
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    for text in ("fine-tuned for ncrna-family from", "| test | 60 |", "| accuracy | ", "the whole model is trained"):
        assert text in card


def test_a_value_for_each_nucleotide(make_recipe, make_table, sequences, tmp_path):
    tracks = [";".join("1.0" if letter in "GC" else "0.0" for letter in s) for s in sequences]
    data = make_table(sequence=sequences, label=tracks)
    recipe = make_recipe("table", data, options__per="nucleotide", options__kind="regression", train__epochs=6)
    finetune_from_recipe(recipe, tmp_path / "run")
    rows = predict([sequences[0]], tmp_path / "run" / "model")
    assert [row["nucleotide"] for row in rows] == list(sequences[0])
    assert [row["label"] > 0.5 for row in rows] == [letter in "GC" for letter in sequences[0]]


def test_folds_cover_everything_once(make_recipe, make_table, sequences, tmp_path):
    data = make_table(sequence=sequences, te=[gc(s) for s in sequences])
    recipe = make_recipe("translation-efficiency", data, data__folds=3, train__max_steps=2, backbone__mode="frozen")
    found = finetune_from_recipe(recipe, tmp_path / "run").evaluation
    assert found.count == 60
    parts = [json.loads((tmp_path / "run" / f"fold-{n}" / "evaluation.json").read_text()) for n in range(3)]
    assert [part["count"] for part in parts] == [20, 20, 20]
    mean = np.mean([part["figures"]["mae"]["value"] for part in parts])
    assert found.metrics["mae"].value == pytest.approx(mean)


def test_one_fold_alone(make_recipe, make_table, sequences, tmp_path):
    data = make_table(sequence=sequences, te=[gc(s) for s in sequences])
    changes = {"data__folds": 3, "train__max_steps": 2, "backbone__mode": "frozen"}
    recipe = make_recipe("translation-efficiency", data, data__fold=1, **changes)
    found = finetune_from_recipe(recipe, tmp_path / "run").evaluation
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["fold-1"]
    said = json.loads((tmp_path / "run" / "fold-1" / "evaluation.json").read_text())
    assert (found.count, found.interval) == (20, said["interval"]) == (20, "95 % bootstrap intervals")
    # The others can follow.
    together = finetune_from_recipe(
        make_recipe("translation-efficiency", data, **changes), tmp_path / "run", resume=True
    ).evaluation
    assert together.count == 60
    assert json.loads((tmp_path / "run" / "fold-1" / "evaluation.json").read_text()) == said
    for wrong, said in (
        ({"data__folds": 3, "data__fold": 3}, "between 0 and 2"),
        ({"data__fold": 0}, "number of folds is missing"),
    ):
        with pytest.raises(InputError, match=said):
            finetune_from_recipe(make_recipe("translation-efficiency", data, **wrong), tmp_path / "no")


def test_the_crop_is_remembered(make_recipe, make_table, sequences, tmp_path):
    long = ["A" * 19 + s[:9] + "C" * 20 for s in sequences]
    data = make_table(sequence=long, label=[int(s[:9].count("G") > 2) for s in sequences])
    recipe = make_recipe("splice-site", data, data__crop=9, data__test=data, data__max_length=9, train__epochs=2)
    tested = finetune_from_recipe(recipe, tmp_path / "run").evaluation
    model = tmp_path / "run" / "model"
    assert load(model).spec.task == {"name": "splice-site", "crop": 9, "crop_at": "middle"}
    assert tested.count == 60  # the longest are those that are too long as they are seen
    assert predict(long, model) == predict([s[:9] for s in sequences], model)
    cut = make_table(
        "cut.csv", sequence=[s[:9] for s in sequences], label=[int(s[:9].count("G") > 2) for s in sequences]
    )
    assert (
        tested.metrics == evaluate(data, Engine(model, "fp32")).metrics == evaluate(cut, Engine(model, "fp32")).metrics
    )
    assert "The model uses at most 9 nucleotides of a sequence, from its middle." in (model / "README.md").read_text()
    tracks = make_table("tracks.csv", sequence=sequences, label=[";".join("1.5" for _ in s) for s in sequences])
    for task, path in (
        ("table", tracks),
        ("secondary-structure", make_table("s.csv", sequence=["GGAAAACC"], structure=["((....))"])),
    ):
        with pytest.raises(InputError, match=r"data\.crop needs a task with one prediction per sequence"):
            finetune_from_recipe(make_recipe(task, path, data__crop=9, data__validation_fraction=0), tmp_path / "no")


@pytest.mark.parametrize("task", ["splice-site", "ncrna-family", "table"])
def test_mean_pooling_is_remembered(task, make_recipe, make_table, sequences, tmp_path):
    labels = [int(gc(s) > 0.5) for s in sequences]
    data = make_table(sequence=sequences, label=labels)
    finetune_from_recipe(make_recipe(task, data, options__pooling="mean", train__max_steps=10), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    model = load(folder)
    assert (model.spec.pooling, model.spec.task["pooling"]) == ("mean", "mean")
    assert json.loads((folder / "config.json").read_text())["pooling"] == "mean"
    # The copy in memory, the folder, and a folder written again say the same, and CLS would say something else.
    again = rinalmo.save(model, tmp_path / "again")
    assert predict(sequences, model) == predict(sequences, again)
    config = json.loads((again / "config.json").read_text())
    (again / "config.json").write_text(json.dumps(config | {"pooling": "cls"}))
    assert predict(sequences, model) != predict(sequences, again)
    (again / "config.json").write_text(json.dumps(config | {"pooling": "max"}))
    with pytest.raises(CheckpointError, match="pooling is 'max'; it must be one of cls, mean"):
        load(again)
    with pytest.raises(CheckpointError, match="the authors' heads use CLS"):
        rinalmo.save(model, tmp_path / "model.pt", "official")
    if task == "table":
        hf = rinalmo.RiNALMoForSequencePrediction.from_pretrained(folder)
        tokens = rinalmo.RnaTokenizer.from_pretrained(folder)(sequences[:2], return_tensors="pt", padding=True)
        (first, second) = (row["p(label)"] for row in predict(sequences[:2], folder))
        assert hf(**tokens).logits.sigmoid().flatten().tolist() == pytest.approx([first, second], abs=1e-5)


def test_options_of_other_tasks_are_refused(make_recipe, make_table, sequences, tmp_path):
    data = make_table(sequence=sequences, mrl=[gc(s) for s in sequences])
    with pytest.raises(InputError, match=r"options\.pooling is not an option of ribosome-load; it has no options"):
        finetune_from_recipe(make_recipe("ribosome-load", data, options__pooling="mean"), tmp_path / "run")
    tracks = make_table("tracks.csv", sequence=sequences, label=[";".join("1.5" for _ in s) for s in sequences])
    with pytest.raises(InputError, match=r"options\.pooling is for one prediction per sequence"):
        finetune_from_recipe(make_recipe("table", tracks, options__pooling="mean"), tmp_path / "run")


def test_a_model_goes_on_learning_its_task(make_recipe, make_table, sequences, tmp_path):
    data = make_table(sequence=sequences, mrl=[gc(s) for s in sequences])
    finetune_from_recipe(make_recipe("ribosome-load", data), tmp_path / "first")
    notes = []
    recipe = make_recipe("ribosome-load", data, init=tmp_path / "first" / "model", train__max_steps=1)
    finetune_from_recipe(recipe, tmp_path / "second", listener=Listener(note=notes.append))
    assert any("its head is trained further" in note for note in notes)
    first, second = ({line["step"]: line for line in read_log(tmp_path / n)} for n in ("first", "second"))
    assert second[1]["validation/loss"] < first[7]["validation/loss"] * 1.5


def test_what_a_run_refuses(make_recipe, make_table, sequences, tmp_path):
    data = make_table(sequence=sequences, mrl=[gc(s) for s in sequences])
    recipe = make_recipe("ribosome-load", data, train__max_steps=1)
    finetune_from_recipe(recipe, tmp_path / "run")
    with pytest.raises(InputError, match="contains a run"):
        finetune_from_recipe(recipe, tmp_path / "run")
    other = make_recipe("ribosome-load", data, train__max_steps=1, data__sequences_per_batch=4)
    with pytest.raises(InputError, match=r"data.sequences_per_batch was 8 and is now 4"):
        finetune_from_recipe(other, tmp_path / "run", resume=True)
    data.write_text(data.read_text() + "ACGU,1\n")
    with pytest.raises(InputError, match=r"cannot be resumed: .*table\.csv differs from the file it was started with"):
        finetune_from_recipe(recipe, tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="was fine-tuned for ribosome-load, not for splice-site"):
        evaluate(data, tmp_path / "run" / "model", task="splice-site")
    with pytest.raises(InputError, match=r"gradual needs backbone\.stages"):
        finetune_from_recipe(
            make_recipe("ribosome-load", data, backbone__mode="gradual", backbone__stages="[]"), tmp_path / "third"
        )


def test_examples_in_two_sets_and_long_ones_are_told(make_recipe, make_table, sequences, tmp_path):
    data = make_table(sequence=[*sequences, "ACGU" * 50], mrl=[1.0] * 61)
    test = make_table("test.csv", sequence=sequences[:7], mrl=[1.0] * 7)
    notes = []
    recipe = make_recipe("ribosome-load", data, data__max_length=100, data__validation=test, train__max_steps=1)
    finetune_from_recipe(recipe, tmp_path / "run", listener=Listener(note=notes.append))
    assert any("skipped 1 examples longer than 100 nt" in note for note in notes)
    assert any("7 of 7 validation sequences are also in the training set" in note for note in notes)
    assert len(listed(tmp_path / "run" / "checkpoints")) >= 1


@pytest.mark.precision("bf16")
def test_engine_precisions_agree_on_predictions(make_recipe, make_table, sequences, tmp_path):
    data = make_table(sequence=sequences, mrl=[gc(s) for s in sequences])
    finetune_from_recipe(make_recipe("ribosome-load", data), tmp_path / "run")
    exact, half = (
        [row["prediction"] for row in predict(sequences, Engine(tmp_path / "run" / "model", precision))]
        for precision in ("fp32", "bf16")
    )
    np.testing.assert_allclose(exact, half, atol=0.05)
