"""The encoder for GPUs, on the CPU: the plain encoder's numbers in any company, one compilation for any batch."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch

from rinalmo.engine.gpu_encoder import GpuEncoder
from rinalmo.errors import InputError
from rinalmo.model import kernels
from rinalmo.model.packing import pack

# Largest relative error of a token's state against the plain encoder in fp32.
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 4e-3}


def batch(lengths, seed=0):
    chooser = random.Random(seed)
    return [[1, *chooser.choices((6, 7, 8, 9, 4), k=length), 2] for length in lengths]


def distance(found, expected):
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-6)).max())


@torch.inference_mode()
def plain(model, sequences, layers):
    ids, layout = pack(sequences)
    out = model.encoder(ids, layout, output_hidden_states=True)
    return [out.hidden_states[layer] for layer in layers]


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("lengths", [(1,), (30, 5, 5, 200, 1, 77), (600,)])
def test_states_of_every_layer(nano, precision, lengths):
    sequences, layers = batch(lengths), [6, 0, 3, 6]
    found = GpuEncoder(nano.encoder, precision)(*pack(sequences), layers)
    for states, expected in zip(found, plain(nano, sequences, layers), strict=True):
        assert states.dtype == torch.float32
        assert distance(states, expected) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", TOLERANCE)
def test_states_do_not_depend_on_the_rest_of_the_batch(nano, precision):
    sequences = batch((30, 5, 200, 30))
    encoder = GpuEncoder(nano.encoder, precision)
    ids, layout = pack(sequences)
    together = layout.split(encoder(ids, layout, [6])[0])
    for order in ([0], [2], [3, 1, 2, 0]):
        ids, layout = pack([sequences[i] for i in order])
        for i, found in zip(order, layout.split(encoder(ids, layout, [6])[0]), strict=True):
            assert distance(found, together[i]) < TOLERANCE[precision]


def test_nothing_to_compute(nano):
    ids, layout = pack([])
    assert GpuEncoder(nano.encoder, "bf16")(ids, layout, [0, 6])[1].shape == (0, nano.config.hidden_size)


def test_the_model_is_left_as_it_is(nano):
    before = {name: tensor.clone() for name, tensor in nano.state_dict().items()}
    half, full = GpuEncoder(nano.encoder, "bf16"), GpuEncoder(nano.encoder, "fp32")
    assert half.encoder.blocks[0].ffn.down.weight.dtype == half.encoder.blocks[0].ffn.down.bias.dtype == torch.bfloat16
    assert half.encoder.blocks[0].ffn.beta.dtype == half.encoder.blocks[0].ffn_norm.weight.dtype == torch.float32
    assert half.encoder.embedding.weight.dtype == torch.float32
    shared = full.encoder.blocks[0].ffn.down.weight.data_ptr()
    assert shared == nano.encoder.blocks[0].ffn.down.weight.data_ptr()
    assert all(torch.equal(before[name], tensor) for name, tensor in nano.state_dict().items())


def test_a_training_model_is_computed_without_dropout(nano):
    sequences = batch((20,))
    nano.train()
    try:
        found = GpuEncoder(nano.encoder, "fp32")(*pack(sequences), [6])[0]
        assert nano.training
    finally:
        nano.eval()
    torch.testing.assert_close(found, plain(nano, sequences, [6])[0], atol=1e-5, rtol=1e-5)


def test_unknown_precision(nano):
    with pytest.raises(InputError, match="fp8"):
        GpuEncoder(nano.encoder, "fp8")


@pytest.mark.parametrize(
    ("variable", "explicit", "device", "training", "tokens", "expected"),
    [
        ("", None, "cuda", False, 0, False),
        ("", None, "cuda", False, kernels.WORTHWHILE_TOKENS, True),
        ("", None, "cuda", True, 0, True),
        ("", None, "cpu", True, kernels.WORTHWHILE_TOKENS, False),
        ("", None, "mps", True, kernels.WORTHWHILE_TOKENS, False),
        ("1", None, "cpu", False, 0, True),
        ("0", None, "cuda", True, kernels.WORTHWHILE_TOKENS, False),
        ("0", True, "cpu", False, 0, True),
        ("1", False, "cuda", True, 0, False),
    ],
)
def test_when_to_compile(monkeypatch, variable, explicit, device, training, tokens, expected):
    monkeypatch.setenv("RINALMO_COMPILE", variable)
    device = torch.device(device)
    assert kernels.should_compile(device, explicit=explicit, training=training, tokens=tokens) is expected


def test_an_invalid_variable_is_named(monkeypatch):
    monkeypatch.setenv("RINALMO_COMPILE", "yes")
    with pytest.raises(InputError, match="RINALMO_COMPILE is 'yes'"):
        kernels.should_compile(torch.device("cpu"))


# In a process of its own: the checker of shapes in this one would be compiled along.
_COMPILED = """
import json, random, sys, torch
import numpy as np
from torch._dynamo.utils import counters
from rinalmo.engine.engine import map_packed
from rinalmo.engine.gpu_encoder import GpuEncoder
from rinalmo.model import kernels
from rinalmo.model.config import ModelConfig
from rinalmo.model.packing import pack
from rinalmo.model.rinalmo import ModelSpec, create

def batch(lengths):
    return pack([[1, *random.Random(n).choices((6, 7, 8, 9, 4), k=n), 2] for n in lengths])

torch.set_num_threads(1)  # as in the threads of `map_packed`: compiled graphs depend on it
kernels.COMPILE_BACKEND = sys.argv[1]
sizes = dict(hidden_size=40, num_hidden_layers=3, num_attention_heads=5)
model = create(ModelSpec(ModelConfig(**sizes, attention_dropout=0.0, hidden_dropout=0.0))).eval()
fused, written = GpuEncoder(model.encoder, "fp32", True), GpuEncoder(model.encoder, "fp32", False)
errors = []

def mean(encoder):
    @torch.inference_mode()
    def compute(ids, layout):
        return [part.mean(dim=0) for part in layout.split(encoder(ids, layout, [3])[0])]
    return compute

# From the first call on in two threads, each of which would compile.
ids = [np.array([1, *random.Random(n).choices((6, 7, 8, 9), k=2 + 3 * n), 2]) for n in range(24)]
pairs = (map_packed(mean(encoder), iter(ids), batch_tokens=lambda: 90, in_flight=2) for encoder in (fused, written))
in_threads, alone = map(list, pairs)
errors += [float((a - b).abs().max() / b.abs().max()) for a, b in zip(in_threads, alone)]
with torch.inference_mode():
    for lengths in ((5, 9), (30, 7, 7, 100), (1,), (250, 3)):
        pairs = zip(fused(*batch(lengths), [1, 3]), written(*batch(lengths), [1, 3]))
        errors += [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
graphs = counters["stats"]["unique_graphs"]

def gradients(fuse, checkpointing):
    model.train().zero_grad()
    model.encoder.fuse, model.encoder.gradient_checkpointing = fuse, checkpointing
    ids, layout = batch((12, 30))
    model.encoder(ids, layout).last_hidden_state.sin().square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}

expected = gradients(False, False)
# Inductor takes half a minute for gradients on a CPU.
for checkpointing in (False, True) if kernels.COMPILE_BACKEND == "aot_eager" else ():
    for name, found in gradients(True, checkpointing).items():
        errors.append(float((found - expected[name]).abs().max() / (expected[name].abs().max() + 1e-8)))
print(json.dumps([graphs, errors, kernels.compile_error()]))
"""


def run_python(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=COMPILER)])
def test_compiled_numbers_and_one_compilation_for_any_batch(backend):
    graphs, errors, problem = json.loads(run_python(_COMPILED, backend).stdout)
    assert problem is None
    assert graphs == 2  # before and after attention, whatever the number of layers and tokens
    assert max(errors) < 1e-4


_WITHOUT_COMPILER = """
import torch, warnings
from rinalmo.engine.gpu_encoder import GpuEncoder
from rinalmo.model.config import ModelConfig
from rinalmo.model.packing import pack
from rinalmo.model.rinalmo import ModelSpec, create

model = create(ModelSpec(ModelConfig(hidden_size=40, num_hidden_layers=2, num_attention_heads=5))).eval()
ids, layout = pack([[1, 6, 7, 8, 2]])
with warnings.catch_warnings(record=True) as noted:
    warnings.simplefilter("always", UserWarning)
    found = [GpuEncoder(model.encoder, "fp32")(ids, layout, [2])[0] for _ in range(2)]
torch.testing.assert_close(found[0], GpuEncoder(model.encoder, "fp32", False)(ids, layout, [2])[0])
print(*(str(note.message) for note in noted if "torch.compile does not work" in str(note.message)), sep="\\n")
"""


@pytest.mark.slow
def test_where_nothing_compiles_one_line_says_so(tmp_path):
    missing = str(tmp_path / "no-compiler")
    cache = str(tmp_path / "cache")
    done = run_python(_WITHOUT_COMPILER, CXX=missing, RINALMO_COMPILE="1", TORCHINDUCTOR_CACHE_DIR=cache)
    (line,) = done.stdout.strip().splitlines()
    assert line.startswith("torch.compile does not work here, computing goes on without it")
