"""Training curves."""

import re

import pytest

from rinalmo.errors import InputError
from rinalmo.plots import draw_curves
from rinalmo.plots.charts import metrics_of

pytest.importorskip("matplotlib")


def log(start):
    lines = [{"step": step, "loss": start / step, "lr": 1e-3} for step in range(1, 30)]
    return [*lines, {"step": 29, "validation/loss": start / 25, "validation/accuracy": 0.5}]


def drawn(path):
    text = path.read_text()
    return set(re.findall(r">([^<>]+)</text>", text)), text.count('<g id="line2d')


def test_one_run(tmp_path):
    draw_curves({"mine": log(2.0)}, tmp_path / "curves.svg", rates=True)
    words, _ = drawn(tmp_path / "curves.svg")
    assert {"training", "validation", "learning rate", "loss (nats)", "step"} <= words
    assert "mine" not in words
    draw_curves({"mine": log(2.0)}, tmp_path / "again.svg", rates=True)
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "curves.svg").read_bytes()


def test_several_runs_and_figures(tmp_path):
    logs = {"first": log(2.0), "second": log(3.0)}
    draw_curves(logs, tmp_path / "curves.svg", ["loss", "accuracy"], rates=True)
    words, lines = drawn(tmp_path / "curves.svg")
    assert {"first", "second", "accuracy", "thin: training; thick, dashed: validation"} <= words
    assert "learning rate" not in words  # of which of them?
    draw_curves({"first": log(2.0)}, tmp_path / "one.svg", ["loss", "accuracy"])
    assert lines > drawn(tmp_path / "one.svg")[1]


def test_what_cannot_be_drawn(tmp_path):
    assert metrics_of({"a": log(1.0)}) == ["accuracy", "loss", "lr"]
    for logs, path, figures, words in (
        ({"a": log(1.0)}, "x.svg", ["acuracy"], "no run has the metric 'acuracy'; there are accuracy, loss, lr"),
        ({"a": log(1.0)}, "x.gif", ["loss"], "use .svg, .png, .pdf"),
        ({}, "x.svg", ["loss"], "1 to 8 runs, but there are 0"),
        ({str(n): log(1.0) for n in range(9)}, "x.svg", ["loss"], "1 to 8 runs, but there are 9"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            draw_curves(logs, tmp_path / path, figures)
    assert not list(tmp_path.iterdir())
