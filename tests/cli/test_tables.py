"""`predict` and `embed` on tables: what they give for FASTA, with the table's own columns if asked."""

import numpy as np
import pandas as pd
import pytest

import rinalmo
from rinalmo.training.finetune import finetune_from_recipe
from rinalmo.training.recipes import recipe_for

COLUMNS = {"id": ["a", "b", None], "sequence": ["ACGU", "ggtt", "ACGUA"], "y": [0.5, None, 2.0]}
EXPECTED = [("a", "ACGU"), ("b", "GGUU"), ("3", "ACGUA")]


@pytest.fixture
def tuned(backbone, tmp_path):
    """A model of one number a sequence."""
    folder = tmp_path / "tuned"
    folder.mkdir()
    lines = [f"{'ACGU' * 3}{'ACGU'[n % 4]},{n / 7}\n" for n in range(16)]
    (folder / "t.csv").write_text("sequence,y\n" + "".join(lines))
    changes = ["train.epochs=1", "train.precision=fp32", "logging.plots=false", "logging.peak_flops=1e12"]
    finetune_from_recipe(recipe_for("table", folder / "t.csv", model=backbone, overrides=changes), folder / "run")
    return folder / "run" / "model"


def test_predict_and_embed_read_tables(rinalmo_command, tuned, tmp_path):
    pd.DataFrame(COLUMNS | {"species": ["x", "y", "z"]}).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "t.fa").write_text("".join(f">{name}\n{sequence}\n" for name, sequence in EXPECTED))
    options = ("--precision", "fp32", "--threads", "1")
    for name in ("csv", "fa"):
        result = rinalmo_command("predict", tuned, tmp_path / f"t.{name}", "-o", tmp_path / f"{name}.csv", *options)
        assert result.code == 0, result.err
    assert (tmp_path / "csv.csv").read_text() == (tmp_path / "fa.csv").read_text()
    kept = rinalmo_command(
        "predict", tuned, tmp_path / "t.csv", "--keep-columns", "-o", tmp_path / "kept.csv", *options
    )
    assert kept.code == 0, kept.err
    both, alone = pd.read_csv(tmp_path / "kept.csv"), pd.read_csv(tmp_path / "csv.csv")
    assert list(both) == ["id", "y", "sequence", "y_given", "species"]
    assert both["y"].tolist() == alone["y"].tolist()
    assert both["species"].tolist() == ["x", "y", "z"]
    refused = rinalmo_command("predict", tuned, tmp_path / "t.fa", "--keep-columns", *options)
    assert (refused.code, "--keep-columns needs a table" in refused.err) == (2, True)
    embedded = rinalmo_command("embed", tmp_path / "t.csv", "--model", tuned, "-o", tmp_path / "e.parquet", *options)
    assert embedded.code == 0, embedded.err
    expected = rinalmo.embed(pd.DataFrame(COLUMNS), tuned)
    found = pd.read_parquet(tmp_path / "e.parquet")
    assert found["id"].tolist() == [name for name, _ in EXPECTED]
    np.testing.assert_allclose(np.stack(found["embedding"]), expected, atol=1e-5)
