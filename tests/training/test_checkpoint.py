"""Checkpoints against full disks, flipped bits, foreign files and kills while they are written."""

import errno
import hashlib
import io
import os
import pickle
import random
import shutil
import signal

import pytest
import torch

from rinalmo.errors import CheckpointError, TrainingError
from rinalmo.training.checkpoint import SUMS, Checkpoints, damage, listed, step_of
from rinalmo.training.distributed import Ranks

from ..killing import killing_at
from .processes import start


def tensors(value):
    return {"model.a": torch.full((40, 3), float(value)), "model.beta": torch.full((1,), float(value))}


@pytest.fixture
def checkpoints(tmp_path):
    found = Checkpoints(tmp_path / "checkpoints", Ranks())
    found.save(1, tensors(1), {"step": 1})
    return found


def newest_value(checkpoints):
    """What the newest whole checkpoint holds; all its tensors must be of one and the same save."""
    path, _ = checkpoints.newest()
    into = tensors(0)
    state = checkpoints.restore(path, into)
    assert {float(tensor.min()) for tensor in into.values()} == {float(tensor.max()) for tensor in into.values()}
    assert state["step"] == step_of(path) == int(into["model.beta"])
    return state["step"]


def test_what_was_saved_comes_back(checkpoints):
    checkpoints.save(2, tensors(2), {"step": 2, "loss": 0.1 + 0.2, "name": "µ"})
    into = tensors(0)
    path, notes = checkpoints.newest()
    assert checkpoints.restore(path, into) == {"step": 2, "loss": 0.1 + 0.2, "name": "µ"}
    assert all(torch.equal(into[name], tensor) for name, tensor in tensors(2).items())
    assert notes == []
    lines = (path / SUMS).read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} | {SUMS} == {file.name for file in path.iterdir()}
    for line in lines:  # as sha256sum -c reads it
        total, name = line.split("  ")
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == total


def test_no_checkpoint_yet(tmp_path):
    assert Checkpoints(tmp_path / "none", Ranks()).newest() == (None, [])


def test_the_last_and_the_best_stay(checkpoints):
    for step in range(2, 8):
        checkpoints.save(step, tensors(step), {"step": step})
        checkpoints.prune(2, best=3)
    assert [step_of(path) for path in listed(checkpoints.folder)] == [3, 6, 7]
    assert not list(checkpoints.folder.glob(".*"))


def test_every_flipped_bit_is_seen_and_the_previous_checkpoint_is_used(checkpoints):
    draw = random.Random(0)
    path = checkpoints.save(2, tensors(2), {"step": 2})
    files = sorted(path.iterdir())
    for _ in range(200):
        file = draw.choice(files)
        content = bytearray(file.read_bytes())
        at, bit = draw.randrange(len(content)), draw.randrange(8)
        content[at] ^= 1 << bit
        file.write_bytes(content)
        assert damage(path), (file.name, at, bit)
        content[at] ^= 1 << bit
        file.write_bytes(content)
    assert damage(path) is None
    file.write_bytes(content[:-1])
    found, notes = checkpoints.newest()
    assert step_of(found) == 1
    assert "step-00000002 is damaged" in notes[0]
    assert newest_value(checkpoints) == 1
    checkpoints.save(2, tensors(2), {"step": 2})  # the run comes by again
    assert newest_value(checkpoints) == 2


def test_a_damaged_checkpoint_is_named_with_its_file(checkpoints):
    path = listed(checkpoints.folder)[0]
    (path / "state.json").write_text("{}")
    assert damage(path) == "state.json not as written"
    (path / "state.json").unlink()
    assert damage(path) == "state.json not as written"
    with pytest.raises(CheckpointError, match=r"no checkpoint is intact: .*step-00000001 is damaged \(state\.json"):
        checkpoints.newest()


def test_tensors_of_another_model_are_refused(checkpoints):
    path, _ = checkpoints.newest()
    for foreign in ({"model.other": torch.zeros(3)}, {"model.a": torch.zeros(41, 3)}):
        with pytest.raises(CheckpointError, match="step-00000001: does not fit this run"):
            checkpoints.restore(path, foreign)


class Malicious:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_is_never_executed(checkpoints, tmp_path):
    """Even if whoever planted it also corrected the sums, as anyone can."""
    trap = tmp_path / "executed"
    buffer = io.BytesIO()
    torch.save({"model.a": Malicious(trap)}, buffer)
    path = listed(checkpoints.folder)[0]
    for name, content in ((".metadata", pickle.dumps(Malicious(trap))), ("__0_0.distcp", buffer.getvalue())):
        (path / name).write_bytes(content)
    assert damage(path)
    names = sorted(file.name for file in path.iterdir() if file.name != SUMS)
    sums = "".join(f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (path / SUMS).write_text(sums)
    assert newest_value(checkpoints) == 1
    assert not trap.exists()
    pickle.loads((path / ".metadata").read_bytes()).close()  # the trap does work
    assert trap.exists()


# a machine that fails


def failing_at(monkeypatch, number, code):
    """Let the number-th call that makes something durable fail: an fsync, a rename or a new folder."""
    calls = []

    def failing(call):
        def maybe(*arguments, **options):
            calls.append(call)
            if len(calls) == number:
                raise OSError(code, os.strerror(code))
            return call(*arguments, **options)

        return maybe

    for name in ("fsync", "rename", "replace", "mkdir"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    return calls


def complaint(checkpoints):
    """What saving step 2 raises, as text; empty if it is saved."""
    try:
        checkpoints.save(2, tensors(2), {"step": 2})
    except TrainingError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_at_any_moment_leaves_old_or_new(checkpoints, monkeypatch, code):
    complaints = []
    while True:
        with monkeypatch.context() as patch:
            calls = failing_at(patch, len(complaints) + 1, code)
            complaints.append(complaint(checkpoints))
        assert newest_value(checkpoints) in (1, 2)
        assert not list(checkpoints.folder.glob(".*"))
        if len(calls) < len(complaints):
            break
        shutil.rmtree(checkpoints.folder / "step-00000002", ignore_errors=True)
    assert newest_value(checkpoints) == 2
    failed = [text for text in complaints if text]
    assert len(failed) > 8
    assert all(f"step-00000002: cannot be written ({os.strerror(code)}" in text for text in failed)


@pytest.mark.posix_only
def test_a_disk_that_fills_up_while_tensors_are_written(checkpoints):
    """The kernel's own limit on file sizes fails the write call itself."""
    import resource  # not on Windows

    def save_with_little_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        with pytest.raises(TrainingError, match=r"step-00000002: cannot be written \(File too large\)"):
            checkpoints.save(2, tensors(2), {"step": 2})

    process = start(save_with_little_room)
    assert process.wait() == 0, process.error
    assert newest_value(checkpoints) == 1
    assert not list(checkpoints.folder.glob(".*"))


def test_a_folder_that_may_not_be_written(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(TrainingError, match="cannot be written"):
        Checkpoints(tmp_path / "checkpoints", Ranks()).save(1, tensors(1), {})


@pytest.mark.posix_only
def test_a_kill_at_any_moment_leaves_old_or_new(checkpoints):
    """Every step of saving and of removing what is no longer wanted."""
    for number in range(1, 100):

        def save(number=number):
            killing_at(number)
            checkpoints.save(2, tensors(2), {"step": 2})
            checkpoints.prune(1, best=None)

        code = start(save).wait()
        assert newest_value(checkpoints) in (1, 2)
        assert not list(checkpoints.folder.glob(".*"))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        shutil.rmtree(checkpoints.folder)
        checkpoints.save(1, tensors(1), {"step": 1})
    assert number > 12
    assert [step_of(path) for path in listed(checkpoints.folder)] == [2]
