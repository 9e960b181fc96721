"""`rinalmo pretrain` and `rinalmo card` as a user would use them, on a small store."""

import random

import pytest
import yaml

import rinalmo
from rinalmo.data.store import StoreWriter

EXAMPLES = {"HIV-1": "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU", "microRNA-21": "UAGC<mask>UAUCAGACUGAUGUUGA"}


@pytest.fixture
def store(tmp_path):
    draw = random.Random(0)
    with StoreWriter(tmp_path / "store", sources=["rfam"]) as writer:
        for split, clusters in (("train", 20), ("validation", 4)):
            for cluster in range(clusters):
                writer.start_cluster(split)
                writer.add(f"{split}{cluster}", "".join(draw.choices("ACGU", k=50)).encode())
    return tmp_path / "store"


@pytest.fixture
def run(rinalmo_command, store, tmp_path):
    """A finished run through the command."""
    settings = ("train.max_steps=4", "validation.every=2", "data.tokens_per_batch=256", "data.micro_tokens=256")
    more = ("data.weights.source={rfam: 2}", f"data.store={store}", "logging.every=1")
    sets = [part for value in (*settings, *more) for part in ("--set", value)]
    result = rinalmo_command("pretrain", "pretrain-tiny", "-o", tmp_path / "run", *sets)
    assert result.code == 0, result.err
    assert "4 of 4 steps (100 %)  loss" in result.err
    assert "validation accuracy" in result.err
    return tmp_path / "run"


def parts(path):
    _, header, body = path.read_text().split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_of_a_run(rinalmo_command, run):
    written = parts(run / "model" / "README.md")  # at the end of the run
    assert written[0]["pipeline_tag"] == "fill-mask"
    assert "# run\n" in written[1]
    assert rinalmo_command("card", run, "--license", "apache-2.0", "--name", "our nano", "--overwrite").code == 0
    header, body = parts(run / "model" / "README.md")
    assert (header["library_name"], header["pipeline_tag"], header["license"]) == ("rinalmo", "fill-mask", "apache-2.0")
    assert header["mask_token"] == "<mask>"
    assert {widget["example_title"]: widget["text"] for widget in header["widget"]} == EXAMPLES
    for widget in header["widget"]:  # what the model itself says
        expected = rinalmo.fill_mask(widget["text"], run / "model")[0][0]
        assert [output["label"] for output in widget["output"]] == [token.token_str for token in expected]
        scores = [output["score"] for output in widget["output"]]
        assert scores == pytest.approx([token.score for token in expected], abs=1e-4)
    for text in (
        "# our nano",
        "| 3 | 64 | 2 | 256 |",
        "24 sequences (1,200 nt) in 24 clusters, 20 sequences of them for training, from: rfam.",
        "Clusters are drawn with weights: by source (rfam 2)",
        "15% of the nucleotides, of which 80% are masked, 10% replaced by another nucleotide, 10% kept",
        "4 steps of 256 tokens, 1,024 tokens",
        "learning rate 1e-07 to 0.002 over 20 steps, then cosine to 0.0001",
        "| rfam | ",
        "![Loss by step](loss.png)",
    ):
        assert text in body
    assert (run / "model" / "loss.png").read_bytes() == (run / "loss.png").read_bytes()
    again = rinalmo_command("card", run)
    assert (again.code, again.out) == (2, "")
    assert "README.md exists; choose another name or use --overwrite" in again.err
    assert rinalmo_command("card", run, "--overwrite").code == 0
    assert "license" not in parts(run / "model" / "README.md")[0]
    assert rinalmo_command("embed", run.parent / "none.fa", "-o", run.parent / "x.npz", "-m", run / "model").code == 2
    assert rinalmo_command("fill-mask", "GGUC<mask>CU", "--model", run / "model").code == 0


def test_the_card_of_a_model(rinalmo_command, tmp_path):
    result = rinalmo_command("card", "nano", "-o", tmp_path / "card.md")
    assert result.code == 0
    header, body = parts(tmp_path / "card.md")
    assert header["widget"][0]["output"][0]["label"] == rinalmo.fill_mask(EXAMPLES["HIV-1"])[0][0][0].token_str
    assert "| 6 | 320 | 20 | 1280 | 7.50 | 2.02 | 1.01 | not recorded |" in body
    assert "Training" not in body
    without_place = rinalmo_command("card", "nano")
    assert (without_place.code, without_place.out) == (2, "")
    assert "nano: is not a folder; give the card's file with --output" in without_place.err


def test_a_run_without_a_model_has_no_card(rinalmo_command, run):
    (run / "model").rename(run / "elsewhere")
    result = rinalmo_command("card", run)
    assert result.code == 2
    assert "the run is not finished and has no model yet" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "optimizer.lrr=1"), "pretrain-nano: no key 'optimizer.lrr'; did you mean optimizer.lr?"),
        ((), "data.store is missing: use --set data.store=FOLDER with a store from `rinalmo data prepare`"),
        (("--set", "data.store=nowhere"), "nowhere: not a token store; make one with `rinalmo data prepare`"),
        (("--set", "model.hidden_size=7", "--set", "data.store={store}"), "config: hidden_size 7 cannot be split"),
    ],
)
def test_what_is_wrong_is_one_line(rinalmo_command, store, tmp_path, arguments, message):
    arguments = [part.format(store=store) for part in arguments]
    result = rinalmo_command("pretrain", "pretrain-nano", "-o", tmp_path / "run", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"rinalmo: {message}")
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "run" / "model").exists()
