"""Attributions add up to the prediction, and contacts are the formula's."""

import csv

import numpy as np
import pytest
import torch

import rinalmo
from rinalmo.errors import CheckpointError, InputError
from rinalmo.inference.explain import explain, explain_file
from rinalmo.model.config import ModelConfig
from rinalmo.model.packing import pack
from rinalmo.model.rinalmo import ModelSpec, create

SEQUENCES = ["GGGCAAAAGCCCAUNG", "ACGUACG"]


def fine_tuned(task, labels=1, **heads):
    heads = heads or {"pooler": {}, "sequence_head": {"num_labels": labels}}
    spec = ModelSpec(ModelConfig(40, 2, 20, initializer_range=0.2), heads=heads, task=task)
    return create(spec, seed=3).eval()


def table(kind, *targets, **settings):
    return {"name": "table", "kind": kind, "per": "sequence", "targets": list(targets), **settings}


MODELS = {
    "regression": lambda: fine_tuned(table("regression", "a", mean=[5.0], std=[2.0])),
    "binary": lambda: fine_tuned(table("binary", "a")),
    "multiclass": lambda: fine_tuned(table("multiclass", "a", classes=["x", "y", "z"]), 3),
    "ribosome-load": lambda: fine_tuned({"name": "ribosome-load", "filled_to": 30}, ribosome_load_head={}),
    "linear": lambda: fine_tuned(
        table("multiclass", "a", classes=["x", "y", "z"], features={"layers": [1, 2], "kmers": 3}),
        linear_head={"num_labels": 3, "layers": 2, "others": 84},
    ),
    "splice-site": lambda: fine_tuned({"name": "splice-site"}, splice_site_head={}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_attributions_add_up_to_the_prediction(kind):
    model = MODELS[kind]()
    predicted = rinalmo.predict(SEQUENCES, model)
    for explanation, row in zip(explain(SEQUENCES, model, steps=100), predicted, strict=True):
        assert explanation.attributions.shape == (len(explanation.record.sequence),)
        difference = explanation.prediction - explanation.baseline
        assert abs(difference) > 1e-3
        assert explanation.attributions.sum() == pytest.approx(difference, rel=1e-4, abs=5e-4)
        value = explanation.prediction
        if kind in ("multiclass", "linear"):
            assert explanation.output == row["a"]
        else:
            logistic = 1 / (1 + np.exp(-value))
            names = {"regression": "a", "binary": "p(a)", "ribosome-load": "prediction", "splice-site": "probability"}
            clamped = max(value, 0.0) if kind == "ribosome-load" else value
            expected = logistic if kind in ("binary", "splice-site") else clamped
            assert row[names[kind]] == pytest.approx(expected, abs=1e-4)


def test_attributions_are_the_integral_in_small_equal_steps():
    model = MODELS["regression"]()
    (explanation,) = explain("GGGCAAAAGC", model, steps=64)
    ids = torch.from_numpy(model.alphabet.encode("GGGCAAAAGC"))
    weight = model.encoder.embedding.weight.detach()
    end, start = weight[ids], weight[ids].clone()
    start[1:-1] = weight[[model.alphabet.encode(letter)[1] for letter in "ACGU"]].mean(dim=0)
    total, steps = torch.zeros(len(ids), dtype=torch.float64), 400
    for n in range(steps):
        place = (start + (n + 0.5) / steps * (end - start)).requires_grad_()
        packed, layout = pack([ids])
        states = model.encoder(packed, layout, inputs_embeds=lambda place=place: place).last_hidden_state
        value = model.head("sequence_head")(model.head("pooler")(states, layout))[0, 0]
        (gradient,) = torch.autograd.grad(value, place)
        total += ((gradient * (end - start)).sum(dim=1) / steps).double()
    np.testing.assert_allclose(explanation.attributions, 2.0 * total[1:-1].numpy(), rtol=0.01, atol=1e-4)


def test_contacts_are_corrected_means_of_all_maps():
    model = MODELS["binary"]()
    (explanation,) = explain(SEQUENCES[0], model)
    ids = torch.from_numpy(model.alphabet.encode(SEQUENCES[0]))
    with torch.no_grad():
        layers = model.encoder(*pack([ids]), output_attentions=True).attentions
    expected = []
    for (maps,) in layers:
        for each in maps[:, 1:-1, 1:-1].double().numpy():
            symmetric = each + each.T
            expected.append(symmetric - np.outer(symmetric.sum(0), symmetric.sum(1)) / symmetric.sum())
    np.testing.assert_allclose(explanation.contacts, np.mean(expected, axis=0), atol=1e-6)
    rows = list(explanation.rows())
    places = np.arange(len(rows))
    far = np.where(abs(places[:, None] - places) >= 4, explanation.contacts, -np.inf)
    assert [row["contact"] for row in rows] == (far.argmax(axis=1) + 1).tolist()
    assert rows[0]["contact_score"] == pytest.approx(far[0].max())


def test_a_chosen_class_and_column():
    model = MODELS["multiclass"]()
    shares = [next(explain(SEQUENCES[0], model, output=name)).prediction for name in "xyz"]
    assert next(explain(SEQUENCES[0], model)).prediction == max(shares)
    two = fine_tuned(table("regression", "a", "b", mean=[0.0, 1.0], std=[1.0, 2.0]), 2)
    with pytest.raises(InputError, match="predicts a, b; choose one with --output-name"):
        next(explain(SEQUENCES[0], two))
    with pytest.raises(InputError, match="no output 'c'; it has a, b"):
        next(explain(SEQUENCES[0], two, output="c"))
    expected = rinalmo.predict(SEQUENCES[0], two)[0]["b"]
    assert next(explain(SEQUENCES[0], two, output="b")).prediction == pytest.approx(expected, abs=1e-4)


def test_a_sequence_is_cropped_as_in_training():
    task = table("binary", "a") | {"crop": 6, "crop_at": "middle"}
    (explanation,) = explain("AAAAAGGGCCCAAAAA", fine_tuned(task))
    assert explanation.record.sequence == "GGGCCC"
    assert [row["position"] for row in explanation.rows()] == [6, 7, 8, 9, 10, 11]


def test_models_without_attributions(nano, tmp_path):
    (explanation,) = explain("GGGCAAAAGCCC", "nano-fold")
    assert set(next(explanation.rows())) == {"id", "position", "nucleotide", "contact", "contact_score"}
    assert [row["contact"] for row in next(explain("GGGC", "nano-fold")).rows()] == [None] * 4
    with pytest.raises(CheckpointError, match="not fine-tuned"):
        next(explain("GGGC", nano))
    nucleotides = {**table("binary", "a"), "per": "nucleotide"}
    with pytest.raises(InputError, match="only predictions per sequence"):
        next(explain("GGGC", fine_tuned(nucleotides, token_head={"num_labels": 1})))
    (tmp_path / "x.fa").write_text(">x\nGGGCAAAAGCCC\n")
    with pytest.raises(InputError, match="no attributions to draw"):
        explain_file(tmp_path / "x.fa", tmp_path / "x.csv", "nano-fold", plot=tmp_path / "x.svg")
    assert not (tmp_path / "x.csv").exists()


def test_the_command_writes_a_table_and_a_figure(tmp_path, capfd, monkeypatch):
    from rinalmo.cli import main

    model = rinalmo.save(MODELS["binary"](), tmp_path / "model")
    (tmp_path / "x.fa").write_text(f">x\n{SEQUENCES[0]}\n")
    arguments = [
        "explain",
        model,
        tmp_path / "x.fa",
        "-o",
        tmp_path / "x.csv",
        "--plot",
        tmp_path / "x.svg",
        "--threads",
        1,
    ]
    monkeypatch.setattr("sys.argv", ["rinalmo", *map(str, arguments)])
    main()
    err = capfd.readouterr().err
    assert err.splitlines()[-2:] == [f"{tmp_path / 'x.csv'}: 1 sequence", f"{tmp_path / 'x.svg'}: drawn"]
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    (explanation,) = explain(SEQUENCES[0], model)
    np.testing.assert_allclose([float(row["attribution"]) for row in rows], explanation.attributions, rtol=1e-4)
    assert {row["output"] for row in rows} == {"a"}
    assert "attribution" in (tmp_path / "x.svg").read_text()
