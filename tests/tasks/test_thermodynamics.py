"""Folding with thermodynamics weighed in: the weighted mean of two probabilities, the same in fold and evaluate."""

import numpy as np
import pytest

from rinalmo.errors import InputError
from rinalmo.inference.engine import Engine
from rinalmo.metrics import pair_scores
from rinalmo.rna.fasta import Record
from rinalmo.rna.formats import write_structures
from rinalmo.rna.structure import Structure
from rinalmo.rna.thermodynamics import pair_probabilities
from rinalmo.tasks.evaluation import evaluate
from rinalmo.tasks.fold_file import Decoding, fold_records
from rinalmo.tasks.secondary_structure import WITH_THERMODYNAMICS

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
    assert structure == folded(engine, Decoding("nested", WITH_THERMODYNAMICS, thermodynamics=WEIGHT))[0]


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
    assert found.threshold == WITH_THERMODYNAMICS
    assert found.figures["f1"].value == pytest.approx(pair_scores(TRNA.pairs, structure.pairs).f1)


def test_all_the_weight_is_thermodynamics_alone(engine):
    _, found = folded(engine, Decoding(thermodynamics=1.0))
    np.testing.assert_allclose(found, pair_probabilities(TRNA.sequence), atol=1e-6)


def test_a_weight_beyond_its_range_is_refused(engine):
    for weight in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="the weight of thermodynamics is from 0 to 1, not"):
            folded(engine, Decoding(thermodynamics=weight))


def test_other_tasks_have_none(engine):
    from rinalmo.tasks.classification import SpliceSite
    from rinalmo.tasks.secondary_structure import as_asked

    with pytest.raises(InputError, match="only secondary-structure has thermodynamics, not splice-site"):
        as_asked(SpliceSite(), engine.spec, None, 0.5)
    with pytest.raises(InputError, match="only secondary-structure has windows, not splice-site"):
        as_asked(SpliceSite(), engine.spec, 100, None)
