"""Training in fp16 with a scaled loss, as on GPUs without bf16: the losses of fp32, and a scale that is resumed."""

import json

import pytest

import rinalmo

ROWS = [{"sequence": "ACGU" * 3 + "ACGU"[n % 4] * (n % 7 + 1), "y": n % 4} for n in range(40)]
# The peak is given: measuring it multiplies large fp16 matrices, which takes a CPU without such instructions minutes.
QUICK = ("train.max_steps=4", "logging.every=1", "logging.plots=false", "logging.peak_flops=1e9", "backbone.mode=full")


def losses(run):
    lines = (json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.precision("fp16")
def test_losses_of_fp16_are_those_of_fp32(backbone, tmp_path):
    for precision in ("fp32", "fp16"):
        given = (*QUICK, f"train.precision={precision}")
        rinalmo.finetune("table", ROWS, tmp_path / precision, target="y", model=backbone, overrides=given, device="cpu")
    expected = losses(tmp_path / "fp32")
    assert len(expected) == 4
    assert losses(tmp_path / "fp16") == pytest.approx(expected, rel=5e-3)
    assert "precision: fp16" in (tmp_path / "fp16" / "recipe.yaml").read_text()


@pytest.mark.precision("fp16")
def test_fp16_does_not_go_with_muon(backbone, tmp_path):
    given = (*QUICK, "train.precision=fp16", "optimizer.name=muon")
    with pytest.raises(rinalmo.errors.InputError, match=r"optimizer\.name=muon does not work with"):
        rinalmo.finetune("table", ROWS, tmp_path / "run", target="y", model=backbone, overrides=given, device="cpu")


def test_fp16_does_not_go_with_shards():
    from rinalmo.training.distributed import ParallelModel, Ranks
    from rinalmo.training.recipes import TrainRecipe

    model = rinalmo.load("nano")
    with pytest.raises(rinalmo.errors.InputError, match=r"fp16 needs loss scaling, which train\.sharding=fsdp"):
        ParallelModel(model, model, TrainRecipe(precision="fp16", sharding="fsdp"), Ranks(world=2))
