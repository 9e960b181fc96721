"""The token store: what went in comes out, and nothing damaged, foreign or half-written is read."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from rinalmo.data.store import COLUMNS, MANIFEST, ROWS, SEQUENCES, StoreWriter, TokenStore, manifest_sum
from rinalmo.errors import InputError

TRNA = b"GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"
MIR21 = b"UAGCUUAUCAGACUGAUGUUGA"


@pytest.fixture
def copy(small_store, tmp_path):
    return shutil.copytree(small_store.path, tmp_path / "copy")


def edit_manifest(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    manifest["sha256"] = manifest_sum(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_what_went_in_comes_out(make_store):
    store = make_store([(TRNA, 1, 2), (MIR21, 0, 0)], [b"ACGUNRY"], validation=[[MIR21[:16]]])
    assert [store[i].tobytes() for i in range(len(store))] == [TRNA, MIR21, b"ACGUNRY", MIR21[:16]]
    assert [store.name(i) for i in range(4)] == ["seq0", "seq1", "seq2", "seq3"]
    assert list(store.lengths) == [76, 22, 7, 16]
    assert [store.sources[i] for i in store.source_ids] == ["rnacentral", "rfam", "rfam", "rfam"]
    assert [store.families[i] for i in store.family_ids] == ["RF00005", "", "", ""]
    assert [list(store.members(c)) for c in range(3)] == [[0, 1], [2], [3]]
    assert (store.sequence_range("train"), store.sequence_range("validation")) == (range(3), range(3, 4))
    assert (store.cluster_range("train"), len(store.cluster_range("validation"))) == (range(2), 1)
    assert store.manifest["nucleotides"] == 121
    assert store.manifest["provenance"] == {"made": "by a test"}
    store.verify()


def test_random_access_across_record_batches(make_store):
    rng = np.random.default_rng(1)
    letters = [bytes(rng.choice(np.frombuffer(b"ACGU", np.uint8), n)) for n in rng.integers(1, 40, 2 * ROWS + 77)]
    store = make_store(*([one] for one in letters))
    for i in [*rng.permutation(len(letters))[:3000].tolist(), 0, ROWS - 1, ROWS, 2 * ROWS, len(letters) - 1]:
        assert store[i].tobytes() == letters[i]
        assert store.name(i) == f"seq{i}"


def test_letters_are_views_of_the_mapped_file(small_store):
    letters = small_store[5]
    assert not letters.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        letters[0] = 0


@pytest.mark.parametrize("index", [-1, 10**9])
def test_an_index_out_of_range_raises(small_store, index):
    with pytest.raises(IndexError, match="no sequence"):
        small_store[index]


def test_empty_splits_and_one_sequence(make_store):
    store = make_store([MIR21])
    assert (len(store), len(store.cluster_range("validation")), len(store.sequence_range("validation"))) == (1, 0, 0)
    only_validation = make_store(validation=[[MIR21]], name="other")
    assert (len(only_validation.cluster_range("train")), only_validation.cluster_range("validation")) == (0, range(1))


def test_same_sequences_same_fingerprint(make_store):
    one, two = make_store([TRNA], name="one"), make_store([TRNA], name="two")
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != make_store([MIR21], name="three").fingerprint


# What is refused


@pytest.mark.parametrize("content", [None, "empty", "file"])
def test_what_is_no_store_is_refused(tmp_path, content):
    path = tmp_path / "thing"
    if content == "empty":
        path.mkdir()
    elif content == "file":
        path.write_text(">a\nACGU\n")
    with pytest.raises(InputError, match=r"not a token store; make one with `rinalmo data prepare`"):
        TokenStore.open(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "mosaic"}', "\udcff"])
def test_a_foreign_manifest_is_refused(copy, text):
    (copy / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=str(copy)) as caught:
        TokenStore.open(copy)
    assert len(str(caught.value).splitlines()) == 1


def test_another_version_is_refused(copy):
    edit_manifest(copy, version=2)
    with pytest.raises(InputError, match="of version 2, but this rinalmo reads version 1"):
        TokenStore.open(copy)


def test_an_edited_manifest_is_refused(copy):
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text.replace("rnacentral", "rnacentrol"))
    with pytest.raises(InputError, match="damaged or edited"):
        TokenStore.open(copy)


@pytest.mark.parametrize("name", [SEQUENCES, *(f"{column}.bin" for column in COLUMNS)])
def test_a_missing_or_shorter_file_is_refused(copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{name}: has {len(content) - 1} bytes, but the manifest says {len(content)}"):
        TokenStore.open(copy)
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"{name}: is missing"):
        TokenStore.open(copy)


def test_a_file_of_another_store_is_refused(copy, make_store):
    other = make_store([TRNA] * 3).path
    shutil.copy(other / SEQUENCES, copy / SEQUENCES)
    files = json.loads((copy / MANIFEST).read_text())["files"]
    files[SEQUENCES]["bytes"] = (copy / SEQUENCES).stat().st_size
    edit_manifest(copy, files=files)
    store = TokenStore.open(copy)  # as many record batches, so that only reading tells
    with pytest.raises(InputError, match="damaged"):
        store[0]


def flip(path, bit):
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


def test_200_flipped_bits_are_all_found(copy):
    """Opening or `verify` finds each; reading everything meanwhile raises nothing but InputError."""
    rng = np.random.default_rng(3)
    names = [MANIFEST, SEQUENCES, *(f"{column}.bin" for column in COLUMNS)]
    for trial in range(200):
        path = copy / names[trial % len(names)]
        size = path.stat().st_size * 8
        bit = int(rng.integers(size))
        if path.name == SEQUENCES and trial % 2:  # its metadata is at both ends
            bit = int(rng.integers(8 * 1000)) if trial % 4 == 1 else size - 1 - int(rng.integers(8 * 600))
        flip(path, bit)
        with pytest.raises(InputError):
            TokenStore.open(copy).verify()
        try:
            store = TokenStore.open(copy)
            for i in range(0, len(store), 97):
                _ = store[i], store.name(i)
            for cluster in range(store.cluster_starts.size - 1):
                store.members(cluster)
        except (InputError, UnicodeDecodeError):
            pass
        flip(path, bit)
    TokenStore.open(copy).verify()


# Writing


def test_an_existing_folder_is_not_overwritten(small_store, tmp_path):
    with pytest.raises(InputError, match="exists"):
        StoreWriter(small_store.path, sources=["a"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="exists"):
        StoreWriter(tmp_path / "file", sources=["a"])


def test_an_empty_folder_may_be_there(tmp_path):
    (tmp_path / "store").mkdir()
    with StoreWriter(tmp_path / "store", sources=["a"]) as writer:
        writer.start_cluster()
        writer.add("one", TRNA)
    assert TokenStore.open(tmp_path / "store")[0].tobytes() == TRNA


def test_an_error_leaves_nothing(tmp_path):
    def interrupted():
        with StoreWriter(tmp_path / "store", sources=["a"]) as writer:
            writer.start_cluster()
            writer.add("one", TRNA)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_no_sequences_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no sequence is left"), StoreWriter(tmp_path / "store", sources=["a"]):
        pass
    assert not list(tmp_path.iterdir())


def test_train_after_validation_is_a_mistake(tmp_path):
    with StoreWriter(tmp_path / "store", sources=["a"]) as writer:
        writer.start_cluster("validation")
        writer.add("one", TRNA)
        with pytest.raises(ValueError, match="a cluster of train after those of validation"):
            writer.start_cluster("train")


WRITE = """
import sys
from rinalmo.data.store import StoreWriter
with StoreWriter(sys.argv[1], sources=["a"]) as writer:
    for i in range(20_000):
        writer.start_cluster()
        writer.add(str(i), b"ACGU" * 20)
        if i % 1000 == 0:
            print(i, flush=True)
"""


@pytest.mark.posix_only
def test_a_killed_writer_leaves_no_store(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    for line in process.stdout:
        if int(line) >= 9000:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert not (tmp_path / "store").exists()


def test_opening_does_not_read_the_sequences(small_store, tmp_path):
    """Opening maps files: what has become of a record batch shows when one of its sequences is asked for."""
    folder = shutil.copytree(small_store.path, tmp_path / "store")
    content = bytearray((folder / SEQUENCES).read_bytes())
    middle = slice(len(content) // 4, len(content) // 2)
    content[middle] = bytes(len(content[middle]))
    (folder / SEQUENCES).write_bytes(content)
    store = TokenStore.open(folder)
    assert isinstance(store.lengths, np.memmap)
    assert store.lengths.tolist() == small_store.lengths.tolist()
    with pytest.raises(InputError):
        store.verify()
