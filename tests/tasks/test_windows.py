"""Long RNAs: what is folded in windows is one structure, the same every time, in memory that grows with the length."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from rinalmo.engine.engine import Engine
from rinalmo.errors import InputError
from rinalmo.inference.fold import Decoding, Plot, fold, fold_file, fold_records
from rinalmo.io.sequences import Record
from rinalmo.rna.decoding import METHODS, decode
from rinalmo.rna.structure import PairList
from rinalmo.tasks.evaluate import evaluate, task_of
from rinalmo.tasks.secondary_structure import SecondaryStructure, windows_of
from rinalmo.weights.checkpoint import load

STEMS = ("GGGCCGCGCC", "GCGUGCGGCC", "GUUGUCGUGC", "GCACGUUCGC", "GCGGAGCGGC", "GACGCCGCGC", "GCUGCACGUC", "GAGGGGGUGC")
UNITS = [stem + "UUCG" + stem[::-1].translate(str.maketrans("ACGU", "UGCA")) + "A" * 16 for stem in STEMS]
UNIT = "((((((((((....))))))))))................"
LONG = "".join(UNITS)
CLEAR = Decoding("nested", threshold=0.3)


@pytest.fixture(scope="module")
def engine():
    return Engine("nano-fold", "fp32", threads=1)


@pytest.mark.parametrize(("length", "size"), [(1, 32), (32, 32), (33, 32), (48, 32), (49, 32), (1000, 33), (97, 96)])
def test_windows_cover_each_near_pair_once(length, size):
    windows = windows_of(length, size)
    assert (len(windows) == 1) == (length <= size)
    assert windows[0].start == 0
    assert windows[-1].stop == length
    assert all(window.stop - window.start == min(size, length) for window in windows)
    i, j = np.triu_indices(length, 1)
    owners = np.sum([(window.first <= i + j) & (i + j < window.last) for window in windows], axis=0)
    holders = np.sum([(w.first <= i + j) & (i + j < w.last) & (w.start <= i) & (j < w.stop) for w in windows], axis=0)
    assert (owners == 1).all()
    assert (holders[j - i <= size // 2] == 1).all()


def test_windows_put_together_are_the_square_they_were_cut_from():
    draw = np.random.default_rng(0)
    square = np.triu(draw.random((90, 90), np.float32), 1)
    square += square.T
    windows = windows_of(90, 32)
    found = PairList.of(90, [w.pairs(square[w.start : w.stop, w.start : w.stop], 0.2) for w in windows])
    matrix = found.matrix()
    apart = np.abs(np.subtract.outer(np.arange(90), np.arange(90)))
    np.testing.assert_array_equal(matrix[apart <= 16], np.where(square > 0.2, square, 0)[apart <= 16])
    assert not matrix[apart >= 32].any()
    i, j = np.triu_indices(90, 1)
    np.testing.assert_array_equal(found.at(i, j), matrix[i, j])
    np.testing.assert_allclose(PairList.from_records(90, found.records()).matrix(), matrix, atol=1e-3)
    sequence = "".join(draw.choice(list("ACGU"), 90))
    for method in METHODS:
        assert decode(found, sequence, method) == decode(matrix, sequence, method)


def test_a_window_as_long_as_the_rna_changes_nothing(engine):
    whole = fold(LONG, engine, CLEAR)
    assert fold(LONG, engine, CLEAR, window=len(LONG)) == whole
    with pytest.warns(UserWarning, match="record 1 of 320 nt is folded in windows of 319: pairs farther apart"):
        assert fold(LONG, engine, CLEAR, window=319) == whole


@pytest.mark.filterwarnings("ignore:record")
def test_hairpins_of_a_long_rna_fold_as_each_alone(engine):
    assert [found.dot_bracket for found in fold(UNITS, engine, CLEAR)] == [UNIT] * 8
    (found,) = fold(LONG, engine, CLEAR, window=80)
    assert found.dot_bracket == UNIT * 8
    assert fold(LONG, Engine("nano-fold", "fp32", threads=1, batch_tokens=100), CLEAR, window=80) == [found]


def test_files(engine, tmp_path):
    """Probabilities as a list, a picture, a note, and the same bytes however they were computed."""
    pytest.importorskip("matplotlib")
    (tmp_path / "in.fa").write_text(f">short\n{UNITS[0]}\n>long\n{LONG}\n")
    notes = []
    options = {"window": 80, "probabilities": tmp_path / "p.npz", "note": notes.append}
    plot = Plot(tmp_path / "{name}.png", "map")
    assert fold_file(tmp_path / "in.fa", tmp_path / "out.ct", engine, CLEAR, plot=plot, **options) == 2
    assert notes == [
        "record long of 320 nt is folded in windows of 80: pairs farther apart are not found, and those more than 40 "
        "apart may be missed"
    ]
    assert (tmp_path / "long.png").stat().st_size > 1000
    with np.load(tmp_path / "p.npz") as found:
        assert found["short"].shape == (40, 40)
        assert found["long"].dtype.names == ("i", "j", "probability")
        listed = {(int(i), int(j)): float(value) for i, j, value in found["long"]}
    lines = (tmp_path / "out.ct").read_text().splitlines()
    assert lines[41] == "320 long"
    assert lines[42].split()[4] == "24"
    assert listed[0, 23] > 0.3
    with pytest.raises(InputError, match="a window of 31 nt is too small to fold; use 32 or more"):
        fold_file(tmp_path / "in.fa", tmp_path / "out.ct", engine, window=31)


@pytest.mark.filterwarnings("ignore:record")
def test_a_model_has_a_window_of_its_own(engine):
    model = load("nano-fold")
    model.spec = replace(model.spec, task={**model.spec.task, "window": 80})
    own = Engine(model, "fp32", threads=1)
    assert fold(LONG, own, CLEAR) == fold(LONG, engine, CLEAR, window=80)
    assert task_of(own.spec).config() == own.spec.task
    assert fold(LONG, own, CLEAR, window=320) == fold(LONG, engine, CLEAR, window=320)
    with pytest.raises(InputError, match="a window of 31 nt is too small to fold; use 32 or more"):
        SecondaryStructure(window=31)


def test_evaluation_says_so_and_scores_as_the_whole(engine, tmp_path):
    (tmp_path / "true.dbn").write_text(f">long\n{LONG}\n{UNIT * 8}\n")
    whole, cut = evaluate(tmp_path / "true.dbn", engine), evaluate(tmp_path / "true.dbn", engine, window=80)
    assert (whole.notes, len(cut.notes)) == ([], 1)
    assert cut.plain()["notes"] == cut.notes
    assert cut.metrics["recall"].value == whole.metrics["recall"].value == 1
    assert cut.metrics["precision"].value > 0.6


@pytest.mark.parametrize("method", ["greedy", "nested"])
def test_memory_grows_with_the_length(method):
    """A square of 30,000 nt would be 0.9 GB in bytes, 7 GB in fp64."""
    length, draw = 30_000, np.random.default_rng(0)
    i = np.unique(draw.integers(0, length - 300, 6000))
    j = i + draw.integers(4, 200, len(i))
    listed = PairList(length, i, j, draw.random(len(i)))
    tracemalloc.start()
    pairs = decode(listed, "G" * length, method, canonical=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pairs) > 500
    assert peak < 20e6


@pytest.mark.filterwarnings("ignore:record")
def test_pairs_below_what_is_usually_kept_are_there_when_asked_for(engine):
    usual, more = (
        next(fold_records([Record("x", "", LONG)], engine, Decoding(threshold=threshold, thermodynamics=0), window=64))[
            1
        ]
        for threshold in (0.1, 1e-6)
    )
    assert len(more.values) > len(usual.values)
    assert more.values.min() < 0.001 < usual.values.min()
