"""Files of predictions: stopped and resumed, in shards, with the columns of a table."""

import csv
import random

import pytest

import rinalmo
from rinalmo.engine import jobs
from rinalmo.engine.engine import Engine
from rinalmo.engine.jobs import Job
from rinalmo.errors import InputError
from rinalmo.inference.predict import predict_file
from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create


class StoppedError(Exception):
    pass


def stop(done):
    if done == 9:
        raise StoppedError


@pytest.fixture(scope="module", params=["structure_head", "splice_site_head"])
def engine(request):
    return Engine(create(ModelSpec(ModelConfig(32, 2, 2), heads={request.param: {}}), seed=1), "fp32", threads=1)


@pytest.fixture(params=["in.fa", "in.csv"])
def source(request, tmp_path, monkeypatch):
    """12 records of 1 to 40 nt, in chunks of two."""
    monkeypatch.setattr(jobs, "CHUNK_RECORDS", 2)
    chooser = random.Random(0)
    sequences = ["".join(chooser.choices("ACGU", k=chooser.randint(1, 40))) for _ in range(12)]
    path = tmp_path / request.param
    if path.suffix == ".fa":
        path.write_text("".join(f">s{n}\n{sequence}\n" for n, sequence in enumerate(sequences)))
    else:
        rows = (f"s{n},{sequence},{n / 10},given\n" for n, sequence in enumerate(sequences))
        path.write_text("id,sequence,y,structure\n" + "".join(rows))
    return path


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_resume(engine, source, tmp_path, ending):
    keep, output, whole = source.suffix == ".csv", tmp_path / f"out.{ending}", tmp_path / f"whole.{ending}"
    predict_file(source, whole, engine, keep_columns=keep)
    with pytest.raises(StoppedError):
        predict_file(source, output, engine, keep_columns=keep, progress=stop)
    assert (Job(output).saved_count(), output.exists()) == (8, False)
    with pytest.raises(InputError, match="cannot be resumed: shard changed"):
        predict_file(source, output, engine, keep_columns=keep, shard="1/2", resume=True)
    done = []
    assert predict_file(source, output, engine, keep_columns=keep, resume=True, progress=done.append) == 12
    assert done == [9, 10, 11, 12]
    assert output.read_bytes() == whole.read_bytes()
    assert not Job(output).folder.exists()


def test_the_rows_of_the_function(engine, source, tmp_path, capsys):
    expected = rinalmo.predict(source, engine)
    assert predict_file(source, tmp_path / "out.csv", engine) == 12
    assert [row["id"] for row in rows(tmp_path / "out.csv")] == [row["id"] for row in expected]
    for row, written in zip(expected, rows(tmp_path / "out.csv"), strict=True):
        for name, value in row.items():
            assert float(written[name]) == pytest.approx(value, abs=1e-4) if name == "probability" else True
            assert isinstance(value, float) or written[name] == str(value)
    done = []
    assert predict_file(source, "-", engine, progress=done.append) == 12
    assert done == list(range(1, 13))
    assert capsys.readouterr().out == (tmp_path / "out.csv").read_text()


def test_shards_together_are_the_whole(engine, source, tmp_path):
    keep = source.suffix == ".csv"
    predict_file(source, tmp_path / "whole.csv", engine, keep_columns=keep)
    whole = rows(tmp_path / "whole.csv")
    if keep:
        renamed = "structure" if "splice_site" in whole[0] else "structure_given"
        assert [*whole[0]][-2:] == ["y", renamed]
    for index in (1, 2, 3):
        output = tmp_path / f"{index}.csv"
        assert predict_file(source, output, engine, keep_columns=keep, shard=f"{index}/3") == 4
        for row, expected in zip(rows(output), whole[index - 1 :: 3], strict=True):
            assert {n: v for n, v in row.items() if n != "probability"} == {
                n: v for n, v in expected.items() if n != "probability"
            }
            assert float(row.get("probability", 0)) == pytest.approx(float(expected.get("probability", 0)), abs=1e-5)
    with pytest.raises(InputError, match="--shard 13/13 is empty"):
        predict_file(source, tmp_path / "out.csv", engine, shard="13/13")


def test_what_cannot_be_predicted(engine, source, tmp_path):
    for options in ({"output": tmp_path / "out.txt"}, {"output": tmp_path / "no" / "out.csv"}):
        with pytest.raises(InputError, match=r"cannot write '\.txt'|no such folder"):
            predict_file(source, engine=engine, **options)
    with pytest.raises(InputError, match="cannot be combined"):
        predict_file(source, tmp_path / "out.csv", engine, resume=True, restart=True)
    if source.suffix == ".fa":
        with pytest.raises(InputError, match="--keep-columns needs a table"):
            predict_file(source, tmp_path / "out.csv", engine, keep_columns=True)
