"""The drawing of a structure: read back from its SVG."""

import random
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from rinalmo.errors import InputError, MissingExtraError, SequenceError
from rinalmo.plots import draw_structure, drawing
from rinalmo.plots.drawing import LONGEST, placed_labels, structure_svg
from rinalmo.plots.style import BLUE, PALE, VERMILION
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
    points = drawing.positions(structure.nested().pairs, len(structure))
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
    fills = [each.find(f"{SVG}circle").get("fill") for each in elements(svg, "nucleotide")]
    assert [n for n, fill in enumerate(fills) if fill == "#0072b2"] == [0, 71]
    assert fills.count("#ffffff") == 74
    assert "probability of the most probable pair" in svg
    assert "<title>G1, pairs with C72; probability 1.00</title>" in svg
    assert "<title>A9, unpaired; most probable pair 0.00</title>" in svg


@pytest.mark.parametrize("text", [".", "..", "()", "(())", "(.)", "((.))", "." * 30, "()()()", "(((((....)))))"])
def test_small_and_odd_structures(text):
    structure = Structure.from_dot_bracket("odd", "A" * len(text), text)
    svg = structure_svg(structure)
    assert len(elements(svg, "pair")) == len(structure.pairs)
    assert drawing.nearest(centres(svg)) > drawing.CLOSEST - 0.2


def test_without_a_layout_there_is_an_error_and_no_circle(monkeypatch, tmp_path):
    monkeypatch.setattr(drawing, "_PUZZLER", "import os; os.abort()")
    with pytest.raises(InputError, match=r"x\.svg: no layout without overlaps was found .* 76 nt; draw arcs or a map"):
        draw_structure(TRNA, tmp_path / "x.svg")
    assert not list(tmp_path.iterdir())


def test_a_long_external_loop_is_round():
    stems = Structure(
        "strip", "GGGAAACCCAA" * 40, tuple((11 * n + k, 11 * n + 8 - k) for n in range(40) for k in range(3))
    )
    wide, high = np.ptp(drawing.positions(stems.pairs, len(stems)), axis=0)
    assert max(wide, high) < 1.5 * min(wide, high)


def test_large_drawings_have_fewer_labels():
    points, _, texts = zip(*placed_labels(drawing.positions(TRNA.pairs, 76), TRNA.pairs, scale=2.0), strict=True)
    assert texts == ("5′", "3′", "50")
    assert points == (0, 75, 49)


def test_pairs_beside_a_reference():
    predicted = Structure(TRNA.name, TRNA.sequence, ((0, 68), *(pair for pair in TRNA.pairs[1:-2] if 68 not in pair)))
    svg = structure_svg(predicted, reference=TRNA)
    kinds = {"right": [], "extra": [], "missed": []}
    for each in elements(svg, "pair"):
        kinds[each.get("data-kind")].append(each.get("data-pair"))
    assert [len(kinds[kind]) for kind in kinds] == [16, 1, 4]
    assert kinds["extra"] == ["1-69"]
    for words in ("right (16)", "extra (1)", "missed (4)", "F1 0.86"):
        assert words in svg
    np.testing.assert_array_equal(centres(svg), centres(structure_svg(TRNA, reference=TRNA)))
    with pytest.raises(SequenceError, match="has 76 nt, but its reference 28"):
        structure_svg(TRNA, reference=KNOT)


def test_a_track_is_colours_with_a_legend():
    values = np.full(28, 0.5)
    values[0], values[1], values[2] = np.nan, 0.0, 40.0  # an outlier
    svg = structure_svg(KNOT, track=(values, "1M7 <reactivity>"))
    fills = [each.find(f"{SVG}circle").get("fill") for each in elements(svg, "nucleotide")]
    assert fills[:3] == [PALE, "#ffffff", VERMILION.lower()]
    assert len(set(fills[3:])) == 1
    assert fills[3] not in fills[:3]
    assert "1M7 &lt;reactivity&gt;, 0 to 0.75 and beyond" in svg
    assert "no value" in svg
    svg = structure_svg(KNOT, track=(np.where(np.arange(28) % 2, -1.0, 1.0), "change"))
    assert "change, -1 to 1<" in svg
    assert {each.find(f"{SVG}circle").get("fill") for each in elements(svg, "nucleotide")} == {
        BLUE.lower(),
        VERMILION.lower(),
    }
    with pytest.raises(InputError, match=r"change: values of shape \(3,\) do not fit 28 nt"):
        structure_svg(KNOT, track=(np.zeros(3), "change"))


def test_the_same_picture_in_every_format(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    for name in ("a.png", "a.pdf", "b.pdf"):
        draw_structure(TRNA, tmp_path / name, np.eye(76))
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert b"/Subtype /Type0" in (tmp_path / "a.pdf").read_bytes()  # text, in an embedded TrueType font
    pixels, root = image.imread(tmp_path / "a.png")[..., :3], ElementTree.fromstring(structure_svg(TRNA, np.eye(76)))
    scale = 300 / 96
    expected = np.array([float(root.get("height")), float(root.get("width"))]) * scale
    np.testing.assert_allclose(pixels.shape[:2], expected, atol=1)
    x, y = map(float, re.fullmatch(r"translate\((\S+) (\S+)\)", root.find(f"{SVG}g").get("transform")).groups())
    for left, top in centres(ElementTree.tostring(root)) + np.array([x, y]):
        # Between the letter and the edge of the circle.
        found = pixels[round((top + 7.2) * scale), round((left + 1) * scale)]
        np.testing.assert_allclose(found, [int(BLUE[n : n + 2], 16) / 255 for n in (1, 3, 5)], atol=0.01)


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
    with pytest.raises(InputError, match=r"use \.svg, \.png, \.pdf"):
        draw_structure(TRNA, tmp_path / "x.gif")
    with pytest.raises(InputError, match="no such folder"):
        draw_structure(TRNA, tmp_path / "nowhere" / "x.svg")
    with pytest.raises(InputError, match="limited to 3,000 nt, but the sequence has 3,001; draw arcs"):
        draw_structure(Structure("", "A" * (LONGEST + 1)), tmp_path / "x.svg")
    with pytest.raises(InputError, match=r"shape \(3, 3\) do not fit 76 nt"):
        draw_structure(TRNA, tmp_path / "x.svg", np.zeros((3, 3)))
    assert list(tmp_path.iterdir()) == []


def test_without_viennarna(monkeypatch, tmp_path):
    monkeypatch.setattr(drawing, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"rinalmo\[draw\]"):
        draw_structure(TRNA, tmp_path / "x.svg")
