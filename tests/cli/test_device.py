"""`--device` on every command that computes: it works, says what it took, and refuses what is not there in one line."""

import pytest
import torch

import rinalmo

EXAMPLES = rinalmo.resolve("nano").parent / "examples"
STRUCTURE = "id,sequence,structure\na,GGGGAAAACCCC,((((....))))\nb,GGGCAAAAGCCC,((((....))))\n"


@pytest.fixture
def commands(tmp_path):
    fasta, table, labels = tmp_path / "in.fa", tmp_path / "in.csv", tmp_path / "labels.csv"
    fasta.write_text(">a\nGGGGAAAUCCCC\n>b\nACGUACGUAC\n")
    table.write_text(STRUCTURE)
    rows = "".join(f"{'ACGU' * 5}{'ACGU'[n % 4] * 4},{n / 10}\n" for n in range(40))
    labels.write_text("sequence,y\n" + rows)
    quick = ("--set", "train.epochs=1", "--set", "backbone.mode=frozen", "--set", "logging.plots=false")
    return {
        "embed": ("embed", fasta, "-o", tmp_path / "out.npz"),
        "fold": ("fold", fasta),
        "score": ("score", "GGGAAAUCCC", "--all-single"),
        "predict": ("predict", "nano-fold", fasta),
        "evaluate": ("evaluate", "secondary-structure", table, "--model", "nano-fold"),
        "fill-mask": ("fill-mask", "GGG<mask>AAUCCC"),
        "finetune": ("finetune", "table", labels, "--target", "y", "-o", tmp_path / "run", *quick),
    }


@pytest.mark.parametrize("name", ["embed", "fold", "score", "predict", "evaluate", "fill-mask", "finetune"])
def test_the_cpu_is_taken_and_named(rinalmo_command, commands, name):
    result = rinalmo_command(*commands[name], "--device", "cpu")
    assert result.code == 0, result.err
    assert "device: cpu, " in result.err
    assert result.err.count("device: ") == 1
    assert "device: " not in result.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["embed", "fold", "score", "predict", "evaluate", "fill-mask", "finetune"])
def test_a_gpu_that_is_not_there_is_one_line(rinalmo_command, commands, name):
    result = rinalmo_command(*commands[name], "--device", "cuda")
    assert result.code == 2
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("rinalmo: device 'cuda': ")
    assert line.endswith("use --device cpu or auto")


@pytest.mark.parametrize("command", ["web", "pretrain"])
def test_the_other_commands_take_a_device_too(rinalmo_command, command):
    assert "--device" in rinalmo_command(command, "--help").out


def test_a_page_on_a_gpu_that_is_not_there_is_one_line(rinalmo_command):
    pytest.importorskip("gradio")
    result = rinalmo_command("web", "--port", "0", "--device", "cuda:99")
    assert result.code == 2
    assert "device 'cuda:99'" in result.err


def test_the_report_of_the_system(rinalmo_command):
    result = rinalmo_command("info", "--system")
    assert result.code == 0
    for name in ("rinalmo", "torch", "processor", "auto takes", "CPU kernels", "GPU attention"):
        assert f"\n{name} " in f"\n{result.out}"
    assert rinalmo_command("info", "nano", "--system").code == 2
