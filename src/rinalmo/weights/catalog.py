"""The published models: their names, where their files are, and where they are kept.

    nano, nano-fold     bundled with the package
    micro, mega, giga   fetched on first use into $RINALMO_HOME/<name>, $XDG_CACHE_HOME/rinalmo/<name>
                        or ~/.cache/rinalmo/<name>
    giga-…              the authors' fine-tuned models, fetched likewise

`multimolecule/rinalmo-giga` gives the official file and not the Hub's: the encoder's weights are bit-identical, but
Zenodo publishes them under CC BY 4.0 and their sha256 is known, while the Hub's copy is AGPL-3.0, has no published sum
and may change. The Hub is used only when Zenodo does not answer.

Files of fine-tuned models are named as the authors' README names them. Their sizes, and all sums but one, are not known
here: when such a file is fetched, Zenodo's record of it is fetched first, and the file compared with the size and MD5
there. The sum of giga-fold-bprna is given alike by two projects that use it.

Source: Zenodo record 15043668 (weights of Penić et al. 2025, arXiv:2403.00043); scores: the paper and its supplement.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rinalmo.errors import CheckpointError, DownloadError
from rinalmo.weights.download import SourceUnavailable, fetch, offline_switch, verify

ASSETS = Path(__file__).parents[1] / "assets"
ZENODO = "https://zenodo.org/records/15043668/files"
ZENODO_API = "https://zenodo.org/api/records/15043668/files"
HUB = "https://huggingface.co"

Layout = Literal["multimolecule", "official"]


@dataclass(frozen=True)
class RemoteFile:
    """One file to download; `size` in bytes and `sha256` where they are known, or the address of a `record` of both."""

    url: str
    filename: str
    size: int | None = None
    sha256: str | None = None
    required: bool = True
    record: str | None = None
    md5: str | None = None

    def as_recorded(self, folder: Path) -> RemoteFile:
        """The file with the size and MD5 of its record, if that has been fetched."""
        try:
            record = json.loads((folder / f"{self.filename}.json").read_text(encoding="utf-8"))
            kind, _, value = str(record["checksum"]).partition(":")
            return replace(self, size=int(record["size"]), md5=value if kind == "md5" else None)
        except (OSError, ValueError, KeyError, TypeError):
            return self


@dataclass(frozen=True)
class Source:
    """One site that has the whole model. The largest file comes last: where it is, the others are."""

    name: Literal["bundled", "zenodo", "hub"]
    layout: Layout
    license: str
    files: tuple[RemoteFile, ...] = ()

    def present(self, folder: Path) -> bool:
        """Whether every required file is in `folder`."""
        return all((folder / file.filename).is_file() for file in self.files if file.required)

    def path(self, folder: Path) -> Path:
        """What to load from `folder`: the only file, or the folder."""
        return folder / self.files[0].filename if len(self.files) == 1 else folder


@dataclass(frozen=True)
class CatalogEntry:
    """A published model.

    Attributes:
        name: The name to load it by.
        summary: Size and origin.
        parameters: In millions.
        sources: Where it can be downloaded, in the order in which they are tried.
        aliases: Other names.
        task: What it is fine-tuned for, as `rinalmo evaluate` names it; None for a pre-trained model.
        trained_on: The data that it is fine-tuned on.
        not_for: What it must not be tested on.
        score: The published score.
    """

    name: str
    summary: str
    parameters: float
    sources: tuple[Source, ...]
    aliases: tuple[str, ...] = ()
    task: str | None = None
    trained_on: str = ""
    not_for: str = ""
    score: str = ""

    @property
    def bundled(self) -> bool:
        """Whether the package contains the model."""
        return self.sources[0].name == "bundled"

    @property
    def layout(self) -> Layout:
        """Checkpoint layout of the preferred source."""
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
        """Where the model is kept."""
        return (ASSETS if self.sources[0].name == "bundled" else cache_folder()) / self.name

    @property
    def present(self) -> bool:
        """Whether the model is on this machine; sums are not checked."""
        return self.bundled or any(source.present(self.folder) for source in self.sources)


def _bundled(name: str, summary: str, parameters: float, **fine_tuned: Any) -> CatalogEntry:
    return CatalogEntry(name, summary, parameters, (Source("bundled", "multimolecule", "Apache-2.0"),), **fine_tuned)


def _published(
    name: str, summary: str, parameters: float, sha256: str, size: int | None = None, aliases: tuple[str, ...] = ()
) -> CatalogEntry:
    """A model of the authors, on Zenodo and in multimolecule's repository on the Hub."""
    filename, repository = f"rinalmo_{name}_pretrained.pt", f"multimolecule/rinalmo-{name}"
    address = f"{HUB}/{repository}/resolve/main"
    zenodo = Source("zenodo", "official", "CC-BY-4.0", (RemoteFile(f"{ZENODO}/{filename}", filename, size, sha256),))
    hub_files = (
        RemoteFile(f"{address}/vocab.txt", "vocab.txt", required=False),
        RemoteFile(f"{address}/config.json", "config.json"),
        RemoteFile(f"{address}/model.safetensors", "model.safetensors"),
    )
    hub = Source("hub", "multimolecule", "AGPL-3.0", hub_files)
    return CatalogEntry(name, summary, parameters, (zenodo, hub), (f"rinalmo-{name}", repository, *aliases))


def _fine_tuned(
    name: str, filename: str, task: str, *, trained_on: str, not_for: str, score: str, sha256: str | None = None
) -> CatalogEntry:
    """A fine-tuned giga of the authors, on Zenodo alone; the heads have 0.1 to 0.4 million parameters."""
    file = RemoteFile(f"{ZENODO}/{filename}", filename, sha256=sha256, record=f"{ZENODO_API}/{filename}")
    sources = (Source("zenodo", "official", "CC-BY-4.0", (file,)),)
    about: dict[str, Any] = {"task": task, "trained_on": trained_on, "not_for": not_for, "score": score}
    aliases = (filename.removesuffix(".pt").lower(),)
    return CatalogEntry(name, f"giga, fine-tuned for {task}", 651.2, sources, aliases, **about)


def _fold_archiveii(family: str, file: str, name: str, score: float) -> CatalogEntry:
    return _fine_tuned(
        f"giga-fold-archiveii-{family}",
        f"rinalmo_giga_ss_archiveII-{file}_ft.pt",
        "secondary-structure",
        trained_on=f"ArchiveII without {name}",
        not_for="the other families of ArchiveII",
        score=f"F1 {score:.2f} on {name} (±1)",
    )


def _splice(kind: str) -> CatalogEntry:
    return _fine_tuned(
        f"giga-splice-{kind}",
        f"rinalmo_giga_splice_{kind}_ft.pt",
        "splice-site",
        trained_on=f"{kind} sites of Spliceator's GS_1, 400 nt around each",
        not_for="GS_1",
        score="F1 97.47 % on fish, 95.38 % on plants",
    )


def _ncrna_family(noise: int) -> CatalogEntry:
    return _fine_tuned(
        f"giga-ncrna-family-{noise}",
        f"rinalmo_giga_ncrna_class_{noise}_noise_ft.pt",
        "ncrna-family",
        trained_on=f"88 Rfam families with {noise} % boundary noise; classes are numbered",
        not_for="its training and validation part",
        score="accuracy: figure 6 of the paper",
    )


CATALOG: dict[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        _bundled(
            "nano", "6 layers × 320, trained by this project on a CPU; for trying things out and small tasks", 7.5
        ),
        _bundled(
            "nano-fold",
            "nano of version 0.1, trained further to fold, on bpRNA TR0",
            7.9,
            task="secondary-structure",
            trained_on="bpRNA TR0",
            not_for="TR0, VL0 and similar RNAs, such as 812 of ArchiveII",
            score="see docs/results",
        ),
        _published(
            "micro", "12 layers × 480", 33.5, "910c73aa722061e8904a9b0d58e1e664c075fa78683fa364fcf099ae3f81ddf9"
        ),
        _published(
            "mega", "30 layers × 640", 148.1, "8e6d5799055dc96a556ac5dc4fbf882b677c86ccfeb072d42578d655890000b0"
        ),
        _published(
            "giga",
            "33 layers × 1280, the model of the paper",
            650.9,
            "cd93c3f21eb3e767373c9491192686b5846247bd1110693e453c1dd0f321c0db",
            2_603_787_622,
            ("giga-v1", "multimolecule/rinalmo"),
        ),
        _fine_tuned(
            "giga-fold-bprna",
            "rinalmo_giga_ss_bprna_ft.pt",
            "secondary-structure",
            trained_on="bpRNA TR0, threshold chosen on VL0",
            not_for="TR0, VL0 and similar RNAs, such as 812 of ArchiveII",
            score="F1 0.747 on TS0 (±1)",
            sha256="44e377cb0c92f7b9cff8db8a38e33e5c0363d2f9a19831c6342346bb788a5e55",
        ),
        _fold_archiveii("5s", "5s", "5S rRNA", 0.88),
        _fold_archiveii("16s", "16s", "16S rRNA", 0.74),
        _fold_archiveii("23s", "23s", "23S rRNA", 0.85),
        _fold_archiveii("grp1", "grp1", "group I introns", 0.66),
        _fold_archiveii("rnasep", "RNaseP", "RNase P", 0.80),
        _fold_archiveii("srp", "srp", "SRP RNA", 0.70),
        _fold_archiveii("telomerase", "telomerase", "telomerase RNA", 0.12),
        _fold_archiveii("tmrna", "tmRNA", "tmRNA", 0.80),
        _fold_archiveii("trna", "tRNA", "tRNA", 0.93),
        _splice("acceptor"),
        _splice("donor"),
        _fine_tuned(
            "giga-ribosome-load",
            "rinalmo_giga_mrl_ft.pt",
            "ribosome-load",
            trained_on="random 5' UTRs of 25 to 100 nt (GSM4084997) but Random7600",
            not_for="other random 5' UTRs of that library",
            score="R² 0.925 on Random7600, which was also its validation set",
        ),
        _ncrna_family(0),
        _ncrna_family(200),
    )
}


_SHORT = [name for name, entry in CATALOG.items() if entry.bundled or entry.task is None] + ["… see rinalmo models"]


def models() -> list[CatalogEntry]:
    """The published models, smallest first.

    Returns:
        One entry per model: name, license, addresses and checksums of its files, and number of parameters; for
        fine-tuned models also the task, the training data, data they must not be tested on, and the published score.

    Examples:
        >>> import rinalmo
        >>> [model.name for model in rinalmo.models() if model.task is None]
        ['nano', 'micro', 'mega', 'giga']
    """
    return sorted(CATALOG.values(), key=lambda entry: entry.parameters)


def find(name: str) -> CatalogEntry | None:
    """The model with this name or alias, in any case."""
    for entry in CATALOG.values():
        if name.lower() in (entry.name, *entry.aliases):
            return entry
    return None


def resolve(name_or_path: str | Path) -> Path:
    """The file or folder to load; a published model is downloaded on first use.

    Args:
        name_or_path: A path, a model's name or alias, or `owner/model` or `owner/model@revision` on the Hugging Face
            Hub. An existing path takes precedence over a model of the same name.

    Returns:
        An existing path.

    Raises:
        CheckpointError: There is neither such a path nor such a model.
        DownloadError: The model cannot be downloaded.

    Examples:
        >>> import rinalmo
        >>> rinalmo.resolve("nano").name
        'nano'
    """
    path = Path(name_or_path).expanduser()
    try:
        if path.exists():
            return path
    except (OSError, ValueError) as error:  # too long for a name, or holding a NUL
        raise CheckpointError(f"{str(name_or_path)[:60]!r}… is not the name of a model or file: {error}") from None
    name = str(name_or_path)
    entry = find(name)
    if entry is None:
        known = [alias for each in CATALOG.values() for alias in (each.name, *each.aliases)]
        is_slip = bool(difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.9))
        # runs/model is a path, not a model of the owner `runs`, if there is a folder runs.
        if _HUB_ID.fullmatch(name) and path.suffix not in _FILES and not is_slip and not path.parent.is_dir():
            return _from_hub(name)
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CheckpointError(
            f"{name!r} is neither an existing file or folder nor a known model ({', '.join(_SHORT)}){hint}"
        )
    folder = entry.folder
    if entry.sources[0].name == "bundled":
        if not (folder / "model.safetensors").is_file():
            raise CheckpointError(f"{folder}: model.safetensors is missing from this installation; reinstall rinalmo")
        return folder
    for source in entry.sources:
        if source.present(folder):
            for file in source.files:
                if (folder / file.filename).is_file():
                    file = file.as_recorded(folder)
                    verify(folder / file.filename, size=file.size, sha256=file.sha256, md5=file.md5)
            return source.path(folder)
    return _download(entry, folder)


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model.bin", "*.json", "vocab.txt")


def _from_hub(name: str) -> Path:
    """The folder of a model on the Hugging Face Hub, in the Hub's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    repository, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(_HUB_FILES),
            local_files_only=offline_switch() is not None,
        )
    except (RepositoryNotFoundError, RevisionNotFoundError):
        problem = "is neither a file or folder nor a public model on the Hugging Face Hub"
        raise CheckpointError(f"{name!r} {problem}; check the name, or log in with `hf auth login`") from None
    except (LocalEntryNotFoundError, OSError) as error:
        switch = offline_switch()
        why = f"{switch} forbids asking the Hugging Face Hub" if switch else "the Hugging Face Hub does not answer"
        problem = f"is not a file or folder, and {why}"
        raise DownloadError(f"{name!r} {problem} ({str(error).splitlines()[0][:100]})") from None
    return Path(folder)


def cache_folder() -> Path:
    """The folder of downloaded models, one subfolder for each."""
    if home := os.environ.get("RINALMO_HOME"):
        return Path(home).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "rinalmo"


def _with_record(file: RemoteFile, folder: Path) -> RemoteFile:
    """The file with size and MD5 of its record, if it has one, which is fetched first."""
    if file.record is None:
        return file
    problem = "their record is not as expected"
    try:
        fetch(file.record, folder / f"{file.filename}.json", progress=lambda done, total: None, attempts=2)
    except SourceUnavailable as error:
        problem = str(error)
    recorded = file.as_recorded(folder)
    if recorded.md5 is None and file.sha256 is None:
        print(f"note: size and checksum of {file.filename} are not verified: {problem}", file=sys.stderr)
    return recorded


def _download(entry: CatalogEntry, folder: Path) -> Path:
    """Download from the first source that answers. A file with a wrong sum ends the search, it does not continue it."""
    first = entry.addresses[0]
    # Four bytes a parameter: the published files are fp32.
    megabytes = first.size / 1e6 if first.size is not None else entry.parameters * 4
    by_hand = (
        f"download {first.url} (about {megabytes:,.0f} MB) on another machine and put it at "
        f"{folder / first.filename}; then the same command works"
    )
    if switch := offline_switch():
        raise DownloadError(f"{entry.name}: not on this machine, and {switch} forbids downloads; {by_hand}")
    reasons: list[str] = []
    for source in entry.sources:
        if reasons:
            print(f"{reasons[-1]}; trying the {source.name} ({source.license})", file=sys.stderr)
        try:
            for file in source.files:
                try:
                    file = _with_record(file, folder)
                    fetch(file.url, folder / file.filename, size=file.size, sha256=file.sha256, md5=file.md5)
                except SourceUnavailable as error:
                    if file.required or error.status != 404:
                        raise
            return source.path(folder)
        except SourceUnavailable as error:
            reasons.append(str(error))
    raise DownloadError(f"{entry.name}: cannot be downloaded ({'; '.join(reasons)}); {by_hand}")
