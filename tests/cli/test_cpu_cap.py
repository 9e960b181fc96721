"""The cap `RINALMO_CPU` as a user of the command meets it."""

import pytest


@pytest.mark.parametrize(("level", "options"), [("fp32", ("--precision", "bf16")), ("fp16", ())])
def test_one_line_says_what_is_wrong(rinalmo_command, monkeypatch, tmp_path, level, options):
    monkeypatch.setenv("RINALMO_CPU", level)
    (tmp_path / "rna.fa").write_text(">one\nGGGAAAUCCC\n")
    result = rinalmo_command("embed", tmp_path / "rna.fa", "-o", tmp_path / "out.npz", *options)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert f"RINALMO_CPU={level}" in result.err or f"RINALMO_CPU is {level!r}" in result.err
    assert not (tmp_path / "out.npz").exists()
