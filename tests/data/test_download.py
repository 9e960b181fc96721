"""The databases fetched from a server on 127.0.0.1 that has their files in their places."""

import gzip
import hashlib
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rinalmo.data.databases import bsd_sum, download
from rinalmo.data.prepare import prepare
from rinalmo.data.sources import load_recipe
from rinalmo.errors import DownloadError, InputError

TRNA = b"GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, byte ranges included; `cut` is after how many bytes the next large answer breaks off."""

    def do_GET(self):
        self.server.seen.append((self.path, self.headers.get("Range")))
        try:
            body = Path(self.translate_path(self.path)).read_bytes()
        except OSError:
            self.send_error(404)
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        cut, self.server.cut = self.server.cut, None
        self.wfile.write(body[start : start + cut if cut else None])

    def log_message(self, *_):
        """Silent."""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of the folder `site.root`; `site.put` adds a file to it."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("RINALMO_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    root = tmp_path / "site"
    root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Handler(*args, directory=str(root)))
    server.seen, server.cut, server.root = [], None, root
    server.url = f"http://127.0.0.1:{server.server_port}"

    def put(path, content):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        return root / path

    server.put = put
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fasta(name, letters=TRNA):
    return gzip.compress(b">%s\n%s\n" % (name.encode(), letters))


def put_ensembl(site, folder, name, content):
    path = site.put(f"{folder}/{name}.ncrna.fa.gz", content)
    total = subprocess.run(["sum", path], capture_output=True, text=True, check=True).stdout.split()[:2]
    site.put(f"{folder}/CHECKSUMS", f"{total[0]} {total[1]} {path.name}\n12345 1 README\n".encode())


def test_rnacentral_is_one_file(site, tmp_path):
    site.put("current_release/sequences/rnacentral_active.fasta.gz", fasta("URS0000000001 rRNA from 1 species"))
    files = download("rnacentral", tmp_path / "db", mirror=site.url)
    assert [path.name for path in files] == ["rnacentral_active.fasta.gz"]
    requests = len(site.seen)
    assert download("rnacentral", tmp_path / "db", mirror=site.url + "/") == files
    assert len(site.seen) == requests


def test_a_broken_connection_is_resumed(site, tmp_path):
    body = fasta("URS0000000001", bytes(i * 7919 % 251 % 26 + 65 for i in range(400_000)))
    site.put("current_release/sequences/rnacentral_active.fasta.gz", body)
    site.cut = len(body) // 2
    (path,) = download("rnacentral", tmp_path / "db", mirror=site.url)
    assert path.read_bytes() == body
    assert [range_ for _, range_ in site.seen] == [None, f"bytes={len(body) // 2}-"]


def test_rfam_is_a_file_a_family(site, tmp_path):
    site.put(
        "CURRENT/database_files/family.txt.gz", gzip.compress("RF00001\tx\nRF00005\té\nRF00002\ty\n".encode("latin-1"))
    )
    for family in ("RF00001", "RF00005"):
        site.put(
            f"CURRENT/fasta_files/{family}.fa.gz",
            fasta(f"{family}.1/1-9 Homo sapiens"),
        )
    told = []
    files = download("rfam", tmp_path / "db", mirror=site.url, report=told.append)
    assert [path.name for path in files] == ["RF00001.fa.gz", "RF00005.fa.gz"]  # RF00002 has none, which is no error
    assert told[-1] == 2
    store = prepare(
        tmp_path / "store", [("rfam", tmp_path / "db")], recipe=load_recipe(None, ["clustering.method=none"])
    )
    assert store.families == ["", "RF00001"]  # both hold the same sequence


def test_ensembl_goes_by_its_checksums(site, tmp_path):
    site.put(
        "release-109/species_EnsemblVertebrates.txt", b"#name\tspecies\nhomo_sapiens\tHuman\nmus_musculus\tMouse\n"
    )
    put_ensembl(site, "release-109/fasta/homo_sapiens/ncrna", "Homo_sapiens.GRCh38", fasta("ENST1 ncrna x"))
    files = download("ensembl", tmp_path / "db", mirror=site.url)
    assert [path.name for path in files] == ["Homo_sapiens.GRCh38.ncrna.fa.gz"]  # no ncRNA of the mouse here


def test_bacteria_are_found_in_their_collections(site, tmp_path):
    row = "escherichia_coli_gca_1\tE. coli\tEnsemblBacteria\t\tbacteria_7_collection_core_56_109_1\t1\n"
    site.put("release-56/species_EnsemblBacteria.txt", f"#name\tspecies\n{row}".encode())
    put_ensembl(
        site, "release-56/fasta/bacteria_7_collection/escherichia_coli_gca_1/ncrna", "E_coli.ASM1", fasta("EBT1")
    )
    assert len(download("ensembl-bacteria", tmp_path / "db", mirror=site.url)) == 1


def test_nt_is_checked_by_md5(site, tmp_path):
    body = fasta("NR_1.1 Escherichia coli 16S ribosomal RNA")
    site.put("nt.gz", body)
    site.put("nt.gz.md5", f"{hashlib.md5(body).hexdigest()}  nt.gz\n".encode())
    assert download("nt", tmp_path / "db", mirror=site.url)[0].read_bytes() == body
    site.put("nt.gz.md5", f"{'0' * 32}  nt.gz\n".encode())
    with pytest.raises(
        DownloadError, match=r"nt.gz: its MD5 is .*, but the published one is 0000.*; the file was deleted"
    ):
        download("nt", tmp_path / "other", mirror=site.url)
    assert not (tmp_path / "other" / "nt.gz").exists()


def test_nt_is_gone_and_the_way_round_is_told(site, tmp_path):
    with pytest.raises(DownloadError, match=r"update_blastdb.pl nt.*blastdbcmd") as caught:
        download("nt", tmp_path / "db", mirror=site.url)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "damage", [lambda body: body[:-9], lambda body: body[:-20] + b"\0" * 20, lambda body: b"<html>"]
)
def test_a_file_damaged_at_its_source_is_removed(site, tmp_path, damage):
    site.put("current_release/sequences/rnacentral_active.fasta.gz", damage(fasta("URS1")))
    with pytest.raises(DownloadError, match="is not a complete gzip file"):
        download("rnacentral", tmp_path / "db", mirror=site.url)
    assert not (tmp_path / "db" / "rnacentral_active.fasta.gz").exists()


def test_a_wrong_ensembl_sum_is_an_error(site, tmp_path):
    site.put("release-109/species_EnsemblVertebrates.txt", b"homo_sapiens\tHuman\n")
    put_ensembl(site, "release-109/fasta/homo_sapiens/ncrna", "Homo_sapiens.GRCh38", fasta("ENST1 ncrna x"))
    site.put("release-109/fasta/homo_sapiens/ncrna/Homo_sapiens.GRCh38.ncrna.fa.gz", fasta("ENST2 ncrna x"))
    with pytest.raises(DownloadError, match="its checksum is"):
        download("ensembl", tmp_path / "db", mirror=site.url)


def test_a_missing_list_is_an_error(site, tmp_path):
    with pytest.raises(DownloadError, match=r"species_EnsemblVertebrates\.txt: HTTP 404"):
        download("ensembl", tmp_path / "db", mirror=site.url)


def test_an_empty_list_is_an_error(site, tmp_path):
    site.put("release-109/species_EnsemblVertebrates.txt", b"#name\tspecies\n")
    with pytest.raises(DownloadError, match="lists no files"):
        download("ensembl", tmp_path / "db", mirror=site.url)


def test_offline_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RINALMO_OFFLINE", "1")
    with pytest.raises(DownloadError, match="RINALMO_OFFLINE=1 forbids downloads"):
        download("rfam", tmp_path / "db")
    assert not (tmp_path / "db").exists()


def test_an_unknown_database(tmp_path):
    with pytest.raises(InputError, match="unknown database 'silva'; choose one of rnacentral, rfam"):
        download("silva", tmp_path / "db")


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 5000])
def test_the_sum_is_that_of_the_sum_command(tmp_path, size):
    """On gzip files, as the check also reads them whole."""
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes(i * i % 251 for i in range(size)), compresslevel=0))
    total, blocks, *_ = subprocess.run(["sum", path], capture_output=True, text=True, check=True).stdout.split()
    assert bsd_sum(int(total), int(blocks))(path) is None
    assert "its checksum is" in bsd_sum(int(total) ^ 1, int(blocks))(path)
