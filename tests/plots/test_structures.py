"""Which file shows which sequence, and what is refused before anything is folded."""

import numpy as np
import pytest

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.sequences import Record
from rinalmo.plots.structures import Plot, read_probabilities
from rinalmo.rna.structure import RECORD, Structure

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
    with pytest.raises(InputError, match="has no structure for the sequence 'c'"):
        plot.figures(records("a", "c"))
    with pytest.raises(SequenceError, match="record a: has 3 nt, but its reference 9"):
        plot.figures(records("a", sequence="ACG"))
    path.write_text(">other name\nGGGAAACCC\n(((...)))\n")
    assert plot.figures(records("a"))[0].reference.name == "other name"
    path.write_text(">a\nGGG\n...\n>a\nGGG\n...\n")
    with pytest.raises(InputError, match="two structures have the same name"):
        plot.figures(records("a"))


def test_too_long_for_a_drawing(tmp_path):
    with pytest.raises(InputError, match="limited to 3,000 nt"):
        Plot(tmp_path / "{name}.svg").figures(records("short") + records("long", sequence="A" * 3001))


def test_values_of_nucleotides(tmp_path):
    path = tmp_path / "SHAPE.txt"
    path.write_text(">a\n1 0.5\n9 -999\n>b\n2 1.5\n")
    plot = Plot(tmp_path / "{name}.svg", values=path)
    (a, name), (b, _) = (figure.track for figure in plot.figures(records("a", "b")))
    np.testing.assert_array_equal(a, [0.5, *[np.nan] * 8])
    np.testing.assert_array_equal(b, [np.nan, 1.5, *[np.nan] * 7])
    assert name == "SHAPE"
    with pytest.raises(InputError, match="has no values for 'c'"):
        plot.figures(records("a", "c"))
    with pytest.raises(InputError, match="can only color a drawing, not map"):
        Plot(tmp_path, "map", values=path).figures(records("a"))


def test_probabilities_of_a_file(tmp_path):
    hairpin, other = (Structure(name, "GGGAAACCC", ((0, 8), (1, 7))) for name in ("a/b", "c"))
    matrix, records = hairpin.matrix() * 0.5, np.array([(0, 8, 0.5), (1, 7, 0.5)], RECORD)
    np.savez(tmp_path / "two.npz", a_b=matrix, c=records)
    for read in read_probabilities(tmp_path / "two.npz", [hairpin, other]):
        np.testing.assert_array_equal(np.triu(read), np.triu(matrix))
    np.savez(tmp_path / "one.npz", some_name=matrix)
    assert read_probabilities(tmp_path / "one.npz", [other])[0].shape == (9, 9)
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "array.npy", matrix)
    for path, structures, words in (
        ("one.npz", [hairpin, other], "has no probabilities for 'a/b'"),
        ("one.npz", [Structure("d", "ACG")], "'d' do not fit its 3 nt"),
        ("two.npz", [hairpin, Structure("c", "ACG")], "'c' do not fit its 3 nt"),
        ("text.npz", [hairpin], "cannot be read as an .npz file"),
        ("array.npy", [hairpin], "cannot be read as an .npz file"),
        ("none.npz", [hairpin], "cannot be read .*No such file"),
    ):
        with pytest.raises(InputError, match=words):
            read_probabilities(tmp_path / path, structures)
