"""The authors' fine-tuned files as a user has them, a `.pt` given to predict, fold, evaluate, convert and finetune.

The expected numbers are those of the authors' modules, with random weights, within 1e-5. Of their five sequences the
fourth holds a gap, which a FASTA file may not.
"""

import csv
import json

import numpy as np
import pytest

import rinalmo
from rinalmo.engine.engine import Engine
from rinalmo.inference.fold import fold_records
from rinalmo.io.sequences import Record
from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create
from rinalmo.rna.formats import read_structures

TOLERANCE = 1e-5
WITHOUT_GAPS = [0, 1, 2, 4]
CANONICAL = {"AU", "UA", "GC", "CG", "GU", "UG"}
MEAN, STD = 6.5, 1.5  # the scaler in the ribosome-load file
KINDS = ("mrl", "splice", "ncrna", "ss")


@pytest.fixture(scope="module")
def expected(golden):
    return np.load(golden / "official" / "official_tiny.npz")


@pytest.fixture
def official(golden):
    return lambda kind: golden / "official" / f"official_tiny_{kind}_ft.pt"


@pytest.fixture
def fasta(expected, tmp_path):
    """FASTA files of the reference sequences, by kind of model."""

    def write(kind):
        found = expected["mrl_sequences"] if kind == "mrl" else expected["sequences"][WITHOUT_GAPS]
        path = tmp_path / f"{kind}.fa"
        path.write_text("".join(f">s{n}\n{sequence}\n" for n, sequence in enumerate(found)))
        return path

    return write


@pytest.fixture
def predicted(rinalmo_command, tmp_path):
    def run(model, fasta, *options):
        output = tmp_path / "predicted.jsonl"
        result = rinalmo_command("predict", model, fasta, "-o", output, "--precision", "fp32", *options)
        assert result.code == 0, result.err
        return [json.loads(line) for line in output.read_text().splitlines()]

    return run


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def folded(logits, sequence, threshold=0.13):
    """The paper's decoding, written plainly: the likeliest pair of what is left, again and again."""
    p = np.triu(sigmoid(logits), 4)
    for i, j in np.argwhere(p):
        if sequence[i] + sequence[j] not in CANONICAL:
            p[i, j] = 0
    pairs = []
    while (best := np.unravel_index(p.argmax(), p.shape)) and p[best] > threshold:
        pairs.append(tuple(map(int, best)))
        for place in best:
            p[place] = p[:, place] = 0
    return sorted(pairs)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ((), "mrl_output_padded102"),
        (("--fill-to", 102), "mrl_output_padded102"),
        (("--fill-to", 0), "mrl_output_alone"),
    ],
)
def test_ribosome_load(official, fasta, predicted, expected, options, key):
    found = [row["prediction"] for row in predicted(official("mrl"), fasta("mrl"), *options)]
    np.testing.assert_allclose(found, expected[key] * STD + MEAN, atol=TOLERANCE, rtol=0)


def test_splice_site(official, fasta, predicted, expected):
    found = [row["probability"] for row in predicted(official("splice"), fasta("splice"))]
    np.testing.assert_allclose(found, sigmoid(expected["splice_logits"][WITHOUT_GAPS, 0]), atol=TOLERANCE, rtol=0)


def test_ncrna_family(official, fasta, predicted, expected):
    rows = predicted(official("ncrna"), fasta("ncrna"))
    powers = np.exp(expected["ncrna_logits"][WITHOUT_GAPS].astype(np.float64))
    found = [[row[f"p({family})"] for family in range(88)] for row in rows]
    np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), atol=TOLERANCE, rtol=0)
    assert [row["family"] for row in rows] == [str(n) for n in powers.argmax(axis=1)]


def test_fold(official, fasta, expected, rinalmo_command, tmp_path):
    output, matrices = tmp_path / "out.ct", tmp_path / "out.npz"
    given = ("--model", official("ss"), "--precision", "fp32", "-o", output, "--probabilities", matrices)
    assert rinalmo_command("fold", fasta("ss"), *given).code == 0
    found = list(read_structures(output))
    engine = Engine(official("ss"), "fp32")
    for n in range(3):
        logits, sequence = expected[f"ss_logits_{n}"], str(expected["sequences"][n])
        assert list(found[n].pairs) == folded(logits, sequence)
        ((_, probabilities),) = fold_records([Record("s", "", sequence)], engine)
        wanted = sigmoid(logits) * (1 - np.eye(len(sequence)))
        np.testing.assert_allclose(probabilities, wanted, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(np.load(matrices)[f"s{n}"], wanted, atol=5e-4, rtol=0)  # fp16 in the file
    assert any(structure.pairs for structure in found)


def test_evaluate_structures(official, expected, rinalmo_command, tmp_path):
    """Precision, recall and F1 of the paper against its formula on the reference logits."""
    sequences = [str(expected["sequences"][n]) for n in range(3)]
    truths = ["((((...........))))....", "((((" + "." * 49 + "))))", "((((....))))"]
    data, each = tmp_path / "true.csv", tmp_path / "each.csv"
    data.write_text("sequence,structure\n" + "".join(f"{s},{t}\n" for s, t in zip(sequences, truths, strict=True)))
    given = ("--model", official("ss"), "--precision", "fp32", "-o", each)
    result = rinalmo_command("evaluate", "secondary-structure", data, *given)
    assert result.code == 0, result.err
    assert "threshold 0.13" in result.out
    for n, row in enumerate(csv.DictReader(each.open())):
        found = matrix(len(sequences[n]), folded(expected[f"ss_logits_{n}"], sequences[n]))
        true = matrix(len(sequences[n]), rinalmo_pairs(sequences[n], truths[n]))
        for ending, widened in (("", np.asarray), ("_relaxed", relaxed)):
            precision = share(np.triu(found & widened(true)).sum(), np.triu(found).sum())
            recall = share(np.triu(true & widened(found)).sum(), np.triu(true).sum())
            total = precision + recall
            wanted = [precision, recall, 2 * precision * recall / total if total else 0.0]
            for name, value in zip(("precision", "recall", "f1"), wanted, strict=True):
                assert float(row[name + ending]) == pytest.approx(value, abs=TOLERANCE)


def rinalmo_pairs(sequence, text):
    from rinalmo.rna.structure import Structure

    return Structure.from_dot_bracket("", sequence, text).pairs


def matrix(length, pairs):
    found = np.zeros((length, length), dtype=bool)
    for i, j in pairs:
        found[i, j] = found[j, i] = True
    return found


def relaxed(pairs):
    wide = np.pad(pairs, 1)
    return wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]


def share(hits, of):
    return hits / of if of else 0.0


@pytest.mark.parametrize(("options", "key"), [((), "mrl_output_padded102"), (("--fill-to", 0), "mrl_output_alone")])
def test_evaluate_ribosome_load(official, expected, rinalmo_command, tmp_path, options, key):
    data, report = tmp_path / "measured.csv", tmp_path / "report.json"
    rows = zip(expected["mrl_sequences"], (5.0, 6.0, 7.0), strict=True)
    data.write_text("utr,rl\n" + "".join(f"{sequence},{value}\n" for sequence, value in rows))
    given = ("--model", official("mrl"), "--precision", "fp32", "--report", report, *options)
    assert rinalmo_command("evaluate", "ribosome-load", data, *given).code == 0
    found = json.loads(report.read_text())["figures"]
    errors = expected[key] * STD + MEAN - [5, 6, 7]
    assert found["mse"]["value"] == pytest.approx((errors**2).mean(), abs=TOLERANCE)
    assert found["r2"]["value"] == pytest.approx(1 - (errors**2).sum() / 2, abs=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_converted_there_and_back_predicts_the_same(kind, official, fasta, predicted, rinalmo_command, tmp_path):
    before = predicted(official(kind), fasta(kind))
    assert rinalmo_command("convert", official(kind), tmp_path / "ours").code == 0
    assert predicted(tmp_path / "ours", fasta(kind)) == before
    assert rinalmo_command("convert", tmp_path / "ours", tmp_path / "theirs.pt", "--layout", "official").code == 0
    assert predicted(tmp_path / "theirs.pt", fasta(kind)) == before


def test_an_official_model_learns_on(official, rinalmo_command, tmp_path):
    data = tmp_path / "hairpins.csv"
    data.write_text("sequence,structure\n" + "GGGCAAAAGCCC,((((....))))\n" * 4)
    quick = ("train.max_steps=1", "train.precision=fp32", "logging.plots=false", "logging.peak_flops=1e12")
    changes = [word for change in quick for word in ("--set", change)]
    arguments = ("secondary-structure", data, "--model", official("ss"), "-o", tmp_path / "run", *changes)
    result = rinalmo_command("finetune", *arguments)
    assert result.code == 0, result.err
    assert "its head is trained further" in result.err


def test_what_is_trained_here_stays_what_it_is_in_the_official_layout(predicted, rinalmo_command, tmp_path):
    """Neither filled up nor taken for ribosome load, although its tensors look so."""
    (tmp_path / "x.fa").write_text(">x\nGGGCAAAAGCCC\n")
    for task, heads in (
        ({"name": "ribosome-load"}, {"ribosome_load_head": {}}),
        ({"name": "ncrna-family", "classes": ["tRNA", "5S"]}, {"ncrna_family_head": {"num_labels": 2}}),
    ):
        spec = ModelSpec(ModelConfig(40, 1, 20), heads={"lm_head": {}, **heads}, task=task)
        path = rinalmo.save(create(spec), tmp_path / f"{task['name']}.pt", "official")
        assert rinalmo_command("convert", path, tmp_path / task["name"]).code == 0
        assert predicted(path, tmp_path / "x.fa") == predicted(tmp_path / task["name"], tmp_path / "x.fa")
        assert json.loads((tmp_path / task["name"] / "config.json").read_text())["task"] == task
    spec = ModelSpec(ModelConfig(40, 1, 20), heads={"lm_head": {}, "ribosome_load_head": {}})
    path = rinalmo.save(create(spec), tmp_path / "te.pt", "official")
    result = rinalmo_command("predict", path, tmp_path / "x.fa", "--fill-to", 102)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "--fill-to is only for ribosome-load, not for translation-efficiency" in result.err


@pytest.mark.parametrize(
    ("name", "kind", "task", "row"),
    [
        ("giga-fold-archiveii-5s", "ss", "secondary-structure", "sequence,structure\nGGGCAAAAGCCC,((((....))))\n"),
        ("giga-splice-donor", "splice", "splice-site", "sequence,label\nACGU,0\nGGUA,1\n"),
        ("giga-ribosome-load", "mrl", "ribosome-load", "utr,rl\nACGU,4.5\nGGUA,5\n"),
        ("giga-ncrna-family-0", "ncrna", "ncrna-family", "sequence,family\nACGU,0\nGGUA,1\n"),
    ],
)
def test_the_published_names_are_taken(official, rinalmo_command, tmp_path, monkeypatch, name, kind, task, row):
    """Of files that were put into the cache by hand, since there is no network."""
    monkeypatch.setenv("RINALMO_HOME", str(tmp_path))
    monkeypatch.setenv("RINALMO_OFFLINE", "1")
    (file,) = next(entry for entry in rinalmo.models() if entry.name == name).addresses
    (tmp_path / name).mkdir()
    (tmp_path / name / file.filename).write_bytes(official(kind).read_bytes())
    (tmp_path / "in.fa").write_text(">x\nGGGCAAAAGCCC\n")
    (tmp_path / "in.csv").write_text(row)
    assert "on this machine" in rinalmo_command("models", name).out
    assert rinalmo_command("predict", name, tmp_path / "in.fa").code == 0
    result = rinalmo_command("evaluate", task, tmp_path / "in.csv", "--model", name)
    assert result.code == 0, result.err
    assert (rinalmo_command("fold", tmp_path / "in.fa", "--model", name).code == 0) is (kind == "ss")
