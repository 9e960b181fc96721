"""LoRA adapters: those of our runs in PEFT and transformers, theirs in our commands, several over one backbone."""

import csv
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

import rinalmo
from rinalmo.cli.inference import evaluate_command, predict_command
from rinalmo.engine.engine import Engine, as_engine
from rinalmo.errors import CheckpointError, InputError
from rinalmo.inference.predict import predict
from rinalmo.tasks.evaluate import evaluate
from rinalmo.training.finetune import finetune
from rinalmo.weights.checkpoint import convert, load

from .conftest import gc

peft = pytest.importorskip("peft")

SHORT = [
    "train.epochs=1",
    "optimizer.lr=3e-3",
    "train.precision=fp32",
    "logging.plots=false",
    "logging.peak_flops=1e12",
]


@pytest.fixture(scope="module")
def runs(backbone, sequences, tmp_path_factory):
    """A folder with two LoRA runs on the tiny backbone: `amount` (regression) and `kind` (classes, mean pooling)."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"sequence": s, "y": 70 + 30 * gc(s), "z": "rich" if gc(s) > 0.5 else "poor"} for s in sequences]
    lora = ["backbone.mode=lora", "backbone.rank=2", "backbone.alpha=6", "backbone.dropout=0.1"]
    finetune("table", rows, folder / "amount", model=backbone, target="y", overrides=[*SHORT, *lora])
    only = ["backbone.target_modules=[qkv, down]", "options.pooling=mean"]
    finetune("table", rows, folder / "kind", model=backbone, target="z", overrides=[*SHORT, *lora, *only])
    return folder


def logits_of(model, sequences):
    batch = rinalmo.RnaTokenizer()(sequences, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**batch).logits


def test_an_adapter_is_the_merged_model_in_a_small_folder(runs, backbone, sequences):
    adapter = runs / "kind" / "adapter"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (2, 6, 0.1)
    assert (settings["target_modules"], settings["task_type"]) == (["down", "qkv"], "SEQ_CLS")
    tensors = {name.split(".lora_")[0].split(".")[-1] for name in peft_tensors(adapter) if "lora_" in name}
    assert tensors == {"qkv", "down"}
    for run in ("amount", "kind"):
        merged, again = load(runs / run / "model"), load(backbone, adapter=runs / run / "adapter")
        named = load(runs / run / "adapter")  # it names its base
        assert again.spec == merged.spec
        for name, tensor in merged.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
            assert torch.equal(named.state_dict()[name], tensor), name
    before = load(backbone).state_dict()["encoder.blocks.0.attention.qkv.weight"]
    assert not torch.equal(before, load(adapter).state_dict()["encoder.blocks.0.attention.qkv.weight"])


def peft_tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_peft_and_transformers_load_our_adapters(runs, backbone, sequences):
    expected = {"amount": [row["y"] for row in predict(sequences, runs / "amount" / "model")]}
    expected["kind"] = [row["p(rich)"] for row in predict(sequences, runs / "kind" / "model")]
    for run, count in (("amount", 1), ("kind", 2)):
        options = {"num_labels": count, "pooling": "mean" if run == "kind" else "cls"}
        loaded = [
            peft.AutoPeftModelForSequenceClassification.from_pretrained(str(runs / run / "adapter"), **options),
            AutoModelForSequenceClassification.from_pretrained(runs / run / "adapter"),
            rinalmo.RiNALMoForSequencePrediction.from_pretrained(runs / run / "adapter"),
            AutoModelForSequenceClassification.from_pretrained(runs / run / "model"),
        ]
        for model in loaded:
            logits = logits_of(model, sequences)
            found = logits[:, 0] if run == "amount" else logits.softmax(dim=1)[:, 1]
            np.testing.assert_allclose(found, expected[run], atol=1e-4)
        if run == "kind":
            assert loaded[1].config.id2label == loaded[3].config.id2label == {0: "poor", 1: "rich"}


def test_adapters_that_peft_trained_are_read(backbone, sequences, tmp_path):
    torch.manual_seed(0)
    for auto, task_type, config in (
        (AutoModelForSequenceClassification, "SEQ_CLS", {"target_modules": "all-linear", "use_rslora": True}),
        (
            AutoModelForTokenClassification,
            "TOKEN_CLS",
            {"target_modules": ["qkv"], "alpha_pattern": {"1.attention.qkv": 3}},
        ),
    ):
        base = auto.from_pretrained(backbone, num_labels=3)
        options = {"r": 2, "init_lora_weights": False, "task_type": task_type, **config}
        tuned = peft.get_peft_model(base, peft.LoraConfig(**options))
        tuned.save_pretrained(tmp_path / task_type)
        probabilities = logits_of(tuned, sequences).softmax(dim=-1)
        with pytest.raises(CheckpointError, match="no problem_type; give the kind of its labels: --task regression"):
            predict(sequences, tmp_path / task_type)
        rows = predict(sequences, tmp_path / task_type, task="multiclass")
        if task_type == "TOKEN_CLS":
            probabilities = torch.cat([p[1 : len(s) + 1] for p, s in zip(probabilities, sequences, strict=True)])
        found = [[row[f"p({index})"] for index in range(3)] for row in rows]
        np.testing.assert_allclose(found, probabilities, atol=1e-4)
    convert(tmp_path / "SEQ_CLS", tmp_path / "merged")
    assert predict(sequences[0], tmp_path / "merged", task="multiclass") == predict(
        sequences[0], tmp_path / "SEQ_CLS", task="multiclass"
    )


def test_several_adapters_in_one_process(runs, backbone, sequences, tmp_path, capsys):
    table = tmp_path / "new.csv"
    table.write_text(
        "sequence,y,z\n" + "".join(f"{s},{gc(s)},{'rich' if gc(s) > 0.5 else 'poor'}\n" for s in sequences)
    )
    both = ["--adapter", str(runs / "amount" / "adapter"), "--adapter", f"sort={runs / 'kind' / 'adapter'}"]
    plain = ["--precision", "fp32", "--device", "cpu"]
    predict_command.main(
        [str(backbone), str(table), *both, "-o", str(tmp_path / "{adapter}.csv"), *plain],
        standalone_mode=False,
    )
    for name, run in (("amount", "amount"), ("sort", "kind")):
        with (tmp_path / f"{name}.csv").open() as file:
            found = list(csv.DictReader(file))
        expected = predict(sequences, runs / run / "model")
        column = "y" if run == "amount" else "p(rich)"
        np.testing.assert_allclose([float(row[column]) for row in found], [row[column] for row in expected], rtol=1e-4)
    evaluate_command.main(
        ["table", str(table), "--adapter", str(runs / "kind" / "adapter"), *plain], standalone_mode=False
    )
    assert "new.csv, kind: 60 examples" in capsys.readouterr().out
    for words, arguments in (
        ("with several adapters, put", both),
        ("another adapter is also called amount", [*both[:2], *both[:2]]),
    ):
        with pytest.raises(InputError, match=words):
            predict_command.main([str(backbone), str(table), *arguments, *plain], standalone_mode=False)


@pytest.mark.parametrize("plain", [False, True])
def test_engines_with_adapters_share_the_weights(runs, backbone, sequences, plain, tmp_path, monkeypatch):
    if plain:
        monkeypatch.setenv("RINALMO_CPU", "plain")
    base = Engine(backbone, "fp32", device="cpu")
    before = rinalmo.embed(sequences, base)
    norms = {"r": 2, "init_lora_weights": False, "target_modules": ["qkv"], "modules_to_save": ["ffn_norm"]}
    whole = peft.get_peft_model(rinalmo.RiNALMoForMaskedLM.from_pretrained(backbone), peft.LoraConfig(**norms))
    whole.base_model.model.encoder.blocks[0].ffn_norm.modules_to_save.default.weight.data.mul_(1.5)
    whole.save_pretrained(tmp_path / "whole")
    embedding = base.head_model.encoder.embedding.weight
    for folder in (runs / "amount" / "adapter", runs / "kind" / "adapter", tmp_path / "whole"):
        engine, merged = base.with_adapter(folder), load(backbone, adapter=folder)
        shared = engine.head_model.encoder.embedding.weight
        assert (shared.data_ptr() == embedding.data_ptr()) == (folder.name != "whole")
        np.testing.assert_allclose(rinalmo.embed(sequences, engine), rinalmo.embed(sequences, merged), atol=1e-4)
        assert engine.spec == merged.spec
        assert engine.fingerprint == Engine(backbone, "fp32", adapter=folder, device="cpu").fingerprint
        for found, expected in zip(engine.model.parameters(), merged.parameters(), strict=True):
            assert torch.equal(found, expected)
        again = pickle.loads(pickle.dumps(engine))
        assert np.array_equal(rinalmo.embed(sequences[0], again), rinalmo.embed(sequences[0], engine))
        with pytest.raises(InputError, match=r"this engine has the adapter .*; add .* to one without"):
            engine.with_adapter(folder)
    assert np.array_equal(rinalmo.embed(sequences, base), before)
    cached = [as_engine(backbone, adapter=runs / run / "adapter") for run in ("amount", "kind")]
    assert len({engine.head_model.encoder.embedding.weight.data_ptr() for engine in cached}) == 1


def test_a_folder_that_is_no_adapter(runs, backbone, sequences, tmp_path):
    for folder, words in (
        (tmp_path / "gone", "gone: no such folder; an adapter is the folder that"),
        (tmp_path, r": is not an adapter \(no adapter_config.json\); give the folder that"),
        (backbone, "is a model, not an adapter .*; give it as the model, without --adapter"),
        (runs / "amount", "amount: is not an adapter, but contains one: .*amount/adapter"),
    ):
        with pytest.raises(CheckpointError, match=words):
            predict_command.main([str(backbone), "ACGU", "--adapter", str(folder)], standalone_mode=False)


def test_wrong_adapters_are_refused(runs, sequences, tmp_path):
    with pytest.raises(CheckpointError, match=r"does not fit this model; tensors of another shape: encoder.blocks.0"):
        load("nano", adapter=runs / "amount" / "adapter")
    with pytest.raises(InputError, match="an adapter cannot be added to a loaded model"):
        Engine(load("nano"), adapter=runs / "amount" / "adapter")
    for number, (changes, words) in enumerate(
        (
            ({"peft_type": "IA3"}, "only LoRA can be merged"),
            ({"use_dora": True}, "use_dora is not plain LoRA"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights pissa is not plain"),
        )
    ):
        copy = tmp_path / str(number)
        copy.mkdir()
        for path in (runs / "amount" / "adapter").iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        settings = json.loads((copy / "adapter_config.json").read_text())
        (copy / "adapter_config.json").write_text(json.dumps(settings | changes))
        with pytest.raises(CheckpointError, match=words):
            load(copy)
    faults = tmp_path / "faults"
    faults.mkdir()
    file, config = faults / "adapter_model.safetensors", faults / "adapter_config.json"
    good, settings = peft_tensors(runs / "amount" / "adapter"), (runs / "amount" / "adapter" / config.name).read_text()
    name = next(iter(good))
    for content, text, words in (
        (b"version https://git-lfs.github.com/spec/v1\n", settings, "adapter_model.safetensors: is a git-lfs pointer"),
        (b"<!DOCTYPE html>", settings, "adapter_model.safetensors: is a web page"),
        (good | {name: torch.full_like(good[name], torch.nan)}, settings, "contains NaN or infinite values"),
        (good, "[]", "adapter_config.json: contains a list, not an object"),
        (good, settings.replace('"lora_alpha": 6', '"lora_alpha": "6"'), "alpha '6' and rank 2 of"),
        (good, json.dumps(json.loads(settings) | {"alpha_pattern": {"(": 1}}), "is no mapping of regular expressions"),
    ):
        file.write_bytes(content if isinstance(content, bytes) else save(content))
        config.write_text(text)
        for base in ("nano", None):
            with pytest.raises(CheckpointError, match=words):
                load(faults) if base is None else Engine(base, "fp32", adapter=faults)
        if "alpha" not in words and "NaN" not in words and "regular" not in words:
            with pytest.raises(CheckpointError, match=words):
                rinalmo.RiNALMoModel.from_pretrained(faults)
    config.write_text(settings)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: no such file"):
        load(faults)
    with pytest.raises(CheckpointError, match=r"faults/adapter_model.safetensors: no such file"):
        rinalmo.RiNALMoModel.from_pretrained(faults)
    torch.save(good, faults / "adapter_model.bin")  # as PEFT wrote it before
    old, new = load(faults), load(runs / "amount" / "adapter")
    weight = "encoder.blocks.0.attention.qkv.weight"
    assert torch.equal(old.get_parameter(weight), new.get_parameter(weight))

    moved = tmp_path / "0"
    (moved / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/gone"}')
    (moved / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match="its base model '/gone' was not found; give its base as the model and this"
    ):
        load(moved)
    (moved / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: damaged"):
        load(moved)


def test_an_adapter_without_a_head_has_a_fingerprint_of_its_own(backbone, tmp_path):
    """Or an interrupted `embed` would go on with another adapter's states."""
    torch.manual_seed(0)
    base = rinalmo.RiNALMoForMaskedLM.from_pretrained(backbone)
    tuned = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    plain, adapted = Engine(backbone, "fp32", device="cpu"), Engine(tmp_path / "adapter", "fp32", device="cpu")
    assert plain.fingerprint != adapted.fingerprint
    assert adapted.model.adapter_sha256
    assert np.abs(rinalmo.embed("GGGAAAUCCC", adapted) - rinalmo.embed("GGGAAAUCCC", plain)).max() > 1e-3


def test_a_trainers_model_predicts_and_ours_trains_in_a_trainer(backbone, sequences, tmp_path):
    from transformers import Trainer, TrainingArguments

    tokenizer = rinalmo.RnaTokenizer()
    arguments = {"report_to": "none", "max_steps": 1, "use_cpu": True, "save_strategy": "no", "logging_strategy": "no"}
    settings = TrainingArguments(tmp_path / "run", **arguments)
    classes = [int(gc(s) > 0.5) for s in sequences]
    examples = [{**tokenizer(s), "labels": label} for s, label in zip(sequences, classes, strict=True)]
    names = {0: "poor", 1: "rich"}
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2, id2label=names)
    trainer = Trainer(model, settings, train_dataset=examples, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    probabilities = logits_of(trainer.model, sequences).softmax(dim=1)
    found = predict(sequences, tmp_path / "saved")
    np.testing.assert_allclose([row["p(rich)"] for row in found], probabilities[:, 1], atol=1e-5)
    rows = [{"sequence": s, "sort": names[label]} for s, label in zip(sequences, classes, strict=True)]
    columns = rinalmo.tasks.base.Columns(target=["sort"])
    accuracy = evaluate(rows, tmp_path / "saved", columns=columns).metrics["accuracy"].value
    assert accuracy == pytest.approx(float((probabilities.argmax(dim=1) == torch.tensor(classes)).float().mean()))
    with pytest.raises(InputError, match="fine-tuned for multiclass, not for regression"):
        predict(sequences, tmp_path / "saved", task="regression")

    # A model of ours, then a Trainer with labels in the units of the column, then a run of ours again.
    rows = [{"sequence": s, "y": 70 + 30 * gc(s)} for s in sequences]
    frozen = ["backbone.mode=frozen", *SHORT]
    finetune("table", rows, tmp_path / "ours", model=backbone, target="y", overrides=frozen)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours" / "model")
    np.testing.assert_allclose(
        logits_of(model, sequences)[:, 0],
        [row["y"] for row in predict(sequences, tmp_path / "ours" / "model")],
        rtol=1e-5,
    )
    examples = [{**tokenizer(row["sequence"]), "labels": row["y"]} for row in rows]
    trainer = Trainer(model, settings, train_dataset=examples, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(tmp_path / "further")
    assert evaluate(rows, tmp_path / "further").metrics["rmse"].value < 30
    np.testing.assert_allclose(
        logits_of(trainer.model, sequences)[:, 0],
        [row["y"] for row in predict(sequences, tmp_path / "further")],
        rtol=1e-5,
    )
    notes = []
    from rinalmo.training.trainer import Listener

    still = [*frozen, "optimizer.lr=1e-9"]  # changes nothing
    listener = Listener(note=notes.append)
    finetune(
        "table", rows, tmp_path / "again", model=tmp_path / "further", target="y", overrides=still, listener=listener
    )
    assert any("its head is trained further" in note for note in notes)
    before, after = (predict(sequences, tmp_path / name) for name in ("further", "again/model"))
    np.testing.assert_allclose([row["y"] for row in after], [row["y"] for row in before], rtol=1e-4)

    # A new head for other labels: the task of the first run holds no more.
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours" / "model", num_labels=2, problem_type="multiclass", ignore_mismatched_sizes=True
    )
    model.save_pretrained(tmp_path / "other")
    assert {"label", "p(0)", "p(1)"} <= predict(sequences[0], tmp_path / "other")[0].keys()
