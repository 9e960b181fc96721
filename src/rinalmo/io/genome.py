"""Genomes and what lies on them: sequences by position, transcripts spliced from exons, variants in VCF.

Positions count from 0 and ends are exclusive, but in messages, where they count from 1.

pysam (htslib) reads the genome, writes bgzip and makes indexes. Records of VCF are taken as lines of text: htslib, and
so pysam and cyvcf2, round every number in INFO and QUAL to 32 bits and complete headers, while here all that is not
added passes unchanged. cyvcf2 has neither genomes nor indexes.

Source: the specifications of VCF 4.5, GTF 2.2, GFF 3 and BED.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rinalmo.errors import InputError, import_extra
from rinalmo.io.files import read_lines, uncompressed_name
from rinalmo.io.sequences import InputFile

logger = logging.getLogger(__name__)

Interval = tuple[int, int]

_COMPLEMENT = str.maketrans("ACGUTRYKMBDHVN", "UGCAAYRMKVHDBN")
_BIN = 14  # exons are found by their position's bits above these
_CACHED_TRANSCRIPTS = 64  # variants of one gene follow each other


def _pysam(purpose: str) -> Any:
    pysam = import_extra("pysam", "vcf", purpose)
    pysam.set_verbosity(0)  # htslib prints what the exceptions say
    return pysam


def reverse_complement(rna: str) -> str:
    """The opposite strand, from its 5' end, as RNA; IUPAC codes are complemented too."""
    return rna.translate(_COMPLEMENT)[::-1]


@dataclass(frozen=True, slots=True)
class Transcript:
    """A transcript: its exons `[start, end)` from left to right on the chromosome, and the strand, + or -."""

    id: str
    chromosome: str
    strand: str
    exons: tuple[Interval, ...]

    def __len__(self) -> int:
        return sum(end - start for start, end in self.exons)

    def locate(self, start: int, end: int) -> Interval | None:
        """Where a part `[start, end)` of the chromosome is in the spliced sequence.

        Empty parts, as those of insertions, lie between two nucleotides. None if no exon has the whole part, and, if it
        is empty, the nucleotides on both sides.
        """
        before = 0
        for first, last in self.exons:
            if first <= start and end <= last and (start < end or first < start < last):
                left, right = before + start - first, before + end - first
                return (left, right) if self.strand == "+" else (len(self) - right, len(self) - left)
            before += last - first
        return None


class Transcripts(InputFile):
    """The transcripts of a GTF, GFF3 or BED file, by the positions of their exons.

    Exons that touch are joined.

    Args:
        path: `.gtf`, `.gff3`, `.gff` or `.bed`, compressed or not. GTF and GFF3 need lines of the type `exon`; a BED
            line is a transcript, of several exons if it has twelve columns.

    Attributes:
        left_out: Numbers of transcripts that are not used, by reason.

    Raises:
        InputError: The file cannot be read, a line is damaged, or no transcript can be used.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path))
        self.left_out: dict[str, int] = defaultdict(int)
        self.count = 0
        self._bins: dict[tuple[str, int], list[tuple[int, Interval, Transcript]]] = defaultdict(list)
        readers = {".gtf": _gtf_or_gff, ".gff3": _gtf_or_gff, ".gff": _gtf_or_gff, ".bed": _bed}
        ending = Path(uncompressed_name(path)).suffix
        if ending not in readers:
            raise InputError(
                f"{path}: unknown extension {ending or 'none'!r} for regions; use {', '.join(readers)} (or .gz)"
            )
        for name, chromosome, strands, exons in readers[ending](Path(path)):
            self._add(name, chromosome, strands, sorted(exons))
        if not self.count:
            reasons = "; ".join(f"{count:,} with {reason}" for reason, count in self.left_out.items())
            raise InputError(f"{path}: has no usable transcript ({reasons or 'there is no exon'})")

    def _add(self, name: str, chromosome: str, strands: set[str], exons: list[Interval]) -> None:
        merged = exons[:1]
        for start, end in exons[1:]:
            if start < merged[-1][1]:
                self.left_out["overlapping exons"] += 1
                return
            merged[-1:] = [(merged[-1][0], end)] if start == merged[-1][1] else [merged[-1], (start, end)]
        if len(strands) > 1 or not strands <= {"+", "-"}:
            self.left_out["exons on both strands" if len(strands) > 1 else "no strand"] += 1
            return
        transcript = Transcript(name, chromosome, strands.pop(), tuple(merged))
        for exon in merged:
            for number in range(exon[0] >> _BIN, ((exon[1] - 1) >> _BIN) + 1):
                self._bins[chromosome, number].append((self.count, exon, transcript))
        self.count += 1

    def overlapping(self, chromosome: str, start: int, end: int) -> list[Transcript]:
        """The transcripts with an exon that overlaps `[start, end)`, in the order of the file."""
        bins = (self._bins.get((chromosome, number), ()) for number in range(start >> _BIN, ((end - 1) >> _BIN) + 1))
        overlapping = {
            n: transcript for each in bins for n, exon, transcript in each if exon[0] < end and start < exon[1]
        }
        return [overlapping[n] for n in sorted(overlapping)]

    def chromosomes(self) -> set[str]:
        """The names of the chromosomes with transcripts."""
        return {chromosome for chromosome, _ in self._bins}


_Parsed = Iterator[tuple[str, str, set[str], list[Interval]]]


def _fields(path: Path, minimum: int) -> Iterator[tuple[str, list[str]]]:
    """The place of each line of a tab-separated file, for messages, and its fields."""
    for number, line in enumerate(read_lines(path), start=1):
        line = line.rstrip("\r\n")
        if line.startswith("##FASTA"):  # a GFF3 file may end with the genome
            return
        if not line.strip() or line.startswith(("#", "track ", "browser ")):
            continue
        fields = line.split("\t")
        if len(fields) < minimum:
            problem = f"has {len(fields)} tab-separated columns; expected at least {minimum}"
            raise InputError(f"{path}, line {number}: {problem}")
        yield f"{path}, line {number}", fields


def _interval(place: str, start: str, end: str, offset: int) -> Interval:
    try:
        first, last = int(start) - offset, int(end)
    except ValueError:
        raise InputError(f"{place}: start {start!r} and end {end!r} must be whole numbers") from None
    if not 0 <= first < last:
        raise InputError(f"{place}: start {start} and end {end} are not an interval")
    return first, last


def _gtf_or_gff(path: Path) -> _Parsed:
    """The exons of each transcript; a GFF3 file names it as their parent, of which there may be several."""
    is_gtf = uncompressed_name(path).endswith(".gtf")
    pattern = re.compile(r'(?:^|;\s*)transcript_id "?([^";]+)"?' if is_gtf else r"(?:^|;)\s*Parent=([^;]+)")
    exons_of: dict[tuple[str, str], tuple[set[str], list[Interval]]] = {}
    for place, fields in _fields(path, 9):
        if fields[2] != "exon":
            continue
        if not (match := pattern.search(fields[8])):
            lacking = "transcript_id" if is_gtf else "Parent; if this is GTF, rename the file to .gtf"
            raise InputError(f"{place}: this exon has no {lacking}")
        exon = _interval(place, fields[3], fields[4], 1)
        chromosome = sys.intern(fields[0] if is_gtf else unquote(fields[0]))
        for name in [match[1]] if is_gtf else map(unquote, match[1].split(",")):
            # By chromosome too: genes of the pseudoautosomal regions have one name on X and Y.
            strands, exons = exons_of.setdefault((sys.intern(name), chromosome), (set(), []))
            strands.add(fields[6])
            exons.append(exon)
    for (name, chromosome), (strands, exons) in exons_of.items():
        yield name, chromosome, strands, exons


def _bed(path: Path) -> _Parsed:
    for place, fields in _fields(path, 3):
        start, end = _interval(place, fields[1], fields[2], 0)
        name = fields[3] if len(fields) > 3 else f"{fields[0]}:{start + 1}-{end}"
        exons = [(start, end)]
        if len(fields) >= 12:
            try:
                sizes, starts = ([int(n) for n in fields[k].split(",") if n] for k in (10, 11))
                exons = [(start + n, start + n + size) for n, size in zip(starts, sizes, strict=True)]
            except ValueError:
                raise InputError(f"{place}: block sizes and block starts must be equally many whole numbers") from None
            if not exons or min(exons)[0] != start or max(exons)[1] != end or min(sizes) < 1:
                raise InputError(f"{place}: the blocks do not cover start and end")
        yield name, fields[0], {fields[5] if len(fields) > 5 else "."}, exons


class Genome(InputFile):
    """A FASTA file, plain or from bgzip, read by position; its index `.fai` (and `.gzi`) is made if it is missing.

    Raises:
        MissingExtraError: pysam is not installed.
        InputError: The file cannot be read, or its index not be made.
    """

    def __init__(self, path: str | Path) -> None:
        pysam = _pysam("a genome")
        super().__init__(path := Path(path))
        for _ in read_lines(path):  # the usual messages if it cannot be opened
            break
        index = Path(f"{path}.fai")
        if index.exists() and index.stat().st_mtime < path.stat().st_mtime:
            logger.warning("%s: is older than the genome; delete it if the genome has changed", index)
        try:
            self._fasta = pysam.FastaFile(str(path))
        except (OSError, ValueError):
            problem = f"cannot be read by position, or its index {index.name} is damaged or cannot be created"
            needs = "compress with bgzip (not gzip), use equally long lines per sequence, and make the folder writable"
            raise InputError(f"{path}: {problem}: {needs}") from None
        self.lengths: dict[str, int] = dict(zip(self._fasta.references, self._fasta.lengths, strict=True))
        self.spliced = lru_cache(_CACHED_TRANSCRIPTS)(self._spliced)

    def fetch(self, chromosome: str, start: int, end: int) -> str:
        """A part of a chromosome as RNA in upper case; shorter where the chromosome ends before."""
        if not 0 <= start < (end := min(end, self.lengths[chromosome])):
            return ""
        return self._fasta.fetch(chromosome, start, end).upper().replace("T", "U")

    def _spliced(self, transcript: Transcript) -> str:
        """The sequence of a transcript."""
        length, end = self.lengths[transcript.chromosome], transcript.exons[-1][1]
        if end > length:
            problem = f"{transcript.id} ends at {transcript.chromosome}:{end:,}, but the chromosome at {length:,}"
            raise InputError(f"{self.path}: {problem}; genome and regions must be from the same assembly")
        sequence = "".join(self.fetch(transcript.chromosome, *exon) for exon in transcript.exons)
        return sequence if transcript.strand == "+" else reverse_complement(sequence)


@dataclass(frozen=True, slots=True)
class VcfRecord:
    """A line of a VCF file: its place, for messages, and all of its columns."""

    place: str
    columns: list[str]

    @property
    def position(self) -> int:
        """The position of the first reference nucleotide, from 0."""
        return int(self.columns[1]) - 1

    @property
    def alternatives(self) -> list[str]:
        """The alternative alleles."""
        return [] if self.columns[4] == "." else self.columns[4].split(",")


class VcfFile(InputFile):
    """A VCF file, compressed or not, or a BCF file.

    Attributes:
        header: Its header lines.

    Raises:
        InputError: It cannot be read, can be read only once, or has no header.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path))
        if not self.rereadable:
            for _ in read_lines(path):  # the usual messages if it cannot be opened
                break
            raise InputError(f"{path}: is read more than once; save it to a file first")
        self.header: list[str] = []
        for line in self._lines():
            if not line.startswith("#"):
                break
            self.header.append(line)
        if not self.header or not self.header[0].startswith("##fileformat=VCF"):
            raise InputError(f"{path}: is not VCF; the first line must be ##fileformat=VCFv4.…")
        self._width = self.header[-1].count("\t") + 1
        if not self.header[-1].startswith("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"):
            raise InputError(f"{path}: has no tab-separated header line #CHROM POS ID REF ALT QUAL FILTER INFO")

    def _lines(self) -> Iterator[str]:
        assert self.path is not None
        if self.path.suffix == ".bcf":
            pysam = _pysam("BCF")
            try:
                with pysam.VariantFile(str(self.path)) as file:
                    yield from str(file.header).splitlines()
                    yield from (str(record).rstrip("\n") for record in file)
            except (OSError, ValueError) as error:
                raise InputError.from_os_error(error, self.path, "cannot be read as BCF") from None
        else:
            yield from (line.rstrip("\r\n") for line in read_lines(self.path))

    def __iter__(self) -> Iterator[VcfRecord]:
        for number, line in enumerate(self._lines(), start=1):
            if line.startswith("#") or not line:
                continue
            place, columns = f"{self.path}, line {number}", line.split("\t")
            if len(columns) != self._width:
                raise InputError(f"{place}: has {len(columns)} tab-separated columns, but the header has {self._width}")
            if not columns[1].isdecimal():
                raise InputError(f"{place}: POS is {columns[1]!r}; it must be a whole number")
            if not columns[3].isalpha():
                raise InputError(f"{place}: REF is {columns[3]!r}; it must be nucleotides")
            yield VcfRecord(place, columns)


def write_bgzip(path: Path, lines: Iterable[str]) -> None:
    """Write lines as bgzip does: in blocks, so that an index can point into it."""
    with _pysam("bgzip").BGZFile(str(path), "wb") as file:
        for line in lines:
            file.write(line.encode())


def index_vcf(path: Path) -> Path | None:
    """Make the tabix index of a VCF file from bgzip; returns its path, or None if the records are not in order."""
    index = Path(f"{path}.tbi")
    unfinished = path.with_name(f".{index.name}.{os.getpid()}")
    try:
        _pysam("tabix").tabix_index(str(path), preset="vcf", force=True, index=str(unfinished))
        unfinished.replace(index)
    except OSError:
        for path in (unfinished, index):
            path.unlink(missing_ok=True)
        return None
    return index
