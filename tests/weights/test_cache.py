"""The disk side of downloads: present files, full disks, several processes, and the end of one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rinalmo.errors import DownloadError
from rinalmo.io.files import file_sha256
from rinalmo.weights.download import fetch, verify

BODY = bytes(range(256)) * 1200  # 307,200 bytes: more than one chunk
SUM = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server(file_server: Any) -> Any:
    file_server.body = BODY
    return file_server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "giga" / "model.pt"


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def quick(url: str, target: Path, **options: object) -> Path:
    return fetch(url, target, **({"backoff": 0.01, "progress": lambda done, total: None} | options))  # type: ignore[arg-type]


def run(server: Any, target: Path) -> subprocess.Popen[bytes]:
    code = (
        "from pathlib import Path; from rinalmo.weights.download import fetch;"
        f"fetch({server.url!r}, Path({str(target)!r}), sha256={SUM!r}, backoff=.01)"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)


def until(condition: object, seconds: float = 8.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


# A file that is there


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_present_file_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(BODY[:-7])
    with pytest.raises(
        DownloadError, match=f"{len(BODY) - 7} bytes, but the published file has {len(BODY)}; delete it"
    ):
        verify(tmp_path / "model.pt", size=len(BODY))


def test_a_present_file_is_hashed_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(BODY)
    verify(path, sha256=SUM)
    before = path.stat()
    path.write_bytes(BODY[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    verify(path, sha256=SUM)  # same size and time: not read again, which is the point of the record
    path.write_bytes(BODY[::-1] + b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DownloadError, match="delete it"):
        verify(path, sha256=SUM)
    path.write_bytes(BODY[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(DownloadError, match=f"sha256 is {hashlib.sha256(BODY[::-1]).hexdigest()}.*{SUM}; delete it"):
        verify(path, sha256=SUM)


def test_a_record_of_another_sum_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(BODY)
    verify(path, sha256=SUM)
    with pytest.raises(DownloadError, match="0000"):
        verify(path, sha256="0" * 64)


# A disk that refuses


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_line(server: Any, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).symlink_to("/dev/full")
    state = {"url": server.url, "validator": server.etag, "total": None}
    target.with_name("model.pt.part.json").write_text(json.dumps(state))
    with pytest.raises(DownloadError, match=r"model\.pt\.part: No space left on device; free some space"):
        quick(server.url, target)
    assert not target.exists()


def test_a_file_larger_than_the_disk_is_refused_before_it_is_written(server: Any, target: Path) -> None:
    server.will(headers={"Content-Length": str(10**18)})
    with pytest.raises(DownloadError, match=f"{10**18} bytes remain to be downloaded, but only"):
        quick(server.url, target)
    assert part_of(target).stat().st_size == 0


def test_a_folder_that_cannot_be_made_is_one_line(server: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="choose another folder"):
        quick(server.url, tmp_path / "file" / "model.pt")


# Several processes, and the end of one


@pytest.mark.posix_only
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_an_ended_process_leaves_a_part_to_resume(server: Any, target: Path, name: str) -> None:
    server.will(cut=100_000, stall=True)
    process = run(server, target)
    until(lambda: part_of(target).exists() and part_of(target).stat().st_size > 50_000)
    process.send_signal(getattr(signal, name))
    process.communicate()
    kept = part_of(target).stat().st_size
    assert kept == 100_000 or name == "SIGKILL"
    assert not target.exists()
    assert quick(server.url, target, sha256=SUM).read_bytes() == BODY  # and the dead process's lock does not hold
    assert server.seen[1]["Range"] == f"bytes={kept}-"


def test_processes_that_want_one_file_share_one_download(server: Any, target: Path) -> None:
    server.will(cut=100_000, stall=True)
    first = run(server, target)
    until(lambda: part_of(target).exists() and part_of(target).stat().st_size > 50_000)
    others = [run(server, target) for _ in range(2)]
    for other in others:
        assert other.stderr is not None
        assert b"waiting for another process" in other.stderr.readline()
    server.closing.set()
    assert [process.wait(20) for process in (first, *others)] == [0, 0, 0]
    assert target.read_bytes() == BODY
    assert server.sent == len(BODY)
    for process in (first, *others):
        process.communicate()


def test_threads_that_want_one_file_share_one_download(server: Any, target: Path) -> None:
    threads = [threading.Thread(target=quick, args=(server.url, target)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert target.read_bytes() == BODY
    assert server.sent == len(BODY)
