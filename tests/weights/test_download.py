"""Downloads against a real server on 127.0.0.1 that can misbehave in every way met in the wild."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rinalmo.cli.options import set_quiet
from rinalmo.errors import DownloadError
from rinalmo.weights import download
from rinalmo.weights.download import SourceUnavailable, fetch

BODY = bytes(range(256)) * 1200  # 307,200 bytes: more than one chunk
OTHER = BODY[::-1][: len(BODY) - 7]
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


def leftovers(target: Path) -> set[str]:
    return {path.name.removeprefix(target.name) for path in target.parent.iterdir()}


def quick(url: str, target: Path, **options: object) -> Path:
    return fetch(url, target, **({"backoff": 0.01, "progress": lambda done, total: None} | options))  # type: ignore[arg-type]


# A good line


def test_a_file_arrives_whole_and_leaves_no_part(server: Any, target: Path) -> None:
    assert quick(server.url, target, size=len(BODY), sha256=SUM) == target
    assert target.read_bytes() == BODY
    assert leftovers(target) == {"", ".lock", ".verified"}


def test_sums_and_sizes_are_optional(server: Any, target: Path) -> None:
    quick(server.url, target)
    assert target.read_bytes() == BODY


def test_a_body_without_length_is_checked_by_its_sum(server: Any, target: Path) -> None:
    server.length = False
    assert quick(server.url, target, sha256=SUM).read_bytes() == BODY


def test_an_empty_file_arrives(server: Any, target: Path) -> None:
    server.replace(b"")
    assert quick(server.url, target).read_bytes() == b""


def test_a_present_file_is_verified_without_the_network(server: Any, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(BODY)
    quick(server.url, target, size=len(BODY), sha256=SUM)
    assert server.seen == []


def test_redirects_are_followed_with_the_range(server: Any, target: Path) -> None:
    server.will(cut=1000)
    server.will(status=302, headers={"Location": "/elsewhere"})
    assert quick(server.url, target).read_bytes() == BODY
    assert server.seen[2]["Range"] == "bytes=1000-"


# A bad line


def test_a_dropped_connection_is_resumed_where_it_broke(server: Any, target: Path) -> None:
    server.will(cut=100_000)
    quick(server.url, target, sha256=SUM)
    assert target.read_bytes() == BODY
    assert (server.seen[1]["Range"], server.seen[1]["If-Range"]) == ("bytes=100000-", '"v1"')
    assert server.sent == len(BODY)


def test_the_next_call_resumes_what_the_last_one_kept(server: Any, target: Path) -> None:
    server.will(cut=100_000)
    with pytest.raises(
        SourceUnavailable, match="closed after 100000 of 307200 bytes; the part already downloaded is kept"
    ):
        quick(server.url, target, attempts=1)
    assert not target.exists()
    assert part_of(target).read_bytes() == BODY[:100_000]
    assert quick(server.url, target).read_bytes() == BODY
    assert server.sent == len(BODY)


def test_a_part_that_lacks_only_its_rename_needs_no_request(server: Any, target: Path) -> None:
    server.will(cut=100_000)
    with pytest.raises(SourceUnavailable):
        quick(server.url, target, attempts=1)
    part_of(target).write_bytes(BODY)
    quick(server.url, target, sha256=SUM)
    assert len(server.seen) == 1


def test_a_server_without_ranges_sends_everything_again(server: Any, target: Path) -> None:
    server.ranges = False
    server.will(cut=100_000)
    assert quick(server.url, target).read_bytes() == BODY
    assert server.sent == 100_000 + len(BODY)


def test_tries_that_bring_something_do_not_count(server: Any, target: Path) -> None:
    server.will(cut=50_000, times=5)
    assert quick(server.url, target, attempts=2).read_bytes() == BODY


def test_tries_that_bring_nothing_do_count(server: Any, target: Path) -> None:
    server.will(cut=0, times=9)
    with pytest.raises(SourceUnavailable, match="closed after 0 of 307200"):
        quick(server.url, target, attempts=3)
    assert len(server.seen) == 3


def test_a_silent_connection_times_out_and_is_resumed(server: Any, target: Path) -> None:
    server.will(cut=100_000, stall=True)
    assert quick(server.url, target, timeout=0.3).read_bytes() == BODY
    assert server.seen[1]["Range"] == "bytes=100000-"


def test_a_connection_left_open_after_the_last_byte_is_not_waited_for(server: Any, target: Path) -> None:
    server.length = False
    server.will(stall=True)
    start = time.monotonic()
    assert quick(server.url, target, size=len(BODY)).read_bytes() == BODY
    assert time.monotonic() - start < 5


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, 120_000), max_size=4), ranges=st.booleans(), etag=st.booleans(), summed=st.booleans()
)
def test_whatever_breaks_the_file_is_whole(
    server: Any, tmp_path_factory: pytest.TempPathFactory, cuts: list[int], ranges: bool, etag: bool, summed: bool
) -> None:
    server.ranges, server.etag = ranges, '"v1"' if etag else ""
    server.script.clear()  # what the last example did not need
    for cut in cuts:
        server.will(cut=cut)
    target = tmp_path_factory.mktemp("any") / "model.pt"
    assert quick(server.url, target, sha256=SUM if summed else None, backoff=0).read_bytes() == BODY


# A file that changes


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("new", [OTHER, BODY[::-1]], ids=["shorter", "same size"])
def test_a_file_changed_in_between_is_never_mixed(server: Any, target: Path, honest: bool, new: bytes) -> None:
    server.honours_if_range = honest
    server.will(cut=100_000)
    server.will(body=new)
    assert quick(server.url, target).read_bytes() == new


def test_another_size_tells_a_change_where_there_is_no_etag(server: Any, target: Path) -> None:
    server.body, server.etag = OTHER, ""
    server.will(cut=100_000)
    server.will(body=BODY)
    assert quick(server.url, target, sha256=SUM).read_bytes() == BODY
    assert server.seen[1]["Range"] == "bytes=100000-"


def test_a_range_that_was_not_asked_for_is_not_appended(server: Any, target: Path) -> None:
    wrong = {"Content-Range": f"bytes 99999-{len(BODY) - 1}/{len(BODY)}"}
    server.will(cut=100_000)
    server.will(headers=wrong)
    assert quick(server.url, target).read_bytes() == BODY
    assert "Range" not in server.seen[2]


def test_without_validator_and_sum_nothing_is_resumed(server: Any, target: Path) -> None:
    server.etag = ""
    server.will(cut=100_000)
    server.will(body=OTHER)
    assert quick(server.url, target).read_bytes() == OTHER
    assert "Range" not in server.seen[1]


def test_weak_etags_are_no_validator(server: Any, target: Path) -> None:
    server.etag = 'W/"v1"'
    server.will(cut=100_000)
    quick(server.url, target)
    assert "Range" not in server.seen[1]


def test_a_part_beyond_the_end_is_dropped(server: Any, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(b"x" * (len(BODY) + 5))
    state = {"url": server.url, "validator": server.etag, "total": None}
    target.with_name("model.pt.part.json").write_text(json.dumps(state))
    assert quick(server.url, target).read_bytes() == BODY
    assert server.seen[0]["Range"] == f"bytes={len(BODY) + 5}-"
    assert "Range" not in server.seen[1]


@pytest.mark.parametrize("state", ["", "[]", '{"url": "http://elsewhere/", "validator": "\\"v1\\""}'])
def test_a_foreign_part_is_dropped(server: Any, target: Path, state: str) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(b"x" * 1000)
    target.with_name("model.pt.part.json").write_text(state)
    assert quick(server.url, target).read_bytes() == BODY


# A server that refuses


def test_a_missing_file_is_final(server: Any, target: Path) -> None:
    server.will(status=404)
    with pytest.raises(SourceUnavailable, match=r"model\.pt: HTTP 404") as caught:
        quick(server.url, target)
    assert caught.value.status == 404
    assert len(server.seen) == 1


def test_a_server_error_passes(server: Any, target: Path) -> None:
    server.will(status=500)
    server.will(status=503, headers={"Retry-After": "0"})
    assert quick(server.url, target).read_bytes() == BODY


def test_the_wait_that_the_server_asks_for_is_kept(server: Any, target: Path) -> None:
    server.will(status=429, headers={"Retry-After": "1"})
    start = time.monotonic()
    quick(server.url, target)
    assert time.monotonic() - start >= 1


def test_a_web_page_is_not_a_model(server: Any, target: Path) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(SourceUnavailable, match="web page"):
        quick(server.url, target)
    assert not target.exists()
    assert not part_of(target).exists()


def test_an_empty_answer_is_not_a_model(server: Any, target: Path) -> None:
    server.will(status=204)
    with pytest.raises(SourceUnavailable, match="HTTP 204"):
        quick(server.url, target)


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/model.pt", "/etc/hostname"])
def test_only_http_is_fetched(server: Any, target: Path, address: str) -> None:
    with pytest.raises(DownloadError, match="only http"):
        quick(address, target)
    server.will(status=302, headers={"Location": address}, times=2)
    if "://" in address:
        with pytest.raises(SourceUnavailable, match=r"not allowed|unknown url type|302"):
            quick(server.url, target)
    assert not target.exists()


def test_no_listener_fails_at_once(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(SourceUnavailable, match=f"127.0.0.1:{port}.*refused"):
        fetch(f"http://127.0.0.1:{port}/model.pt", target, backoff=30)
    assert time.monotonic() - start < 5


# A file that is not the published one


def test_a_wrong_sum_names_both_and_keeps_nothing(server: Any, target: Path) -> None:
    server.replace(OTHER)
    with pytest.raises(DownloadError, match=f"{hashlib.sha256(OTHER).hexdigest()}.*{SUM}") as caught:
        quick(server.url, target, sha256=SUM)
    assert not isinstance(caught.value, SourceUnavailable)
    assert leftovers(target) == {".lock"}


def test_a_short_file_is_refused_before_it_is_read(server: Any, target: Path) -> None:
    server.replace(OTHER)
    with pytest.raises(DownloadError, match=f"offers {len(OTHER)} bytes.*has {len(BODY)}"):
        quick(server.url, target, size=len(BODY))
    assert not target.exists()


# What the user sees


def test_progress_counts_up_to_the_total(server: Any, target: Path) -> None:
    server.will(cut=100_000)
    seen: list[tuple[int, int | None]] = []
    quick(server.url, target, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, len(BODY))
    assert seen == sorted(seen)
    assert seen[-1] == (len(BODY), len(BODY))


def test_without_a_terminal_progress_is_a_few_plain_lines(
    server: Any, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(server.url, target)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0] == "downloading model.pt: 0.0 of 0.3 MB (0 %)"
    assert lines[-1] == "downloading model.pt: 0.3 of 0.3 MB (100 %)"
    assert len(lines) == 2


def test_progress_tells_the_time_left_and_is_quiet_if_asked(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_SECONDS", 0.0)
    fetch(server.url, tmp_path / "a.pt")
    assert re.search(r"of 0\.3 MB \(\d+ %\), 0 s left\n", capsys.readouterr().err)
    set_quiet(None, None, True)
    try:
        fetch(server.url, tmp_path / "b.pt")
    finally:
        set_quiet(None, None, False)
    assert capsys.readouterr().err == ""


@pytest.mark.posix_only
def test_on_a_terminal_progress_is_a_bar(server: Any, target: Path) -> None:
    import pty  # not on Windows

    reader, writer = pty.openpty()
    code = f"import pathlib, rinalmo.weights.download as d; d.fetch({server.url!r}, pathlib.Path({str(target)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=writer)
    assert process.wait(20) == 0
    shown = os.read(reader, 65536).decode()
    os.close(writer)
    os.close(reader)
    assert "model.pt" in shown
    assert "307.2/307.2 kB" in shown
