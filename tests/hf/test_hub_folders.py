"""`model.encode`, and folders of `save_pretrained` that are whole when they are uploaded."""

import json

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModel, AutoTokenizer, pipeline

import rinalmo
from rinalmo.errors import InputError

RNAS = ["UAGCUUAUCAGACUGAUGUUGA", "gggaaatcc", "ACGU"]


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(str(rinalmo.resolve("nano")))


def test_encode_is_embed(model):
    found = model.encode(RNAS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, rinalmo.embed(RNAS), atol=1e-5)
    np.testing.assert_allclose(model.encode(RNAS[0]), found[0], atol=1e-5)  # one text, one vector
    np.testing.assert_allclose(
        model.encode(RNAS, layer=3, pooling="cls"), rinalmo.embed(RNAS, layers=[3], pooling="cls"), atol=1e-5
    )
    assert [len(vectors) for vectors in model.encode(RNAS, pooling="none")] == [22, 9, 4]
    cosines = model.encode(RNAS, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(cosines, axis=1), 1, atol=1e-6)


def test_encode_computes_with_the_weights_of_the_moment(model):
    own = AutoModel.from_pretrained(str(rinalmo.resolve("nano"))).train()
    before = own.encode(RNAS)
    np.testing.assert_allclose(before, model.encode(RNAS), atol=1e-5)  # without dropout
    assert own.training
    with torch.no_grad():
        own.encoder.blocks[0].attention_norm.weight.mul_(1.5)
    assert np.abs(own.encode(RNAS) - before).max() > 1e-2


def test_encode_refuses(model):
    for sequences, options, words in (
        (["ACGE"], {}, "E"),
        ([], {}, "no sequence"),
        (RNAS, {"pooling": "max"}, "'max' is unknown"),
        (RNAS, {"layer": 9}, "there is no layer 9"),
    ):
        with pytest.raises(InputError, match=words):
            model.encode(sequences, **options)


def test_a_saved_folder_is_whole(tmp_path):
    folder = tmp_path / "our-model"
    rinalmo.RiNALMoForMaskedLM.from_pretrained("nano").save_pretrained(folder)
    files = {path.name for path in folder.iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"}
    _, header, body = (folder / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(header)
    assert (card["library_name"], card["pipeline_tag"], card["mask_token"]) == ("rinalmo", "fill-mask", "<mask>")
    assert "# our-model\n" in body
    assert AutoTokenizer.from_pretrained(folder)("ACGU").input_ids == rinalmo.RnaTokenizer()("ACGU").input_ids
    assert pipeline("fill-mask", model=str(folder))("GGUC<mask>CUCUGG")[0]["token_str"] in "ACGU"
    np.testing.assert_allclose(rinalmo.embed(RNAS, folder), rinalmo.embed(RNAS), atol=1e-6)


def test_what_is_there_is_kept(model, tmp_path):
    (tmp_path / "README.md").write_text("# ours\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RnaTokenizer", "nmers": 1}))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# ours\n"
    assert "bos_token" not in (tmp_path / "tokenizer_config.json").read_text()
    assert (tmp_path / "vocab.txt").exists()


def test_rows_are_embedded(model):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"id": ["a", "b", "c"], "Sequence": RNAS, "other": [1, 2, 3]})
    np.testing.assert_array_equal(rinalmo.embed(rows), rinalmo.embed(RNAS))
    np.testing.assert_array_equal(model.encode(rows["Sequence"]), model.encode(RNAS))
    for given, words in (
        (rows.rename_column("Sequence", "text"), r"row 1 has the columns id, text, other.*dataset\["),
        (datasets.DatasetDict(train=rows), "mapping of train; give one of its values"),
        ([{"sequence": 5}], "row 1: sequence is a int, not text"),
        ([{"sequence": "ACGE", "id": "bad"}], "bad"),
    ):
        with pytest.raises(InputError, match=words):
            rinalmo.embed(given)
