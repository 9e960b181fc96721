"""Embedding runs that are sharded, killed, resumed, raced: the output is always whole, and always the same."""

import errno
import hashlib
import os
import random
import signal
import threading

import numpy as np
import pytest

import rinalmo
from rinalmo.engine import jobs
from rinalmo.engine.engine import Engine
from rinalmo.engine.jobs import Job
from rinalmo.errors import InputError, SequenceError
from rinalmo.inference.embed import embed_file, estimate_embedding, read_embeddings

from ..killing import killing_at


@pytest.fixture(scope="module")
def engine(backbone):
    return Engine(backbone, "fp32", threads=1)


@pytest.fixture
def fasta(tmp_path, monkeypatch):
    """60 records of 1 to 90 nt, in chunks of four."""
    monkeypatch.setattr(jobs, "CHUNK_RECORDS", 4)
    path = tmp_path / "in.fa"
    chooser = random.Random(0)
    sequences = ["".join(chooser.choices("ACGU", k=chooser.randint(1, 90))) for _ in range(60)]
    path.write_text("".join(f">s{n}\n{sequence}\n" for n, sequence in enumerate(sequences)))
    return path


def same(first, second):
    return hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()


def others(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "in.fa")


def test_shards_together_are_the_whole(engine, fasta, tmp_path):
    embed_file(fasta, tmp_path / "whole.npz", engine)
    whole = np.load(tmp_path / "whole.npz")
    for index in (1, 2, 3):
        embed_file(fasta, tmp_path / f"{index}.npz", engine, shard=f"{index}/3")
        part = np.load(tmp_path / f"{index}.npz")
        assert list(part["ids"]) == [f"s{n}" for n in range(index - 1, 60, 3)]
        np.testing.assert_allclose(part["embeddings"], whole["embeddings"][index - 1 :: 3], atol=1e-5)


@pytest.mark.parametrize("shard", ["0/3", "4/3", "x", "1", "1/0", f"1/{10**20}"])
def test_shards_that_do_not_exist(engine, fasta, tmp_path, shard):
    with pytest.raises(InputError, match="--shard"):
        embed_file(fasta, tmp_path / "out.npz", engine, shard=shard)
    assert others(tmp_path) == []


def test_a_wrong_shard_clears_nothing(engine, fasta, tmp_path):
    with pytest.raises(StoppedError):
        embed_file(fasta, tmp_path / "out.npz", engine, progress=stop_at(30))
    with pytest.raises(InputError, match="--shard"):
        embed_file(fasta, tmp_path / "out.npz", engine, shard="4/3")
    assert Job(tmp_path / "out.npz").saved_count() == 28


def test_empty_shard(engine, fasta, tmp_path):
    with pytest.raises(InputError, match="is empty"):
        embed_file(fasta, tmp_path / "out.npz", engine, shard="100/100")
    assert others(tmp_path) == []


class StoppedError(Exception):
    pass


def stop_at(count):
    def tell(done):
        if done >= count:
            raise StoppedError

    return tell


def test_what_is_kept_is_neither_computed_again_nor_deleted_unasked(engine, fasta, tmp_path, monkeypatch):
    output = tmp_path / "out.npz"
    with pytest.raises(StoppedError):
        embed_file(fasta, output, engine, progress=stop_at(30))
    assert Job(output).saved_count() == 28
    refusal = "out.npz: 28 sequences of an interrupted run are saved; continue it with --resume, or discard it with"
    for _ in range(2):
        with pytest.raises(InputError, match=refusal):
            embed_file(fasta, output, engine)
        assert Job(output).saved_count() == 28
    computed = 0
    original = engine.hidden_states

    def count(ids, layout, layers):
        nonlocal computed
        computed += len(layout.lengths)
        return original(ids, layout, layers)

    monkeypatch.setattr(engine, "hidden_states", count)
    assert embed_file(fasta, output, engine, resume=True) == 60
    assert computed == 60 - 28
    assert others(tmp_path) == ["out.npz"]


@pytest.mark.parametrize(
    "what", ["input", "layers", pytest.param("precision", marks=pytest.mark.precision("bf16")), "model"]
)
def test_changed_run_is_not_resumed(engine, backbone, fasta, tmp_path, what):
    output = tmp_path / "out.npz"
    with pytest.raises(StoppedError):
        embed_file(fasta, output, engine, progress=stop_at(30))
    options = {}
    if what == "input":
        fasta.write_text(fasta.read_text().replace("s59", "s60"))
    elif what == "layers":
        options = {"layers": [0]}
    elif what == "precision":
        engine = Engine(backbone, "bf16", threads=1)
    else:
        model = rinalmo.load(backbone)
        model.encoder.final_norm.weight.data += 1
        engine = Engine(model, "fp32")
    with pytest.raises(InputError, match=f"cannot be resumed: {what} changed .*--restart"):
        embed_file(fasta, output, engine, resume=True, **options)
    assert Job(output).saved_count() == 28
    assert embed_file(fasta, output, engine, restart=True, **options) == 60


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("000003.npz", b""),
        ("000003.npz", b"not zip"),
        ("000003.npz", "foreign"),
        ("run.json", b""),
        ("run.json", b"{"),
        ("run.json", b"[]"),
        ("run.json", b"\xff"),
    ],
)
def test_what_was_kept_is_damaged(engine, fasta, tmp_path, name, content):
    output = tmp_path / "out.npz"
    with pytest.raises(StoppedError):
        embed_file(fasta, output, engine, progress=stop_at(30))
    damaged = Job(output).folder / name
    if content == "foreign":
        np.savez(damaged, other=np.zeros(3))
    else:
        damaged.write_bytes(content)
    with pytest.raises(InputError, match=rf"out.npz: saved results of an interrupted run are damaged \(.*{name}\)"):
        embed_file(fasta, output, engine)
    assert embed_file(fasta, output, engine, restart=True) == 60


def test_a_short_run_writes_nothing_but_its_output(engine, fasta, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(np, "savez", lambda *arguments, **arrays: saved.append(arrays))
    assert embed_file(fasta, tmp_path / "out.npz", engine) == 60
    assert saved == []


def test_a_file_that_changes_while_it_is_read(engine, fasta, tmp_path):
    def append(count):
        if count == 30:
            fasta.write_text(fasta.read_text() + ">more\nACGU\n")

    with pytest.raises(InputError, match="changed while it was read; run the command again"):
        embed_file(fasta, tmp_path / "out.npz", engine, progress=append)
    assert others(tmp_path) == []


def test_resume_of_nothing_is_a_start(engine, fasta, tmp_path):
    assert embed_file(fasta, tmp_path / "out.npz", engine, resume=True) == 60


def test_a_run_of_another_version_is_not_continued(engine, fasta, tmp_path, monkeypatch):
    with pytest.raises(StoppedError):
        embed_file(fasta, tmp_path / "out.npz", engine, progress=stop_at(30))
    monkeypatch.setattr(jobs, "__version__", "another")
    with pytest.raises(InputError, match="version changed"):
        embed_file(fasta, tmp_path / "out.npz", engine, resume=True)


def test_a_run_is_not_both_resumed_and_restarted(engine, fasta, tmp_path):
    with pytest.raises(InputError, match="cannot be combined"):
        embed_file(fasta, tmp_path / "out.npz", engine, resume=True, restart=True)
    assert others(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_of_what_can_be_read_only_once_nothing_is_kept(engine, fasta, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(fasta.read_bytes()))
    writer.start()
    with pytest.raises(StoppedError):
        embed_file(tmp_path / "pipe", tmp_path / "out.npz", engine, progress=stop_at(30))
    writer.join()
    assert others(tmp_path) == ["pipe"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_linked_output_is_followed(engine, fasta, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.npz").symlink_to(tmp_path / "elsewhere" / "real.npz")
    with pytest.raises(StoppedError):
        embed_file(fasta, tmp_path / "out.npz", engine, progress=stop_at(30))
    assert others(tmp_path / "elsewhere") == [".real.npz.partial"]
    assert embed_file(fasta, tmp_path / "out.npz", engine, resume=True) == 60
    assert (tmp_path / "out.npz").is_symlink()
    assert others(tmp_path / "elsewhere") == ["real.npz"]


def test_standard_input_cannot_be_resumed(engine, tmp_path):
    with pytest.raises(InputError, match="read only once"):
        embed_file("-", tmp_path / "out.npz", engine, resume=True)


def test_faulty_record_leaves_what_was_finished_but_no_output(engine, fasta, tmp_path):
    fasta.write_text(fasta.read_text() + ">bad\nACGJ\n")
    with pytest.raises(SequenceError, match="'J'"):
        embed_file(fasta, tmp_path / "out.npz", engine)
    assert others(tmp_path) == [".out.npz.partial"]


def forked(function):
    """Run `function` in a child process; the model is loaded already, so this takes milliseconds.

    An interrupt waits until the child can catch it; one before that would run on into the test runner's own code.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    child = os.fork()
    if child == 0:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            function()
            os._exit(0)
        except InputError as error:
            os._exit(3 if "another process" in str(error) else 4)
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException:
            os._exit(5)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    return child


@pytest.mark.posix_only
@pytest.mark.parametrize(
    ("ending", "seconds"), [("npz", 0), ("npz", 10), pytest.param("parquet", 0, marks=pytest.mark.slow)]
)
def test_stopped_anywhere_and_resumed_to_the_same_bytes(engine, fasta, tmp_path, monkeypatch, ending, seconds):
    """Killed and interrupted in turn, at every other durable call from the first to the last."""
    monkeypatch.setattr(jobs, "SAVE_SECONDS", seconds)
    whole, output = tmp_path / f"whole.{ending}", tmp_path / f"out.{ending}"
    fasta.write_text("".join(fasta.read_text().splitlines(keepends=True)[:40]))  # twenty records, five chunks
    embed_file(fasta, whole, engine)

    def run(number, signal_number):
        killing_at(number, signal_number)
        embed_file(fasta, output, engine, resume=True)

    for number in range(1, 1000, 2):
        signal_number = signal.SIGKILL if number % 4 == 1 else signal.SIGINT
        _, status = os.waitpid(forked(lambda: run(number, signal_number)), 0)  # noqa: B023
        if (code := os.waitstatus_to_exitcode(status)) == 0:
            break
        assert code == (-signal.SIGKILL if signal_number == signal.SIGKILL else 130), number
        if output.exists():  # whoever reads it sees it whole
            assert same(output, whole)
        embed_file(fasta, output, engine, resume=True)
        assert same(output, whole), number
        assert others(tmp_path) == sorted([output.name, whole.name]), number
        output.unlink()
    assert number > (10 if seconds else 15)
    assert same(output, whole)
    assert others(tmp_path) == sorted([output.name, whole.name])


def test_chunks_finished_in_another_order_are_kept(engine, fasta, tmp_path):
    whole, output = tmp_path / "whole.npz", tmp_path / "out.npz"
    embed_file(fasta, whole, engine)
    with pytest.raises(StoppedError):
        embed_file(fasta, output, engine, progress=stop_at(50))
    run = Job(output)
    (run.folder / "000003.npz").unlink()
    assert run.saved_count() == 44
    told = []
    embed_file(fasta, output, engine, resume=True, progress=told.append)
    assert told == list(range(45, 61))
    assert same(output, whole)


@pytest.mark.posix_only
def test_two_processes_and_one_output(engine, fasta, tmp_path):
    whole, output = tmp_path / "whole.npz", tmp_path / "out.npz"
    embed_file(fasta, whole, engine)
    children = [forked(lambda: embed_file(fasta, output, engine)) for _ in range(4)]
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert codes[0] == 0
    assert set(codes) <= {0, 3}
    assert same(output, whole)
    assert others(tmp_path) == ["out.npz", "whole.npz"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has locks everywhere")
def test_two_writers_without_locks(engine, fasta, tmp_path, monkeypatch):
    """Whoever ends first has a whole file; the other one is told, and does not write what is left."""
    import fcntl

    def no_locks(handle, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    whole, output = tmp_path / "whole.npz", tmp_path / "out.npz"
    embed_file(fasta, whole, engine)

    def end_the_other(done):
        if done == 30:
            embed_file(fasta, output, engine)
            assert same(output, whole)

    with pytest.raises(InputError, match=r"out\.npz: "):
        embed_file(fasta, output, engine, progress=end_the_other)
    assert same(output, whole)
    embed_file(fasta, output, engine, restart=True)
    assert same(output, whole)
    assert others(tmp_path) == ["out.npz", "whole.npz"]


@pytest.mark.parametrize("name", ["out.csv", "out.tsv.gz", "out.npy", "out.parquet"])
def test_every_format_holds_the_same_numbers(engine, fasta, tmp_path, name):
    embed_file(fasta, tmp_path / "out.npz", engine)
    embed_file(fasta, tmp_path / name, engine)
    expected, read = read_embeddings(tmp_path / "out.npz"), read_embeddings(tmp_path / name)
    np.testing.assert_allclose(read.values, expected.values, rtol=1e-5, atol=1e-8)
    if name != "out.npy":
        assert (read.ids, read.lengths) == (expected.ids, expected.lengths)


def test_a_table_of_nucleotides(engine, tmp_path):
    (tmp_path / "in.fa").write_text(">a x=1\nACGU\n>b\nGG\n")
    embed_file(tmp_path / "in.fa", tmp_path / "out.csv", engine, pooling="none")
    header, *rows = (line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines())
    assert header[:3] == ["id", "position", "dim_0"]
    assert [row[:2] for row in rows] == [["a", "1"], ["a", "2"], ["a", "3"], ["a", "4"], ["b", "1"], ["b", "2"]]
    expected = np.concatenate(rinalmo.embed(["ACGU", "GG"], engine, pooling="none"))
    np.testing.assert_allclose(np.array([row[2:] for row in rows], float), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["out.npz", "out.npy", "out.parquet", "out.h5", "out.h5ad"])
def test_half_precision_takes_half_the_space(engine, fasta, tmp_path, name):
    embed_file(fasta, tmp_path / f"whole-{name}", engine)
    embed_file(fasta, tmp_path / name, engine, dtype="fp16")
    whole, half = read_embeddings(tmp_path / f"whole-{name}"), read_embeddings(tmp_path / name)
    np.testing.assert_array_equal(half.values, whole.values.astype(np.float16).astype(np.float32))
    saved = (tmp_path / f"whole-{name}").stat().st_size - (tmp_path / name).stat().st_size
    if name in ("out.npz", "out.npy"):
        assert saved == 2 * whole.values.size


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_windows_take_each_nucleotide_from_the_middle_of_one(engine, pooling):
    sequence = "".join(random.Random(1).choices("ACGU", k=100))
    found = rinalmo.embed([sequence, "ACGU"], engine, pooling=pooling, window=40)
    # 100 nt in windows of 40: starts 0, 20, 40, 60; borders half-way between their middles
    parts = rinalmo.embed([sequence[start : start + 40] for start in (0, 20, 40, 60)], engine, pooling="none")
    bounds = ((0, 30), (10, 30), (10, 30), (10, 40))
    expected = np.concatenate([part[slice(*bound)] for part, bound in zip(parts, bounds, strict=True)])
    assert len(expected) == 100
    np.testing.assert_allclose(found[0], expected.mean(axis=0) if pooling == "mean" else expected, atol=1e-5)
    np.testing.assert_allclose(found[1], rinalmo.embed(["ACGU"], engine, pooling=pooling)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("out.csv", {"layers": (0, -1)}, "hold one layer"),
        ("out.npy", {"pooling": "none"}, "one vector per sequence"),
        ("out.npz", {"window": 31}, "at least 32"),
        ("out.npz", {"window": 64, "pooling": "cls"}, "CLS"),
        ("out.xyz", {}, "cannot write '.xyz'; use .npz"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(engine, fasta, tmp_path, name, options, message):
    with pytest.raises(InputError, match=message):
        embed_file(fasta, tmp_path / name, engine, **options)
    assert others(tmp_path) == []


def test_an_estimate_counts_the_input_and_writes_nothing(engine, fasta, tmp_path):
    estimate = estimate_embedding(fasta, tmp_path / "out.npy", engine)
    assert estimate.sequences == 60
    assert estimate.nucleotides == sum(len(line) for line in fasta.read_text().split() if line[0] != ">")
    assert estimate.seconds > 0
    assert others(tmp_path) == []
    embed_file(fasta, tmp_path / "out.npy", engine)
    assert estimate.size == pytest.approx((tmp_path / "out.npy").stat().st_size, rel=0.2)
    half = estimate_embedding(fasta, tmp_path / "out.npy", engine, shard="1/2")
    assert half.sequences == 30


def test_a_very_long_name_does_not_make_a_large_file(engine, tmp_path):
    names = [f"s{n}" for n in range(200)] + ["long" * 15_000]
    (tmp_path / "in.fa").write_text("".join(f">{name}\nACGU\n" for name in names))
    output = tmp_path / "out.npz"
    assert embed_file(tmp_path / "in.fa", output, engine) == 201
    assert output.stat().st_size < 1 << 20  # 48 MB as an array of text
    with np.load(output) as file:
        assert file["ids"].tolist() == names
