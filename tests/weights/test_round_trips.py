"""Layouts into each other and back, bit for bit."""

import json
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rinalmo.errors import CheckpointError
from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create
from rinalmo.weights.checkpoint import convert, load, read, save

KINDS = ["pretrained", "ss_ft", "mrl_ft", "splice_ft", "ncrna_ft"]


def same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if isinstance(tensor, torch.Tensor):
            assert tensor.dtype == second[name].dtype, name
            assert torch.equal(tensor, second[name]), name
        else:
            assert tensor == second[name], name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("between", ["rinalmo", "multimolecule"])
def test_official_and_back(golden, tmp_path, kind, between):
    original = golden / "official" / f"official_tiny_{kind}.pt"
    if between == "multimolecule" and kind not in ("pretrained", "ss_ft"):
        with pytest.raises(CheckpointError, match="has no name for"):
            convert(original, tmp_path / "ours", between)
        return
    convert(original, tmp_path / "ours", between)
    convert(tmp_path / "ours", tmp_path / "again.pt", "official")
    same(torch.load(original, weights_only=True), torch.load(tmp_path / "again.pt", weights_only=True))


PORT = [
    "base",
    "masked-lm",
    "secondary-structure",
    *(f"{h}-{k}" for h in ("sequence", "token", "contact") for k in ("binary", "multiclass")),
]


@pytest.mark.parametrize("name", PORT)
def test_port_and_back(golden, tmp_path, name):
    original = golden / "multimolecule" / name
    convert(original, tmp_path / "ours", "rinalmo")
    convert(tmp_path / "ours", tmp_path / "again", "multimolecule")
    same(load_file(original / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors"))
    assert (tmp_path / "again" / "vocab.txt").read_text().split() == (original / "vocab.txt").read_text().split()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (original, tmp_path / "again"))
    changed = {key for key in before if before[key] != after.get(key)}
    assert changed <= {"head"}  # null there, spelled out here


def test_layout_without_flash_attention(golden, tmp_path):
    """Separate query, key and value and a rotary buffer, as the authors' other class writes."""
    original = torch.load(golden / "official" / "official_tiny_pretrained.pt", weights_only=True)
    split = {}
    for name, tensor in original.items():
        stem = name.removesuffix("mh_attn.Wqkv.weight")
        if stem != name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                split[f"{stem}mh_attn.mh_attn.to_{letter}.weight"] = part.clone()
            split[f"{stem}mh_attn.rotary_emb.inv_freq"] = torch.ones(2)
        else:
            split[name.replace("mh_attn.out_proj", "mh_attn.mh_attn.out_proj")] = tensor
    torch.save(split, tmp_path / "split.pt")
    same(
        load(tmp_path / "split.pt").state_dict(), load(golden / "official" / "official_tiny_pretrained.pt").state_dict()
    )


def test_old_prefix_and_old_vocabulary(golden, tmp_path):
    """Hub files of the model card's time: `rinalmo.` before the encoder, 26 tokens, eps 1e-12."""
    from safetensors.torch import save_file

    from rinalmo.rna.alphabet import CARD_TOKENS

    source = golden / "multimolecule" / "masked-lm"
    tensors = load_file(source / "model.safetensors")
    rows = {"model.embeddings.word_embeddings.weight", "lm_head.decoder.weight", "lm_head.bias"}
    old = {n.replace("model.", "rinalmo.", 1): (t[:26].clone() if n in rows else t) for n, t in tensors.items()}
    old["lm_head.decoder.bias"] = old["lm_head.bias"].clone()
    save_file(old, tmp_path / "model.safetensors")
    config = json.loads((source / "config.json").read_text()) | {"vocab_size": 26, "layer_norm_eps": 1e-12}
    del config["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load(tmp_path)
    assert model.alphabet.tokens == CARD_TOKENS
    assert model.encoder.final_norm.eps == 1e-12
    assert model.lm_head.norm.eps == 1e-12
    assert torch.equal(model.lm_head.decoder.weight, old["lm_head.decoder.weight"])


def test_save_and_load_are_bit_equal(nano, tmp_path):
    save(nano, tmp_path / "copy")
    same(nano.state_dict(), load(tmp_path / "copy").state_dict())


def test_number_of_heads_survives_the_official_layout(tmp_path):
    """The authors' tensors do not show it, and these 4 are not their 20."""
    model = create(ModelSpec(ModelConfig(32, 2, 4), heads={"lm_head": {}}))
    save(model, tmp_path / "small.pt", "official")
    assert load(tmp_path / "small.pt").config.num_attention_heads == 4


def test_existing_target_is_kept(nano, tmp_path):
    save(nano, tmp_path / "copy")
    with pytest.raises(CheckpointError, match="exists"):
        save(nano, tmp_path / "copy")
    save(nano, tmp_path / "copy", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]


def test_made_up_rows_are_the_same_every_time(golden):
    path = golden / "official" / "official_tiny_pretrained.pt"
    first, second = load(path), load(path)
    index = first.alphabet.tokens.index("<null>")
    assert torch.equal(first.encoder.embedding.weight[index], second.encoder.embedding.weight[index])
    assert 0.005 < first.encoder.embedding.weight[index].std() < 0.04
    assert first.lm_head.decoder.bias[index] == 0
    assert "<null>" in read(path).notes[0]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_weights_are_mapped_not_copied(nano, tmp_path):
    """A tensor that needs no stacking is a view of the file."""
    save(nano, tmp_path / "copy")
    loaded = load(tmp_path / "copy")
    maps = (tmp_path / "copy" / "model.safetensors").resolve()
    address = loaded.encoder.blocks[0].attention.qkv.weight.data_ptr()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith(str(maps)):
            start, stop = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= address < stop:
                return
    raise AssertionError("the weights do not lie in the mapped file")


def wrapped(model, tmp_path, prefix, layout):
    """The model as a training loop has saved it, every name under this prefix."""
    convert(model, tmp_path / "plain.pt" if layout == "official" else tmp_path / "plain", layout)
    if layout == "official":
        plain = torch.load(tmp_path / "plain.pt", weights_only=True)
        content = OrderedDict((prefix + name, value) for name, value in plain.items())
        content._metadata = plain._metadata
        torch.save({"state_dict": content, "epoch": 3, "optimizer_states": [{"step": 1}]}, tmp_path / "last.ckpt")
        return tmp_path / "plain.pt", tmp_path / "last.ckpt"
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    shutil.copytree(tmp_path / "plain", tmp_path / "wrapped")
    renamed = {prefix + name: value for name, value in tensors.items()}
    save_file(renamed, tmp_path / "wrapped" / "model.safetensors")
    return tmp_path / "plain", tmp_path / "wrapped"


@pytest.mark.parametrize("layout", ["official", "multimolecule", "rinalmo"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "net.", "model.", "model.backbone."])
def test_names_under_those_of_what_trained_the_model(backbone, tmp_path, layout, prefix):
    plain, ckpt = wrapped(backbone, tmp_path, prefix, layout)
    expected, found = load(plain).state_dict(), load(ckpt).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
