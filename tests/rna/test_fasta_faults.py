"""Every fault of a sequence file ends in one clear line of ours, and never in fewer records than the file holds."""

import bz2
import gzip
import lzma
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.sequences import read_fasta

TEXT = b"".join(b">r%d\n%s\n" % (i, b"ACGU" * (i % 40 + 1)) for i in range(500))


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


def bgzip(data: bytes, size: int) -> bytes:
    """Blocks as bgzip writes them: gzip members that tell their size, and an empty one at the end."""
    blocks = []
    for piece in [*(data[i : i + size] for i in range(0, len(data), size)), b""]:
        deflate = zlib.compressobj(wbits=-15)
        body = deflate.compress(piece) + deflate.flush()
        head = bytes.fromhex("1f8b08040000000000ff060042430200") + (len(body) + 25).to_bytes(2, "little")
        blocks.append(head + body + zlib.crc32(piece).to_bytes(4, "little") + len(piece).to_bytes(4, "little"))
    return b"".join(blocks)


def fault_of(path: Path, data: bytes, *, allow_mask: bool = False) -> InputError:
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        list(read_fasta(path, allow_mask=allow_mask))
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable(), "one line, no control characters"
    return caught.value


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return tmp_path / "x.fasta"


@pytest.mark.parametrize(
    ("text", "record", "position", "message"),
    [
        pytest.param(
            b">p\nMKVLAAG\n", "p", 4, "'L' .* looks like a protein, but rinalmo reads RNA or DNA", id="protein"
        ),
        pytest.param(b">p\nMKV*\n", "p", 4, r"'\*' .* looks like a protein", id="stop codon"),
        pytest.param(
            b">ok\nAC\n>g x\nAC-\nGU\n", "g", 3, "'-' .*number 2 .*gaps, for example .*seqkit seq -g", id="gap"
        ),
        pytest.param(b">g\nAC.GU\n", "g", 3, r"'\.' .*gaps", id="dot gap"),
        pytest.param(b">d\n1 ACGU\n", "d", 1, "'1' .*allowed are", id="digit"),
        pytest.param(b">n\nAC\0GU\n>b\nA\n", "n", 3, r"'\\x00' .*damaged or not text", id="NUL"),
        pytest.param(b">a\nAC" + b"\0" * 512, "a", 3, "damaged", id="tail of NULs"),
        pytest.param(">u\nA C\nGé\n".encode(), "u", 4, "'é' .*plain ASCII", id="UTF-8 letter"),
        pytest.param(">u\nACGé\n".encode("latin-1"), "u", 4, "'é' .*plain ASCII", id="Latin-1 letter"),
        pytest.param(">u\nAC\u200bGU\n".encode(), "u", 3, r"'\\u200b' .*plain ASCII", id="zero-width space"),
        pytest.param(b">a\nAC\n\xef\xbb\xbf>b\nGU\n", "a", 3, r"'\\ufeff'", id="byte order mark inside"),
        pytest.param(b">a\nAC\n >b\nGU\n", "a", 3, "'>' .*only starts a header", id="indented header"),
        pytest.param(b">a\n;note\nAC\n", "a", 1, "';'", id="comment line"),
        pytest.param(b">a\nAC\n@b\nAC\n+\nII\n", "a", 3, "'@'", id="FASTQ after FASTA"),
        pytest.param(b">a\nAC<mask>GU\n", "a", 3, "'<' .*only fill-mask accepts masks", id="mask"),
        pytest.param(b">a\nAC\n>b\n\n>c\nGU\n", "b", None, "no sequence", id="no sequence"),
        pytest.param(b">a\nAC\n>b\n", "b", None, "no sequence", id="no last sequence"),
        pytest.param(b">a\nACGU\n>..>\n", "..>", None, "use --constraint", id="a constraint that begins with >"),
        pytest.param(b">a\nACGU\n(..)\n", "a", 5, "--constraint", id="a structure"),
        pytest.param(b">a\nAC\n>b", "b", None, "no sequence", id="no last line end"),
        pytest.param(b">a\nAC\n>\nGU\n", "2", None, "has no name", id="no name"),
        pytest.param(b">a\nAC\n> \t\nGU\n", "2", None, "has no name", id="blank name"),
        pytest.param(b">a\nAC\n>", "2", None, "has no name", id="cut off after >"),
        pytest.param(b">a\0b\nAC\n", "1", None, "NUL", id="NUL in a header"),
        pytest.param(b">a\rof x\nAC\n", "a", 1, "'o'", id="CR in a header"),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_bad_records(fasta: Path, text: bytes, record: str, position: int | None, message: str, compress) -> None:
    error = fault_of(fasta, compress(text))
    assert isinstance(error, SequenceError)
    assert (error.file, error.record, error.position) == (str(fasta), record, position)
    assert re.search(message, str(error))


@pytest.mark.parametrize("letter", [c for c in map(chr, range(33, 127)) if c.upper() not in "ACGTUNRYSWKMBDHVXI"])
def test_every_other_printable_character_is_refused_where_it_is(fasta: Path, letter: str) -> None:
    error = fault_of(fasta, f">a\nACGU\nAC{letter}GU\n".encode())
    assert (error.record, error.position) == ("a", 7)
    assert f"{letter!r} is not a nucleotide code (record number 1 of the file)" in str(error)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (b">a\nAC<mask\n>GU\n", 3),
        (b">a\nAC<ma\nsk>GU\n", 3),
        (b">a\nA<mask>C<MASK>GU\n", 4),
        (b">a\nA<mask>C< mask>GU\n", 4),
        (b">a\n<mask><mask>>GU\n", 3),
        (b">a\n<<mask>>\n", 1),
        (b">a\n<mask>-\n", 2),
        (b">a\n<mask>AC\nG\xff<mask>\n", 5),
    ],
)
def test_bad_masks(fasta: Path, text: bytes, position: int) -> None:
    error = fault_of(fasta, text, allow_mask=True)
    assert (error.record, error.position) == ("a", position)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n\r\n \t\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (zstd(b""), "is empty"),
        (b"ACGU\n", r"starts with 'ACGU\\n', but FASTA starts with a header"),
        (b"ACGU\n>a\nAC\n", "but FASTA starts with a header"),
        (b"; note\n>a\nAC\n", "but FASTA starts with a header"),
        (b"x" * 10**6, "but FASTA starts with a header"),
        (b"@a\nAC\n+\nII\n", "looks like FASTQ.*seqkit fq2fa"),
        (b"PK\x03\x04", "zip"),
        (">a\nAC\n".encode("utf-16"), "UTF-16"),
        (gzip.compress(gzip.compress(TEXT, mtime=0), mtime=0), "but FASTA starts with a header"),
    ],
)
def test_files_that_are_not_fasta(fasta: Path, data: bytes, message: str) -> None:
    assert re.search(message, str(fault_of(fasta, data)))


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    known = [(tmp_path / "none", "does not exist"), (tmp_path, "is a folder"), ("", "file name is empty")]
    for path, message in [*known, ("a\0b", "cannot be")]:
        with pytest.raises(InputError, match=message):
            next(read_fasta(path))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(fasta: Path) -> None:
    fasta.write_bytes(TEXT)
    fasta.chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        next(read_fasta(fasta))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_read_that_fails() -> None:
    with pytest.raises(InputError, match=r"/proc/self/mem cannot be read to its end .*Input/output error"):
        next(read_fasta("/proc/self/mem"))


@pytest.mark.posix_only
@pytest.mark.parametrize(("redirect", "message"), [("</dev/null", "is empty"), ("<&-", "is closed")])
def test_standard_input_without_a_file(redirect: str, message: str) -> None:
    code = "from rinalmo.io.sequences import read_fasta; next(read_fasta('-'))"
    run = subprocess.run(f'"{sys.executable}" -c "{code}" {redirect}', shell=True, capture_output=True, text=True)
    assert f"InputError: standard input {message}" in run.stderr


def test_control_characters_of_names_stay_out_of_messages(tmp_path: Path) -> None:
    path = tmp_path / "x\n\x1b[31m.fasta"
    path.write_bytes(b">r\x1b[31m\xc2\x85\nAC?\n")
    with pytest.raises(SequenceError) as caught:
        list(read_fasta(path))
    assert str(caught.value).isprintable()
    assert r"r\x1b[31m\x85, position 3" in str(caught.value)


COMPRESSED = {
    "gzip": gzip.compress(TEXT, mtime=0),
    "gzip members": b"".join(gzip.compress(TEXT[i : i + 9000], mtime=0) for i in range(0, len(TEXT), 9000)),
    "bgzip": bgzip(TEXT, 4000),
    "zstd": zstd(TEXT),
    "bzip2": bz2.compress(TEXT),
    "bzip2 streams": b"".join(bz2.compress(TEXT[i : i + 9000]) for i in range(0, len(TEXT), 9000)),
    "xz": lzma.compress(TEXT),
    "xz streams": b"".join(lzma.compress(TEXT[i : i + 9000]) for i in range(0, len(TEXT), 9000)),
}
ONE_STREAM = ["gzip", "bgzip", "zstd", "bzip2", "xz"]


def records_or_fault(path: Path, data: bytes) -> list[tuple[str, str]] | None:
    """The records, or None after one of our errors; any other exception fails the test."""
    path.write_bytes(data)
    try:
        return [(r.id, r.sequence) for r in read_fasta(path)]
    except InputError as error:
        message = str(error)
    assert str(path) in message
    return None


@pytest.fixture
def whole(tmp_path: Path) -> list[tuple[str, str]]:
    records = records_or_fault(tmp_path / "whole", TEXT)
    assert records is not None
    assert len(records) == 500
    return records


@pytest.mark.parametrize("data", COMPRESSED.values(), ids=COMPRESSED)
def test_whole_compressed_files(fasta: Path, whole: list[tuple[str, str]], data: bytes) -> None:
    assert records_or_fault(fasta, data) == whole


@pytest.mark.parametrize("data", [COMPRESSED[k] for k in ONE_STREAM], ids=ONE_STREAM)
def test_truncated_anywhere(fasta: Path, data: bytes) -> None:
    for length in {*range(40), *range(0, len(data), len(data) // 150), *range(len(data) - 40, len(data))}:
        fault_of(fasta, data[:length])


def test_bgzip_cut_between_blocks(fasta: Path) -> None:
    starts = [m.start() for m in re.finditer(re.escape(COMPRESSED["bgzip"][:16]), COMPRESSED["bgzip"])]
    assert len(starts) > 5
    for start in starts[1:]:
        assert "truncated" in str(fault_of(fasta, COMPRESSED["bgzip"][:start]))


@pytest.mark.parametrize("data", COMPRESSED.values(), ids=COMPRESSED)
@pytest.mark.parametrize("tail", [b"x", b"\n", b"\0", b"\0" * 512, b"garbage" * 99, b"\x1f\x8b", b"\x28\xb5", TEXT])
def test_trailing_garbage(fasta: Path, data: bytes, tail: bytes) -> None:
    fault_of(fasta, data + tail)


CHECKED = ["gzip", "gzip members", "bzip2", "bzip2 streams", "xz", "xz streams"]


@pytest.mark.parametrize("data", [COMPRESSED[k] for k in CHECKED], ids=CHECKED)
def test_flipped_bits_change_no_record(fasta: Path, whole: list[tuple[str, str]], data: bytes) -> None:
    for i in range(0, len(data), max(1, len(data) // 200)):
        damaged = bytearray(data)
        damaged[i] ^= 1 << i % 8
        assert records_or_fault(fasta, bytes(damaged)) in (None, whole)


def headers(text: bytes) -> int:
    lines = text.removeprefix(b"\xef\xbb\xbf").lstrip().replace(b"\r", b"\n").split(b"\n")
    return sum(line.startswith(b">") for line in lines)


fragments = st.sampled_from(
    [
        b">",
        b"a",
        b" x",
        b"\n",
        b"\r",
        b"\r\n",
        b"ACGU",
        b"t",
        b"<mask>",
        b"<",
        b"-",
        b"\0",
        b"\xe9",
        b"\xef\xbb\xbf",
        b";",
        b"@",
    ]
)


@given(text=st.lists(fragments, max_size=25).map(b"".join), allow_mask=st.booleans())
@example(text=b">a\nA\r>b\nC", allow_mask=False)
def test_text_gives_all_records_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, allow_mask: bool
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x"
    path.write_bytes(text)
    try:
        records = list(read_fasta(path, allow_mask=allow_mask))
    except InputError:
        return
    assert [r.number for r in records] == list(range(1, headers(text) + 1))
    assert all(re.fullmatch("([ACGURYSWKMBDHVNXI]|<mask>)+", r.sequence) for r in records)


magic = st.sampled_from(
    [b"", b">", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", COMPRESSED["bgzip"][:18]]
)


@given(start=magic, rest=st.binary(max_size=300))
def test_any_bytes_give_records_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, rest: bytes
) -> None:
    records_or_fault(tmp_path_factory.mktemp("fuzz") / "x", start + rest)


@given(data=st.sampled_from(list(COMPRESSED.values())), at=st.integers(0, 10**6), junk=st.binary(max_size=9))
def test_any_damage_gives_records_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, junk: bytes
) -> None:
    at %= len(data)
    records_or_fault(tmp_path_factory.mktemp("fuzz") / "x", data[:at] + junk + data[at + len(junk) :])
