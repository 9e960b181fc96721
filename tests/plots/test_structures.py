"""Which file shows which sequence, and what is refused before anything is folded."""

import pytest

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.sequences import Record
from rinalmo.plots.structures import Plot

pytest.importorskip("matplotlib")
pytest.importorskip("RNA")


def records(*names, sequence="GGGAAACCC"):
    return [Record(name, "", sequence) for name in names]


def names(plot, *given):
    return [picture.path.name for picture in plot.figures(records(*given))]


def test_paths(tmp_path):
    assert names(Plot(tmp_path / "x.svg"), "one") == ["x.svg"]
    assert names(Plot(tmp_path / "x_{name}.png", "arcs"), "a", "b") == ["x_a.png", "x_b.png"]
    assert names(Plot(tmp_path), "a", "A", "a") == ["a.svg", "A_2.svg", "a_3.svg"]
    assert names(Plot(tmp_path), "../../etc/x|y", "..", "é" * 300) == ["_.._etc_x_y.svg", "sequence.svg", "_.svg"]
    with pytest.raises(InputError, match=r"shows one sequence, but there are 2; use .*x-\{name\}\.svg, or a folder"):
        names(Plot(tmp_path / "x.svg"), "a", "b")


def test_references(tmp_path):
    path = tmp_path / "true.dbn"
    path.write_text(">b\nGGGAAACCC\n(((...)))\n>a\nGGGAAACCC\n((.....))\n")
    plot = Plot(tmp_path / "{name}.svg", reference=path)
    found = plot.figures(records("a", "b"))
    assert [picture.kind for picture in found] == ["arcs", "arcs"]
    assert [picture.reference.dot_bracket for picture in found] == ["((.....))", "(((...)))"]
    with pytest.raises(InputError, match="has no structure named 'c'"):
        plot.figures(records("a", "c"))
    with pytest.raises(SequenceError, match="record a: has 3 nt, and its reference 9"):
        plot.figures(records("a", sequence="ACG"))
    path.write_text(">other name\nGGGAAACCC\n(((...)))\n")
    assert plot.figures(records("a"))[0].reference.name == "other name"
    path.write_text(">a\nGGG\n...\n>a\nGGG\n...\n")
    with pytest.raises(InputError, match="two structures have the same name"):
        plot.figures(records("a"))


def test_too_long_for_a_drawing(tmp_path):
    with pytest.raises(InputError, match="up to 3,000 nt"):
        Plot(tmp_path / "{name}.svg").figures(records("short") + records("long", sequence="A" * 3001))
