"""Scores of numbers and classes beside scipy and scikit-learn, and their edge cases."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

import rinalmo.metrics as metrics
from rinalmo.errors import InputError

# scikit-learn warns of the edge cases that are asked for here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sklearn")

numbers = st.integers(-5, 5) | st.floats(-1e3, 1e3, width=32)


@st.composite
def two_lists(draw, elements, least=2):
    size = draw(st.integers(least, 30))
    return [draw(st.lists(elements, min_size=size, max_size=size)) for _ in range(2)]


@settings(max_examples=80, deadline=None)
@given(two_lists(numbers))
def test_regression(given_lists):
    target, predicted = given_lists
    scores = metrics.regression_scores(target, predicted)
    assert scores.mse == pytest.approx(oracle.mean_squared_error(target, predicted))
    assert scores.mae == pytest.approx(oracle.mean_absolute_error(target, predicted))
    if np.ptp(target) > 1e-3:
        assert scores.r2 == pytest.approx(oracle.r2_score(target, predicted), rel=1e-6)
    if np.ptp(target) and np.ptp(predicted):
        expected = scipy.stats.spearmanr(target, predicted).statistic
        assert scores.spearman == pytest.approx(expected, abs=1e-9)


def test_spearman_with_ties_by_hand():
    """Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)."""
    assert metrics.regression_scores([1, 5, 5, 9], [1, 2, 3, 4]).spearman == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert metrics.regression_scores([1, 2, 3], [10, 100, 1000]).spearman == 1.0
    assert metrics.regression_scores([1, 2, 3], [3, 2, 1]).spearman == -1.0


def test_targets_that_do_not_vary():
    assert metrics.regression_scores([2, 2], [2, 2]).r2 == 1.0
    assert metrics.regression_scores([2, 2], [2, 3]).r2 == 0.0
    assert metrics.regression_scores([2], [2]).r2 == 1.0
    assert np.isnan(metrics.regression_scores([2, 2], [1, 3]).spearman)
    assert np.isnan(metrics.regression_scores([1, 3], [2, 2]).spearman)


@settings(max_examples=80, deadline=None)
@given(two_lists(st.integers(0, 4), least=1))
def test_classes(given_lists):
    target, predicted = given_lists
    scores = metrics.class_scores(target, predicted)
    assert scores.accuracy == pytest.approx(oracle.accuracy_score(target, predicted))
    for average, value in (("macro", scores.macro_f1), ("weighted", scores.weighted_f1)):
        assert value == pytest.approx(oracle.f1_score(target, predicted, average=average, zero_division=0))


@settings(max_examples=80, deadline=None)
@given(two_lists(st.integers(0, 1), least=1))
def test_two_classes(given_lists):
    target, predicted = given_lists
    found = metrics.binary_scores(target, predicted)
    options = {"zero_division": 0}
    assert found.accuracy == pytest.approx(oracle.accuracy_score(target, predicted))
    assert found.precision == pytest.approx(oracle.precision_score(target, predicted, **options))
    assert found.recall == pytest.approx(oracle.recall_score(target, predicted, **options))
    assert found.specificity == pytest.approx(oracle.recall_score(target, predicted, pos_label=0, **options))
    assert found.f1 == pytest.approx(oracle.f1_score(target, predicted, **options))
    assert found.mcc == pytest.approx(oracle.matthews_corrcoef(target, predicted), abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(two_lists(st.integers(0, 1)), st.integers(0, 1000), st.booleans())
def test_roc_auc(given_lists, seed, tied):
    target = given_lists[0]
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, 3, len(target)) if tied else draw.random(len(target))
    found = metrics.binary_scores(target, scores).roc_auc
    if len(set(target)) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(oracle.roc_auc_score(target, scores))


def test_bootstrap_of_a_mean():
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = metrics.bootstrap_interval(values)
    # For a mean of many, the interval is close to ±1.96 standard errors.
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)
    assert (low, high) == metrics.bootstrap_interval(values)
    assert (low, high) != metrics.bootstrap_interval(values, seed=1)
    narrow = metrics.bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert metrics.bootstrap_interval([0.7]) == (0.7, 0.7)


def test_bootstrap_is_scipys_percentile():
    values = np.random.default_rng(2).exponential(1, 50)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert metrics.bootstrap_interval(values, samples=20_000) == pytest.approx(tuple(expected), abs=0.02)


def test_bootstrap_in_parts_covers_all_samples(monkeypatch):
    values = np.random.default_rng(4).random(30)
    whole = metrics.bootstrap_interval(values, samples=500)
    monkeypatch.setattr("rinalmo.metrics._DRAWN_AT_ONCE", 1000)
    assert metrics.bootstrap_interval(values, samples=500) == whole


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: metrics.regression_scores([1, float("nan")], [1, 2]),
            "the target has 1 NaN or infinite values of 2; remove them",
        ),
        (
            lambda: metrics.regression_scores([1, 2], [1, float("inf")]),
            "the prediction has 1 NaN or infinite values of 2",
        ),
        (lambda: metrics.regression_scores([], []), "the target is empty"),
        (lambda: metrics.regression_scores([1, 2], [1, 2, 3]), "2 targets do not fit 3 predictions"),
        (lambda: metrics.class_scores([0, 1], [0]), "2 targets do not fit 1 predictions"),
        (lambda: metrics.class_scores([0, 0.5], [0, 1]), "the target must be class numbers"),
        (lambda: metrics.class_scores([0, -1], [0, 1]), "the target must be class numbers"),
        (lambda: metrics.class_scores([0, float("nan")], [0, 1]), "NaN"),
        (lambda: metrics.binary_scores([0, 2], [0, 1]), "the classes 0 and 1; use class_scores"),
        (lambda: metrics.bootstrap_interval([1, 2], level=95), "at level 95"),
        (lambda: metrics.bootstrap_interval([1, float("nan")]), "NaN"),
    ],
)
def test_what_cannot_be_scored(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_every_name_is_exported():
    assert metrics.__all__ == sorted(metrics.__all__)
    assert all(hasattr(metrics, name) for name in metrics.__all__)
