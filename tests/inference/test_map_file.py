"""Files of embeddings read back, coloured by what is known of the sequences; and h5ad as scanpy wants it."""

import re

import numpy as np
import pytest

from rinalmo import read_fasta
from rinalmo.engine.engine import Engine
from rinalmo.errors import InputError
from rinalmo.inference.embed import MapPlot, common_fields, embed_file, read_embeddings, values_of

FASTA = """>a type=tRNA species="E. coli"
ACGUAC
>b type=tRNA
GGGUUU
>b type=rRNA species=yeast
AAACCC
>d other
AC
"""
IDS, LENGTHS = ["a", "b", "b", "d"], [6, 6, 6, 2]


@pytest.fixture(scope="module")
def engine(nano):
    return Engine(nano, "fp32")


@pytest.fixture
def fasta(tmp_path):
    (tmp_path / "in.fa").write_text(FASTA)
    return tmp_path / "in.fa"


@pytest.mark.parametrize("ending", ["npz", "parquet", "h5", "h5ad"])
def test_every_format_is_read_back(fasta, engine, tmp_path, ending):
    output = tmp_path / f"out.{ending}"
    embed_file(fasta, output, engine)
    found = read_embeddings(output)
    assert (found.ids, found.lengths) == (IDS, LENGTHS)
    assert found.values.shape == (4, 320)
    assert found.values.dtype == np.float32
    expected = None if ending == "npz" else [record.description for record in read_fasta(fasta)]
    assert found.descriptions == expected
    MapPlot(tmp_path / "map.svg", colour_by="length").draw(output)
    words = re.findall(r">([^<>]+)</text>", (tmp_path / "map.svg").read_text())
    assert {f"out.{ending}, 4 sequences", "length", "6 (3)", "2 (1)"} <= set(words)


@pytest.mark.parametrize("ending", ["npz", "parquet", "h5"])
@pytest.mark.parametrize("options", [{"pooling": "none"}, {"layers": (0, -1)}])
def test_more_than_one_vector_a_sequence_is_refused(fasta, engine, tmp_path, ending, options):
    embed_file(fasta, tmp_path / f"out.{ending}", engine, **options)
    with pytest.raises(InputError, match="more than one vector per sequence"):
        read_embeddings(tmp_path / f"out.{ending}")


def test_other_files_are_refused(tmp_path):
    for name, content in (("a.npz", b"x"), ("b.parquet", b"x"), ("c.h5", b"x"), ("d.h5ad", b"x"), ("e.txt", b"x")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_embeddings(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_embeddings(tmp_path / "none.npz")
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    with pytest.raises(InputError, match=r"foreign\.npz: cannot be read as embeddings"):
        read_embeddings(tmp_path / "foreign.npz")


def test_fields_of_headers(tmp_path):
    ids = ["URS00000B15DA_9606", "RF00001;5S_rRNA;X01556.1/3-118", "x"]
    descriptions = ["Homo sapiens (human) microRNA hsa-mir-21", "2252:Halococcus", "type=own len=3"]
    assert values_of("type", ids, descriptions, [1, 2, 3]) == ["miRNA", "", "own"]
    assert values_of("family", ids, descriptions, [1, 2, 3]) == ["", "RF00001", ""]
    assert values_of("length", ids, descriptions, [1, 2, 3]) == ["1", "2", "3"]
    assert values_of("description", ids, descriptions, [1, 2, 3]) == descriptions
    assert common_fields(ids, descriptions) == {"taxon": ["9606", "Halococcus", ""], "type": ["miRNA", "", "own"]}
    with pytest.raises(InputError, match="no header has the field 'famly'; use length, id, description, family"):
        values_of("famly", ids, descriptions, [1, 2, 3])


def test_names_are_listed_once():
    with pytest.raises(InputError, match="use length, id, description, type or TABLE:COLUMN"):
        values_of("famly", ["a"], ["id=3 length=4 type=own"], [3])


def test_columns_of_tables(tmp_path):
    (tmp_path / "facts.tsv").write_text("species\tid\nyeast\tb\nfly\tz\n")
    field = f"{tmp_path}/facts.tsv"
    assert values_of(f"{field}:species", ["a", "b"], ["", ""], [1, 1]) == ["", "yeast"]
    for wrong, words in ((f"{field}:spcies", "did you mean 'species'"), (f"{tmp_path}/no.csv:x", "no.csv")):
        with pytest.raises(InputError, match=words):
            MapPlot(tmp_path / "map.svg", colour_by=wrong).check(tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"facts\.tsv: has none of the 1 sequence ids, such as 'q'"):
        values_of(f"{field}:species", ["q"], [""], [1])
    with pytest.raises(InputError, match="stores no headers to color by 'family'"):
        MapPlot(tmp_path / "map.svg", colour_by="family").check(tmp_path / "x.npz")


def test_h5ad_says_what_scanpy_wants_to_know(fasta, engine, tmp_path):
    anndata = pytest.importorskip("anndata")
    embed_file(fasta, tmp_path / "out.h5ad", engine, model_name="nano")
    data = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert list(data.obs_names) == ["a", "b", "b-1", "d"]
    assert list(data.var_names[:2]) == ["dim_0", "dim_1"]
    assert data.X.dtype == np.float32
    assert list(data.obs) == ["id", "description", "length", "species", "type"]
    assert data.obs["type"].dtype == "category"
    assert data.obs["type"].tolist()[:3] == ["tRNA", "tRNA", "rRNA"]
    assert data.obs["type"].isna().tolist() == [False, False, False, True]
    assert data.obs["species"].tolist()[0] == "E. coli"
    about = data.uns["rinalmo"]
    assert (about["model"], about["precision"], about["pooling"], about["layer"]) == ("nano", "fp32", "mean", 6)
    assert about["fingerprint"] == engine.fingerprint


def test_a_header_with_anndatas_own_name_is_left_out(engine, tmp_path):
    anndata = pytest.importorskip("anndata")
    (tmp_path / "in.fa").write_text(">a _index=3 type=tRNA\nACGU\n")
    embed_file(tmp_path / "in.fa", tmp_path / "out.h5ad", engine)
    assert list(anndata.read_h5ad(tmp_path / "out.h5ad").obs) == ["id", "description", "length", "type"]


@pytest.mark.parametrize("ending", ["h5", "h5ad"])
def test_a_file_that_cannot_grow(engine, tmp_path, ending):
    resource = pytest.importorskip("resource")
    (tmp_path / "in.fa").write_text("".join(f">{n}\n{'ACGU'[n % 4] * 4}\n" for n in range(100)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    try:
        with pytest.raises(InputError, match=r"out\.h5.*: cannot be written \(File too large\)"):
            embed_file(tmp_path / "in.fa", tmp_path / f"out.{ending}", engine)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["in.fa"]
