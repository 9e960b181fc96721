"""Linear models on fixed features: against scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, Ridge, RidgeCV
from sklearn.model_selection import PredefinedSplit
from sklearn.preprocessing import StandardScaler

import rinalmo
from rinalmo.model.packing import pack
from rinalmo.rna.alphabet import Alphabet, kmer_frequencies
from rinalmo.tasks.table import Table
from rinalmo.training import linear_models
from rinalmo.training.linear_models import fit_linear
from rinalmo.training.trainer import Listener


@pytest.mark.parametrize(("rows", "columns"), [(100, 30), (60, 200)])
def test_fits_are_scikit_learns(rows, columns, monkeypatch):
    monkeypatch.setattr(linear_models, "_PENALTIES", [0.1])
    draw = np.random.default_rng(0)
    x = (draw.normal(size=(rows, columns)) * draw.uniform(0.1, 5, columns) + 3).astype(np.float32)
    y = (x - x.mean(axis=0)) @ draw.normal(size=(columns, 3))
    standardized, classes = StandardScaler().fit_transform(x), y.argmax(axis=1)

    def outputs(targets, kind, count):
        fitted = fit_linear(torch.from_numpy(x), targets, kind, count)
        return torch.from_numpy(x) @ fitted.weight.T + fitted.bias

    gap = y[:, 0]  # standardized too, which only scales the penalized weights
    expected = Ridge(alpha=0.1 * rows).fit(standardized, gap).predict(standardized)
    np.testing.assert_allclose(outputs(y[:, :1], "regression", 1)[:, 0], expected, atol=1e-4 * np.abs(y).max())
    several = LogisticRegression(C=1 / (0.1 * rows), max_iter=2000, tol=1e-8).fit(standardized, classes)
    found = outputs(classes, "multiclass", 3).softmax(dim=1)
    np.testing.assert_allclose(found, several.predict_proba(standardized), atol=5e-4)
    two = LogisticRegression(C=1 / (0.1 * rows), max_iter=2000, tol=1e-8).fit(standardized, y[:, 1] > 0)
    found = outputs((y[:, 1:2] > 0).astype(int), "binary", 1).sigmoid()
    np.testing.assert_allclose(found[:, 0], two.predict_proba(standardized)[:, 1], atol=5e-4)


@pytest.mark.parametrize(("rows", "columns"), [(100, 30), (60, 200)])
def test_penalties_are_scikit_learns(rows, columns):
    draw = np.random.default_rng(0)
    x = StandardScaler().fit_transform(draw.normal(size=(rows, columns))).astype(np.float32)
    noisy = x @ draw.normal(size=columns) + 10 * draw.normal(size=rows)
    gap = (noisy - noisy.mean()) / noisy.std()

    def outputs(targets, kind, count):
        fitted = fit_linear(torch.from_numpy(x), targets, kind, count)
        return (torch.from_numpy(x) @ fitted.weight.T + fitted.bias).numpy()

    penalties = rows * np.array(linear_models._PENALTIES)
    expected = RidgeCV(penalties).fit(x, gap).predict(x)  # leave-one-out
    np.testing.assert_allclose(outputs(gap[:, None], "regression", 1)[:, 0], expected, atol=1e-4)
    order, folds = np.random.default_rng(0).permutation(rows), np.zeros(rows, int)
    for number in range(5):
        folds[order[number::5]] = number
    classes = np.digitize(gap, [-0.5, 0.5])
    # scikit-learn's penalty is of the sum, over four fifths of the examples in the search.
    search = LogisticRegressionCV(
        Cs=5 / 4 / penalties,
        cv=PredefinedSplit(folds),
        scoring="neg_log_loss",
        max_iter=1000,
        l1_ratios=(0,),
        use_legacy_attributes=False,
    )
    chosen = 5 / 4 / search.fit(x, classes).C_
    expected = LogisticRegression(C=1 / chosen, max_iter=5000, tol=1e-8).fit(x, classes).predict_proba(x)
    found = torch.from_numpy(outputs(classes, "multiclass", 3)).softmax(dim=1)
    np.testing.assert_allclose(found, expected, atol=5e-4)


def test_penalty_follows_the_noise():
    draw = np.random.default_rng(1)
    x = torch.from_numpy(draw.normal(size=(200, 20)).astype(np.float32))
    signal = x.numpy() @ draw.normal(size=20)
    sizes = []
    for noise in (0.01, 30.0):
        targets = (signal + noise * draw.normal(size=200))[:, None]
        fitted = fit_linear(x, targets, "regression", 1)
        sizes.append(float(fitted.weight.norm() / np.linalg.norm(np.linalg.lstsq(x.numpy(), targets, rcond=None)[0])))
    assert sizes[0] > 0.95 > 0.6 > sizes[1]


def test_kmers_by_hand():
    alphabet = Alphabet()
    ids = alphabet.encode("AACNG", strict=True)
    found = kmer_frequencies(ids, alphabet, 2)
    expected = np.zeros(20)
    expected[[0, 1, 2]] = 2 / 4, 1 / 4, 1 / 4  # N is no word, and neither are CLS and EOS
    expected[4 + 0] = expected[4 + 1] = 1 / 2  # AA, AC
    np.testing.assert_allclose(found, expected)
    assert not kmer_frequencies(alphabet.encode("NN", strict=True), alphabet, 4).any()


def test_the_better_scale_is_chosen():
    draw = np.random.default_rng(2)
    x = torch.from_numpy(draw.normal(size=(120, 210)).astype(np.float32))
    targets = (x[:, -10:].numpy() @ draw.normal(size=10))[:, None]  # of the last ten alone
    last = torch.cat([torch.full((200,), 0.01), torch.ones(10)])
    first = torch.cat([torch.ones(200), torch.full((10,), 0.01)])
    chosen = fit_linear(x, targets, "regression", 1, scale=torch.stack([first, last]))
    torch.testing.assert_close(chosen, fit_linear(x, targets, "regression", 1, scale=last))
    scaled = fit_linear(x * last, targets, "regression", 1)  # standardizing undoes it
    torch.testing.assert_close(scaled.weight * last, fit_linear(x, targets, "regression", 1).weight)
    assert float(chosen.weight[0, :200].norm() / chosen.weight.norm()) < 0.01


@pytest.mark.parametrize("kind", ["regression", "multiclass"])
def test_the_search_in_a_part_of_the_examples_suffices(kind, monkeypatch):
    draw = np.random.default_rng(3)
    x = draw.normal(size=(400, 20)).astype(np.float32)
    y = x @ draw.normal(size=20) + draw.normal(size=400)
    targets = y[:, None] if kind == "regression" else np.digitize(y, [-2, 2])
    count = 1 if kind == "regression" else 3
    whole = fit_linear(torch.from_numpy(x), targets, kind, count)
    monkeypatch.setattr(linear_models, "_MAX_EXAMPLES", 100)
    part = fit_linear(torch.from_numpy(x), targets, kind, count)
    outputs = [torch.from_numpy(x) @ fitted.weight.T + fitted.bias for fitted in (whole, part)]
    assert np.corrcoef(outputs[0].flatten(), outputs[1].flatten())[0, 1] > 0.98


def test_features_that_do_not_vary():
    fitted = fit_linear(torch.ones(20, 5), np.arange(20.0)[:, None], "regression", 1)
    assert float(fitted.bias) == pytest.approx(9.5)
    assert not fitted.weight.any()


def test_features_are_means_cls_maxima_and_kmers():
    model, sequence = rinalmo.load("nano"), "GGGAAACCCUUU"
    features = {"layers": [2, 6], "pools": ["mean", "cls", "max"], "kmers": 1}
    task = Table("regression", "sequence", ["y"], features=features)
    ids, layout = pack([torch.from_numpy(model.alphabet.encode(sequence))])
    both = torch.from_numpy(rinalmo.embed([sequence], "nano", pooling="none", layers=(2, 6))[0].reshape(12, 640))
    found = task.linear_features(model, ids, torch.cat([torch.zeros(1, 640), both, torch.ones(1, 640)]), layout)
    expected = torch.cat([both.mean(dim=0), torch.zeros(640), both.amax(dim=0), torch.full((4,), 0.25)])
    torch.testing.assert_close(found[0], expected)
    assert task.heads() == {"linear_head": {"num_labels": 1, "layers": 6, "others": 4}}
    old = Table("regression", "sequence", ["y"], features={"layers": [2, 6], "kmers": 1})
    assert old.heads() == {"linear_head": {"num_labels": 1, "layers": 2, "others": 4}}
    found = old.linear_features(model, ids, torch.ones(14, 640), layout)
    torch.testing.assert_close(found[0, :640], torch.ones(640))


def table(count, draw):
    """Sequences whose number is the share of GC in them, and whose class is what they begin with."""
    for _ in range(count):
        start, share = draw.choice(["GGGG", "UUUU"]), draw.uniform(0.2, 0.8)
        sequence = "".join(draw.choice(list("ACGU"), 36, p=[(1 - share) / 2, share / 2, share / 2, (1 - share) / 2]))
        sequence = start + sequence
        yield {"sequence": sequence, "gc": sum(map(sequence.count, "GC")) / 40, "start": start}


@pytest.mark.parametrize(("target", "metric"), [("gc", "r2"), ("start", "accuracy")])
def test_a_run(target, metric, tmp_path, monkeypatch):
    draw = np.random.default_rng(4)
    train, test = list(table(120, draw)), list(table(40, draw))
    options = ["backbone.mode=linear", "train.precision=fp32", "logging.plots=false"]
    evaluation = rinalmo.finetune("table", train, tmp_path / "run", test=test, target=target, overrides=options)
    assert evaluation.metrics[metric].value > 0.95
    assert set(evaluation.baselines) == {"mean" if target == "gc" else "majority", "k-mers"}
    again = rinalmo.evaluate(test, tmp_path / "run" / "model")
    assert again.metrics[metric].value == pytest.approx(evaluation.metrics[metric].value, abs=1e-3)
    rows = rinalmo.predict([row["sequence"] for row in test], tmp_path / "run" / "model")
    score = sklearn.metrics.r2_score if target == "gc" else sklearn.metrics.accuracy_score
    expected = score([row[target] for row in test], [row[target] for row in rows])
    assert again.metrics[metric].value == pytest.approx(expected, abs=1e-3)
    monkeypatch.setattr(linear_models, "_MAX_VALUES", 60 * (9 * 320 + 340))
    notes: list[str] = []
    listener = Listener(note=notes.append)
    rinalmo.finetune("table", train, tmp_path / "part", target=target, overrides=options, listener=listener)
    assert "the linear head is fitted to 60 of 108 training examples, as many as memory allows" in notes
