"""What `read_fasta` returns for files that can be used, and that it needs no more memory than its longest record."""

import gzip
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import dnaio
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rinalmo.io.sequences import IUPAC_LETTERS, Record, read_fasta


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


def read(path: Path, data: bytes, **options: bool | str) -> list[Record]:
    path.write_bytes(data)
    return list(read_fasta(path, **options))


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return tmp_path / "x.fasta"


def random_rna(length: int) -> bytes:
    letters = np.frombuffer(b"ACGU", np.uint8)
    return letters[np.random.default_rng(length).integers(0, 4, length)].tobytes()


A_AND_B = [Record("a", "first one", "ACGU", 1), Record("b", "", "GU", 2)]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b">a first one\nACGU\n>b\nGU\n", id="LF"),
        pytest.param(b">a first one\r\nACGU\r\n>b\r\nGU\r\n", id="CRLF"),
        pytest.param(b">a first one\rACGU\r>b\rGU\r", id="CR"),
        pytest.param(b">a first one\nACGU\r\n>b\rGU\n", id="mixed line ends"),
        pytest.param(b">a first one\nACGU\n>b\nGU", id="no final line end"),
        pytest.param(b"\xef\xbb\xbf>a first one\nACGU\n>b\nGU\n", id="byte order mark"),
        pytest.param(b"\n \r\n>a first one\n\nAC\n\nGU\n\n\n>b\n\nGU\n\n", id="blank lines"),
        pytest.param(b">a first one\nA\nC\nG\nU\n>b\nG\nU\n", id="many lines"),
        pytest.param(b">a first one  \nACGU  \n>b \nG U\t\n", id="blanks in lines"),
        pytest.param(b"> a\tfirst one\nACGU\n> b\nGU\n", id="blank before the name"),
        pytest.param(b">a first one\nacgu\n>b\ngu\n", id="lower case"),
        pytest.param(b">a first one\nACGT\n>b\ngt\n", id="DNA"),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_one_content_in_many_shapes(fasta: Path, text: bytes, compress) -> None:
    assert read(fasta, compress(text)) == A_AND_B


@pytest.mark.parametrize("compress", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_compressed_files_put_end_to_end_are_one_file(fasta: Path, compress) -> None:
    text = b">a first one\nACGU\n>b\nGU\n"
    members = b"".join(compress(text[i : i + 3]) for i in range(0, len(text), 3))
    assert read(fasta, members + compress(b"")) == A_AND_B


def test_zstd_that_starts_with_a_skippable_frame(fasta: Path) -> None:
    assert read(fasta, b"\x50\x2a\x4d\x18\x02\0\0\0xx" + zstd(b">a\nAC\n")) == [Record("a", "", "AC", 1)]


def test_every_iupac_letter_is_kept(fasta: Path) -> None:
    data = f">a\n{IUPAC_LETTERS}{IUPAC_LETTERS.lower()}\n".encode()
    assert [r.sequence for r in read(fasta, data)] == [IUPAC_LETTERS.replace("T", "U") * 2]


def test_fewer_letters_can_be_asked_for(fasta: Path) -> None:
    assert read(fasta, b">a\nacgtU\n", letters="ACGT")[0].sequence == "ACGUU"


@pytest.mark.parametrize(
    "text", [b">a\nac<mask>gt\nN<mask>\n", b">a\r\nac\r\n<mask>\r\ngtn<mask>", b">a\nac<mask>gt\nn\n<mask>"]
)
def test_masks_are_kept_when_allowed(fasta: Path, text: bytes) -> None:
    assert read(fasta, text, allow_mask=True) == [Record("a", "", "AC<mask>GUN<mask>", 1)]


def test_a_sequence_may_be_a_mask_alone(fasta: Path) -> None:
    assert read(fasta, b">a\n<mask>\n", allow_mask=True)[0].sequence == "<mask>"


@pytest.mark.parametrize(
    ("header", "id_", "description"),
    [
        ("é ü".encode(), "é", "ü"),
        ("é ü".encode("latin-1"), "é", "ü"),
        ("a\u00a0b \u2028".encode(), "a\u00a0b", "\u2028"),  # only ASCII white space ends the name
        (b">a", ">a", ""),
        (b"URS0001 Homo sapiens (human)  5S  rRNA ", "URS0001", "Homo sapiens (human)  5S  rRNA"),
    ],
)
def test_headers(fasta: Path, header: bytes, id_: str, description: str) -> None:
    assert read(fasta, b">" + header + b"\nAC\n") == [Record(id_, description, "AC", 1)]


def test_duplicate_names_stay_apart(fasta: Path) -> None:
    records = read(fasta, b">a\nAC\n>a\nGU\n>a\nAC\n")
    assert [(r.id, r.sequence, r.number) for r in records] == [("a", "AC", 1), ("a", "GU", 2), ("a", "AC", 3)]


@pytest.mark.parametrize("length", [1, 2, 100_000, 10_000_000])
@pytest.mark.parametrize("width", [60, 10**9])
def test_length(fasta: Path, length: int, width: int) -> None:
    sequence = random_rna(length)
    lines = b"\n".join(sequence[i : i + width] for i in range(0, length, width))
    records = read(fasta, b">short\nA\n>long\n" + lines + b"\n>last\nC\n")
    assert [r.sequence for r in records] == ["A", sequence.decode(), "C"]


@pytest.mark.parametrize("size", range(1, 60))
def test_blocks_may_end_anywhere(fasta: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("rinalmo.io.files._BLOCK", size)
    text = b"\xef\xbb\xbf\r\n>a first one\r\nAC<mask>\r\nGU\r\n>b\r\nGU\r\n>c\r\n" + b"AC\r\n" * 20
    expected = [("a", "AC<mask>GU"), ("b", "GU"), ("c", "AC" * 20)]
    for data in (text, gzip.compress(text), zstd(text)):
        assert [(r.id, r.sequence) for r in read(fasta, data, allow_mask=True)] == expected


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_standard_input(compress) -> None:
    code = "from rinalmo.io.sequences import read_fasta; print([(r.id, r.sequence) for r in read_fasta('-')])"
    run = subprocess.run([sys.executable, "-c", code], input=compress(b">a x\nACGT\n"), capture_output=True, check=True)
    assert run.stdout.decode().strip() == "[('a', 'ACGU')]"


@pytest.mark.posix_only
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_a_pipe_that_delivers_byte_by_byte(tmp_path: Path, compress) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def feed() -> None:
        with fifo.open("wb", buffering=0) as pipe:
            for byte in compress(b">a first one\nACGU\n>b\nGU\n"):
                pipe.write(bytes([byte]))

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert list(read_fasta(fifo)) == A_AND_B
    feeder.join()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_file_is_closed_when_the_reader_is_dropped(fasta: Path) -> None:
    fasta.write_bytes(b">a\nAC\n>b\nGU\n")
    before = set(Path("/proc/self/fd").iterdir())
    records = read_fasta(fasta)
    next(records)
    assert set(Path("/proc/self/fd").iterdir()) > before
    records.close()
    assert set(Path("/proc/self/fd").iterdir()) == before


MEASURE = """
import resource, sys
import pyarrow
from rinalmo.io.sequences import read_fasta
unit = 2**20 if sys.platform == "darwin" else 2**10  # of the kernel, per MB
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
before = peak()
records = letters = 0
for record in read_fasta(sys.argv[1]):
    records += 1
    letters += len(record.sequence)
print(records, letters, peak() - before)
"""


def count_letters_and_megabytes(path: Path, data: bytes) -> tuple[int, int, int]:
    path.write_bytes(data)
    run = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, check=True, text=True)
    records, letters, megabytes = map(int, run.stdout.split())
    return records, letters, megabytes


@pytest.mark.posix_only
@pytest.mark.slow
def test_a_million_records_need_little_memory(fasta: Path) -> None:
    data = b"".join(b">%d\nACGU\n" % i for i in range(1_000_000))
    records, letters, megabytes = count_letters_and_megabytes(fasta, data)
    assert (records, letters) == (1_000_000, 4_000_000)
    assert megabytes < 64


@pytest.mark.posix_only
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_memory_follows_the_longest_record_not_the_file(fasta: Path, compress) -> None:
    data = (b">x\n" + b"A" * 1_000_000 + b"\n") * 200  # compresses a thousandfold
    records, letters, megabytes = count_letters_and_megabytes(fasta, compress(data))
    assert (records, letters) == (200, 200_000_000)
    assert megabytes < 64


words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=8)
valid_records = st.tuples(
    words,
    st.lists(words, max_size=3).map(" ".join),
    st.text(st.sampled_from(IUPAC_LETTERS + IUPAC_LETTERS.lower()), min_size=1, max_size=50),
    st.integers(1, 60),
)


def as_fasta(records: list[tuple[str, str, str, int]], line_end: str) -> bytes:
    lines: list[str] = []
    for id_, description, sequence, width in records:
        lines.append(f">{id_} {description}".rstrip())
        lines += [sequence[i : i + width] for i in range(0, len(sequence), width)]
    return "".join(line + line_end for line in lines).encode()


@pytest.mark.skipif(sys.platform == "win32", reason="needletail has no wheel for Windows")
@given(records=st.lists(valid_records, min_size=1, max_size=8), line_end=st.sampled_from(["\n", "\r\n"]))
def test_agrees_with_needletail_and_dnaio(tmp_path_factory: pytest.TempPathFactory, records, line_end: str) -> None:
    import needletail

    path = tmp_path_factory.mktemp("agree") / "x.fasta"
    data = as_fasta(records, line_end)
    ours = [(r.id, r.description, r.sequence) for r in read(path, data)]
    theirs = [(r.name, r.description or "", r.seq) for r in needletail.parse_fastx_file(str(path))]
    with dnaio.open(io.BytesIO(data)) as reader:
        others = [(r.id, (r.comment or "").rstrip(), r.sequence) for r in reader]
    assert ours == [(i, d, s.upper().replace("T", "U")) for i, d, s in theirs]
    assert ours == [(i, d, s.upper().replace("T", "U")) for i, d, s in others]


@given(records=st.lists(valid_records, min_size=1, max_size=8))
def test_line_ends_and_compression_change_nothing(tmp_path_factory: pytest.TempPathFactory, records) -> None:
    path = tmp_path_factory.mktemp("shapes") / "x.fasta"
    expected = [(i, d, s.upper().replace("T", "U")) for i, d, s, _ in records]
    for data in (as_fasta(records, "\r"), gzip.compress(as_fasta(records, "\n")), zstd(as_fasta(records, "\r\n"))):
        assert [(r.id, r.description, r.sequence) for r in read(path, data)] == expected
