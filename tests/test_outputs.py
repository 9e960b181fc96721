"""Whatever this package writes: where links lead, and with the permissions that the umask leaves."""

import os
import stat

import pytest

import rinalmo
from rinalmo.data.store import StoreWriter
from rinalmo.engine.engine import Engine
from rinalmo.inference.embed import embed_file
from rinalmo.rna.formats import write_structures
from rinalmo.rna.structure import Structure
from rinalmo.weights.checkpoint import load, save

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no umask, and needs a privilege for links")


def write_store(path):
    with StoreWriter(path, sources=["x"]) as writer:
        writer.start_cluster()
        writer.add("a", b"ACGU")


@pytest.fixture(scope="module")
def writers(backbone, tmp_path_factory):
    """Each kind of output by the name of its file or folder."""
    engine = Engine(backbone, "fp32")
    fasta = tmp_path_factory.mktemp("in") / "in.fa"
    fasta.write_text(">a\nACGU\n>b\nACGUACGU\n")
    structure = Structure("a", "GGGAAACCC", ((0, 8), (1, 7)))
    embeddings = {f"out{ending}": lambda path: embed_file(fasta, path, engine) for ending in (".npz", ".parquet")}
    return {
        **embeddings,
        "out.dbn": lambda path: write_structures(path, [structure]),
        "model": lambda path: save(load(backbone), path),
        "official.pt": lambda path: save(load(backbone), path, layout="official"),
        "store": write_store,
    }


OUTPUTS = pytest.mark.parametrize("name", ["out.npz", "out.parquet", "out.dbn", "model", "official.pt", "store"])


@OUTPUTS
@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_permissions_follow_the_umask(writers, tmp_path, name, mask):
    before = os.umask(mask)
    try:
        writers[name](tmp_path / name)
    finally:
        os.umask(before)
    for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
        expected = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
    assert [path.name for path in tmp_path.iterdir()] == [name]


@OUTPUTS
def test_links_are_followed(writers, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere" / name)
    writers[name](tmp_path / name)
    assert (tmp_path / name).is_symlink()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [name]
    if name == "model":
        assert rinalmo.load(tmp_path / name).config.hidden_size == 32
        save(load(tmp_path / name), tmp_path / name, overwrite=True)
        assert (tmp_path / name).is_symlink()
        assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [name]
