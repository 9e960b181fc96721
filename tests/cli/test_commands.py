"""The commands, used as a user would: real sequences in, real files out, one clear line for what is wrong."""

import gzip
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import rinalmo
from rinalmo.cli import COMMANDS
from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create

EXAMPLES = rinalmo.resolve("nano").parent / "examples"
KNOWN = EXAMPLES / "well_known_rnas.fa"
FP32 = ("--precision", "fp32")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_has_an_example_and_loads_no_model(rinalmo_command, command):
    result = rinalmo_command(*command, "--help")
    assert result.code == 0
    assert f"rinalmo {' '.join(command)}".strip() in result.out.split("Usage", 1)[1]


def test_help_of_every_command_loads_nothing_but_click():
    """What makes it fast; how fast, benchmarks/import_speed.py measures."""
    code = """
import sys
before = set(sys.modules)
import click
from rinalmo.cli import cli
def ask(command, *path):
    cli.main([*path, "--help"], standalone_mode=False)
    if isinstance(command, click.Group):
        for name in command.list_commands(None):
            ask(command.get_command(None, name), *path, name)
ask(cli)
print({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names - {"rinalmo", "click"})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
    assert "data download [OPTIONS]" in done.stdout


def test_version(rinalmo_command):
    assert rinalmo_command("--version").out == f"rinalmo, version {rinalmo.__version__}\n"


@pytest.mark.parametrize(("given", "kept"), [(None, "128"), ("7", "7")])
def test_onednn_keeps_few_kernels_unless_told(given, kept):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    environment = {key: value for key, value in os.environ.items() if key != name} | ({name: given} if given else {})
    code = (
        "import os, sys; from rinalmo.cli import main\n"
        "sys.argv = ['rinalmo', '--version']; main()\n"
        f"assert 'torch' not in sys.modules; print(os.environ[{name!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.splitlines()[-1] == kept


def test_examples_are_copied_and_never_replace_a_file(rinalmo_command, tmp_path):
    names = ["known_structures.csv", "model_card_masks.fa", "sirnas.csv", "tRNA-Phe.fa", "well_known_rnas.fa"]
    folder = tmp_path / "new"
    for _ in range(2):
        assert rinalmo_command("examples", folder).out.split() == [str(folder / name) for name in names]
    assert (folder / "well_known_rnas.fa").read_bytes() == KNOWN.read_bytes()
    (folder / "well_known_rnas.fa").write_text(">mine\nACGU\n")
    (folder / "tRNA-Phe.fa").unlink()
    result = rinalmo_command("examples", folder)
    assert (result.code, result.out) == (2, "")
    assert "well_known_rnas.fa exists and is no copy of the example" in result.err
    assert not (folder / "tRNA-Phe.fa").exists()


@pytest.mark.parametrize("arguments", [("nothing",), ("embed",), ("embed", KNOWN), ("fill-mask", "ACGU", "--top-k", 0)])
def test_usage_errors(rinalmo_command, arguments):
    result = rinalmo_command(*arguments)
    assert result.code == 2
    assert "Error" in result.err


# fill-mask


def test_fill_mask_of_the_cards_examples(rinalmo_command, golden):
    expected = json.loads((golden / "nano_expected.json").read_text())["fill_mask"]
    result = rinalmo_command("fill-mask", EXAMPLES / "model_card_masks.fa", "--format", "jsonl")
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [row["id"] for row in found] == ["HIV-1"] * 5 + ["microRNA-21"] * 5
    for row, reference in zip(found, expected["HIV-1"]["output"] + expected["microRNA-21"]["output"], strict=True):
        assert row["score"] == pytest.approx(reference["score"], abs=1e-4)
        assert (row["token"], row["token_str"]) == (reference["token"], reference["token_str"])
        if len(row["token_str"]) == 1:  # the pipeline leaves special tokens out of the sequence
            assert row["sequence"] == reference["sequence"].replace(" ", "")
        assert row["position"] == 5


def test_fill_mask_table(rinalmo_command):
    result = rinalmo_command("fill-mask", "gguc<mask>cuc<mask>gg", "--top-k", 2)
    assert result.code == 0
    assert "mask at 5" in result.out
    assert "mask at 9" in result.out
    assert len(result.out.splitlines()) == 1 + 2 * 3


def test_fill_mask_reads_dna_and_standard_input(rinalmo_command):
    rna = rinalmo_command("fill-mask", "GGUC<mask>CUCU", "--format", "tsv").out
    assert rinalmo_command("fill-mask", "ggtc<mask>ctct", "--format", "tsv").out == rna
    done = subprocess.run(
        [sys.executable, "-m", "rinalmo", "fill-mask", "-", "--format", "tsv"],
        input=">1\nGGTC<mask>\nCTCT\n",
        capture_output=True,
        text=True,
        check=True,
    )
    for line, expected in zip(done.stdout.splitlines()[1:], rna.splitlines()[1:], strict=True):
        fields, reference = line.split("\t"), expected.split("\t")
        assert float(fields.pop(2)) == pytest.approx(float(reference.pop(2)), abs=1e-5)
        assert fields == reference


def test_fill_mask_of_a_sequence_longer_than_any_file_name(rinalmo_command):
    result = rinalmo_command("fill-mask", "ACGU" * 1000 + "<mask>", "--format", "tsv")
    assert result.code == 0
    assert result.out.splitlines()[1].split("\t")[1] == "4001"
    assert rinalmo_command("fill-mask", "<mask>", "-m", "x" * 5000).code == 2


def test_fill_mask_of_nothing_but_masks(rinalmo_command):
    result = rinalmo_command("fill-mask", "<mask>" * 7, "--format", "jsonl")
    assert len(result.out.splitlines()) == 35
    assert all(0 < json.loads(line)["score"] < 1 for line in result.out.splitlines())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ACGU", "has no <mask>"),
        ("GG<mask>UJ", "'J'"),
        ("GG<MASK>U", "write a mask as <mask>"),
        ("", "the file name is empty"),
        ("GG<mask><pad>U", "'<'"),
        ("GG<mask>-U", "gaps"),
        ("no_such_file.fa", "does not exist"),
    ],
)
def test_fill_mask_errors(rinalmo_command, source, words):
    result = rinalmo_command("fill-mask", source)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert len(result.err.splitlines()) == 1


def test_fill_mask_names_the_file_and_shows_nothing_before(rinalmo_command, tmp_path):
    (tmp_path / "two.fa").write_text(">a\nGG<mask>CC\n>b\nACGU\n")
    result = rinalmo_command("fill-mask", tmp_path / "two.fa", "--format", "tsv")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"rinalmo: {tmp_path / 'two.fa'}, record b: has no <mask>")


# embed


def load_any(path):
    """ids, lengths and embeddings of a file in any of the formats."""
    if path.suffix == ".npz":
        data = np.load(path)
        return list(data["ids"]), list(data["lengths"]), data["embeddings"]
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        return (
            table["id"].to_pylist(),
            table["length"].to_pylist(),
            np.array(table["embedding"].to_pylist(), dtype=np.float32),
        )
    if path.suffix == ".h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path) as file:
            return [n.decode() for n in file["ids"]], list(file["lengths"]), file["embeddings"][:]
    anndata = pytest.importorskip("anndata")
    data = anndata.read_h5ad(path)
    return list(data.obs["id"]), list(data.obs["length"]), np.asarray(data.X)


@pytest.mark.parametrize("ending", ["npz", "parquet", "h5", "h5ad"])
def test_embed_in_every_format(rinalmo_command, tmp_path, ending):
    output = tmp_path / f"out.{ending}"
    result = rinalmo_command("embed", KNOWN, "-o", output, *FP32)
    assert result.code == 0, result.err
    assert "19 sequences, 320 dimensions" in result.err
    records = list(rinalmo.read_fasta(KNOWN))
    ids, lengths, values = load_any(output)
    assert ids == [record.id for record in records]
    assert lengths == [len(record.sequence) for record in records]
    np.testing.assert_allclose(values, rinalmo.embed(KNOWN), atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [output.name]


def test_embed_per_token_and_layers(rinalmo_command, tmp_path):
    for ending in ("npz", "parquet", "h5"):
        output = tmp_path / f"out.{ending}"
        assert rinalmo_command("embed", KNOWN, "-o", output, "--per-token", "--layers", "0,-1", *FP32).code == 0
    expected = rinalmo.embed(KNOWN, pooling="none", layers=[0, -1])
    data = np.load(tmp_path / "out.npz")
    for n, values in enumerate(expected):
        np.testing.assert_allclose(data["embeddings"][data["offsets"][n] : data["offsets"][n + 1]], values, atol=1e-5)
    import h5py
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "out.parquet")["embedding"].to_pylist()
    for row, values in zip(rows, expected, strict=True):
        np.testing.assert_allclose(np.array(row), values, atol=1e-5)
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_allclose(file["embeddings"][:], data["embeddings"])
        np.testing.assert_array_equal(file["offsets"][:], data["offsets"])


def test_embed_cls(rinalmo_command, tmp_path):
    assert rinalmo_command("embed", KNOWN, "-o", tmp_path / "out.npz", "--cls", *FP32).code == 0
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npz")["embeddings"], rinalmo.embed(KNOWN, pooling="cls"), atol=1e-5
    )


def test_embed_of_compressed_dna_in_lower_case(rinalmo_command, tmp_path):
    text = KNOWN.read_text()
    dna = "".join(x if x[0] == ">" else x.lower().replace("u", "t") for x in text.splitlines(keepends=True))
    (tmp_path / "in.fa").write_bytes(gzip.compress(dna.replace("\n", "\r\n").encode()))
    assert rinalmo_command("embed", tmp_path / "in.fa", "-o", tmp_path / "out.npz", *FP32).code == 0
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["embeddings"], rinalmo.embed(KNOWN), atol=1e-6)


def test_embed_does_not_depend_on_batches(rinalmo_command, tmp_path):
    results = []
    for tokens in (1, 200, 100_000):
        output = tmp_path / f"{tokens}.npz"
        assert rinalmo_command("embed", KNOWN, "-o", output, "--batch-tokens", tokens, *FP32).code == 0
        results.append(np.load(output)["embeddings"])
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)
    np.testing.assert_allclose(results[0], results[2], atol=1e-5)


def test_embed_keeps_duplicate_ids(rinalmo_command, tmp_path):
    (tmp_path / "in.fa").write_text(">a\nACGU\n>a\nGGGG\n>a-1\nCC\n>a\nU\n")
    for ending in ("npz", "h5ad"):
        assert rinalmo_command("embed", tmp_path / "in.fa", "-o", tmp_path / f"out.{ending}").code == 0
        assert load_any(tmp_path / f"out.{ending}")[0] == ["a", "a", "a-1", "a"]
    import anndata

    assert anndata.read_h5ad(tmp_path / "out.h5ad").obs_names.is_unique


def test_embed_of_one_nucleotide_and_of_10_kb(rinalmo_command, tmp_path):
    long = "ACGUUGCA" * 1280
    (tmp_path / "in.fa").write_text(f">one\nA\n>long\n{long}\n")
    narrow = create(ModelSpec(ModelConfig(32, 2, 2), heads={"lm_head": {}}))  # nano takes a minute on a slow processor
    rinalmo.save(narrow, tmp_path / "narrow")
    command = ("embed", tmp_path / "in.fa", "--model", tmp_path / "narrow", "-o", tmp_path / "out.npz")
    assert rinalmo_command(*command).code == 0
    data = np.load(tmp_path / "out.npz")
    assert list(data["lengths"]) == [1, 10_240]
    assert np.isfinite(data["embeddings"]).all()


FAULTY = {
    "empty": (b"", "empty"),
    "protein": (b">sp\nMKVLELKF\n", "protein"),
    "nul": (b">a\nAC\x00GU\n", "position 3"),
    "no sequence": (b">a\nACGU\n>b\n>c\nAC\n", "b"),
    "no header": (b"ACGU\n", "header"),
    "cut gzip": (gzip.compress(b">a\n" + b"ACGU" * 5000)[:-40], "truncated"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_embed_of_faulty_files(rinalmo_command, tmp_path, name):
    content, words = FAULTY[name]
    (tmp_path / "in.fa").write_bytes(content)
    result = rinalmo_command("embed", tmp_path / "in.fa", "-o", tmp_path / "out.npz")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1
    assert "in.fa" in result.err
    assert words in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["in.fa"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.fa", "-o", "{tmp}/out.npz"), "missing.fa does not exist"),
        (("{tmp}", "-o", "{tmp}/out.npz"), "is a folder"),
        ((KNOWN, "-o", "{tmp}/out.xlsx"), "cannot write '.xlsx'; use .npz, .npy, .parquet"),
        ((KNOWN, "-o", "{tmp}"), "is a folder; give a file name"),
        ((KNOWN, "-o", "{tmp}/no/out.npz"), "no such folder"),
        ((KNOWN, "-o", "{tmp}/out.npz", "--layers", "7"), "there is no layer 7"),
        ((KNOWN, "-o", "{tmp}/out.npz", "--layers", "x"), "whole numbers"),
        ((KNOWN, "-o", "{tmp}/out.h5ad", "--per-token"), "one vector per sequence"),
        ((KNOWN, "-o", "{tmp}/out.npz", "--model", "gigga"), "did you mean 'giga'"),
        ((KNOWN, "-o", "{tmp}/out.npz", "--model", "micro"), "put it at"),
        (("missing.fa", "-o", "{tmp}/out.npz", "--model", "micro"), "missing.fa does not exist"),
    ],
)
def test_embed_errors(rinalmo_command, tmp_path, monkeypatch, arguments, words):
    monkeypatch.setenv("RINALMO_OFFLINE", "1")
    monkeypatch.setenv("RINALMO_HOME", str(tmp_path / "cache"))
    result = rinalmo_command("embed", *(str(a).format(tmp=tmp_path) for a in arguments))
    assert result.code == 2
    assert words in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("package", "ending"), [("h5py", "h5"), ("anndata", "h5ad")])
def test_missing_extra_is_named(rinalmo_command, tmp_path, monkeypatch, package, ending):
    monkeypatch.setitem(sys.modules, package, None)
    result = rinalmo_command("embed", KNOWN, "-o", tmp_path / f"out.{ending}")
    assert result.code == 2
    assert f"pip install 'rinalmo[{ending}]'" in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.posix_only
def test_read_only_folder(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    done = subprocess.run(
        [sys.executable, "-m", "rinalmo", "embed", str(KNOWN), "-o", str(tmp_path / "out.npz")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def base_4(number):
    """A sequence of its own for each number."""
    return "".join("ACGU"[number >> shift & 3] for shift in range(0, 12, 2))


@pytest.mark.posix_only
def test_full_disk(rinalmo_command, backbone, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (tmp_path / "many.fa").write_text("".join(f">{n}\n{base_4(n)}\n" for n in range(3000)))
        for ending in ("npz", "parquet", "h5", "h5ad"):
            result = rinalmo_command("embed", tmp_path / "many.fa", "--model", backbone, "-o", small / f"out.{ending}")
            assert result.code in (1, 2), ending
            told = [line for line in result.err.splitlines() if not line.startswith(("embedding: ", "device: "))]
            assert len(told) == 1, result.err
            assert not list(small.iterdir()), ending
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.posix_only
def test_reader_that_goes_away(backbone):
    command = f"set -o pipefail; {sys.executable} -m rinalmo fill-mask - --model {backbone} --format tsv | head -n 1"
    fasta = "".join(f">{n}\nGG<mask>CC\n" for n in range(3000))
    done = subprocess.run(["bash", "-c", command], input=fasta, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("id\tposition")
    assert re.fullmatch("(device: .*\n)?", done.stderr)
    assert done.returncode == 0


@pytest.mark.posix_only
def test_reader_that_never_came(backbone):
    command = f"{sys.executable} -m rinalmo score ACGU --all-single --model {backbone} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert re.fullmatch("(device: .*\n)?", done.stderr)


# The command, which a SIGINT reaches when its second chunk has been computed.
INTERRUPTED = """
import os, signal, sys
from rinalmo.cli import main
from rinalmo.engine import jobs

class Stopping(jobs.Job):
    waits = 0

    def _wait(self):
        self.waits += 1
        if self.waits == 2:
            os.kill(os.getpid(), signal.SIGINT)
        super()._wait()

jobs.SAVE_SECONDS = 0
jobs.Job = Stopping
sys.argv = ["rinalmo", *sys.argv[1:]]
main()
"""


@pytest.mark.posix_only
def test_interrupted_run_is_resumed_to_the_same_bytes(rinalmo_command, backbone, tmp_path):
    (tmp_path / "many.fa").write_text("".join(f">{n}\n{'ACGU' * (3 + n % 5)}\n" for n in range(2500)))
    output, whole = tmp_path / "out.npz", tmp_path / "whole.npz"
    command = ["embed", str(tmp_path / "many.fa"), "--model", str(backbone), "--threads", "1", "-o"]
    assert rinalmo_command(*command, whole).code == 0
    process = [sys.executable, "-c", INTERRUPTED, *command, str(output)]
    done = subprocess.run(process, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "out.npz: stopped, 2,048 sequences saved; continue with --resume" in done.stderr
    assert not output.exists()
    unasked = rinalmo_command(*command, output)
    assert (unasked.code, "continue it with --resume, or discard it with --restart" in unasked.err) == (2, True)
    again = rinalmo_command(*command, output, "--resume")
    assert again.code == 0
    assert "out.npz: resuming, 2,048 sequences done" in again.err
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["many.fa", "out.npz", "whole.npz"]


def test_going_on_is_said_once_it_is_so(rinalmo_command, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr("rinalmo.engine.jobs.CHUNK_RECORDS", 1)
    (tmp_path / "two.fa").write_text(">a\nACGU\n>b\nACJU\n")
    command = ["embed", tmp_path / "two.fa", "--model", backbone, "-o", tmp_path / "out.npz"]
    assert rinalmo_command(*command).code == 2
    assert "1 sequence of an interrupted run is saved" in rinalmo_command(*command).err
    changed = rinalmo_command(*command, "--cls", "--resume")
    assert "cannot be resumed" in changed.err
    assert "resuming" not in changed.err
    assert "out.npz: resuming, 1 sequence done\n" in rinalmo_command(*command, "--resume").err
    restarted = rinalmo_command(*command, "--cls", "--restart")
    assert "'J'" in restarted.err
    assert "resuming" not in restarted.err


@pytest.mark.posix_only
@pytest.mark.slow
def test_closed_streams(backbone, tmp_path):
    output = tmp_path / "out.npz"
    rinalmo = f"{sys.executable} -m rinalmo"
    for command in (f"{rinalmo} embed {KNOWN} --model {backbone} -o {output} 2>&-", f"{rinalmo} info giga >&-"):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert output.exists()


# info, convert, models


def test_info_row_of_giga(rinalmo_command):
    result = rinalmo_command("info", "giga")
    row = next(line.split() for line in result.out.splitlines() if "giga" in line)
    assert row == ["giga", "33", "1280", "20", "5120", "650.88", "168.92", "84.43", "1022"]
    assert "128 tokens" in result.out


def test_info_of_a_model(rinalmo_command):
    assert "7.50" in rinalmo_command("info", "nano").out
    assert [line.split()[0] for line in rinalmo_command("info").out.splitlines()[3:7]] == [
        "nano",
        "micro",
        "mega",
        "giga",
    ]


def test_convert_there_and_back(rinalmo_command, golden, tmp_path):
    official = golden / "official" / "official_tiny_ss_ft.pt"
    result = rinalmo_command("convert", official, tmp_path / "ours")
    assert result.code == 0
    assert "note: the official vocabulary has no <null>" in result.err
    assert rinalmo_command("convert", tmp_path / "ours", tmp_path / "back.pt", "--layout", "official").code == 0
    import torch

    first, second = (torch.load(p, weights_only=True) for p in (official, tmp_path / "back.pt"))
    assert all(torch.equal(torch.as_tensor(first[k]), torch.as_tensor(second[k])) for k in first)
    again = rinalmo_command("convert", official, tmp_path / "ours")
    assert (again.code, "exists" in again.err) == (2, True)
    assert rinalmo_command("convert", official, tmp_path / "ours", "--overwrite").code == 0


@pytest.mark.posix_only
@pytest.mark.parametrize("kind", ["folder", "file", "device", "link"])
def test_overwrite_replaces_models_only(rinalmo_command, tmp_path, kind):
    target = tmp_path / "target"
    if kind == "folder":
        target.mkdir()
        (target / "thesis.txt").write_text("years of work")
    elif kind == "file":
        target.write_text("years of work")
    elif kind == "device":
        os.mkfifo(target)
    else:
        (tmp_path / "thesis.txt").write_text("years of work")
        target.symlink_to(tmp_path / "thesis.txt")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    result = rinalmo_command("convert", "nano", target, "--overwrite")
    assert result.code == 2
    assert "not overwritten" in result.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_convert_says_what_is_left_out_and_keeps_what_it_can(rinalmo_command, tmp_path):
    assert rinalmo_command("convert", "nano", tmp_path / "a").code == 0
    for name, values in {
        "config.json": {"layer_norm_eps": 1e-12, "attention_dropout": 0.3, "token_dropout": False},
        "tokenizer_config.json": {"do_upper_case": False},
    }.items():
        path = tmp_path / "a" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    result = rinalmo_command("convert", tmp_path / "a", tmp_path / "b.pt", "--layout", "official")
    assert "their rows are dropped" in result.err
    config = rinalmo.load(tmp_path / "b.pt").config
    assert (config.layer_norm_eps, config.attention_dropout, config.token_dropout) == (1e-12, 0.3, False)
    assert rinalmo_command("convert", tmp_path / "a", tmp_path / "c", "--layout", "multimolecule").code == 0
    assert rinalmo.RnaTokenizer.from_pretrained(tmp_path / "c").do_upper_case is False


def test_models(rinalmo_command):
    lines = rinalmo_command("models").out.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["nano", "nano-fold", "micro", "mega", "giga", "giga-fold-bprna"]
    assert "bundled" in lines[0]
