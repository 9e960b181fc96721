"""Files that are damaged, foreign or hostile: one clear line, nothing executed, nothing allocated."""

import json
import os
import pickle
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rinalmo.errors import CheckpointError
from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create
from rinalmo.weights.checkpoint import load, save


class Attack:
    """Runs a command when unpickled."""

    def __init__(self, marker, how):
        self.marker, self.how = str(marker), how

    def __reduce__(self):
        return {
            "system": (os.system, (f"touch {self.marker}",)),
            "exec": (exec, (f"open({self.marker!r}, 'w').close()",)),
            "eval": (eval, (f"open({self.marker!r}, 'w')",)),
            "getattr": (getattr, (os, "abort")),
        }[self.how]


@pytest.mark.parametrize("how", ["system", "exec", "eval"])
@pytest.mark.parametrize("name", ["evil.pt", "pytorch_model.bin", "evil.ckpt"])
def test_pickle_that_would_execute_code(tmp_path, how, name):
    marker = tmp_path / "executed"
    torch.save({"embedding.weight": torch.zeros(22, 80), "extra": Attack(marker, how)}, tmp_path / name)
    with pytest.raises(CheckpointError, match="refused") as error:
        load(tmp_path / name)
    assert not marker.exists()
    assert "\n" not in str(error.value)


def test_bare_pickle(tmp_path):
    marker = tmp_path / "executed"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Attack(marker, "system")))
    with pytest.raises(CheckpointError):
        load(tmp_path / "evil.pt")
    assert not marker.exists()


def test_pickled_arrays_are_no_model(tmp_path):
    marker = tmp_path / "executed"
    np.savez(tmp_path / "evil.npz", weight=np.array([Attack(marker, "system")], dtype=object))
    with pytest.raises(CheckpointError, match="not a model file"):
        load(tmp_path / "evil.npz")
    assert not marker.exists()


def test_distributed_checkpoint_is_not_opened(tmp_path):
    marker = tmp_path / "executed"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Attack(marker, "system")))
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load(tmp_path)
    assert not marker.exists()


def test_auto_map_is_not_followed(nano, tmp_path):
    import rinalmo

    save(nano, tmp_path / "copy", "multimolecule")
    config = tmp_path / "copy" / "config.json"
    values = json.loads(config.read_text())
    values["auto_map"] = {"AutoConfig": "evil.C", "AutoModel": "evil.M"}
    config.write_text(json.dumps(values))
    (tmp_path / "copy" / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    rinalmo.RiNALMoModel.from_pretrained(tmp_path / "copy")
    import transformers

    transformers.AutoModel.from_pretrained(tmp_path / "copy")
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def folder(nano, tmp_path):
    save(nano, tmp_path / "copy")
    return tmp_path / "copy"


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as error:
        load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_truncated(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:size])
        refused(folder, "damaged")


def test_truncated_pickle(golden, tmp_path):
    whole = (golden / "official" / "official_tiny_pretrained.pt").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 10):
        (tmp_path / "short.pt").write_bytes(whole[:size])
        refused(tmp_path / "short.pt", "damaged")


def test_header_of_absurd_size(folder):
    (folder / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    refused(folder, "damaged")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("encoder.final_norm.bias"), r"missing: encoder\.final_norm\.bias"),
        (lambda t: t.update({"encoder.surprise": torch.zeros(3)}), r"unexpected: encoder\.surprise"),
        (lambda t: t.update({"encoder.final_norm.bias": torch.zeros(3)}), r"wrong shape: .*final_norm\.bias \(3,\)"),
        (lambda t: t["encoder.final_norm.bias"].fill_(float("nan")), "contains NaN"),
        (lambda t: t["encoder.blocks.0.ffn.beta"].fill_(float("inf")), "contains NaN"),
        (lambda t: t.pop("encoder.embedding.weight"), "no token embedding"),
        (lambda t: t.update({"encoder.embedding.weight": torch.zeros(())}), "embedding has shape"),
        (lambda t: t.update({"encoder.final_norm.bias": torch.zeros(320, dtype=torch.int32)}), "floating-point"),
        (lambda t: t.pop("encoder.blocks.0.ffn.beta"), r"missing: encoder\.blocks\.0\.ffn\.beta"),
    ],
)
def test_wrong_tensors(folder, change, match):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, match)


def test_missing_partner_of_a_stacked_tensor(golden, tmp_path):
    shutil.copytree(golden / "multimolecule" / "base", tmp_path / "copy")
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    del tensors["encoder.layer.1.attention.self.key.weight"]
    save_file(tensors, tmp_path / "copy" / "model.safetensors")
    refused(tmp_path / "copy", "counterparts")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"intermediate_size": 10**12}, "parameters|shape"),
        ({"num_attention_heads": 7}, "heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"hidden_size": "320"}, "hidden_size"),
        ({"hidden_dropout": 2.0}, "hidden_dropout"),
        ({"layer_norm_eps": "abc"}, "layer_norm_eps"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"token_dropout": "no"}, "token_dropout"),
        ({"threshold": "high"}, "threshold"),
    ],
)
def test_config_that_contradicts_or_asks_too_much(folder, values, match):
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, match)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_config_that_is_no_config(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, r"config\.json")


def test_vocabulary_of_another_size(folder):
    (folder / "vocab.txt").write_text("A\nC\n")
    refused(folder, "token rows")


def test_foreign_files(tmp_path):
    save_file({"bert.encoder.weight": torch.zeros(2)}, tmp_path / "bert.safetensors")
    refused(tmp_path / "bert.safetensors", "not a RiNALMo")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "contains a list")
    torch.save({"a": "text"}, tmp_path / "text.pt")
    refused(tmp_path / "text.pt", "not a RiNALMo checkpoint")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("../escape", "x")
    refused(tmp_path / "zip.pt", "damaged")
    assert not (tmp_path.parent / "escape").exists()


def test_unpublished_size_without_config_needs_the_heads(tmp_path):
    save(create(ModelSpec(ModelConfig(40, 2, 5), heads={"lm_head": {}})), tmp_path / "copy")
    (tmp_path / "copy" / "config.json").unlink()
    refused(tmp_path / "copy", "attention heads")
    assert load(tmp_path / "copy", num_attention_heads=5).config.num_attention_heads == 5


def test_shards_may_not_lead_outside(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    refused(folder, "outside")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="nothing-here"):
        load(tmp_path / "nothing-here")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a small tmpfs")
def test_full_disk_keeps_the_old_model(nano, tmp_path):
    import subprocess

    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=45m", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        save(nano, tmp_path / "model")
        before = (tmp_path / "model" / "model.safetensors").read_bytes()
        with pytest.raises(CheckpointError, match=r"cannot be written"):
            save(nano, tmp_path / "model", overwrite=True)
        assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
        with pytest.raises(CheckpointError, match=r"cannot be written"):
            save(nano, tmp_path / "model.pt", "official")
        assert [p.name for p in tmp_path.iterdir()] == ["model"]
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)  # lazily: torch 2.15 still holds it


@pytest.mark.parametrize("name", ["model.safetensors", "weights.pt", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
            "is a git-lfs pointer, not the weights",
        ),
        ("\n<!DOCTYPE html><html><body>Log in</body></html>", "is a web page, not the weights; download the file"),
    ],
)
def test_what_is_fetched_in_place_of_weights(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{name}: {message}"):
        load(tmp_path / name)
