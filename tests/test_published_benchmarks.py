"""`rinalmo benchmark`: a few rows in the format of each, and its metrics beside those of scikit-learn and scipy."""

import csv
import json
import sys
import types

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from click.testing import CliRunner

import rinalmo
from rinalmo import benchmarks
from rinalmo.benchmarks import BENCHMARKS, Setup
from rinalmo.cli import cli

HAIRPIN, PAIRS = "GGGGCGAAAGCCCC", "(((((....)))))"
WILD_TYPE = "GGGGAAACUUCGGUUUCCCC"
FAST = ["backbone.mode=frozen", "train.epochs=1", "train.precision=fp32", "logging.plots=false"]


def table(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows] if header else rows)
    return path


@pytest.fixture
def notes():
    return []


def run(name, data, notes=None, **options):
    note = [].append if notes is None else notes.append
    return rinalmo.benchmark(name, data, note=note, engine={"precision": "fp32"}, **options)


def test_every_benchmark_says_what_it_is():
    for name, each in BENCHMARKS.items():
        assert all((each.measures, each.source, each.license, each.data, each.published)), name
        said = CliRunner().invoke(cli, ["benchmark", name]).output if each.needs_data else each.license
        assert each.license in said
    listed = CliRunner().invoke(cli, ["benchmark"]).output
    assert all(name in listed for name in BENCHMARKS)


def test_thirteen_tasks_of_beacon_but_for_two():
    assert sum(name.startswith("beacon-") for name in BENCHMARKS) == 11


def test_an_unknown_name_and_missing_data():
    with pytest.raises(rinalmo.InputError, match="did you mean rnagym-fitness"):
        rinalmo.benchmark("rnagym-fitnes")
    with pytest.raises(rinalmo.InputError, match="--data"):
        rinalmo.benchmark("chanrg")
    with pytest.raises(rinalmo.InputError, match="does not exist"):
        rinalmo.benchmark("chanrg", "nowhere")


# Structures


def test_chanrg_takes_a_table_for_each_split(tmp_path):
    for split in ("test", "genf"):
        table(tmp_path / f"{split}.csv", ["id", "sequence", "secondary_structure"], ["a", HAIRPIN, PAIRS])
    rows = run("chanrg", tmp_path)
    assert [row["set"] for row in rows] == ["genf", "test", "mean"]
    assert [row["structures"] for row in rows] == [1, 1, 2]
    assert all(row["f1"] == row["f1_canonical_nested"] == 1 for row in rows)


def test_splits_have_a_model_for_each_fold(tmp_path):
    table(tmp_path / "ArchiveII.csv", ["id", "sequence", "structure"], ["a", HAIRPIN, PAIRS], ["b", HAIRPIN, PAIRS])
    splits = [["0", "test", "a"], ["0", "train", "b"], ["1", "test", "b"], ["1", "test", "gone"]]
    table(tmp_path / "ArchiveII_kfold_splits.csv", ["fold", "partition", "id"], *splits)
    notes = []
    rows = run("archiveii-kfold", tmp_path, notes)
    assert [(row["set"], row["structures"]) for row in rows] == [("fold 0", 1), ("fold 1", 1), ("mean", 2)]
    assert "one model for all folds" in notes[0]
    assert "1 of 2 ids" in notes[1]
    with pytest.raises(rinalmo.RinalmoError, match="runs/0"):
        run("archiveii-kfold", tmp_path, model="runs/{fold}")


def test_pdb_pairs_may_have_several_partners(tmp_path):
    """One table with its partition; of two partners the largest nested set keeps one, and G-A is not canonical."""
    pairs = [[1, 14], [2, 13], [3, 12], [4, 11], [5, 10], [5, 9], [2, 12]]
    header = ["id", "sequence", "base_pairs", "partition"]
    path = table(tmp_path / "PDB-RNA.csv", header, ["a", HAIRPIN, pairs, "test"], ["b", "ACGU", [[1, 4]], "train"])
    (row,) = run("pdb-rna", path)
    assert row["structures"] == 1
    assert row["f1_canonical_nested"] == 1
    assert row["f1"] == pytest.approx(2 * 5 / 12)
    with pytest.raises(rinalmo.InputError, match="line 2: a pair is outside"):
        run("pdb-rna", table(tmp_path / "x.csv", header, ["a", "ACGU", [[1, 9]], "test"]))


def test_chemical_mapping(tmp_path):
    """The mean over a cluster, then over clusters; DMS modifies A and C."""
    reactivity = [0.1] * 5 + [0.9, 1.0, 1.1, 0.8] + [0.1] * 5
    rows = [
        ["u1", "1", HAIRPIN, "2A3", json.dumps(reactivity)],
        ["u2", "2", HAIRPIN, "2A3", json.dumps(reactivity)],
        ["u3", "3", HAIRPIN, "2A3", json.dumps([-value for value in reactivity])],
        ["u4", "3", HAIRPIN, "DMS", json.dumps(reactivity)],
    ]
    table(tmp_path / "rnagym_map.csv", ["uid", "sequence_id", "sequence", "modifier", "reactivity"], *rows)
    clusters = [["1", HAIRPIN, "1"], ["2", HAIRPIN, "1"], ["3", HAIRPIN, "3"]]
    table(tmp_path / "rnagym_sequences.csv", ["sequence_id", "sequence", "cluster_rep"], *clusters)
    first, second = run("rnagym-structures", tmp_path)
    assert (first["set"], first["profiles"], first["clusters"]) == ("2A3", 3, 2)
    assert first["spearman"] == pytest.approx(0, abs=1e-6)  # once s, once -s
    assert second["set"] == "DMS"
    assert second["spearman"] > 0.5


def test_beacon_structures_are_matrices(tmp_path):
    matrix = np.zeros((14, 14))
    for i in range(5):
        matrix[i, 13 - i] = matrix[13 - i, i] = 1
    (tmp_path / "TS0").mkdir()
    np.save(tmp_path / "TS0" / "rna.npy", matrix)
    table(tmp_path / "bpRNA.csv", ["seq", "file_name", "data_name"], [HAIRPIN, "rna", "TS0"], [HAIRPIN, "x", "TR0"])
    (row,) = run("beacon-secondary-structure", tmp_path)
    assert row["structures"] == 1
    assert row["f1"] == 1


# Fitness


def mutant(*changes):
    letters = list(WILD_TYPE)
    for change in changes:
        letters[int(change[1:-1]) - 1] = change[-1]
    return "".join(letters)


def test_fitness_of_assays_with_a_reference_sheet(tmp_path):
    changes = [["G1A"], ["G2C"], ["C20U"], ["G1A", "C20U"], ["A5G"]]
    values = [0.1, 0.4, 0.9, 0.2, 0.8]
    rows = [[",".join(each), value, mutant(*each)] for each, value in zip(changes, values, strict=True)]
    for name in ("Li_2016_tRNA", "Kobori_2016_ribozyme"):
        table(
            tmp_path / "assays" / f"{name}.csv", ["mutant", "DMS_score", "sequence"], *rows, ["G3A", "", mutant("G3A")]
        )
    sheet = [["Li_2016_tRNA", "tRNA", WILD_TYPE], ["Kobori_2016_ribozyme", "Ribozyme", WILD_TYPE], ["none", "x", "A"]]
    table(tmp_path / "reference_sheet_final.csv", ["DMS_ID", "RNA_TYPE", "RAW_CONSTRUCT_SEQ"], *sheet)
    notes = []
    found = run("rnagym-fitness", tmp_path, notes)
    assert [row["set"] for row in found] == [
        *("Kobori_2016_ribozyme", "Li_2016_tRNA", "all Ribozyme", "all tRNA", "mean of types")
    ]
    scores = rinalmo.score(WILD_TYPE, [":".join(each) for each in changes], "nano")
    expected = scipy.stats.spearmanr(values, scores).statistic
    assert all(row["spearman"] == pytest.approx(expected) and row["variants"] in (5, 10) for row in found)
    gc = [mutant(*each).count("G") + mutant(*each).count("C") for each in changes]
    assert found[0]["spearman_gc"] == pytest.approx(scipy.stats.spearmanr(values, gc).statistic)
    assert found[0]["spearman_mutations"] == pytest.approx(
        scipy.stats.spearmanr(values, [-1, -1, -1, -2, -1]).statistic
    )
    assert any("1 of 6 variants without a fitness" in note for note in notes)
    assert any("1 of 3 assays of the reference sheet have no file" in note for note in notes)


@pytest.mark.parametrize("header", [["mutant", "sequence", "fitness"], ["sequence", "activity"]])
def test_without_a_sheet_the_wild_type_is_found(tmp_path, header):
    changes = ["G1A", "G2C", "C20U", "A5G"]
    rows = [
        [change, mutant(change), n] if len(header) == 3 else [mutant(change), n] for n, change in enumerate(changes)
    ]
    notes = []
    (row,) = run("nabench", table(tmp_path / "assay.csv", header, *rows), notes)
    assert row["variants"] == 4
    assert WILD_TYPE in notes[0]


def test_metrics_of_fitness_are_scikit_learns():
    generator = np.random.default_rng(1)
    fitness, scores = generator.normal(size=60).round(1), generator.normal(size=60)
    found = benchmarks.fitness_scores(fitness, scores)
    high = fitness > np.median(fitness)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(fitness, scores).statistic)
    assert found["auc"] == pytest.approx(sklearn.metrics.roc_auc_score(high, scores))
    assert found["mcc"] == pytest.approx(sklearn.metrics.matthews_corrcoef(high, scores > np.median(scores)))


# BEACON

DNA = [sequence.replace("U", "T") for sequence in ("GGGACUUAGC", "ACGUACGUAC", "CCCUUUAAAG", "GUGUGUACAC")]
FORMATS = {
    "ncrna-family": (["seq", "label"], lambda n: [DNA[n % 4], n % 2]),
    "isoform": (["seq", "proximal_isoform_proportion"], lambda n: [DNA[n % 4], n / 10]),
    "mean-ribosome-load": (["seq", "label"], lambda n: [DNA[n % 4], n / 10]),
    "crispr-on-target": (["seq", "label"], lambda n: [DNA[n % 4], n / 10]),
    "crispr-off-target": (["sgrna", "target", "label"], lambda n: [DNA[n % 4], DNA[(n + 1) % 4], n / 10]),
    "rna-switches": (["seq", "ON", "OFF", "ON_OFF"], lambda n: [DNA[n % 4], n / 10, n / 20, n / 30]),
    "modification": (None, lambda n: [DNA[n % 4], *((n + k) % 2 for k in range(12))]),
    "splice-site": (["seq", "label"], lambda n: [DNA[n % 4], "0010200000"]),
    "degradation": (
        ["id", "sequence", "reactivity", "deg_Mg_pH10", "deg_Mg_50C"],
        lambda n: [n, DNA[n % 4], *[json.dumps([n / 10, 0.5, 0.25])] * 3],
    ),
    "structural-score-imputation": (
        ["seq", "struct", "label"],
        lambda n: [DNA[n % 4], " ".join(["-1", "0.5"] * 5), " ".join([f"{n / 10}", "0.5"] * 5)],
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_beacon_reads_the_files_of_each_task(tmp_path, name):
    header, row = FORMATS[name]
    task = benchmarks.BEACON[name]
    for part in ("train", "val", "test"):
        table(tmp_path / task.folder / f"{part}.csv", header, *(row(n) for n in range(8)))
    sets = benchmarks.read_sets(tmp_path / task.folder, task)
    assert {part: len(rows) for part, rows in sets.items()} == {"train": 8, "val": 8, "test": 8}
    assert sets["train"][0]["sequence"].startswith(DNA[0])


def test_every_task_of_beacon_has_a_format_here():
    assert FORMATS.keys() == benchmarks.BEACON.keys()


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("isoform", {"r2"}),
        ("ncrna-family", {"accuracy"}),
        ("modification", {"auc"}),
        ("splice-site", {"top_k", "top_k_acceptor", "top_k_donor"}),
        ("degradation", {"mcrmse"}),
        ("structural-score-imputation", {"r2"}),
    ],
)
def test_beacon_fine_tunes_and_tests(tmp_path, name, metrics):
    header, row = FORMATS[name]
    folder = tmp_path / benchmarks.BEACON[name].folder
    for part in ("train", "val", "test"):
        table(folder / f"{part}.csv", header, *(row(n) for n in range(12)))
    with pytest.raises(rinalmo.InputError, match="--run"):
        run(f"beacon-{name}", tmp_path)
    (found,) = run(f"beacon-{name}", tmp_path, run=tmp_path / "run", overrides=FAST)
    assert found.keys() == {"set", "examples"} | metrics
    assert found["examples"] == 12
    again = run(f"beacon-{name}", tmp_path, model=tmp_path / "run" / "model")
    assert again == [found]


def test_metrics_of_beacon():
    generator = np.random.default_rng(2)
    target, values = generator.normal(size=(30, 2)), generator.normal(size=(30, 2))
    r = [scipy.stats.pearsonr(target[:, k], values[:, k]).statistic ** 2 for k in (0, 1)]
    assert benchmarks.r_squared(list(target), list(values))["r2"] == pytest.approx(np.mean(r))
    errors = np.sqrt(((target - values) ** 2).mean(axis=0)).mean()
    assert benchmarks.mcrmse(list(target), list(values))["mcrmse"] == pytest.approx(errors)
    scores = np.array([[0.1, 0.9, 0.0], [0.2, 0.8, 0.0], [0.3, 0.7, 0.9], [0.9, 0.0, 0.1]])
    found = benchmarks.top_k_accuracy([np.array([1, 0, 2, 1])], [scores])
    assert found == {"top_k": 0.75, "top_k_acceptor": 0.5, "top_k_donor": 1.0}


# mRNABench and the audit


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_linear_probes(tmp_path, kind):
    generator = np.random.default_rng(0)
    rows = []
    for number in range(40):
        sequence = "".join(generator.choice(list("ACGT"), 20))
        value = sequence.count("G") / 20
        label = value if kind == "regression" else int(value > 0.2)
        rows.append([sequence, label, ("train", "train", "val", "test")[number % 4]])
    path = table(tmp_path / "mrl.csv", ["sequence", "target", "split"], *rows)
    found = run("mrnabench", path)
    assert [(row["set"], row["examples"]) for row in found] == [("val", 10), ("test", 10)]
    assert found[1]["pearson" if kind == "regression" else "auroc"] > 0.3


def test_the_audit_gets_states_of_all_layers(monkeypatch):
    """The package is replaced by a stand-in that calls the adapter as it does."""

    def evaluate(adapter):
        adapter.load()
        layers = adapter.get_all_layer_embeddings(adapter.tokenize("GGGAAAUCCC"))
        assert [tuple(layer.shape) for layer in layers] == [(10, adapter.d_model)] * (adapter.n_layers + 1)
        expected = rinalmo.embed("GGGAAAUCCC", "nano", pooling="none")[0]
        np.testing.assert_allclose(layers[-1].numpy(), expected, atol=1e-4)
        rungs = {f"rung{n}": {"mean": 1.0} for n in (1, 2, 3)}
        return {"report": {"n_families": 47, "grade": "D", **rungs}}

    module = types.ModuleType("rna_structure_audit.evaluate")
    module.evaluate = evaluate
    monkeypatch.setitem(sys.modules, "rna_structure_audit", types.ModuleType("rna_structure_audit"))
    monkeypatch.setitem(sys.modules, "rna_structure_audit.evaluate", module)
    (row,) = run("structure-audit", None)
    assert row["grade"] == "D"
    assert row["set"] == "47 families"


def test_random_weights_are_a_baseline(tmp_path):
    changes = ["G1A", "G1C", "G2C", "G2U", "G3A", "C20U", "C20A", "A5G", "A5C", "A6G", "A6U", "C8U", "C8G", "U10A"]
    rows = [[mutant(change), n] for n, change in enumerate(changes)]
    path = table(tmp_path / "assay.csv", ["sequence", "fitness"], *rows)
    (trained,), (baseline,), (again,) = (run("nabench", path, random_weights=flag) for flag in (False, True, True))
    assert baseline["spearman"] == again["spearman"] != trained["spearman"]


def test_the_command_prints_and_writes_the_table(tmp_path):
    rows = [[mutant(change), n] for n, change in enumerate(["G1A", "G2C", "C20U"])]
    path = table(tmp_path / "assay.csv", ["sequence", "fitness"], *rows)
    output = tmp_path / "scores.jsonl"
    result = CliRunner().invoke(cli, ["benchmark", "nabench", "--data", str(path), "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert "spearman_gc" in result.output
    assert "29 models" in result.output
    assert json.loads(output.read_text())["variants"] == 3


def test_setup_has_the_options_of_the_command():
    assert Setup().model == "nano"
    assert not Setup().zero_shot
