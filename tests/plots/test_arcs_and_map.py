"""Arcs and pair maps: what is drawn, counted in the SVG."""

from xml.etree import ElementTree

import numpy as np
import pytest

from rinalmo.errors import InputError, SequenceError
from rinalmo.plots import draw_arcs, draw_pair_map
from rinalmo.plots.pairs import LONGEST_ARCS
from rinalmo.plots.style import BLUE, robust_limit, shade, tick_step
from rinalmo.rna.structure import Structure

pytest.importorskip("matplotlib")

SEQUENCE = "GGCGCGGCACCGUCCGCGGAACAAACGG"
KNOT = Structure.from_dot_bracket("BWYV $1$ <&>", SEQUENCE, "..[[[[[..(((.]]]]].......)))")
FOUND = Structure.from_dot_bracket("BWYV $1$ <&>", SEQUENCE, ".([[[[[......]]]]]).........")


def arcs(path):
    """Number of arcs of each kind, above and below together."""
    groups = [g for g in ElementTree.parse(path).iter() if str(g.get("id")).startswith("arcs-")]
    counts = {}
    for group in groups:
        name = group.get("id").split("-")[1].split("_")[0]
        counts[name] = counts.get(name, 0) + sum(each.tag.endswith("}path") for each in group.iter())
    return counts


def test_arcs_of_one_structure(tmp_path):
    draw_arcs(KNOT, tmp_path / "x.svg")
    assert arcs(tmp_path / "x.svg") == {"nested": 5, "pseudoknot": 3}
    text = (tmp_path / "x.svg").read_text()
    assert "nested (5)" in text
    assert "BWYV $1$ &lt;&amp;&gt;, 28 nt" in text
    assert "F1" not in text


def test_arcs_with_a_reference(tmp_path):
    draw_arcs(FOUND, tmp_path / "x.svg", KNOT)
    assert arcs(tmp_path / "x.svg") == {"right": 10, "extra": 1, "missed": 3}
    text = (tmp_path / "x.svg").read_text()
    for said in ("right (5)", "extra (1)", "missed (3)", "F1 0.71", "prediction above, reference below"):
        assert said in text


@pytest.mark.parametrize("length", [1, 2, 151, 1000])
def test_arcs_of_any_length(tmp_path, length):
    draw_arcs(Structure("", "A" * length), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_references_must_be_of_the_same_rna(tmp_path):
    draw_arcs(KNOT, tmp_path / "x.svg", Structure("dna", SEQUENCE.lower().replace("u", "t")))
    (tmp_path / "x.svg").unlink()
    with pytest.raises(SequenceError, match="has 28 nt, but its reference 3;"):
        draw_arcs(KNOT, tmp_path / "x.svg", Structure("", "ACG"))
    with pytest.raises(SequenceError, match="position 28: is G, but C in its reference"):
        draw_pair_map(KNOT, np.zeros((28, 28)), tmp_path / "x.svg", Structure("", SEQUENCE[:-1] + "C"))
    assert list(tmp_path.iterdir()) == []


def test_map(tmp_path):
    for name in ("a.svg", "b.svg"):
        draw_pair_map(FOUND, FOUND.matrix() * 0.9, tmp_path / name, KNOT)
    text = (tmp_path / "a.svg").read_text()
    root = ElementTree.fromstring(text)
    (pairs,) = [g for g in root.iter() if g.get("id") == "pairs"]
    assert sum(each.tag.endswith("}use") for each in pairs.iter()) == len(KNOT.pairs)
    assert "below the diagonal: reference pairs" in text
    assert [label for label in ("1", "10", "20") if f">{label}</text>" not in text] == []
    assert text == (tmp_path / "b.svg").read_text()


def test_map_of_one_nucleotide(tmp_path):
    draw_pair_map(Structure("", "A"), np.zeros((1, 1)), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(InputError, match=r"use \.svg, \.png, \.pdf"):
        draw_arcs(KNOT, tmp_path / "x.gif")
    with pytest.raises(InputError, match="limited to 10,000 nt"):
        draw_arcs(Structure("", "A" * (LONGEST_ARCS + 1)), tmp_path / "x.svg")
    with pytest.raises(InputError, match="limited to 5,000 nt"):
        draw_pair_map(Structure("", "A" * 5001), np.zeros((1, 1)), tmp_path / "x.svg")
    with pytest.raises(InputError, match=r"shape \(1, 1\) do not fit 28 nt"):
        draw_pair_map(KNOT, np.zeros((1, 1)), tmp_path / "x.svg")
    assert list(tmp_path.iterdir()) == []


def test_scales():
    assert [shade(p).upper() for p in (-1, 0, 1, 2)] == ["#FFFFFF", "#FFFFFF", BLUE.upper(), BLUE.upper()]
    assert [tick_step(n) for n in (1, 150, 151, 1000, 100_000)] == [10, 10, 20, 100, 1000]


def test_outliers_do_not_stretch_a_scale():
    usual = np.linspace(-1, 1, 200)
    assert robust_limit(usual) == 1
    assert robust_limit(np.append(usual, [-30, 12, np.nan])) == pytest.approx(1.5 * 0.96, abs=0.03)
    assert [robust_limit(np.array(values)) for values in ([], [0.0], [np.nan], [0.0] * 99 + [7.0])] == [1, 1, 1, 7]
