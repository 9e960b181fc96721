"""The picture of a saturation map."""

import re

import numpy as np
import pytest

from rinalmo.errors import InputError
from rinalmo.plots.positions import check_heat_map, draw_heat_map, line_width

pytest.importorskip("matplotlib")


def scores(sequence):
    values = np.random.default_rng(0).normal(size=(len(sequence), 4))
    values[[n for n, letter in enumerate(sequence) if letter == "N"]] = np.nan
    return values


def test_long_sequences_are_wrapped_and_labelled(tmp_path):
    sequence = "ACGUN" * 25
    draw_heat_map(scores(sequence), sequence, "a title <&>", tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    labels = re.findall(r">(\d+)</text>", text)
    assert [label for label in ("1", "10", "60", "70", "120") if label not in labels] == []
    assert "a title &lt;&amp;&gt;" in text
    assert text.count(">position  (dot: wild type, plus: above 0)</text>") == 1
    assert text.count("<image") >= 3  # lines of 60, 60 and 5, and the key


def test_a_score_above_0_has_a_mark(tmp_path):
    """Red and blue of the same strength are the same grey."""
    for name, sign in (("above.svg", 1), ("below.svg", -1)):
        draw_heat_map(sign * np.abs(scores("ACGUACGU")), "ACGUACGU", "title", tmp_path / name)
    above, below = ((tmp_path / name).read_text().count("<use") for name in ("above.svg", "below.svg"))
    assert above == below + 8 * 4


def test_the_same_scores_give_the_same_bytes(tmp_path):
    for name in ("a.svg", "b.svg"):
        draw_heat_map(scores("ACGUACGU"), "ACGUACGU", "title", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]


def test_png_of_one_letter(tmp_path):
    draw_heat_map(np.zeros((1, 4)), "A", "title", tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_width_of_a_line():
    assert [line_width(n) for n in (1, 50, 51, 76, 600, 601, 1000)] == [1, 50, 30, 40, 50, 90, 100]


def test_what_cannot_be_drawn(tmp_path):
    check_heat_map(tmp_path / "map.svg", [10_000])
    with pytest.raises(InputError, match=r"use \.svg, \.png, \.pdf"):
        check_heat_map(tmp_path / "map.gif", [10])
    with pytest.raises(InputError, match="one sequence, but there are 2"):
        check_heat_map(tmp_path / "map.svg", [10, 10])
    with pytest.raises(InputError, match="limited to 10,000 nt"):
        check_heat_map(tmp_path / "map.svg", [10_001])
