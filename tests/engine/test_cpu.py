"""`RINALMO_CPU` caps what is taken of the processor, wherever a precision is chosen."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import rinalmo
from rinalmo.engine.devices import is_native, packs_weights
from rinalmo.engine.engine import Engine
from rinalmo.errors import InputError

NO_ONEDNN = Path(__file__).parents[1] / "emulation" / "no_onednn"
RNAS = ["GGGAAAUCCC", "ACGU" * 20]


@pytest.fixture
def cap(monkeypatch):
    def to(level):
        monkeypatch.setenv("RINALMO_CPU", level)

    return to


@pytest.mark.parametrize(
    ("level", "fast"), [("plain", {"fp32"}), ("fp32", {"fp32"}), ("bf16", {"fp32", "bf16"}), ("int8", None), ("", None)]
)
def test_no_more_is_native_than_the_cap_allows(monkeypatch, cap, level, fast):
    monkeypatch.delenv("RINALMO_CPU", raising=False)
    uncapped = {name for name in ("fp32", "bf16", "int8") if is_native(name)}
    cap(level)
    assert {name for name in ("fp32", "bf16", "int8") if is_native(name)} == uncapped & (fast or uncapped)


@pytest.mark.parametrize("level", ["plain", "fp32"])
def test_auto_keeps_to_the_cap(nano, cap, level):
    cap(level)
    assert Engine(nano, "auto").precision == "fp32"
    assert packs_weights("fp32") is (level == "fp32")


@pytest.mark.parametrize(("level", "precision"), [("plain", "bf16"), ("fp32", "bf16"), ("bf16", "int8")])
def test_a_precision_beyond_the_cap_is_refused(nano, cap, level, precision):
    cap(level)
    with pytest.raises(InputError, match=f"^precision '{precision}' exceeds the limit RINALMO_CPU={level}; "):
        Engine(nano, precision)


@pytest.mark.parametrize("level", ["fp16", "INT8", " "])
def test_an_unknown_cap_is_refused(nano, cap, level):
    cap(level)
    with pytest.raises(InputError, match=f"^RINALMO_CPU is '{level}'; use one of plain, fp32, bf16, int8"):
        Engine(nano, "auto")


def test_every_level_gives_the_same_numbers(nano, cap):
    found = {}
    for level in ("plain", "fp32"):
        cap(level)
        found[level] = rinalmo.embed(RNAS, Engine(nano, "auto"))
    np.testing.assert_allclose(found["plain"], found["fp32"], atol=1e-5)


@torch.no_grad()
def test_the_hugging_face_classes_keep_to_it(cap):
    tokenizer = rinalmo.RnaTokenizer.from_pretrained(str(rinalmo.resolve("nano")))
    inputs = tokenizer(RNAS, padding=True, return_tensors="pt")
    model = rinalmo.RiNALMoForMaskedLM.from_pretrained(str(rinalmo.resolve("nano")))
    cap("fp32")
    packed = model(**inputs).logits
    cap("plain")
    plain = model(**inputs).logits
    model.set_attn_implementation("eager")  # always by the plain encoder
    torch.testing.assert_close(plain, model(**inputs).logits, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(plain, packed, atol=1e-4, rtol=1e-5)


_WITHOUT_ONEDNN = """
import sys
import numpy as np
import rinalmo
from rinalmo.engine.devices import has_onednn, is_native
assert not has_onednn() and not is_native("bf16") and not is_native("int8")
np.save(sys.argv[1], rinalmo.embed(sys.argv[2:]))
print(rinalmo.fill_mask("GG<mask>CC")[0][0][0].token_str in "ACGU", len(rinalmo.score("GGGAAAUCCC", ["G1A"])))
rinalmo.RiNALMoModel.from_pretrained(str(rinalmo.resolve("nano")))
"""


@pytest.mark.slow
def test_without_onednn_operators(nano, tmp_path, cap):
    """As with torch on a Mac: there is no such operator, and importing must not look for one."""
    path = os.pathsep.join([str(NO_ONEDNN), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", _WITHOUT_ONEDNN, str(tmp_path / "found.npy"), *RNAS]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True 1\n"
    cap("plain")
    expected = rinalmo.embed(RNAS, Engine(nano, "fp32"))
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-5)
