"""Download of public databases: resumed where it broke off, and verified once.

    rnacentral          one file                                      verified by its gzip checksum
    rfam                a file a family, named by the family          gzip checksums
    ensembl             a file a species, of release 109              the CHECKSUMS beside each
    ensembl-bacteria    a file a genome, of release 56                the CHECKSUMS beside each
    nt                  one file                                      its .md5

NCBI withdrew nt as FASTA in April 2024, so its address answers only on mirrors that kept it; the error says how to make
the file from the BLAST database.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rinalmo.errors import DownloadError, InputError
from rinalmo.io.files import file_md5
from rinalmo.weights.download import SourceUnavailable, fetch, offline_switch

_CONNECTIONS = 4
_BLOCK = 1 << 20
_NOT_FOUND = 404
_ENSEMBL_CORE = re.compile(r"(bacteria_\d+_collection)_core_")

Check = Callable[[Path], str | None]
"""Returns what is wrong with a file, or None."""


@dataclass(frozen=True)
class Remote:
    """A file of a database: its path below the database's address and below the folder, and its check."""

    source: str
    target: str
    check: Check


Listing = Callable[[], list[Remote]]
"""Lists some files of a database; called in a thread, since it may have to download a list first."""


def download(
    name: str, folder: str | Path, *, mirror: str | None = None, report: Callable[[int], Any] = lambda count: None
) -> list[Path]:
    """Download a database into a folder; returns its files. `mirror` replaces the database's own address.

    Files that are there are not downloaded again. Raises DownloadError if an address does not deliver, or a file is not
    the published one; InputError for an unknown name.
    """
    if name not in DATABASES:
        raise InputError(f"unknown database {name!r}; choose one of {', '.join(DATABASES)}")
    if switch := offline_switch():
        raise DownloadError(
            f"{name}: {switch} forbids downloads; download the files elsewhere and pass them to `prepare`"
        )
    address, listings = DATABASES[name]
    site = _Site((mirror or address).rstrip("/"), Path(folder))
    files: list[Path] = []
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        try:
            for paths in pool.map(site.fetch_all, listings(site)):
                files += paths
                report(len(files))
        finally:
            pool.shutdown(cancel_futures=True)
    if not files:
        raise DownloadError(f"{name}: {site.address} lists no files")
    return files


class _Site:
    """An address and the folder of its files."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder

    def get(self, source: str, target: str) -> Path:
        """Download one file, unchecked. Only a single file shows its own progress, not one of many."""
        progress = (lambda done, total: None) if "/" in target else None
        return fetch(f"{self.address}/{source}", self.folder / target, progress=progress)

    def fetch_all(self, listing: Listing) -> list[Path]:
        """Download and check some files; those that the site lists but does not have are left out."""
        paths: list[Path] = []
        for remote in listing():
            try:
                path = self.get(remote.source, remote.target)
            except SourceUnavailable as error:
                if error.status == _NOT_FOUND and "/" in remote.target:
                    continue  # one of many
                raise
            marker = path.with_name(f"{path.name}.checked")
            if not marker.exists():
                if problem := remote.check(path):
                    path.unlink()
                    raise DownloadError(
                        f"{self.address}/{remote.source}: {problem}; the file was deleted; run the command again"
                    )
                marker.touch()
            paths.append(path)
        return paths


def _one(remote: Remote) -> Listing:
    return lambda: [remote]


def _rnacentral(site: _Site) -> Iterator[Listing]:
    name = "rnacentral_active.fasta.gz"
    yield _one(Remote(f"current_release/sequences/{name}", name, whole_gzip))


def _rfam(site: _Site) -> Iterator[Listing]:
    table = site.get("CURRENT/database_files/family.txt.gz", "lists/family.txt.gz")
    if problem := whole_gzip(table):
        raise DownloadError(f"{table}: {problem}; delete it and run the command again")
    with gzip.open(table, "rt", encoding="latin-1") as lines:
        families = sorted({match[0] for line in lines if (match := re.match(r"RF\d{5}(?=\t)", line))})
    for family in families:
        yield _one(Remote(f"CURRENT/fasta_files/{family}.fa.gz", f"families/{family}.fa.gz", whole_gzip))


def _ensembl(site: _Site) -> Iterator[Listing]:
    for row in _species(site, "release-109/species_EnsemblVertebrates.txt"):
        yield partial(_ncrna_of, site, f"release-109/fasta/{row[0]}/ncrna", row[0])


def _ensembl_bacteria(site: _Site) -> Iterator[Listing]:
    for row in _species(site, "release-56/species_EnsemblBacteria.txt"):
        collection = next((match[1] for cell in row if (match := _ENSEMBL_CORE.match(cell))), None)
        if collection:
            yield partial(_ncrna_of, site, f"release-56/fasta/{collection}/{row[0]}/ncrna", row[0])


def _species(site: _Site, source: str) -> Iterator[list[str]]:
    """Rows of a division's table of species; its first column is the name of the species' folder."""
    path = site.get(source, f"lists/{source.rpartition('/')[2]}")
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row and not row[0].startswith("#"):
                yield row


def _ncrna_of(site: _Site, folder: str, species: str) -> list[Remote]:
    """The ncRNA file of a species, which the CHECKSUMS in its folder name; none if there is no such folder."""
    try:
        path = site.get(f"{folder}/CHECKSUMS", f"lists/{species}.CHECKSUMS")
    except SourceUnavailable as error:
        if error.status == _NOT_FOUND:
            return []
        raise
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Remote(f"{folder}/{row[2]}", f"ncrna/{row[2]}", bsd_sum(int(row[0]), int(row[1])))
        for row in rows
        if len(row) == 3 and row[2].endswith(".ncrna.fa.gz")
    ]


def _nt(site: _Site) -> Iterator[Listing]:
    try:
        expected = site.get("nt.gz.md5", "lists/nt.gz.md5").read_text(encoding="ascii").split()[0]
    except SourceUnavailable as error:
        if error.status != _NOT_FOUND:
            raise
        raise DownloadError(
            f"{error}; NCBI no longer offers nt as FASTA: get the BLAST database with `update_blastdb.pl nt`, write it "
            "with `blastdbcmd -db nt -entry all -out nt.fa`, and give nt=nt.fa to `prepare`"
        ) from None
    yield _one(Remote("nt.gz", "nt.gz", md5_sum(expected)))


DATABASES: dict[str, tuple[str, Callable[[_Site], Iterator[Listing]]]] = {
    "rnacentral": ("https://ftp.ebi.ac.uk/pub/databases/RNAcentral", _rnacentral),
    "rfam": ("https://ftp.ebi.ac.uk/pub/databases/Rfam", _rfam),
    "ensembl": ("https://ftp.ensembl.org/pub", _ensembl),
    "ensembl-bacteria": ("https://ftp.ensemblgenomes.ebi.ac.uk/pub/bacteria", _ensembl_bacteria),
    "nt": ("https://ftp.ncbi.nlm.nih.gov/blast/db/FASTA", _nt),
}
"""Name → its public address, and the function that lists its files."""


def whole_gzip(path: Path) -> str | None:
    """Read a gzip file to its end, where its checksum is."""
    try:
        with gzip.open(path) as file:
            while file.read(_BLOCK):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return f"is not a complete gzip file ({error})"
    return None


def md5_sum(expected: str) -> Check:
    """Compare a file's MD5."""

    def check(path: Path) -> str | None:
        actual = file_md5(path)
        return None if actual == expected else f"its MD5 is {actual}, but the published one is {expected}"

    return check


def bsd_sum(expected: int, blocks: int) -> Check:
    """Compare the output of the `sum` command, as in Ensembl's CHECKSUMS: 16 bits, and the number of kilobytes.

    The sum is rotated right by one bit before each byte is added. Sixteen bits catch little, so gzip's own sum counts
    as well.
    """

    def check(path: Path) -> str | None:
        total = size = 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                size += len(block)
                for byte in block:
                    total = ((total >> 1) + ((total & 1) << 15) + byte) & 0xFFFF
        if (total, -(-size // 1024)) != (expected, blocks):
            return f"its checksum is {total} {-(-size // 1024)}, but the published one is {expected} {blocks}"
        return whole_gzip(path)

    return check
