"""Linear models on fixed features: against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, Ridge, RidgeCV
from sklearn.model_selection import PredefinedSplit
from sklearn.preprocessing import StandardScaler

from rinalmo.rna.alphabet import Alphabet
from rinalmo.tasks import linear
from rinalmo.tasks.linear import fit_linear, kmer_frequencies


@pytest.mark.parametrize(("rows", "columns"), [(100, 30), (60, 200)])
def test_fits_are_scikit_learns(rows, columns, monkeypatch):
    monkeypatch.setattr(linear, "_PENALTIES", [0.1])
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

    penalties = rows * np.array(linear._PENALTIES)
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
