"""The workflows under .github: actionlint accepts them, they have few rights, and they test what the package names."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def actions(job):
    return [step["uses"] for step in job["steps"] if "uses" in step]


@pytest.mark.skipif(not shutil.which("actionlint", path=PATH), reason="needs actionlint")
def test_actionlint_accepts_all_workflows():
    done = subprocess.run(
        ["actionlint", "-no-color"],
        executable=shutil.which("actionlint", path=PATH),
        cwd=ROOT,
        env={**os.environ, "PATH": PATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_end_and_may_only_read_unless_they_say_so(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 120, name
        for action in actions(job):
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+\.\d+)?", action), f"{name}: {action} has no version"
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False, name


def test_only_releases_write():
    writing = {
        f"{path.stem}: {name}"
        for path in WORKFLOWS
        for name, job in read(path)["jobs"].items()
        if "write" in job.get("permissions", {}).values()
    }
    assert writing == {"release: pypi", "release: github", "release: site"}


def test_every_python_that_the_package_names_is_tested():
    jobs = read(ROOT / ".github/workflows/test.yml")["jobs"]
    matrix = jobs["pinned"]["strategy"]["matrix"]
    tested = {*matrix["python"], *(each["python"] for each in matrix["include"])}
    named = {each.split()[-1] for each in project()["classifiers"] if re.search(r"Python :: 3\.\d", each)}
    assert tested == named
    lowest = min(named, key=lambda version: int(version.split(".")[1]))
    assert project()["requires-python"] == f">={lowest}"


def test_every_extra_is_installed_where_all_is_tested():
    workflow = read(ROOT / ".github/workflows/test.yml")
    extras = set(project()["optional-dependencies"])
    installed = {*workflow["env"]["EXTRAS"].split(","), "umap"}
    assert installed == extras
    commands = [step.get("run", "") for step in workflow["jobs"]["newest"]["steps"]]
    assert any("[$EXTRAS,umap]" in command for command in commands)


def test_pre_commit_has_the_pinned_ruff():
    hooks = {each["repo"]: each["rev"] for each in read(ROOT / ".pre-commit-config.yaml")["repos"]}
    pinned = dict(
        re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert hooks["https://github.com/astral-sh/ruff-pre-commit"] == f"v{pinned['ruff']}"
    assert all(re.fullmatch(r"v\d+\.\d+\.\d+", version) for version in hooks.values())


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_templates_are_forms(name):
    form = read(ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    fields = [each for each in form["body"] if each["type"] != "markdown"]
    assert len({each["id"] for each in fields}) == len(fields)
    assert all(each["attributes"]["label"] for each in fields)
