"""Trackers get the lines of log.jsonl, and a resumed run continues the run that they know."""

import shutil
import struct
import sys

import pytest

from rinalmo.errors import MissingExtraError
from rinalmo.training.pretrain import pretrain
from rinalmo.training.run_folder import read_log


@pytest.fixture(autouse=True)
def local(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def train_in_two_parts(make_recipe, run, tracker):
    """A run of six steps, whose last two are repeated as after a kill; returns the lines of its log without times."""
    for steps in (4, 6, 6):
        changes = {"logging__tracker": tracker, "logging__project": "rna", "logging__every": 1}
        pretrain(make_recipe(train__max_steps=steps, **changes), run, resume=True)
        if steps == 6:
            shutil.rmtree(run / "checkpoints" / "step-00000006")
    return read_log(run)


def offline_records(path):
    """The records of a .wandb file, a LevelDB log with a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, part = path.read_bytes(), 7, b""
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(part)
            part = b""


def test_wandb_has_every_line_of_the_log_once(make_recipe, tmp_path):
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    lines = train_in_two_parts(make_recipe, run, "wandb")
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    records = [record for path in files for record in offline_records(path)]
    runs = [record.run for record in records if record.HasField("run")]
    assert {(r.project, r.display_name, r.run_id) for r in runs} == {("rna", "run", (run / "tracker_id").read_text())}
    assert "train.max_steps" in {item.key for item in runs[0].config.update}
    history = [record.history for record in records if record.HasField("history")]
    sent = {(part.step.num, ".".join(item.nested_key)) for part in history for item in part.item}
    assert {(line["step"], name) for line in lines for name in line if name != "step"} <= sent
    assert [part.step.num for part in history] == sorted({line["step"] for line in lines})


def test_trackio_has_every_line_of_the_log_once(make_recipe, tmp_path):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run = tmp_path / "run"
    lines = train_in_two_parts(make_recipe, run, "trackio")
    logged = SQLiteStorage.get_logs("rna", f"run-{(run / 'tracker_id').read_text()}")
    assert [set(line) - {"timestamp"} for line in logged] == [set(line) for line in lines]
    assert [line["step"] for line in logged] == [line["step"] for line in lines]


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_missing_tracker_is_named_before_anything_is_written(make_recipe, tmp_path, monkeypatch, tracker):
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(MissingExtraError, match=rf"logging.tracker {tracker} .*rinalmo\[{tracker}\]"):
        pretrain(make_recipe(logging__tracker=tracker), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()
