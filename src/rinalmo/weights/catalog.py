"""The published models: their names, where their files are, and where they are kept.

    nano, nano-fold     bundled with the package
    micro, mega, giga   fetched on first use into $RINALMO_HOME/<name>, $XDG_CACHE_HOME/rinalmo/<name>
                        or ~/.cache/rinalmo/<name>

The surprise: `multimolecule/rinalmo-giga` gives the official file and not the Hub's. The encoder's weights are the
same to the bit, but Zenodo publishes them under CC BY 4.0 and their sha256 is known; the Hub's copy is AGPL-3.0,
unsummed and may change. So Zenodo comes first, and the Hub only when Zenodo does not answer.

Source: Zenodo record 15043668 (weights of Penić et al. 2025, arXiv:2403.00043).
"""

from __future__ import annotations

import difflib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rinalmo.errors import CheckpointError, DownloadError
from rinalmo.weights.download import SourceUnavailable, fetch, offline_switch, verify

ASSETS = Path(__file__).parents[1] / "assets"
ZENODO = "https://zenodo.org/records/15043668/files"
HUB = "https://huggingface.co"

Layout = Literal["multimolecule", "official"]


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch; `size` in bytes and `sha256` where they are published."""

    url: str
    filename: str
    size: int | None = None
    sha256: str | None = None
    required: bool = True


@dataclass(frozen=True)
class Source:
    """One place that has the whole model. The largest file comes last: where it is, the others are."""

    name: Literal["bundled", "zenodo", "hub"]
    layout: Layout
    license: str
    files: tuple[RemoteFile, ...] = ()

    def path(self, folder: Path) -> Path:
        """What to load once the files lie in `folder`: the only file, or the folder."""
        return folder / self.files[0].filename if len(self.files) == 1 else folder

    def present(self, folder: Path) -> bool:
        """Whether every required file lies in `folder`."""
        return all((folder / file.filename).is_file() for file in self.files if file.required)


@dataclass(frozen=True)
class CatalogEntry:
    """A published model: `parameters` in millions, `sources` in the order in which they are tried."""

    name: str
    summary: str
    parameters: float
    sources: tuple[Source, ...]
    aliases: tuple[str, ...] = ()

    @property
    def bundled(self) -> bool:
        """Whether the package brings the model along."""
        return self.sources[0].name == "bundled"

    @property
    def layout(self) -> Layout:
        """Key layout of the preferred source."""
        return self.sources[0].layout

    @property
    def license(self) -> str:
        """SPDX identifier of the preferred source's licence."""
        return self.sources[0].license

    @property
    def addresses(self) -> tuple[RemoteFile, ...]:
        """Every file of every source, preferred first."""
        return tuple(file for source in self.sources for file in source.files)

    @property
    def folder(self) -> Path:
        """Where the model is, or will be."""
        return (ASSETS if self.bundled else cache_folder()) / self.name

    @property
    def present(self) -> bool:
        """Whether the model is on this machine, its sums not checked."""
        return self.bundled or any(source.present(self.folder) for source in self.sources)


def _zenodo(filename: str, sha256: str, size: int | None = None) -> Source:
    return Source("zenodo", "official", "CC-BY-4.0", (RemoteFile(f"{ZENODO}/{filename}", filename, size, sha256),))


def _hub(repository: str) -> Source:
    address = f"{HUB}/{repository}/resolve/main"
    return Source(
        "hub",
        "multimolecule",
        "AGPL-3.0",
        (
            RemoteFile(f"{address}/vocab.txt", "vocab.txt", required=False),
            RemoteFile(f"{address}/config.json", "config.json"),
            RemoteFile(f"{address}/model.safetensors", "model.safetensors"),
        ),
    )


CATALOG: dict[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            "nano",
            "6 layers × 320, trained by this project on a CPU; for trying things and small tasks",
            7.5,
            (Source("bundled", "multimolecule", "Apache-2.0"),),
        ),
        CatalogEntry(
            "nano-fold",
            "nano, trained further to fold, on bpRNA TR0",
            7.9,
            (Source("bundled", "multimolecule", "Apache-2.0"),),
        ),
        CatalogEntry(
            "micro",
            "12 layers × 480",
            33.5,
            (
                _zenodo(
                    "rinalmo_micro_pretrained.pt", "910c73aa722061e8904a9b0d58e1e664c075fa78683fa364fcf099ae3f81ddf9"
                ),
                _hub("multimolecule/rinalmo-micro"),
            ),
            ("rinalmo-micro", "multimolecule/rinalmo-micro"),
        ),
        CatalogEntry(
            "mega",
            "30 layers × 640",
            148.1,
            (
                _zenodo(
                    "rinalmo_mega_pretrained.pt", "8e6d5799055dc96a556ac5dc4fbf882b677c86ccfeb072d42578d655890000b0"
                ),
                _hub("multimolecule/rinalmo-mega"),
            ),
            ("rinalmo-mega", "multimolecule/rinalmo-mega"),
        ),
        CatalogEntry(
            "giga",
            "33 layers × 1280, the model of the paper",
            650.9,
            (
                _zenodo(
                    "rinalmo_giga_pretrained.pt",
                    "cd93c3f21eb3e767373c9491192686b5846247bd1110693e453c1dd0f321c0db",
                    2_603_787_622,
                ),
                _hub("multimolecule/rinalmo-giga"),
            ),
            ("rinalmo-giga", "giga-v1", "multimolecule/rinalmo-giga", "multimolecule/rinalmo"),
        ),
    )
}


def models() -> list[CatalogEntry]:
    """Every published model, smallest first."""
    return sorted(CATALOG.values(), key=lambda entry: entry.parameters)


def find(name: str) -> CatalogEntry | None:
    """The model with this name or alias, in any case."""
    lowered = name.lower()
    return next((entry for entry in CATALOG.values() if lowered in (entry.name, *entry.aliases)), None)


def resolve(name_or_path: str | Path) -> Path:
    """The file or folder to load for a path or for a model's name, fetching the model on first use.

    An existing path wins over a model of the same name. Raises `CheckpointError` if there is neither and
    `DownloadError` if the model cannot be fetched.
    """
    path = Path(name_or_path).expanduser()
    try:
        if path.exists():
            return path
    except (OSError, ValueError) as error:  # too long for a name, or holding a NUL
        raise CheckpointError(f"{str(name_or_path)[:60]!r}… is no name of a model or file: {error}") from None
    entry = find(str(name_or_path))
    if entry is None:
        raise CheckpointError(_unknown(str(name_or_path)))
    if entry.bundled:
        return _bundled(entry)
    return _cached(entry) or _fetched(entry)


def cache_folder() -> Path:
    """Where fetched models are kept, one folder for each."""
    if home := os.environ.get("RINALMO_HOME"):
        return Path(home).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "rinalmo"


def _unknown(name: str) -> str:
    names = {known: entry.name for entry in models() for known in (entry.name, *entry.aliases)}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{name!r} is neither an existing file or folder nor a known model ({', '.join(CATALOG)}){hint}"


def _bundled(entry: CatalogEntry) -> Path:
    if not (entry.folder / "model.safetensors").is_file():
        raise CheckpointError(f"{entry.folder}: model.safetensors is missing from this installation; reinstall rinalmo")
    return entry.folder


def _cached(entry: CatalogEntry) -> Path | None:
    """The model if it is on this disk, verified where its sums are known."""
    for source in entry.sources:
        if source.present(entry.folder):
            for file in source.files:
                if (path := entry.folder / file.filename).is_file():
                    verify(path, size=file.size, sha256=file.sha256)
            return source.path(entry.folder)
    return None


def _fetched(entry: CatalogEntry) -> Path:
    """Fetch from the first source that answers; a file with a wrong sum ends the search, it does not continue it."""
    if switch := offline_switch():
        raise DownloadError(f"{entry.name}: not on this machine, and {switch} forbids fetching; {_by_hand(entry)}")
    reasons: list[str] = []
    for source in entry.sources:
        if reasons:
            print(f"{reasons[-1]}; trying the {source.name} ({source.license})", file=sys.stderr)
        try:
            return _fetch_from(source, entry.folder)
        except SourceUnavailable as error:
            reasons.append(str(error))
    raise DownloadError(f"{entry.name}: cannot be fetched ({'; '.join(reasons)}); {_by_hand(entry)}")


def _fetch_from(source: Source, folder: Path) -> Path:
    for file in source.files:
        try:
            fetch(file.url, folder / file.filename, size=file.size, sha256=file.sha256)
        except SourceUnavailable as error:
            if file.required or error.status != 404:
                raise
    return source.path(folder)


def _by_hand(entry: CatalogEntry) -> str:
    file = entry.addresses[0]
    # Four bytes a parameter: the published files are fp32.
    megabytes = file.size / 1e6 if file.size is not None else entry.parameters * 4
    return (
        f"on a machine with a connection download {file.url} (about {megabytes:,.0f} MB) and put it at "
        f"{entry.folder / file.filename}, then the same command works"
    )
