"""Names, the cache and the fetching of whole models, against a real file server on 127.0.0.1."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rinalmo.errors import CheckpointError, DownloadError
from rinalmo.weights import catalog
from rinalmo.weights.catalog import CATALOG, CatalogEntry, RemoteFile, Source, cache_folder, models, resolve

WEIGHTS = b"not really weights" * 5000
SUM = hashlib.sha256(WEIGHTS).hexdigest()


class Files(SimpleHTTPRequestHandler):
    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no switch set, and no proxy between the test and its server."""
    for name in ("RINALMO_OFFLINE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RINALMO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "home"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """Serves the folder `site`; `seen` lists the paths asked for."""
    root = tmp_path / "site"
    (root / "hub").mkdir(parents=True)
    (root / "rinalmo_micro_pretrained.pt").write_bytes(WEIGHTS)
    for name in ("vocab.txt", "config.json", "model.safetensors"):
        (root / "hub" / name).write_text(name)
    handler = type("Handler", (Files,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(root)))
    server.seen = handler.seen  # type: ignore[attr-defined]
    server.root = root  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def micro(site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> CatalogEntry:
    """The catalog's micro, with its addresses moved to the local server and the sum of the local file."""
    base = f"http://127.0.0.1:{site.server_port}"
    zenodo, hub = CATALOG["micro"].sources
    local_hub = tuple(replace(file, url=f"{base}/hub/{file.filename}") for file in hub.files)
    local_zenodo = (replace(zenodo.files[0], url=f"{base}/{zenodo.files[0].filename}", sha256=SUM),)
    entry = replace(CATALOG["micro"], sources=(replace(zenodo, files=local_zenodo), replace(hub, files=local_hub)))
    monkeypatch.setitem(CATALOG, "micro", entry)
    return entry


# Names


def test_the_catalog_lists_its_models_by_size() -> None:
    names = [entry.name for entry in models()]
    assert names[:5] == ["nano", "nano-fold", "micro", "mega", "giga"]
    assert all(name.startswith("giga-") for name in names[5:])


def test_preferred_addresses_are_summed_and_from_zenodo() -> None:
    for name in ("micro", "mega", "giga"):
        entry = CATALOG[name]
        first = entry.addresses[0]
        assert first.url == f"https://zenodo.org/records/15043668/files/rinalmo_{name}_pretrained.pt"
        assert first.sha256 is not None
        assert len(bytes.fromhex(first.sha256)) == 32
        assert (entry.layout, entry.license) == ("official", "CC-BY-4.0")
    assert len({CATALOG[name].addresses[0].sha256 for name in ("micro", "mega", "giga")}) == 3


def test_the_size_of_giga_is_four_bytes_a_parameter() -> None:
    giga = CATALOG["giga"]
    assert giga.addresses[0].size == pytest.approx(giga.parameters * 4e6, rel=1e-3)


def test_an_existing_path_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.pt"
    file.write_bytes(b"")
    assert resolve(file) == file
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "giga").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("giga") == Path("giga")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/mine.pt") == file


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gigga", "did you mean 'giga'?"),
        ("Mirco", "did you mean 'micro'?"),
        ("multimolecule/rinalmo-gigant", "did you mean 'multimolecule/rinalmo-giga'?"),
        ("runs/best.pt", "(nano, nano-fold, micro, mega, giga, … see rinalmo models)"),
    ],
)
def test_an_unknown_name_lists_the_names_and_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve(name)
    message = str(caught.value)
    assert message.startswith(f"{name!r} is neither an existing file or folder nor a known model (nano, nano-fold, ")
    assert message.endswith(hint)
    assert "\n" not in message


@pytest.mark.parametrize("alias", ["micro", "MICRO", "rinalmo-micro", "multimolecule/rinalmo-micro"])
def test_aliases_are_the_same_model(micro: CatalogEntry, home: Path, alias: str) -> None:
    assert resolve(alias) == home / "micro" / "rinalmo_micro_pretrained.pt"


def test_the_short_hub_name_is_giga() -> None:
    assert catalog.find("multimolecule/rinalmo") is CATALOG["giga"]


def test_the_nano_is_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalog.ASSETS.parent == Path(catalog.__file__).parents[1]
    monkeypatch.setattr(catalog, "ASSETS", tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing.*reinstall"):
        resolve("nano")
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "model.safetensors").write_bytes(b"")
    assert resolve("nano") == tmp_path / "nano"


# Fine-tuned models


# As the authors' README names them.
FINE_TUNED = """
ss_bprna ss_archiveII-5s ss_archiveII-16s ss_archiveII-23s ss_archiveII-grp1 ss_archiveII-RNaseP ss_archiveII-srp
ss_archiveII-telomerase ss_archiveII-tmRNA ss_archiveII-tRNA splice_acceptor splice_donor mrl ncrna_class_0_noise
ncrna_class_200_noise
"""
STAND_INS = {
    "secondary-structure": "ss",
    "splice-site": "splice",
    "ribosome-load": "mrl",
    "ncrna-family": "ncrna",
}


def test_the_authors_fine_tuned_models_are_listed() -> None:
    entries = [entry for entry in models() if entry.task and not entry.bundled]
    files = {file.filename for entry in entries for file in entry.addresses}
    assert files == {f"rinalmo_giga_{name}_ft.pt" for name in FINE_TUNED.split()}
    assert {entry.task for entry in entries} == set(STAND_INS)
    for entry in entries:
        (file,) = entry.addresses
        assert file.url == f"https://zenodo.org/records/15043668/files/{file.filename}"
        assert entry.trained_on
        assert entry.not_for
        assert entry.score
        assert catalog.find(file.filename.removesuffix(".pt")) is entry


@pytest.fixture
def fine_tuned(site: ThreadingHTTPServer, golden: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CatalogEntry]:
    """A model of the catalog whose addresses are on the local server: a small file of its layout, and its record."""

    def make(name: str, **changes: object) -> CatalogEntry:
        entry = CATALOG[name]
        (source,) = entry.sources
        (file,) = source.files
        content = (golden / "official" / f"official_tiny_{STAND_INS[entry.task or '']}_ft.pt").read_bytes()
        record = {"size": len(content), "checksum": f"md5:{hashlib.md5(content).hexdigest()}", **changes}
        root: Path = site.root  # type: ignore[attr-defined]
        (root / file.filename).write_bytes(content)
        (root / "record").mkdir(exist_ok=True)
        (root / "record" / file.filename).write_text(json.dumps(record))
        base = f"http://127.0.0.1:{site.server_port}"
        known = hashlib.sha256(content).hexdigest() if file.sha256 else None
        there = replace(file, sha256=known, url=f"{base}/{file.filename}", record=f"{base}/record/{file.filename}")
        entry = replace(entry, sources=(replace(source, files=(there,)),))
        monkeypatch.setitem(CATALOG, name, entry)
        return entry

    return make


@pytest.mark.parametrize("name", [entry.name for entry in models() if entry.task and not entry.bundled])
def test_a_fine_tuned_model_is_fetched_checked_and_of_its_task(
    fine_tuned: Callable[..., CatalogEntry], home: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    from rinalmo.tasks.evaluate import task_of
    from rinalmo.weights.checkpoint import read

    entry = fine_tuned(name)
    path = resolve(name)
    assert path == home / name / entry.addresses[0].filename
    verified = json.loads(path.with_name(f"{path.name}.verified").read_text())
    assert set(verified) == {"sha256" if entry.addresses[0].sha256 else "md5", "size", "mtime_ns"}
    assert task_of(read(path).spec).name == entry.task
    assert "not checked" not in capsys.readouterr().err


def test_a_file_that_is_not_the_recorded_one_is_refused_again_and_again(
    fine_tuned: Callable[..., CatalogEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    fine_tuned("giga-splice-donor", checksum="md5:" + "0" * 32)
    for _ in range(2):
        with pytest.raises(
            DownloadError, match=r"md5 is \w+, but the published file's is 0+; delete it and run the command again"
        ):
            resolve("giga-splice-donor")
        monkeypatch.setenv("RINALMO_OFFLINE", "1")


def test_a_file_of_another_size_than_recorded_is_refused(fine_tuned: Callable[..., CatalogEntry]) -> None:
    fine_tuned("giga-splice-donor", size=10)
    with pytest.raises(DownloadError, match="10"):
        resolve("giga-splice-donor")


@pytest.mark.parametrize("record", [None, "[]", '{"size": "x"}'])
def test_without_a_record_the_file_is_used_and_that_is_said(
    fine_tuned: Callable[..., CatalogEntry],
    site: ThreadingHTTPServer,
    capsys: pytest.CaptureFixture[str],
    record: str | None,
) -> None:
    entry = fine_tuned("giga-splice-donor")
    path = site.root / "record" / entry.addresses[0].filename  # type: ignore[attr-defined]
    if record is None:
        path.unlink()
    else:
        path.write_text(record)
    assert resolve("giga-splice-donor").is_file()
    assert "rinalmo_giga_splice_donor_ft.pt are not verified" in capsys.readouterr().err


# The cache


def test_the_cache_follows_its_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RINALMO_HOME", "~/models")
    assert cache_folder() == tmp_path / "models"
    monkeypatch.delenv("RINALMO_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "rinalmo"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "rinalmo"


def test_a_model_is_fetched_once_and_then_needs_no_network(
    micro: CatalogEntry, site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = resolve("micro")
    assert path.read_bytes() == WEIGHTS
    site.shutdown()
    site.server_close()
    monkeypatch.setenv("RINALMO_OFFLINE", "1")
    assert resolve("micro") == path


def test_a_file_put_there_by_hand_is_used_and_verified(micro: CatalogEntry, home: Path) -> None:
    path = home / "micro" / "rinalmo_micro_pretrained.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(WEIGHTS[:-1])
    with pytest.raises(DownloadError, match=f"{path}: sha256 is .*{SUM}; delete it and run the command again"):
        resolve("micro")
    path.write_bytes(WEIGHTS)
    assert resolve("micro") == path


def test_hub_files_put_there_by_hand_are_used(home: Path) -> None:
    (home / "mega").mkdir(parents=True)
    (home / "mega" / "config.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINALMO_OFFLINE", "1")
        with pytest.raises(DownloadError):
            resolve("mega")
        (home / "mega" / "model.safetensors").write_bytes(b"")
        assert resolve("mega") == home / "mega"


# Fetching


def test_the_hub_steps_in_when_zenodo_does_not_answer(
    micro: CatalogEntry, site: ThreadingHTTPServer, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (site.root / "rinalmo_micro_pretrained.pt").unlink()  # type: ignore[attr-defined]
    assert resolve("micro") == home / "micro"
    assert {"vocab.txt", "config.json", "model.safetensors"} <= {path.name for path in (home / "micro").iterdir()}
    assert "HTTP 404 File not found; trying the hub (AGPL-3.0)" in capsys.readouterr().err
    assert site.seen[-1] == "/hub/model.safetensors"  # type: ignore[attr-defined]


def test_a_hub_without_vocabulary_file_will_do(micro: CatalogEntry, site: ThreadingHTTPServer, home: Path) -> None:
    (site.root / "rinalmo_micro_pretrained.pt").unlink()  # type: ignore[attr-defined]
    (site.root / "hub" / "vocab.txt").unlink()  # type: ignore[attr-defined]
    assert resolve("micro") == home / "micro"
    assert not (home / "micro" / "vocab.txt").exists()


def test_a_vocabulary_file_that_cannot_be_had_is_not_passed_over(
    micro: CatalogEntry, site: ThreadingHTTPServer, home: Path
) -> None:
    (site.root / "rinalmo_micro_pretrained.pt").unlink()  # type: ignore[attr-defined]
    (site.root / "hub" / "vocab.txt").unlink()  # type: ignore[attr-defined]
    (site.root / "hub" / "vocab.txt").mkdir()  # type: ignore[attr-defined]  (answered with a listing, a web page)
    with pytest.raises(DownloadError, match="web page"):
        resolve("micro")


def test_a_wrong_sum_is_not_covered_up_by_the_hub(micro: CatalogEntry, site: ThreadingHTTPServer, home: Path) -> None:
    (site.root / "rinalmo_micro_pretrained.pt").write_bytes(WEIGHTS[::-1])  # type: ignore[attr-defined]
    with pytest.raises(DownloadError, match=SUM):
        resolve("micro")
    assert site.seen == ["/rinalmo_micro_pretrained.pt"]  # type: ignore[attr-defined]
    assert not (home / "micro" / "model.safetensors").exists()


@pytest.mark.parametrize("switch", ["RINALMO_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_says_what_to_put_where(
    micro: CatalogEntry, site: ThreadingHTTPServer, home: Path, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    monkeypatch.setenv(switch, "1")
    with pytest.raises(DownloadError) as caught:
        resolve("micro")
    assert str(caught.value) == (
        f"micro: not on this machine, and {switch}=1 forbids downloads; download "
        f"{micro.addresses[0].url} (about 134 MB) on another machine and put it at "
        f"{home}/micro/rinalmo_micro_pretrained.pt; then the same command works"
    )
    assert site.seen == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_the_switch_can_be_off(micro: CatalogEntry, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RINALMO_OFFLINE", value)
    assert resolve("micro").is_file()


def test_without_a_route_the_same_advice_is_given(
    micro: CatalogEntry, site: ThreadingHTTPServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.shutdown()
    site.server_close()
    with pytest.raises(DownloadError) as caught:
        resolve("micro")
    message = str(caught.value)
    assert message.count("Connection refused") == 2
    assert f"put it at {home}/micro/rinalmo_micro_pretrained.pt; then the same command works" in message
    assert "\n" not in message


def test_a_name_that_cannot_be_looked_up_gives_the_same_advice(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # RFC 6761 reserves .invalid: it never resolves, with or without a network.
    source = Source("zenodo", "official", "CC-BY-4.0", (RemoteFile("http://rinalmo.invalid/model.pt", "model.pt"),))
    monkeypatch.setitem(CATALOG, "micro", replace(CATALOG["micro"], sources=(source,)))
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DownloadError, match=f"^micro: cannot be downloaded .*put it at {home}/micro/model.pt; then"):
        resolve("micro")


def test_the_catalog_needs_neither_torch_nor_rich() -> None:
    code = "import sys, rinalmo.weights.catalog; sys.exit(bool({'torch', 'transformers', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_models_of_the_hub(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`owner/model` is taken from the Hub's cache, as `from_pretrained` does, unless it is a path."""
    repository = tmp_path / "hub" / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(backbone, repository / "snapshots" / "abc")
    code = "import rinalmo, sys; print(rinalmo.resolve(sys.argv[1]))"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "RINALMO_OFFLINE": "1"}
    (tmp_path / "runs").mkdir()
    for name, expected in (
        ("someone/model", str(repository / "snapshots" / "abc")),
        ("someone/model@main", str(repository / "snapshots" / "abc")),
        ("someone/other", "'someone/other' is not a file or folder, and RINALMO_OFFLINE=1 forbids asking the"),
        ("runs/model", "'runs/model' is neither an existing file or folder nor a known model"),
    ):
        command = [sys.executable, "-c", code, name]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert expected in done.stdout + done.stderr
