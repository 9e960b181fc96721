"""Charts of results."""

import re

import numpy as np
import pytest

from rinalmo.errors import InputError
from rinalmo.plots import draw_bars, draw_calibration

pytest.importorskip("matplotlib")


def texts(path):
    return re.findall(r">([^<>]+)</text>", path.read_text())


def test_bars(tmp_path):
    values = {"ours": {"a": 0.5, "b": (0.25, 0.2, 0.3)}, "theirs": {"b": float("nan"), "c": 0.75}}
    for name in ("x.svg", "y.svg"):
        draw_bars(values, tmp_path / name, label="F1", title="two <programs>")
    found = texts(tmp_path / "x.svg")
    assert {"ours", "theirs", "F1", "two &lt;programs&gt;", "a", "b", "c", "0.50", "0.25", "0.75"} <= set(found)
    assert not any("nan" in text for text in found)
    assert (tmp_path / "x.svg").read_bytes() == (tmp_path / "y.svg").read_bytes()
    for bad in ({}, {"ours": {}}, {str(n): {"a": 1.0} for n in range(9)}):
        with pytest.raises(InputError, match="can show 1 to 8 series"):
            draw_bars(bad, tmp_path / "z.svg")


def test_calibration_is_that_of_scikit_learn(tmp_path):
    calibration = pytest.importorskip("sklearn.calibration")
    draws = np.random.default_rng(0)
    probabilities = draws.random(2000)
    right = draws.random(2000) < probabilities**2
    errors = draw_calibration({"model": (probabilities, right)}, tmp_path / "x.svg")
    share, mean = calibration.calibration_curve(right, probabilities, n_bins=10)
    weights = np.histogram(probabilities, 10, (0, 1))[0] / 2000
    assert errors["model"] == pytest.approx(np.abs(share - mean) @ weights)
    assert {f"model (error {errors['model']:.3f})", "predicted probability"} <= set(texts(tmp_path / "x.svg"))


def test_calibration_of_odd_numbers(tmp_path):
    ends = np.array([0.0, 1.0, 1.0])
    assert draw_calibration({"sure": (ends, ends == 1)}, tmp_path / "x.png")["sure"] == 0
    for probabilities, right, words in (
        (ends, ends[:1], "3 probabilities but 1 outcomes"),
        (ends[:0], ends[:0], "0 probabilities"),
        (ends * 2, ends == 1, "between 0 and 1"),
    ):
        with pytest.raises(InputError, match=words):
            draw_calibration({"odd": (probabilities, right)}, tmp_path / "y.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
