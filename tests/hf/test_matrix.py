"""The matrix of docs/hugging_face.md: a test per cell, of one class with one tool.

The models have two narrow blocks. A class computes with a tool what it computes without it.
"""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import rinalmo
from rinalmo.errors import InputError

PAGE = Path(__file__).parents[2] / "docs" / "hugging_face.md"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
QUIET = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
TEXTS, OTHER_TEXTS = ["ACGU<mask>CGU", "GGGA"], ["GGGGAUACGAACCCC", "A", "ACG"]
LABELS = {  # by class, for two rows of eight nucleotides
    "RiNALMoForMaskedLM": torch.full((2, 10), 6),
    "RiNALMoForPreTraining": torch.full((2, 10), 6),
    "RiNALMoForSequencePrediction": torch.tensor([0, 1]),
    "RiNALMoForTokenPrediction": torch.tensor([[-100, *[0, 1] * 4, -100]] * 2),
    "RiNALMoForContactPrediction": torch.ones(2, 8, 8, dtype=torch.long),
    "RiNALMoForSecondaryStructurePrediction": torch.ones(2, 8, 8, 2, dtype=torch.long),
}


def new_model(cls, **options):
    torch.manual_seed(0)
    return getattr(rinalmo, cls)(rinalmo.RiNALMoConfig(**SIZES, num_labels=2, **options)).eval()


@cache
def tokenizer():
    return rinalmo.RnaTokenizer.from_pretrained("nano")


def batch_of(texts):
    return dict(tokenizer()(texts, padding=True, return_tensors="pt"))


def loss_of(cls, model, batch, labels=None):
    if cls == "RiNALMoModel":
        return model(**batch).pooler_output.square().sum() + model(**batch).last_hidden_state.mean()
    return model(**batch, labels=LABELS[cls] if labels is None else labels).loss


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@torch.no_grad()
def assert_computes(cls, model, expected_model=None, tolerance=1e-5):
    """The first output for two batches is that of the plain model, within a share of its largest value."""
    for texts in (TEXTS, OTHER_TEXTS):
        batch = batch_of(texts)
        expected = (expected_model or new_model(cls))(**batch)[0]
        assert (model(**batch)[0] - expected).abs().max() <= tolerance * expected.abs().max()


def trainer(cls, folder):
    from transformers import Trainer, TrainingArguments

    model = new_model(cls)
    ids = batch_of(["ACGUACGU", "GGGAAUCC"])["input_ids"]
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, LABELS[cls], strict=True)]
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "max_steps": 1, "learning_rate": 0.01}
    before = model.encoder.embedding.weight.detach().clone()
    run = Trainer(model, TrainingArguments(folder, **options), train_dataset=rows, eval_dataset=rows)
    run.train()
    assert not torch.equal(model.encoder.embedding.weight, before)
    assert run.evaluate()["eval_loss"] > 0
    run.save_model(folder / "model")
    assert_computes(cls, getattr(rinalmo, cls).from_pretrained(folder / "model"), model.eval())


def peft(cls, folder):
    library = pytest.importorskip("peft")
    new_model(cls).save_pretrained(folder / "base")
    base = getattr(rinalmo, cls).from_pretrained(folder / "base")
    config = library.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    tuned = library.get_peft_model(base, config).train()
    loss_of(cls, tuned, batch_of(["ACGUACGU", "GGGAAUCC"])).backward()
    names = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    beside = {name for name in names if "Structure" in cls and "lm_head" in name}
    assert names - gradients(tuned).keys() == beside
    tuned.eval().save_pretrained(folder / "adapter")
    again = getattr(rinalmo, cls).from_pretrained(folder / "adapter")
    assert_computes(cls, again, tuned)
    merged = tuned.merge_and_unload()
    assert_computes(cls, merged, again, 1e-4)


def compiled(cls, tool):
    """All of torch.compile but its compiler, which takes half a minute."""
    torch.compiler.reset()
    assert_computes(cls, torch.compile(new_model(cls), backend="aot_eager"))


def parallel(cls, tool):
    """Two steps' gradients of this process's row are the mean of both rows' gradients in one process."""
    rank, batch = dist.get_rank(), batch_of(["ACGUACGU", "GGGAAUCC"])
    labels = LABELS.get(cls, torch.zeros(2))
    rows = [({name: each[row, None] for name, each in batch.items()}, labels[row, None]) for row in range(2)]
    plain, model = new_model(cls, **QUIET).train(), new_model(cls, **QUIET).train()
    sum(loss_of(cls, plain, *row) / 2 for row in rows).backward()
    if tool == "DDP":
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
    else:
        for block in model.encoder.blocks:
            fully_shard(block)
        wrapped = fully_shard(model)
    for _ in range(2):  # the second step fails if a parameter had no gradient in the first
        wrapped.zero_grad()
        loss_of(cls, wrapped, *rows[rank]).backward()
    expected = gradients(plain)
    assert len(expected) == sum(parameter.requires_grad for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            grad = parameter.grad if tool == "DDP" else parameter.grad.full_tensor()
            torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4)


@cache
def ranks():
    """By class and tool the error, or None, in two processes of torchrun, which are started once for all.

    Here torch.compile would compile the checker of shapes along.
    """
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*torchrun, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    errors = {}
    for cls in ("RiNALMoModel", *LABELS):
        for tool, check in (("DDP", parallel), ("FSDP2", parallel), ("`torch.compile`", compiled)):
            try:
                check(cls, tool)
                errors[f"{cls} {tool}"] = None
            except Exception as error:
                errors[f"{cls} {tool}"] = repr(error)
    if dist.get_rank() == 0:
        print(json.dumps(errors), flush=True)
    dist.destroy_process_group()


def in_ranks(tool):
    def check(cls, folder):
        assert ranks()[f"{cls} {tool}"] is None

    return check


def offload(cls, folder):
    """To the CPU and to disk, from a model, from a folder of ours and from one of accelerate's."""
    accelerate = pytest.importorskip("accelerate")
    expected, kind = new_model(cls), type(new_model(cls))
    expected.save_pretrained(folder / "saved")
    accelerate.Accelerator().save_model(expected, folder / "accelerate")
    parts = [*(f"encoder.{name}" for name, _ in expected.encoder.named_children()), *dict(expected.named_children())]
    parts = sorted({"encoder.blocks.0", "encoder.blocks.1", *parts} - {"encoder", "encoder.blocks"})
    on_disk = {part: ("cpu", "disk")[number % 2] for number, part in enumerate(parts)}
    models = [
        accelerate.cpu_offload(new_model(cls), execution_device="cpu"),
        accelerate.disk_offload(new_model(cls), folder / "disk", execution_device="cpu"),
        kind.from_pretrained(folder / "saved", device_map={"": "cpu"}),
        kind.from_pretrained(folder / "saved", device_map=on_disk, offload_folder=folder / "offload"),
        accelerate.load_checkpoint_and_dispatch(
            kind(expected.config), folder / "accelerate", device_map=on_disk, offload_folder=folder / "dispatch"
        ),
    ]
    for model in models:
        assert_computes(cls, model.eval(), expected)


def quantize_dynamic(cls, folder):
    model = torch.ao.quantization.quantize_dynamic(new_model(cls), {torch.nn.Linear})
    assert type(model.encoder.blocks[0].ffn.down).__module__.startswith("torch.ao")
    assert_computes(cls, model, tolerance=0.15)


def torchao(cls, folder):
    quantization = pytest.importorskip("torchao.quantization")
    model = new_model(cls)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert "Int8" in type(model.encoder.blocks[0].ffn.down.weight).__name__
    assert_computes(cls, model, tolerance=0.1)


def dynamic(batch):
    return {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in batch}


def export(cls, folder):
    batch = batch_of(TEXTS)
    with torch.no_grad():
        program = torch.export.export(new_model(cls), (), batch, dynamic_shapes=dynamic(batch))
    assert_computes(cls, program.module())


def onnx(cls, folder):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    batch, path = batch_of(TEXTS), folder / "model.onnx"
    with torch.no_grad():
        torch.onnx.export(new_model(cls), (), path, kwargs=batch, dynamic_shapes=dynamic(batch), verbose=False)
    session = runtime.InferenceSession(path)

    def run(**batch):
        return [torch.from_numpy(session.run(None, {name: each.numpy() for name, each in batch.items()})[0])]

    assert_computes(cls, run, tolerance=1e-4)


def gradient_checkpointing(cls, folder):
    batch = batch_of(["ACGUACGU", "GGGAAUCC"])
    plain, model = new_model(cls, **QUIET).train(), new_model(cls, **QUIET).train()
    model.gradient_checkpointing_enable()
    for each in (plain, model):
        loss_of(cls, each, batch).backward()
    for name, grad in gradients(plain).items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, grad, atol=1e-5, rtol=1e-4)


def inputs_embeds(cls, folder):
    """`<mask>`, token dropout and padding included; the model's own embeddings are `(batch, length, hidden)`."""
    model = new_model(cls)

    def run(input_ids, attention_mask):
        embedded = model.get_input_embeddings()(input_ids)
        assert embedded.shape == (*input_ids.shape, 32)
        return model(inputs_embeds=embedded, attention_mask=attention_mask)

    assert_computes(cls, run)


TOOLS = {
    "Trainer": trainer,
    "PEFT": peft,
    "DDP": in_ranks("DDP"),
    "FSDP2": in_ranks("FSDP2"),
    "offload": offload,
    "`quantize_dynamic`": quantize_dynamic,
    "torchao": torchao,
    "`torch.compile`": in_ranks("`torch.compile`"),
    "`torch.export`": export,
    "ONNX": onnx,
    "gradient checkpointing": gradient_checkpointing,
    "`inputs_embeds`": inputs_embeds,
}
IN_RANKS = {"DDP", "FSDP2", "`torch.compile`"}


def matrix():
    """(class, tool) of every cell of the page's table that says yes."""
    rows = [re.split(r" *\| *", line)[1:-1] for line in PAGE.read_text().splitlines() if line.startswith("|")]
    start = next(number for number, row in enumerate(rows) if row[1:] == list(TOOLS))
    for row in rows[start + 2 : start + 2 + 7]:
        for tool, cell in zip(TOOLS, row[1:], strict=True):
            assert cell in ("yes", "–")
            if cell == "yes":
                exports = tool in ("`torch.export`", "ONNX")  # seconds each; one class stands for all in the fast tests
                slow = tool in IN_RANKS or (exports and row[0] != "`RiNALMoForMaskedLM`")
                yield pytest.param(row[0].strip("`"), tool, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("cls", "tool"), list(matrix()))
def test_cell(cls, tool, tmp_path):
    TOOLS[tool](cls, tmp_path)


def test_the_matrix_names_every_class():
    rows = {param.values[0] for param in matrix()}
    assert rows == {name for name in rinalmo.__all__ if name == "RiNALMoModel" or name.startswith("RiNALMoFor")}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"labels": torch.zeros(2, 10, dtype=torch.long)}, "losses cannot be exported or vmapped"),
        ({"output_attentions": True}, "attention weights cannot be exported"),
        ({"head_mask": torch.ones(2, 4)}, "no token_type_ids and no head_mask"),
    ],
)
def test_what_cannot_be_exported_is_one_line(arguments, problem):
    with pytest.raises(InputError, match=problem):
        torch.export.export(new_model("RiNALMoForMaskedLM"), (), batch_of(TEXTS) | arguments)


def test_torchscript_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"use torch\.export"):
        torch.jit.trace(new_model("RiNALMoForMaskedLM"), tuple(batch_of(TEXTS).values()), strict=False)


@pytest.mark.slow
def test_exported_programs_take_any_mask():
    """Left padding, holes, rows without tokens, and positions."""
    model, batch = new_model("RiNALMoForTokenPrediction"), batch_of(TEXTS)
    batch["position_ids"] = torch.arange(10).expand(2, 10)
    program = torch.export.export(model, (), batch, dynamic_shapes=dynamic(batch)).module()
    batch = dict(tokenizer()([*OTHER_TEXTS, ""], padding=True, padding_side="left", return_tensors="pt"))
    batch["attention_mask"][0, 5] = 0
    batch["attention_mask"][3] = 0
    batch["position_ids"] = (torch.arange(17) * 2).expand(4, 17)
    torch.testing.assert_close(program(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-4)


LAUNCHED = """
import sys
import torch
from transformers import Trainer, TrainingArguments
import rinalmo

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
config = rinalmo.RiNALMoConfig(**sizes, num_labels=2, hidden_dropout=0.0, attention_dropout=0.0)
torch.manual_seed(0)
model = rinalmo.RiNALMoForSequencePrediction(config)
model.save_pretrained("before")
rows = [{"input_ids": [1, *[6 + n % 4] * 8, 2], "labels": n % 2} for n in range(16)]
options = {"max_steps": 3, "learning_rate": 0.1, "optim": "sgd", "use_cpu": True, "report_to": []}
options |= {"save_strategy": "no", "disable_tqdm": True, "per_device_train_batch_size": int(sys.argv[2])}
arguments = TrainingArguments(sys.argv[1], **options)
trainer = Trainer(model, arguments, train_dataset=rows)
trainer.train()
assert arguments.world_size == int(sys.argv[3])
trainer.save_model(sys.argv[1])
"""


FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
num_machines: 1
num_processes: 2
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: EncoderBlock
"""


@pytest.mark.slow
def test_accelerate_launch_trains_as_one_process_does(tmp_path):
    """Two processes with half of the batch each. On a CPU accelerate 1.15 takes DDP, even if told to take FSDP."""
    pytest.importorskip("accelerate")
    (tmp_path / "train.py").write_text(LAUNCHED)
    (tmp_path / "fsdp.yaml").write_text(FSDP)
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file=fsdp.yaml"]
    for command in ([sys.executable, "train.py", "1", "4", "1"], [*launch, "train.py", "2", "2", "2"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    before, one, two = (
        rinalmo.RiNALMoForSequencePrediction.from_pretrained(tmp_path / name).state_dict()
        for name in ("before", "1", "2")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-6, rtol=1e-5)
    assert not torch.equal(one["encoder.embedding.weight"], before["encoder.embedding.weight"])


if __name__ == "__main__":
    main()
