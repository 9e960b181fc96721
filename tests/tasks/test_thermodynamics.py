"""Folding with thermodynamics: what the default is, with ViennaRNA and without, and a weight that overrides it."""

import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from rinalmo.engine import jobs
from rinalmo.engine.engine import Engine
from rinalmo.errors import CheckpointError, InputError, MissingExtraError
from rinalmo.inference.fold import Decoding, fold_file, fold_records
from rinalmo.inference.predict import predict
from rinalmo.io.sequences import Record
from rinalmo.metrics import pair_scores
from rinalmo.rna.formats import write_structures
from rinalmo.rna.structure import Structure
from rinalmo.rna.thermodynamics import ensemble, pair_probabilities
from rinalmo.tasks.base import Example
from rinalmo.tasks.evaluate import evaluate, outputs, task_of, with_options
from rinalmo.tasks.secondary_structure import (
    DEFAULT_WEIGHT,
    LEARNED,
    THERMODYNAMICS_THRESHOLD,
    WITHOUT_VIENNA,
    evidence_from,
    resolve_thermodynamics,
)

pytest.importorskip("RNA")
TRNA = Structure.from_dot_bracket(
    "tRNA-Phe",
    "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA",
    "(((((((..((((........)))).(((((.......))))).....(((((.......))))))))))))....",
)
WEIGHT = 0.3
WITH = Decoding(thermodynamics=WEIGHT)


@pytest.fixture(scope="module")
def engine():
    return Engine("nano-fold", "fp32", threads=1)


def folded(engine, decoding, **options):
    ((structure, found),) = fold_records([Record("tRNA-Phe", "", TRNA.sequence)], engine, decoding, **options)
    return structure, found


def test_the_mean_of_both(engine):
    _, alone = folded(engine, Decoding(thermodynamics=0))
    structure, found = folded(engine, WITH)
    expected = (1 - WEIGHT) * alone + WEIGHT * pair_probabilities(TRNA.sequence)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert structure == folded(engine, Decoding("nested", THERMODYNAMICS_THRESHOLD, thermodynamics=WEIGHT))[0]


def test_windows_have_it_too(engine):
    _, found = folded(engine, WITH, window=64)
    alone = folded(engine, Decoding(thermodynamics=0), window=64)[1].matrix()
    vienna = pair_probabilities(TRNA.sequence[:64])
    i, j = 10, 24  # nearest to the middle of the first window
    assert found.matrix()[i, j] == pytest.approx((1 - WEIGHT) * alone[i, j] + WEIGHT * vienna[i, j])


def test_evaluate_folds_as_fold_does(engine, tmp_path):
    write_structures(tmp_path / "true.dbn", [TRNA])
    found = evaluate(tmp_path / "true.dbn", engine, thermodynamics=WEIGHT)
    structure, _ = folded(engine, WITH)
    assert found.threshold == THERMODYNAMICS_THRESHOLD
    assert found.metrics["f1"].value == pytest.approx(pair_scores(TRNA.pairs, structure.pairs).f1)


def test_all_the_weight_is_thermodynamics_alone(engine):
    _, found = folded(engine, Decoding(thermodynamics=1.0))
    np.testing.assert_allclose(found, pair_probabilities(TRNA.sequence), atol=1e-6)


def test_a_weight_beyond_its_range_is_refused(engine):
    for weight in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="the weight of thermodynamics is"):
            folded(engine, Decoding(thermodynamics=weight))


def test_other_tasks_have_none(engine):
    from rinalmo.tasks.sequence_tasks import SpliceSite

    with pytest.raises(InputError, match="--thermodynamics is only for secondary-structure, not for splice-site"):
        with_options(SpliceSite(), engine.spec, thermodynamics=0.5)
    with pytest.raises(InputError, match="--window is only for secondary-structure, not for splice-site"):
        with_options(SpliceSite(), engine.spec, window=100)


TEXTBOOK = {
    # Rfam RF00005, RF00167 (PDB 1Y26 and 1Y27) and the operator of the coat protein of phage MS2.
    "tRNA-Phe": (TRNA.sequence, TRNA.dot_bracket),
    "add riboswitch": (
        "CGCUUCAUAUAAUCCUAAUGAUAUGGUUUGGGAGUUUCUACCAAGAGCCUUAAACUCUUGAUUAUGAAGUG",
        "(((((((((...((((((.........))))))........((((((.......))))))..)))))))))",
    ),
    "xpt riboswitch": (
        "GGACAUAUAAUCGCGUGGAUAUGGCACGCAAGUUUCUACCGGGCACCGUAAAUGUCCGACUAUGUCC",
        "(((((((.....(((((.......)))))..........((((((.......))))))..)))))))",
    ),
    "MS2 hairpin": ("ACAUGAGGAUCACCCAUGU", "(((((.((....)))))))"),
}


@pytest.mark.parametrize("name", TEXTBOOK)
def test_textbook_structures(engine, name):
    known = Structure.from_dot_bracket(name, *TEXTBOOK[name])
    ((structure, _),) = fold_records([Record(name, "", known.sequence)], engine)
    assert pair_scores(known.pairs, structure.pairs).f1 >= 0.95


def test_the_default_is_one_for_all_ways_to_fold(engine, tmp_path):
    structure, found = folded(engine, Decoding())
    again, same = folded(engine, Decoding(thermodynamics=LEARNED))
    assert again == structure
    np.testing.assert_array_equal(found, same)
    assert abs(found - folded(engine, WITH)[1]).max() > 0.01
    assert predict(TRNA.sequence, engine)[0]["structure"] == structure.dot_bracket
    write_structures(tmp_path / "true.dbn", [TRNA])
    evaluation = evaluate(tmp_path / "true.dbn", engine)
    assert evaluation.threshold is None  # each RNA has its own
    assert evaluation.metrics["f1"].value == pytest.approx(pair_scores(TRNA.pairs, structure.pairs).f1)


def test_an_rna_alone_and_among_others(engine):
    sequences = [sequence for sequence, _ in TEXTBOOK.values()]
    records = [Record(str(n), "", sequence) for n, sequence in enumerate(sequences)]
    for record, (structure, found) in zip(records, fold_records(records, engine), strict=True):
        ((alone, matrix),) = fold_records([record], engine)
        assert alone == structure
        np.testing.assert_allclose(found, matrix, atol=1e-5)


def test_windows_are_combined_one_by_one(engine):
    _, found = folded(engine, Decoding(), window=64)
    ((_, first),) = fold_records([Record("start", "", TRNA.sequence[:64])], engine)
    i, j = 10, 24  # nearest to the middle of the first window
    assert found.matrix()[i, j] == pytest.approx(first[i, j], abs=1e-5)


def test_the_combiners_numbers(engine):
    """The acceptor stem of tRNA-Phe, and the helices P1 to P3 of the add riboswitch, as first measured."""
    _, found = folded(engine, Decoding())
    stem = [found[i, 71 - i] for i in range(7)]
    np.testing.assert_allclose(stem, [0.941, 0.992, 0.992, 0.990, 0.988, 0.979, 0.915], atol=0.01)
    known = Structure.from_dot_bracket("add", *TEXTBOOK["add riboswitch"])
    ((_, found),) = fold_records([Record("add", "", known.sequence)], engine)
    expected = [0.248, 0.845, 0.967, 0.956, 0.951, 0.957, 0.931, 0.827, 0.760]
    expected += [0.308, 0.411, 0.281, 0.416, 0.410, 0.334, 0.638, 0.731, 0.772, 0.803, 0.789, 0.678]
    np.testing.assert_allclose(found[tuple(np.array(known.pairs).T)], expected, atol=0.02)


class StoppedError(Exception):
    pass


def test_a_run_is_resumed_with_what_it_was_started_with(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "CHUNK_RECORDS", 1)
    (tmp_path / "in.fa").write_text(f">a\n{TRNA.sequence}\n>b\n{TRNA.sequence}\n")

    def stop(done):
        if done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        fold_file(tmp_path / "in.fa", tmp_path / "out.dbn", engine, progress=stop)
    with pytest.raises(InputError, match="cannot be resumed: decoding changed"):
        fold_file(tmp_path / "in.fa", tmp_path / "out.dbn", engine, WITH, resume=True)
    monkeypatch.setitem(sys.modules, "RNA", None)
    with pytest.raises(InputError, match="cannot be resumed: decoding changed"):
        fold_file(tmp_path / "in.fa", tmp_path / "out.dbn", engine, resume=True, note=lambda text: None)
    monkeypatch.delitem(sys.modules, "RNA")
    assert fold_file(tmp_path / "in.fa", tmp_path / "out.dbn", engine, resume=True) == 2


@pytest.fixture(scope="module")
def said(engine):
    """What the partner head says of a tRNA."""
    ((_, output),) = outputs([Example("tRNA-Phe", TRNA.sequence)], engine, task_of(engine.spec))
    return output


def combined(engine, said, thermodynamics):
    """The combiner's probabilities of the true pairs."""
    with torch.inference_mode():
        matrix = engine.model.head("combiner").matrix(evidence_from(said, TRNA.sequence, thermodynamics)).numpy()
    return matrix[tuple(np.array(TRNA.pairs).T)]


def test_the_combiner_heeds_thermodynamics(engine, said):
    known = ensemble(TRNA.sequence)
    true = set(TRNA.pairs)
    is_true = np.array([pair in true for pair in zip(known.i.tolist(), known.j.tolist(), strict=True)])
    means = []
    for factor in (0.02, 0.5, 1.0):
        values = np.where(is_true, known.values * np.float32(factor), known.values)
        means.append(combined(engine, said, replace(known, values=values)).mean())
    assert means[0] < means[1] < means[2]
    certain = np.where(is_true, np.float32(0.99), np.float32(0.001))
    assert combined(engine, said, replace(known, values=certain)).mean() > means[2] - 0.01


def test_the_combiner_heeds_the_model(engine, said):
    known = ensemble(TRNA.sequence)
    alone = combined(engine, said, known).mean()
    undecided = (said.exp() * 0.2 + 0.8 * torch.eye(len(said))).log()  # four fifths of it says: unpaired
    assert combined(engine, undecided, known).mean() < alone


def test_models_without_a_combiner(engine):
    heads = {name: options for name, options in engine.spec.heads.items() if name != "combiner"}
    spec = replace(engine.spec, heads=heads)
    published = replace(spec, heads={"structure_head": {}})
    for each, weight in ((engine.spec, LEARNED), (spec, DEFAULT_WEIGHT), (published, 0)):
        assert resolve_thermodynamics(each, None, warnings.warn) == weight
    with pytest.raises(CheckpointError, match="no combiner"):
        resolve_thermodynamics(spec, LEARNED, warnings.warn)


WITHOUT = """
import sys
sys.modules["RNA"] = None  # importing it fails, as where it is not installed
sys.argv = ["rinalmo", *sys.argv[1:]]
from rinalmo.cli import main
main()
"""


@pytest.mark.slow
def test_without_viennarna_the_model_folds_alone_and_says_so_once(engine, tmp_path):
    fasta = tmp_path / "in.fa"
    fasta.write_text("".join(f">{n}\n{TRNA.sequence}\n" for n in range(3)))
    command = [sys.executable, "-c", WITHOUT, "fold", str(fasta), "--precision", "fp32", "--threads", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stderr.count(WITHOUT_VIENNA) == 1
    alone = folded(engine, Decoding(thermodynamics=0))[0]
    assert result.stdout.count(alone.dot_bracket) == 3
    asked = subprocess.run([*command, "--thermodynamics", "0.5"], capture_output=True, text=True, check=False)
    assert (asked.returncode, "rinalmo[fold]" in asked.stderr) == (2, True)


def test_without_viennarna_in_python(engine, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "RNA", None)
    with pytest.warns(UserWarning, match="ViennaRNA is not installed"):
        structure, _ = folded(engine, Decoding())
    assert structure == folded(engine, Decoding(thermodynamics=0))[0]
    write_structures(tmp_path / "true.dbn", [TRNA])
    assert evaluate(tmp_path / "true.dbn", engine).notes == [WITHOUT_VIENNA]
    with pytest.raises(MissingExtraError):
        folded(engine, Decoding(thermodynamics=LEARNED))
