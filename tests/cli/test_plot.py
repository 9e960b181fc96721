"""`rinalmo plot` and `rinalmo embed --plot`."""

import json
from pathlib import Path

import numpy as np
import pytest

import rinalmo

pytest.importorskip("matplotlib")
KNOWN = Path(rinalmo.__file__).parent / "assets" / "examples" / "well_known_rnas.fa"


def test_embed_draws_a_map_and_plot_draws_it_again(rinalmo_command, tmp_path):
    result = rinalmo_command(
        "embed", KNOWN, "-o", tmp_path / "x.parquet", "--plot", tmp_path / "a.svg", "--colour-by", "description"
    )
    assert result.code == 0, result.err
    assert result.err.endswith("a.svg: drawn\n")
    again = rinalmo_command(
        "plot", "map", tmp_path / "x.parquet", "-o", tmp_path / "b.svg", "--colour-by", "description"
    )
    assert again.code == 0, again.err
    assert "Homo sapiens (7)" in (tmp_path / "a.svg").read_text()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--plot", "{tmp}/a.gif"), "use .svg, .png, .pdf"),
        (("--plot", "{tmp}/a.svg", "--per-token"), "one vector per sequence"),
        (("--plot", "{tmp}/a.svg", "--layers", "0,1"), "one vector per sequence"),
        (("--plot", "{tmp}/a.svg", "--colour-by", "none.csv:x"), "none.csv does not exist"),
        (("--plot", "{tmp}/a.svg", "--colour-by", "type"), "stores no headers"),
        (("--colour-by", "type"), "--color-by needs --plot"),
    ],
)
def test_what_could_not_be_drawn_is_not_computed(rinalmo_command, tmp_path, options, words):
    result = rinalmo_command("embed", KNOWN, "-o", tmp_path / "x.npz", *(o.format(tmp=tmp_path) for o in options))
    assert result.code == 2
    assert words in result.err
    assert not list(tmp_path.iterdir())


def test_curves_of_runs(rinalmo_command, tmp_path):
    for folder in ("one/run", "two/run", "other"):
        (tmp_path / folder).mkdir(parents=True)
        lines = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
        (tmp_path / folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = [tmp_path / folder for folder in ("one/run", "two/run", "other")]
    result = rinalmo_command("plot", "curves", *runs, "-o", tmp_path / "c.svg")
    assert result.code == 0, result.err
    text = (tmp_path / "c.svg").read_text()
    assert "/other<" in text
    assert "one/run<" in text  # two runs of the same name go by their paths
    for arguments, words in (
        ((tmp_path, "-o", tmp_path / "d.svg"), "not a run, or its log.jsonl is still empty"),
        ((*runs, "-o", tmp_path / "d.svg", "--figure", "f1"), "no run has the metric 'f1'; there are loss"),
    ):
        result = rinalmo_command("plot", "curves", *arguments)
        assert (result.code, len(result.err.splitlines())) == (2, 1)
        assert words in result.err
    assert not (tmp_path / "d.svg").exists()


def test_structures_and_calibration(rinalmo_command, tmp_path):
    pytest.importorskip("RNA")
    (tmp_path / "true.dbn").write_text(">a\nGGGAAACCC\n(((...)))\n>b\nGGGAAACCC\n.((...)).\n")
    (tmp_path / "a.csv").write_text("id,sequence,structure\na,GGGAAACCC,((.....))\n")
    (tmp_path / "conservation.txt").write_text("1 0.9\n2 0.1\n")
    np.savez(tmp_path / "p.npz", a=np.triu(np.full((9, 9), 0.02)), b=np.zeros((9, 9)))
    drawn = (tmp_path / "a.csv", "-o", tmp_path / "a.svg")
    for options, words in (
        ((), "a, 9 nt"),
        (("--reference", tmp_path / "true.dbn", "--kind", "drawing"), "missed (1)"),
        (("--reference", tmp_path / "true.dbn"), "prediction above, reference below"),
        (("--color-by", tmp_path / "conservation.txt"), "conservation, 0 to 0.9"),
        (("--probabilities", tmp_path / "p.npz"), "probability of the most probable pair"),
        (("--probabilities", tmp_path / "p.npz", "--kind", "map"), "pair probability"),
    ):
        result = rinalmo_command("plot", "structure", *drawn, *options)
        assert (result.code, result.err) == (0, f"{tmp_path / 'a.svg'}: drawn\n")
        assert words in (tmp_path / "a.svg").read_text()
    result = rinalmo_command("plot", "structure", *drawn, "--kind", "map")
    assert result.code == 2
    assert "a map shows pair probabilities; add --probabilities" in result.err
    result = rinalmo_command("plot", "structure", tmp_path / "true.dbn", "-o", tmp_path / "two.pdf")
    assert "use two-{name}.pdf" in result.err.replace(str(tmp_path) + "/", "")
    calibration = ("plot", "calibration", tmp_path / "p.npz", tmp_path / "true.dbn", "-o", tmp_path / "c.svg")
    result = rinalmo_command(*calibration)
    assert result.err == f"{tmp_path / 'c.svg'}: drawn; 45 pairs, expected calibration error 0.047\n"
