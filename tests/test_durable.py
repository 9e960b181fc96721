"""Outputs on any file system: complete or absent, where links lead, with the permissions of a plain open."""

import contextlib
import errno
import logging
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rinalmo.errors import InputError
from rinalmo.io import files
from rinalmo.io.files import (
    atomic_write,
    atomic_write_path,
    check_path,
    destination,
    file_lock,
    is_temporary,
    lock_folder,
    publish_folder,
    temporary_folder,
)

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
UNSUPPORTED = [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EBADF]


@pytest.fixture(autouse=True)
def _fresh_warnings(monkeypatch):
    monkeypatch.setattr(files, "_warned", set())


@pytest.fixture
def umask():
    """A function that sets the umask, which is put back at the end."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def write(path, content=b"new"):
    with atomic_write(path) as file:
        file.write(content)


def write_path(path, content=b"new"):
    with atomic_write_path(path) as partial:
        partial.write_bytes(content)


WAYS = pytest.mark.parametrize("way", [write, write_path])


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# replaced or not at all


@WAYS
def test_a_file_is_replaced(tmp_path, way):
    (tmp_path / "out").write_bytes(b"old")
    way(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_an_error_leaves_the_old_file(tmp_path):
    (tmp_path / "out").write_bytes(b"old")
    for opened in (atomic_write, atomic_write_path):
        with pytest.raises(KeyError), opened(tmp_path / "out"):
            raise KeyError
    assert (tmp_path / "out").read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_two_writers_of_one_file_have_names_of_their_own(tmp_path):
    with atomic_write_path(tmp_path / "out") as first, atomic_write_path(tmp_path / "out") as second:
        assert first != second
        assert is_temporary(first)
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert (tmp_path / "out").read_bytes() == b"first"  # it is closed last
    assert names(tmp_path) == ["out"]


@WAYS
def test_what_a_killed_writer_left_is_no_obstacle(tmp_path, way):
    with contextlib.suppress(FileNotFoundError), atomic_write_path(tmp_path / "out") as partial:
        left = partial
        partial.unlink()
    left.write_bytes(b"half")
    way(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"new"
    files.clear_temporaries(tmp_path)
    assert names(tmp_path) == ["out"]


@WAYS
def test_a_name_as_long_as_the_file_system_takes(tmp_path, way):
    way(tmp_path / ("ä" * 120))
    assert names(tmp_path) == ["ä" * 120]


def test_errors_name_the_output(tmp_path):
    with pytest.raises(FileNotFoundError) as missing:
        write(tmp_path / "folder" / "out")
    assert missing.value.filename == str(tmp_path / "folder" / "out")


# links


@posix
@WAYS
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed_and_stays(tmp_path, way, exists):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if exists:
        (elsewhere / "target").write_bytes(b"old")
    (tmp_path / "middle").symlink_to("elsewhere/target")
    (tmp_path / "link").symlink_to(tmp_path / "middle")
    way(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "middle").is_symlink()
    assert (elsewhere / "target").read_bytes() == b"new"
    assert names(elsewhere) == ["target"]


@posix
def test_links_that_lead_nowhere_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to("missing/out")
    with pytest.raises(InputError, match=r"a: cannot be written \("):
        check_path(tmp_path / "a")
    with pytest.raises(InputError, match=r"missing: no such folder"):
        check_path(tmp_path / "c")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        write(tmp_path / "a")


@posix
def test_a_linked_folder_is_followed_and_stays(tmp_path):
    (tmp_path / "link").symlink_to("target")
    for content in ("old", "new"):
        folder = temporary_folder(tmp_path / "link")
        (folder / "file").write_text(content)
        publish_folder(folder, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target" / "file").read_text() == "new"
    assert names(tmp_path) == ["link", "target"]


def test_a_folder_that_is_not_empty_is_only_overwritten_if_asked(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(OSError):  # noqa: PT011  # each system has its own words
        publish_folder(temporary_folder(tmp_path / "out"), tmp_path / "out")
    assert names(tmp_path / "out") == ["mine"]


# streams


@posix
@WAYS
def test_a_pipe_is_written_to(tmp_path, way):
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    way(tmp_path / "pipe")
    reader.join()
    assert received == [b"new"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert names(tmp_path) == ["pipe"]


@posix
@WAYS
def test_a_device_is_written_to(tmp_path, way):
    way(Path("/dev/null"))
    (tmp_path / "link").symlink_to("/dev/null")
    way(tmp_path / "link")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert destination(tmp_path / "link") == tmp_path / "link"


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="this system has no /dev/stdout")
def test_standard_output_by_its_name(tmp_path):
    """A file that a shell has opened goes on to be that file."""
    code = "from pathlib import Path; from rinalmo.io.files import atomic_write\n"
    code += "with atomic_write(Path('/dev/stdout')) as file: file.write(b'x')"
    with (tmp_path / "log").open("ab") as log:
        log.write(b"before ")
        log.flush()
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
    assert (tmp_path / "log").read_bytes() == b"before x"


# permissions


@posix
@WAYS
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_a_plain_open(tmp_path, umask, way, mask):
    umask(mask)
    way(tmp_path / "out")
    (tmp_path / "plain").write_bytes(b"")
    assert mode(tmp_path / "out") == mode(tmp_path / "plain") == 0o666 & ~mask


@posix
@WAYS
def test_an_existing_file_keeps_its_permissions(tmp_path, umask, way):
    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "out").chmod(0o640)
    umask(0)
    way(tmp_path / "out")
    assert mode(tmp_path / "out") == 0o640


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_of_folders_follow_the_umask(tmp_path, umask, mask):
    umask(mask)
    folder = temporary_folder(tmp_path / "out")
    (folder / "file").write_text("")
    (folder / "file").chmod(0o600)
    publish_folder(folder, tmp_path / "out")
    assert (mode(tmp_path / "out"), mode(tmp_path / "out" / "file")) == (0o777 & ~mask, 0o666 & ~mask)


@pytest.mark.skipif(os.name == "nt" or not os.getuid(), reason="root may write everywhere")
@WAYS
def test_what_may_not_be_written_is_not(tmp_path, way):
    (tmp_path / "out").write_bytes(b"old")
    (tmp_path / "out").chmod(0o444)
    with pytest.raises(PermissionError):
        way(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"old"


# file systems that lack something


def failing(code, of=lambda handle: True, call=None):
    def fail(handle, *arguments):
        if of(handle):
            raise OSError(code, os.strerror(code))
        return call(handle, *arguments)

    return fail


def is_folder(handle):
    return stat.S_ISDIR(os.fstat(handle).st_mode)


@posix
@pytest.mark.parametrize("code", UNSUPPORTED)
def test_without_fsync_of_folders_there_is_one_warning(tmp_path, monkeypatch, caplog, code):
    monkeypatch.setattr(os, "fsync", failing(code, is_folder, os.fsync))
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert names(tmp_path) == ["a", "b"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert os.strerror(code) in record.getMessage()
    assert "\n" not in record.getMessage()


@posix
def test_a_folder_that_cannot_be_opened_is_not_synced(tmp_path, monkeypatch, caplog):
    real = os.open

    def refuse(path, flags, *arguments):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert len(caplog.records) == 1


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_data_that_did_not_get_on_the_disk_is_an_error(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", failing(code))
    with pytest.raises(OSError, match=os.strerror(code)):
        write(tmp_path / "a")
    assert names(tmp_path) == []


@posix
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO, errno.EPERM])
def test_without_locks_there_is_one_warning(tmp_path, monkeypatch, caplog, code):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", failing(code))
    for _ in range(2):
        with lock_folder(tmp_path / "work", tmp_path / "out", temporary=True) as is_held:
            assert not is_held
            (tmp_path / "work" / "file").write_text("")
            (tmp_path / "work" / "file").unlink()
    assert names(tmp_path) == []
    (record,) = caplog.records
    assert "no locks" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_held_folder_is_refused_and_reclaimed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from rinalmo.io.files import lock_folder\n"
        f"with lock_folder(Path({str(tmp_path / 'work')!r}), Path('out')): print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    with (
        pytest.raises(InputError, match="out: another process is writing this output"),
        lock_folder(tmp_path / "work", Path("out")),
    ):
        pass
    process.kill()
    process.wait()
    with lock_folder(tmp_path / "work", Path("out")) as is_held:
        assert is_held
    process.stdin.close()
    process.stdout.close()


def test_a_lock_is_waited_for(tmp_path):
    waited = threading.Event()
    order = []

    def wait():
        with file_lock(tmp_path / "lock", waited.set):
            order.append("second")

    with file_lock(tmp_path / "lock"):
        thread = threading.Thread(target=wait)
        thread.start()
        assert waited.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_a_place_that_cannot_be_locked_is_an_error_not_a_lack_of_locks(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), lock_folder(tmp_path / "file" / "work", Path("out")):
        pass
    assert not caplog.records
