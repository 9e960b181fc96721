"""Shell completion, as the start-up line in docs/installation.md asks for it."""

import pytest

from rinalmo.cli import COMMANDS


@pytest.fixture
def complete(rinalmo_command, monkeypatch):
    def ask(words, number, shell="bash"):
        monkeypatch.setenv("_RINALMO_COMPLETE", f"{shell}_complete")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", words.split()[-1] if shell == "fish" else str(number))
        return rinalmo_command().out

    return ask


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_start_up_script(rinalmo_command, monkeypatch, shell):
    monkeypatch.setenv("_RINALMO_COMPLETE", f"{shell}_source")
    result = rinalmo_command()
    assert result.code == 0
    assert f"_RINALMO_COMPLETE={shell}_complete" in result.out


def test_all_commands(complete):
    assert {line.partition(",")[2] for line in complete("rinalmo ", 1).splitlines()} == set(COMMANDS)
    assert complete("rinalmo fi", 1).splitlines() == ["plain,fill-mask", "plain,finetune"]


def test_zsh_tells_what_a_command_does(complete):
    lines = complete("rinalmo ", 1, "zsh").splitlines()
    assert lines[lines.index("fold") - 1] == "plain"
    assert lines[lines.index("fold") + 1].startswith("Predict the secondary structures")


def test_fish(complete):
    assert "plain,fold\t" in complete("rinalmo fo", 1, "fish")


def test_options_and_choices(complete):
    assert "plain,--per-token" in complete("rinalmo embed --per", 2).splitlines()
    assert {"plain,fp32", "plain,bf16"} <= set(complete("rinalmo embed --precision ", 3).splitlines())
