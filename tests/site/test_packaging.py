"""The recipes and wrappers for other tools: they name commands, options and versions that exist."""

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import click
import jinja2
import pytest
import yaml

import rinalmo
from rinalmo.cli import cli

PACKAGING = Path(__file__).parents[2] / "packaging"
COMMANDS = ["embed", "fold", "predict", "score"]
WRAPPERS = sorted(
    path
    for pattern in ("galaxy/rinalmo_*.xml", "nf-core/rinalmo/*/main.nf", "snakemake/*/wrapper.py")
    for path in PACKAGING.glob(pattern)
)


def command(path):
    """The click command that a wrapper runs, and the text that runs it."""
    text = path.read_text()
    if path.suffix == ".xml":
        root = ElementTree.fromstring(text)
        values = [option.get("value") for option in root.iter("option") if option.get("value").startswith("-")]
        tokens = " ".join(token.text for token in ElementTree.parse(path.with_name("macros.xml")).iter("token"))
        text = " ".join([root.findtext("command"), tokens, *values])
    (name,) = set(re.findall(r"\brinalmo ([a-z]+) +[\"'$\\{]", text))
    return cli.get_command(click.Context(cli), name), text


def test_there_is_a_wrapper_of_every_kind_for_every_command():
    assert sorted(command(path)[0].name for path in WRAPPERS) == sorted(COMMANDS * 3)


@pytest.mark.parametrize("path", WRAPPERS, ids=lambda path: "/".join(path.parts[-3:]))
def test_a_wrapper_has_only_options_of_its_command(path):
    found, text = command(path)
    known = {option for parameter in found.params for option in parameter.opts}
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {"--version"}
    assert {"--output", "--threads", "--quiet"} <= options <= known


def test_choices_of_galaxy_are_those_of_the_command():
    for path in PACKAGING.glob("galaxy/rinalmo_*.xml"):
        choices = {
            option: p.type.choices for p in command(path)[0].params for option in p.opts if hasattr(p.type, "choices")
        }
        for parameter in ElementTree.parse(path).iter("param"):
            if (argument := parameter.get("argument")) in choices:
                assert {option.get("value") for option in parameter.iter("option")} <= set(choices[argument]), argument


def test_the_conda_recipe_has_the_dependencies_of_the_package():
    text = (PACKAGING / "bioconda" / "meta.yaml").read_text()
    functions = {"PYTHON": "python", "pin_subpackage": lambda name, **_: name}
    recipe = yaml.safe_load(jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text).render(functions))
    project = tomllib.loads((PACKAGING.parent / "pyproject.toml").read_text())["project"]
    wanted = {re.sub(r"^torch\b", "pytorch", requirement) for requirement in project["dependencies"]}
    assert {entry.replace(" ", "") for entry in recipe["requirements"]["run"]} == {*wanted, "python>=3.11"}
    assert recipe["build"]["entry_points"] == [f"{name} = {place}" for name, place in project["scripts"].items()]
    assert recipe["package"] == {"name": "rinalmo", "version": rinalmo.__version__}


def test_wrappers_have_the_version_of_the_package():
    files = [path for path in PACKAGING.rglob("*") if path.is_file() and "test-data" not in path.parts]
    text = "\n".join(path.read_text() for path in files)
    versions = re.findall(
        r"(?:rinalmo[:=]| =|VERSION@\">|version = \"|Version |^ {8}\")(\d+\.\d+\.\d+)", text, re.MULTILINE
    )
    assert len(versions) > 4 * 4
    assert set(versions) == {rinalmo.__version__}
    for path in PACKAGING.rglob("*.y*ml"):
        if path.parent.name != "bioconda":
            assert isinstance(yaml.safe_load(path.read_text()), dict), path
