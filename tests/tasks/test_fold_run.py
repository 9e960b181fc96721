"""A run of structures that is stopped goes on, and ends with the bytes of one that was not."""

import random

import numpy as np
import pytest

from rinalmo.engine import jobs
from rinalmo.engine.engine import Engine
from rinalmo.engine.jobs import Job
from rinalmo.errors import InputError
from rinalmo.inference import fold
from rinalmo.inference.fold import Decoding, fold_file, fold_records
from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create


class StoppedError(Exception):
    pass


def stop(done):
    if done == 9:
        raise StoppedError


@pytest.fixture(scope="module")
def model():
    return create(ModelSpec(ModelConfig(32, 2, 2), heads={"structure_head": {}}), seed=1)


@pytest.fixture
def fasta(tmp_path, monkeypatch):
    """12 records of 1 to 40 nt, in chunks of two."""
    monkeypatch.setattr(jobs, "CHUNK_RECORDS", 2)
    chooser = random.Random(0)
    sequences = ["".join(chooser.choices("ACGU", k=chooser.randint(1, 40))) for _ in range(12)]
    (tmp_path / "in.fa").write_text("".join(f">s\n{sequence}\n" for sequence in sequences))
    return tmp_path / "in.fa"


def test_resume(model, fasta, tmp_path):
    engine = Engine(model, "fp32", threads=1)
    fold_file(fasta, tmp_path / "whole.dbn", engine, probabilities=tmp_path / "whole.npz")
    output, matrices = tmp_path / "out.dbn", tmp_path / "out.npz"
    with pytest.raises(StoppedError):
        fold_file(fasta, output, engine, probabilities=matrices, progress=stop)
    assert (Job(output).saved_count(), output.exists(), matrices.exists()) == (8, False, False)
    with pytest.raises(InputError, match="8 structures of an interrupted run are saved"):
        fold_file(fasta, output, engine, probabilities=matrices)
    with pytest.raises(InputError, match="cannot be resumed: decoding, probabilities changed"):
        fold_file(fasta, output, engine, Decoding("nested"), resume=True)
    told = []
    assert fold_file(fasta, output, engine, probabilities=matrices, resume=True, progress=told.append) == 12
    assert told == [9, 10, 11, 12]
    assert output.read_bytes() == (tmp_path / "whole.dbn").read_bytes()
    assert matrices.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not Job(output).folder.exists()


def test_other_processes_write_the_same(fasta, tmp_path, monkeypatch):
    monkeypatch.setattr(fold, "_PATIENCE", 0.0)
    fold_file(fasta, tmp_path / "one.dbn", Engine("nano-fold", "fp32", threads=1))
    fold_file(fasta, tmp_path / "two.dbn", Engine("nano-fold", "fp32", threads=2))
    assert (tmp_path / "two.dbn").read_bytes() == (tmp_path / "one.dbn").read_bytes()


def test_another_head_is_another_model(model, fasta, tmp_path):
    with pytest.raises(StoppedError):
        fold_file(fasta, tmp_path / "out.dbn", Engine(model, "fp32"), progress=stop)
    other = create(model.spec, seed=1)
    other.head("structure_head").prediction.bias.data += 1
    with pytest.raises(InputError, match="cannot be resumed: model changed"):
        fold_file(fasta, tmp_path / "out.dbn", Engine(other, "fp32"), resume=True)


def test_chunks_hold_what_folding_gives(model, fasta, tmp_path):
    from rinalmo.io.sequences import read_fasta
    from rinalmo.rna.formats import read_structures

    engine = Engine(model, "fp32", threads=1)
    expected = list(fold_records(read_fasta(fasta), engine))
    fold_file(fasta, tmp_path / "out.dbn", engine, probabilities=tmp_path / "out.npz")
    assert list(read_structures(tmp_path / "out.dbn")) == [structure for structure, _ in expected]
    with np.load(tmp_path / "out.npz") as found:
        assert len(found.files) == 12
        for (_, matrix), name in zip(expected, found.files, strict=True):
            np.testing.assert_allclose(found[name], matrix, atol=1e-3)
