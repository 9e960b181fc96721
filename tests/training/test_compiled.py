"""Compiled training under FSDP, in bf16 and with activation checkpointing: the gradients of what is written."""

import json
import os
import subprocess
import sys

import pytest

# Two processes of their own: the checker of shapes in this one would be compiled along.
_GRADIENTS = """
import json, torch, torch.distributed as dist
import torch.nn.functional as F
from rinalmo.model import kernels
from rinalmo.model.config import ModelConfig
from rinalmo.model.packing import pack
from rinalmo.model.rinalmo import ModelSpec, create
from rinalmo.training.recipes import TrainRecipe
from rinalmo.training.distributed import ParallelModel, Ranks
from rinalmo.training.pretrain import MaskedLM

kernels.COMPILE_BACKEND = "aot_eager"  # all of torch.compile but the compiler itself, which takes half a minute
dist.init_process_group("gloo")
ranks = Ranks(dist.get_rank(), 2)
sizes = dict(hidden_size=40, num_hidden_layers=2, num_attention_heads=5, attention_dropout=0.0, hidden_dropout=0.0)

def gradients(fuse, precision, checkpointing):
    model = create(ModelSpec(ModelConfig(**sizes), heads={"lm_head": {}}))
    model.encoder.fuse = fuse
    recipe = TrainRecipe(epochs=1, sharding="fsdp", precision=precision, activation_checkpointing=checkpointing)
    parallel = ParallelModel(MaskedLM(model).train(), model, recipe, ranks)
    ids, layout = pack([[1, *[6, 7, 8, 9] * 5, 2], [1, *[6, 9] * (4 + ranks.rank), 2]])
    with parallel.forward() as module:
        loss = F.cross_entropy(module(ids, layout, torch.arange(1, 9)), ids[1:9])
    loss.backward()
    return [parameter.grad.full_tensor() for parameter in parallel.module.parameters()]

errors = {}
for precision in ("fp32", "bf16"):
    for checkpointing in (False, True):
        pairs = zip(gradients(True, precision, checkpointing), gradients(False, precision, checkpointing))
        errors[f"{precision} {checkpointing}"] = max(float((a - b).norm() / (b.norm() + 1e-9)) for a, b in pairs)
if ranks.rank == 0:
    print(json.dumps([errors, kernels.compile_error()]))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_gradients_of_compiled_shards(tmp_path):
    script = tmp_path / "gradients.py"
    script.write_text(_GRADIENTS)
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    errors, problem = json.loads(done.stdout.strip().splitlines()[-1])
    assert problem is None
    assert all(error < (1e-5 if name.startswith("fp32") else 3e-2) for name, error in errors.items()), errors
