"""The drawing of a structure: read back from its SVG."""

import random
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.plots import draw_structure, drawing
from rinalmo.plots.drawing import LONGEST, placed_labels, structure_svg
from rinalmo.rna.structure import Structure

pytest.importorskip("RNA")

SVG = "{http://www.w3.org/2000/svg}"
TRNA = Structure.from_dot_bracket(
    "tRNA-Phe",
    "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA",
    "(((((((..((((........)))).((((.........)))).....(((((.......))))))))))))....",
)
KNOT = Structure.from_dot_bracket("BWYV", "GGCGCGGCACCGUCCGCGGAACAAACGG", "..[[[[[..(((.]]]]].......)))")


def hairpins(length):
    """A structure of nested stems with bulges and branches, as folding gives them."""
    letters, text, draws = [], [], random.Random(length)
    while len(text) < length - 40:
        stem, inner = draws.randint(3, 8), draws.choice(["." * 5, "..((((....))))..((....))."])
        text += "(" * stem + inner + ")" * stem + "." * draws.randint(0, 6)
    text += "." * (length - len(text))
    letters = draws.choices("ACGU", k=length)
    return Structure.from_dot_bracket(f"{length} nt", "".join(letters), "".join(text))


def elements(svg, kind):
    return [each for each in ElementTree.fromstring(svg).iter() if each.get("class") == kind]


def centres(svg):
    circles = [each.find(f"{SVG}circle") for each in elements(svg, "nucleotide")]
    return np.array([[float(circle.get("cx")), float(circle.get("cy"))] for circle in circles])


@pytest.mark.parametrize("structure", [hairpins(20), TRNA, KNOT, hairpins(120), hairpins(400)], ids=lambda s: s.name)
def test_everything_is_drawn_once_and_nothing_overlaps(structure):
    svg = structure_svg(structure)
    nucleotides = elements(svg, "nucleotide")
    assert [int(each.get("data-position")) for each in nucleotides] == list(range(1, len(structure) + 1))
    assert "".join(each.find(f"{SVG}text").text for each in nucleotides) == structure.sequence
    pairs = [tuple(int(end) - 1 for end in each.get("data-pair").split("-")) for each in elements(svg, "pair")]
    assert sorted(pairs) == list(structure.pairs)
    assert drawing.nearest(centres(svg)) > drawing.CLOSEST - 0.2  # circles are 18 wide, coordinates rounded
    labels = [each.find(f"{SVG}text").text for each in elements(svg, "label")]
    assert labels == ["5′", "3′", *(str(n) for n in range(10, len(structure) + 1, 10))]


@pytest.mark.parametrize("structure", [TRNA, hairpins(400)], ids=lambda s: s.name)
def test_labels_stand_clear(structure):
    points, _ = drawing.positions(structure.nested().pairs, len(structure))
    places = np.array([at for _, at, _ in placed_labels(points, structure.pairs)])
    distances = np.hypot(*(places[:, None] - points[None]).transpose(2, 0, 1))
    assert distances.min() > 15  # from the middle of a number to that of a circle of radius 9
    assert drawing.nearest(places) > 15


def test_all_lies_on_the_paper():
    for structure in (KNOT, TRNA, Structure("A" * 300, "ACGU")):
        root = ElementTree.fromstring(structure_svg(structure))
        x, y = map(float, re.fullmatch(r"translate\((\S+) (\S+)\)", root.find(f"{SVG}g").get("transform")).groups())
        moved = centres(ElementTree.tostring(root)) + np.array([x, y])
        assert (moved > 20).all()
        assert (moved < np.array([float(root.get("width")), float(root.get("height"))]) - 20).all()


def test_kinds_of_pairs_can_be_told_apart():
    structure = Structure.from_dot_bracket("", "GGACAAAAGUUC", "((((....))))")
    other = Structure(structure.name, "GGACAAAAAUUC", structure.pairs)  # C with A
    circles = [len(each.findall(f"{SVG}circle")) for each in elements(structure_svg(structure), "pair")]
    assert circles == [0, 1, 0, 0]  # only G with U has a dot
    assert "GU pair" in structure_svg(structure)
    assert "pair other than AU, GC and GU" not in structure_svg(structure)
    assert "pair other than AU, GC and GU" in structure_svg(other)


def test_pseudoknots_are_dashed_curves():
    dashed = [each.get("data-pair") for each in elements(structure_svg(KNOT), "pair") if "dash" in str(each[0].attrib)]
    assert dashed == ["10-28", "11-27", "12-26"]


def test_probabilities_are_colours_with_a_legend():
    probabilities = np.zeros((76, 76))
    probabilities[0, 71] = 1.0  # the upper triangle is enough
    svg = structure_svg(TRNA, probabilities)
    fills = [each.findall(f"{SVG}circle")[1].get("fill") for each in elements(svg, "nucleotide")]
    assert [n for n, fill in enumerate(fills) if fill == "#0072b2"] == [0, 71]
    assert fills.count("#ffffff") == 74
    assert "probability of the likeliest pair" in svg
    assert "G1, 1.00" in svg


@pytest.mark.parametrize("text", [".", "..", "()", "(())", "(.)", "((.))", "." * 30, "()()()", "(((((....)))))"])
def test_small_and_odd_structures(text):
    structure = Structure.from_dot_bracket("odd", "A" * len(text), text)
    svg = structure_svg(structure)
    assert len(elements(svg, "pair")) == len(structure.pairs)
    assert drawing.nearest(centres(svg)) > drawing.CLOSEST - 0.2


def test_a_layout_that_fails_becomes_a_circle(monkeypatch):
    monkeypatch.setattr(drawing, "_PUZZLER", "import os; os.abort()")
    svg = structure_svg(TRNA)
    assert len(elements(svg, "pair")) == len(TRNA.pairs)
    assert "dash" not in svg
    points = centres(svg)
    assert np.ptp(np.hypot(*(points - drawing.circle(76).mean(axis=0)).T)) < 10
    assert drawing.nearest(points) > drawing.CLOSEST


def test_names_are_escaped(tmp_path):
    structure = Structure("<script>&\"'\x1b[2J $x$", "ACGU")
    draw_structure(structure, tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    ElementTree.fromstring(text)
    assert "&lt;script&gt;&amp;" in text
    assert "\x1b" not in text


def test_the_same_bytes_and_no_remains(tmp_path):
    for name in ("a.svg", "b.svg"):
        draw_structure(TRNA, tmp_path / name, np.eye(76))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(InputError, match=r"written as \.svg; arcs"):
        draw_structure(TRNA, tmp_path / "x.png")
    with pytest.raises(InputError, match="no such folder"):
        draw_structure(TRNA, tmp_path / "nowhere" / "x.svg")
    with pytest.raises(InputError, match="up to 2,000 nt, and the sequence has 2,001; draw arcs"):
        draw_structure(Structure("", "A" * (LONGEST + 1)), tmp_path / "x.svg")
    with pytest.raises(InputError, match=r"shape \(3, 3\) do not fit 76 nt"):
        draw_structure(TRNA, tmp_path / "x.svg", np.zeros((3, 3)))
    assert list(tmp_path.iterdir()) == []


def test_without_viennarna(monkeypatch, tmp_path):
    monkeypatch.setattr(drawing, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"rinalmo\[draw\]"):
        draw_structure(TRNA, tmp_path / "x.svg")
