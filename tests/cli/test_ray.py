"""`--engine ray` on a real Ray of this machine: the bytes of the local engine, whoever is killed."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import rinalmo
from rinalmo.engine import jobs, ray
from rinalmo.engine.engine import Engine
from rinalmo.engine.jobs import Job
from rinalmo.engine.ray import RayEngine
from rinalmo.errors import InputError, MissingExtraError, ToolError
from rinalmo.inference.embed import embed_file
from rinalmo.inference.fold import Decoding, fold_file
from rinalmo.inference.predict import predict_file
from rinalmo.inference.variants import all_single, score_file
from rinalmo.io.sequences import make_record, read_fasta
from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create

CHUNK = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 sequences of 1 to 60 nt, and a tiny model that embeds, scores and folds."""
    folder = tmp_path_factory.mktemp("ray")
    chooser = random.Random(0)
    sequences = ["".join(chooser.choices("ACGU", k=chooser.randint(1, 60))) for _ in range(60)]
    (folder / "in.fa").write_text("".join(f">s{n} of 60\n{sequence}\n" for n, sequence in enumerate(sequences)))
    spec = ModelSpec(ModelConfig(32, 2, 2), heads={"lm_head": {}, "structure_head": {}})
    rinalmo.save(create(spec, seed=1), folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def address():
    """A Ray with room for two drivers."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=3, object_store_memory=80_000_000, **quiet)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    assert ray_processes() == {}


@pytest.fixture(scope="module")
def many(address, folder):
    with RayEngine(folder / "tiny", "fp32", workers=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def one(folder):
    return Engine(folder / "tiny", "fp32", threads=1)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(jobs, "CHUNK_RECORDS", CHUNK)


def ray_processes(title=b"ray"):
    """Titles of Ray's processes below this one, by pid."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes()
            parents = list(ancestors(int(process.name)))
        except OSError:
            continue  # it has ended meanwhile
        if os.getpid() in parents and (name.startswith(title) or b"raylet" in name or b"gcs_server" in name):
            found[int(process.name)] = name
    return found


def ancestors(pid):
    while pid > 1:
        pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        yield pid


def workers():
    return [pid for pid, title in ray_processes().items() if title.startswith(b"ray::_RayWorker")]


@pytest.mark.slow
def test_the_bytes_of_the_local_engine(many, one, folder, tmp_path):
    fasta = folder / "in.fa"
    for engine, name in ((one, "one"), (many, "many")):
        assert embed_file(fasta, tmp_path / f"{name}.parquet", engine, pooling="none", layers=[0, -1]) == 60
        matrices = tmp_path / f"{name}.npz"
        assert fold_file(fasta, tmp_path / f"{name}.dbn", engine, probabilities=matrices) == 60
        assert score_file(all_single(read_fasta(fasta)), tmp_path / f"{name}.csv", engine) > 1000
        assert predict_file(fasta, tmp_path / f"{name}.jsonl", engine) == 60
    for ending in ("parquet", "dbn", "npz", "csv", "jsonl"):
        assert (tmp_path / f"many.{ending}").read_bytes() == (tmp_path / f"one.{ending}").read_bytes(), ending
    assert len(list(tmp_path.iterdir())) == 10
    assert (many.fingerprint, many.precision) == (one.fingerprint, one.precision)


@pytest.mark.posix_only
@pytest.mark.slow
def test_workers_killed_in_the_middle(many, one, folder, tmp_path):
    embed_file(folder / "in.fa", tmp_path / "one.parquet", one)
    killed = []

    def kill(done):
        if done == CHUNK:
            killed.extend(workers())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    embed_file(folder / "in.fa", tmp_path / "many.parquet", many, progress=kill)
    assert len(killed) == 2
    assert not set(killed) & set(workers())
    assert pq.read_table(tmp_path / "many.parquet")["id"].to_pylist() == [f"s{n}" for n in range(60)]
    assert (tmp_path / "many.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


DRIVER = """
import os, signal, sys
from rinalmo.cli import main
from rinalmo.engine import jobs

class Stopping(jobs.Job):
    def _save(self, chunks, settings):
        super()._save(chunks, settings)
        if len(list(self.folder.glob("*.npz"))) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

jobs.CHUNK_RECORDS, jobs.SAVE_SECONDS = 4, 0
jobs.Job = Stopping
sys.argv = ["rinalmo", *sys.argv[1:]]
main()
"""


@pytest.mark.posix_only
@pytest.mark.slow
def test_resume_after_the_command_was_killed(address, many, one, folder, tmp_path):
    output = tmp_path / "many.parquet"
    where = ("--engine", "ray", "--address", address, "--workers", "1", "--model", folder / "tiny")
    given = (sys.executable, "-c", DRIVER, "embed", folder / "in.fa", "-o", output, "--precision", "fp32", *where)
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Job(output).saved_count() == 20
    computed = []
    embed_file(folder / "in.fa", output, many, resume=True, progress=computed.append)
    assert computed == list(range(24, 61, CHUNK))
    embed_file(folder / "in.fa", tmp_path / "one.parquet", one)
    assert output.read_bytes() == (tmp_path / "one.parquet").read_bytes()


@pytest.mark.slow
def test_what_a_worker_raises(many, folder, tmp_path):
    with pytest.raises(InputError, match="nonsense"):
        fold_file(folder / "in.fa", tmp_path / "out.dbn", many, Decoding("nonsense"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.posix_only
@pytest.mark.slow
def test_a_poison_sequence_is_set_apart_and_named(many, monkeypatch):
    """Whoever computes it dies; all the rest is computed before the error."""
    monkeypatch.setattr(ray, "ATTEMPTS", 2)

    def job(engine, advance):
        def compute(records):
            if "poison" in [record.id for record in records]:
                os.kill(os.getpid(), signal.SIGKILL)
            return [record.id for record in records]

        return compute

    names = [["a", "b"], ["c", "poison", "d"], ["e"]]
    items = [(n, [make_record("ACGU", name) for name in chunk]) for n, chunk in enumerate(names)]
    found = {}
    with pytest.raises(
        ToolError, match=r"2 workers died on the same 3 records, .* record poison \(4 nt\) alone.*--resume"
    ):
        found.update(many.run(job, items, lambda more: None))
    assert found == {0: ["a", "b"], 2: ["e"]}
    assert dict(many.run(job, items[:1], lambda more: None)) == {0: ["a", "b"]}


def test_an_extra_that_workers_lack():
    error = pickle.loads(pickle.dumps(MissingExtraError("rustworkx", "fold", "matching")))
    assert (str(error), error.extra) == (str(MissingExtraError("rustworkx", "fold", "matching")), "fold")


@pytest.mark.slow
def test_too_many_threads(address, folder):
    with pytest.raises(InputError, match="--threads 1000: the largest machine of this Ray cluster has 3 CPUs"):
        RayEngine(folder / "tiny", threads=1000)


def test_without_ray(rinalmo_command, monkeypatch, folder, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = rinalmo_command("embed", folder / "in.fa", "-o", tmp_path / "out.npz", "--engine", "ray")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "pip install 'rinalmo[ray]'" in result.err


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "no Ray answers there"),
        ("127.0.0.1", "give HOST:PORT"),
        ("ray://host:10001", "give HOST:PORT"),
    ],
)
def test_where_no_ray_is(rinalmo_command, folder, tmp_path, address, words):
    pytest.importorskip("ray")
    start = time.monotonic()
    given = ("embed", folder / "in.fa", "-o", tmp_path / "out.npz", "--engine", "ray", "--address", address)
    result = rinalmo_command(*given)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert f"--address {address}: {words}" in result.err
    assert time.monotonic() - start < 10


# Ray counts GPUs that it is told of, whether they are there or not; workers that find none compute on the CPU.
GPUS = """
import sys
import ray
from rinalmo.errors import InputError
from rinalmo.inference.embed import embed_file
from rinalmo.engine.ray import RayEngine

ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
folder, output = sys.argv[1:]
for gpus in (0, 0.5, None):
    with RayEngine(f"{folder}/tiny", "fp32", gpus_per_worker=gpus) as engine:
        print(gpus, engine.describe(), embed_file(f"{folder}/in.fa", f"{output}/{gpus}.npz", engine))
try:
    RayEngine(f"{folder}/tiny", gpus_per_worker=2)
except InputError as error:
    print(error)
"""


@pytest.mark.slow
def test_workers_share_the_gpus_of_a_cluster(folder, one, tmp_path):
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", GPUS, folder, tmp_path], capture_output=True, text=True, check=False, timeout=300
    )
    kind = one.device.type
    assert done.stdout.splitlines() == [
        "0 2 Ray workers on cpu, fp32 60",
        f"0.5 2 Ray workers on {kind}, fp32 60",
        f"None 1 Ray worker on {kind}, fp32 60",
        "--gpus-per-worker 2: no machine of this Ray cluster has more than 1 GPU",
    ], done.stderr
    assert len({(tmp_path / f"{gpus}.npz").read_bytes() for gpus in (0, 0.5, None)}) == 1 or kind != "cpu"


@pytest.mark.parametrize(
    ("gpus", "device", "words"),
    [
        (1.5, None, "--gpus-per-worker 1.5: give 0, a fraction of 1 such as 0.5, or a whole number"),
        (0, "cuda", "--gpus-per-worker 0 gives workers no GPU, but --device is cuda"),
        (1, "cpu", "--gpus-per-worker 1 needs CUDA, but --device is cpu"),
    ],
)
def test_gpus_that_make_no_sense(gpus, device, words):
    with pytest.raises(InputError, match=words):
        RayEngine("nano", gpus_per_worker=gpus, device=device)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("embed", "in.fa", "-o", "out.npz", "--workers", 2), "--workers and --gpus-per-worker need --engine ray"),
        (
            ("score", "ACGU", "--all-single", "--engine", "ray"),
            "--resume, --restart and --engine ray need an output file",
        ),
        (("fold", "in.fa", "--engine", "ray"), "--resume, --restart and --engine ray need an output file"),
        (("fold", "in.fa", "--resume"), "--resume, --restart and --engine ray need an output file"),
    ],
)
def test_usage(rinalmo_command, folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    result = rinalmo_command(*arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
