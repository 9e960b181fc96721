"""The API by gradio_client against a real server: the right numbers, clear errors, several users, nothing outside."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

import httpx
import numpy as np
import pytest

import rinalmo
from rinalmo.inference.fold import Decoding
from rinalmo.inference.variants import saturation

# The server of these tests hears SIGUSR1, and takes ten seconds to start.
pytestmark = [pytest.mark.posix_only, pytest.mark.slow]

TRNA = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"
ROOT = Path(__file__).parents[2]
ENDPOINTS = ("/fill_mask", "/fold", "/embed", "/variants")

BAD = {
    "protein": ("MKTEFLPQ", "looks like a protein"),
    "empty": (" \n", "there is no sequence yet; paste an RNA"),
    "1 MB": ("A" * 2**20, "has 1,048,576 characters, but the web app is limited to 500,000"),
    "html": ("<script>alert(1)</script>", "position 1: '<' is not a nucleotide code"),
    "nul": ("AC\0GU", "position 3: '\\x00' is not a nucleotide code"),
    "100 kb": ("ACGU" * 25_000, "has 100,000 nt, but the limit is"),
    "empty record": (">a\n>b\nACGU", "record a: no sequence"),
    "no name": (">\nACGU", "record 1: the header has no name"),
    "a number": (5, "expected a text, not a int"),
}


def test_fill_mask(client):
    masked = "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU"
    found = client.predict(masked, api_name="/fill_mask")
    (expected,) = rinalmo.fill_mask(masked)[0]
    assert [c["token_str"] for c in found["masks"][0]] == [c.token_str for c in expected]
    assert [c["score"] for c in found["masks"][0]] == pytest.approx([c.score for c in expected], abs=1e-6)
    assert "probabilities" not in found
    found = client.predict("GGUC<mask>CUC<mask>", 2, True, api_name="/fill_mask")
    assert [(mask[0]["position"], len(mask)) for mask in found["masks"]] == [(5, 2), (9, 2)]
    assert np.sum(found["probabilities"], axis=1) == pytest.approx(np.ones(9), abs=1e-6)
    # A masked position is what the other endpoint says of it, over the four letters.
    scores = {c.token_str: c.score for c in rinalmo.fill_mask("GGUC<mask>CUC<mask>", top_k=26)[0][0]}
    four = np.array([scores[letter] for letter in "ACGU"])
    assert found["probabilities"][4] == pytest.approx(four / four.sum(), abs=1e-5)


def test_fold(client):
    found = client.predict(f">tRNA-Phe yeast\n{TRNA}", api_name="/fold")
    (expected,) = rinalmo.fold(TRNA)
    assert found["dot_bracket"] == expected.dot_bracket
    assert [(i - 1, j - 1) for i, j, _ in found["pairs"]] == list(expected.pairs)
    assert found["dbn"] == f">tRNA-Phe\n{TRNA}\n{expected.dot_bracket} ({expected.energy:.2f})\n"
    assert (found["energy"], found["confidence"]) == pytest.approx((expected.energy, expected.confidence), abs=1e-4)
    assert found["ct"].splitlines()[0].split() == ["76", "tRNA-Phe"]
    nested = client.predict(TRNA, "nested", api_name="/fold")
    assert set(nested["dot_bracket"]) <= set(".()")
    both = client.predict(TRNA, None, 0.5, api_name="/fold")
    (expected,) = rinalmo.fold(TRNA, decoding=Decoding(thermodynamics=0.5))
    assert both["dot_bracket"] == expected.dot_bracket
    assert both["pairs"] != found["pairs"]


def test_embed(client):
    found = client.predict(">a first\nACGUGGG\n>b\nggtaaacc", api_name="/embed")
    assert (found["ids"], found["descriptions"], found["lengths"]) == (["a", "b"], ["first", ""], [7, 8])
    assert np.array(found["embeddings"]) == pytest.approx(rinalmo.embed(["ACGUGGG", "GGUAAACC"]), abs=1e-5)
    assert client.predict("ACGU\nGGGG\n", api_name="/embed")["ids"] == ["1", "2"]


@pytest.mark.parametrize("method", ["masked-marginals", "wild-type-marginals"])
def test_variants(client, method):
    found = client.predict("GCGGNUUUAGC", method, api_name="/variants")
    scores = np.array([[np.nan if s is None else s for s in row] for row in found["scores"]])
    assert scores == pytest.approx(saturation("GCGGNUUUAGC", method=method), abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(served, client, bad):
    text, message = BAD[bad]
    log = served.log.read_text()
    for endpoint in ENDPOINTS:
        started = time.monotonic()
        with pytest.raises(Exception, match=r".") as caught:
            client.predict(text, api_name=endpoint)
        assert message in str(caught.value), endpoint
        assert time.monotonic() - started < 5
    assert served.log.read_text() == log


@pytest.mark.parametrize(
    ("endpoint", "arguments", "message"),
    [
        ("/fill_mask", ("ACGU",), "has no <mask>"),
        ("/fill_mask", ("<mask>" * 21,), "there are 21 masks, but the web app is limited to 20"),
        ("/fill_mask", ("A<mask>", 0), "top_k is 0"),
        ("/fill_mask", ("A<mask>", "many"), "top_k is a str"),
        ("/fill_mask", ("A<mask>", True), "top_k is a bool; give a whole number"),
        ("/fold", (">a\nACGU\n>b\nACGU",), "has 2 sequences, but only one is allowed"),
        ("/fold", ("ACGU", "best"), "best"),
        ("/fold", ("ACGU", None, 2), "the weight of thermodynamics is 2; it must be between 0 and 1"),
        ("/fold", ("ACGU", None, "half"), "thermodynamics is a str; give a number"),
        ("/variants", ("ACGU", "pll"), "method 'pll' is not available here"),
        ("/embed", ("A\n" * 501,), "up to 500 sequences"),
        ("/embed", ((("A" * 2000) + "\n") * 51,), "100,000 nt together"),
    ],
)
def test_limits(client, endpoint, arguments, message):
    with pytest.raises(Exception, match=r".") as caught:
        client.predict(*arguments, api_name=endpoint)
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_short_question_does_not_wait_for_a_long_one(served, client):
    from gradio_client import Client

    other = Client(served.address, verbose=False)
    long = client.submit((TRNA * 2)[:140], api_name="/variants")
    while long.status().code.name != "PROCESSING":
        time.sleep(0.05)
    assert other.predict("A<mask>", api_name="/fill_mask")["masks"]
    assert not long.done()
    assert len(long.result(60)["scores"]) == 140
    other.close()


@pytest.mark.slow
def test_bad_requests_fail_alone(served, client):
    """Good and bad questions at once, among them some that no client of ours would send."""
    good = [client.submit("GGUC<mask>CU", api_name="/fill_mask") for _ in range(4)]
    bad = [client.submit(BAD[name][0], api_name="/embed") for name in BAD]
    for data in ([], [None], [{"a": 1}], ["A<mask>", 5, "perhaps"], ["A"] * 50):
        for number in (0, 1, 10**6, -1):
            answer = httpx.post(
                f"{served.address}/gradio_api/queue/join", json={"data": data, "fn_index": number, "session_hash": "x"}
            )
            assert answer.status_code < 600
    good += [client.submit("GGUC<mask>CU", api_name="/fill_mask") for _ in range(4)]
    (expected,) = rinalmo.fill_mask("GGUC<mask>CU")[0]
    for each in good:
        scores = [candidate["score"] for candidate in each.result(60)["masks"][0]]
        assert scores == pytest.approx([candidate.score for candidate in expected], abs=1e-6)
    for each, (_, message) in zip(bad, BAD.values(), strict=True):
        assert message in str(each.exception(60))


def ask(address, count):
    """Ask a long question so many times as pages do; gives the streams that say they are open, and the last answer."""
    config = httpx.get(f"{address}/config").json()
    number = next(each["id"] for each in config["dependencies"] if each["api_name"] == "variants")
    visitor, streams, answer = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None)), [], None
    for session in range(count):
        data = {"data": [(TRNA * 3)[:200], "masked-marginals"], "fn_index": number, "session_hash": f"page{session}"}
        streams.append(visitor.stream("GET", f"{address}/gradio_api/heartbeat/page{session}"))
        streams[-1].__enter__()
        answer = visitor.post(f"{address}/gradio_api/queue/join", json=data)
        if answer.status_code != 200:
            break
    return streams, answer


@pytest.mark.slow
def test_who_leaves_is_not_computed_for(served, client):
    """Four long questions take all places; their visitors leave, and the next one is answered soon."""
    streams, _ = ask(served.address, 4)
    time.sleep(1)
    for stream in streams:
        stream.__exit__(None, None, None)
    before = served.cpu_seconds()
    client.predict("A<mask>", api_name="/fill_mask")
    assert served.cpu_seconds() - before < 8  # to their ends they take 80


@pytest.mark.slow
def test_who_leaves_is_forgotten(served, until):
    from gradio_client import Client

    visitors = [Client(served.address, verbose=False) for _ in range(3)]
    for visitor in visitors:
        visitor.predict("A<mask>", api_name="/fill_mask")
    sessions = {visitor.session_hash for visitor in visitors}
    assert sessions <= served.sessions()
    for visitor in visitors:
        visitor.close()
    until(lambda: not sessions & served.sessions())


def raw(address, head, body=b"", seconds=5):
    """The status of an answer to bytes as they are, and how long it took."""
    place = urlparse(address)
    started = time.monotonic()
    with socket.create_connection((place.hostname, place.port), timeout=seconds) as connection:
        connection.sendall(head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body)
        status = int(connection.recv(100).split()[1])
    return status, time.monotonic() - started


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (b"Content-Length: 999999999999", b"", 413),
        (b"Content-Length: 4000001", b"", 413),
        (b"Transfer-Encoding: chunked", b"", 411),
        (b"Content-Type: application/json\nContent-Length: 9", b"{garbage!", 422),
        (b"Content-Type: application/json\nContent-Length: 200000", b"[" * 200_000, 400),
        (b"Content-Type: application/json\nContent-Length: 200000", b"[" * 100_000 + b"]" * 100_000, 400),
    ],
    ids=["huge", "large", "unmeasured", "garbage", "open", "deep"],
)
def test_requests_that_are_refused(served, headers, body, status):
    found, seconds = raw(served.address, b"POST /gradio_api/queue/join HTTP/1.1\nHost: x\n" + headers, body)
    assert found == status
    assert seconds < 1


@pytest.mark.slow
def test_refused_requests_leave_nothing(served):
    """The server's memory is flat under garbage and deep JSON."""
    deep = b"[" * 100_000 + b"]" * 100_000

    def ask(times):
        for _ in range(times):
            for body in (b"{garbage!", deep):
                answer = httpx.post(
                    f"{served.address}/gradio_api/queue/join",
                    content=body,
                    headers={"content-type": "application/json"},
                )
                assert 400 <= answer.status_code < 500

    ask(10)
    before = served.resident()
    ask(50)  # 10 MB in all
    assert served.resident() - before < 5e6


def test_slow_clients_keep_nobody_waiting(served, client):
    """Thirty connections that send half of a request, and no more."""
    place = urlparse(served.address)
    slow = [socket.create_connection((place.hostname, place.port)) for _ in range(30)]
    for each in slow:
        each.sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    started = time.monotonic()
    assert client.predict("A<mask>", api_name="/fill_mask")["masks"]
    assert time.monotonic() - started < 5
    for each in slow:
        each.close()


@pytest.mark.slow
def test_a_model_that_does_not_fold_is_refused():
    command = [sys.executable, "-m", "rinalmo", "web", "--port", "0", "--fold-model", "nano"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--fold-model nano: the model is not fine-tuned" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_full_queue_and_a_stop_are_told(start):
    """More than 60 that wait are told to come again; SIGTERM ends the work, says so, and leaves nothing behind."""
    from gradio_client import Client

    ending = start()
    visitor = Client(ending.address, verbose=False)
    long = visitor.submit((TRNA * 3)[:200], api_name="/variants")
    while long.status().code.name != "PROCESSING":
        time.sleep(0.05)
    _, answer = ask(ending.address, 80)
    assert (answer.status_code, "Queue is full" in answer.text) == (503, True)
    assert ending.stop() == 0
    with pytest.raises(Exception, match="the server is shutting down; try again"):
        long.result(5)
    assert list(ending.temporary.glob("rinalmo-web-*")) == []
    assert "Traceback" not in ending.log.read_text()


def test_the_example_prints_what_the_documentation_shows(served, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import run_page

    command = [sys.executable, ROOT / "examples" / "ask_the_page.py", served.address]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    shown = (ROOT / "docs" / "web.md").read_text().split("```text\n")[1].split("```")[0]
    assert run_page.matches(shown.strip(), done.stdout.strip(), 0.01)


def test_nothing_is_asked_of_another_machine(served, client):
    """Runs last here: all that the server did until now, its start included."""
    client.predict("A<mask>", api_name="/fill_mask")
    assert not served.outside.exists(), served.outside.read_text()
