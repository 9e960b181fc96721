"""Scores of the variants of a VCF file, in the transcripts that they change.

Each alternative allele is trimmed to what differs from the reference, placed in every transcript with an exon that has
all of it, and scored in a window of the spliced sequence: reference and alternative windows have the variant in their
middle and, unless the transcript itself is shorter, the same length, also for insertions and deletions.

The output is the VCF file with three more fields in INFO, or a table of scores. Every record stays; an allele without a
score has the reason in its place.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from copy import copy
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from rinalmo import __version__
from rinalmo.engine.jobs import take_shard
from rinalmo.errors import InputError
from rinalmo.inference.variants import ANY_LENGTH, Method, Variant, VariantSource, check_method, score_text
from rinalmo.io.files import counted
from rinalmo.io.genome import (
    Genome,
    Interval,
    Transcript,
    Transcripts,
    VcfFile,
    VcfRecord,
    index_vcf,
    reverse_complement,
    write_bgzip,
)
from rinalmo.rna.alphabet import NUCLEOTIDES

FIELD, MINIMUM, REASON = "RINALMO", "RINALMO_MIN", "RINALMO_REASON"
WINDOW = 500

REASONS = {
    "symbolic": "symbolic alleles, breakends or *",
    "unknown_chromosome": "on chromosomes missing from the genome",
    "reference_mismatch": "with a reference allele that differs from the genome",
    "not_in_exon": "outside exons",
    "exon_border": "across an exon boundary",
    "other_letters": "with characters other than A, C, G, T",
    "longer_than_window": "longer than the window",
    "changes_length": "insertions and deletions, which need --method length-corrected-pll or pll",
}
"""Why an allele, or an allele in a transcript, has no score: as written in INFO, and in words."""

_COLUMNS = {"chromosome": str, "position": int, "id": str, "ref": str, "alt": str, "transcript": str, "change": str}
_LISTED = 5


class Allele(NamedTuple):
    """An alternative allele: what it is in each transcript, and why not in others."""

    alternative: str
    variants: list[Variant]
    reasons: list[str]


class VcfSource(VariantSource):
    """The variants of a VCF file in the transcripts of a genome.

    Args:
        vcf: A VCF file, plain or compressed, or BCF.
        genome: A FASTA file, plain or from bgzip, whose index is made if it is missing.
        regions: Transcripts, see `rinalmo.io.genome.Transcripts`.
        window: Length in nucleotides of the parts of the transcripts that are scored.
        method: See `rinalmo.score`; "pll" and "length-corrected-pll" score insertions and deletions too.
        model_name: The model's name in the header of the output.

    Raises:
        MissingExtraError: pysam is not installed.
        InputError: A file cannot be read.

    Examples:
        >>> from rinalmo.inference.variants import score_file
        >>> from rinalmo.inference.vcf import VcfSource
        >>> def annotate(vcf, genome, regions, output):
        ...     return score_file(VcfSource(vcf, genome, regions, window=200), output, "nano")
    """

    endings = (".vcf", ".vcf.gz", ".csv", ".tsv", ".parquet")

    def __init__(
        self,
        vcf: str | Path,
        genome: str | Path,
        regions: str | Path,
        *,
        window: int = WINDOW,
        method: Method = "masked-marginals",
        model_name: str = "",
    ) -> None:
        check_method(method)
        if window < 1:
            raise InputError(f"--window {window}: too short for a variant")
        self.vcf = VcfFile(vcf)
        super().__init__((), _COLUMNS, self._read, Path(vcf))
        for name in (FIELD, MINIMUM, REASON):
            if any(line.startswith(f"##INFO=<ID={name},") for line in self.vcf.header):
                problem = f"already has INFO {name}; remove it, for example with: bcftools annotate -x INFO/{name}"
                raise InputError(f"{vcf}: {problem}")
        self.genome, self.transcripts = Genome(genome), Transcripts(regions)
        self.window, self.method, self.model_name = window, method, model_name
        self.without_score: Counter[str] = Counter()
        """Alternative alleles without a score, by reason."""
        self.partly: Counter[str] = Counter()
        """Alleles with a score in one transcript, and this reason in another, by reason."""
        self.mismatches: list[str] = []
        """The first reference alleles that are not the genome's."""
        self.alleles = 0
        self.is_unsorted = False
        self._shard: str | None = None
        self._digest = ""

    def take_shard(self, shard: str | None) -> VcfSource:
        """The variants of every n-th record, from the i-th on, for `shard` "i/n"; all for None."""
        take_shard((), shard)
        sharded = copy(self)
        sharded._shard, sharded.read = shard, sharded._read
        return sharded

    def fingerprint(self) -> str:
        """A hash of all that is scored, and of the file."""
        return hashlib.sha256(f"{super().fingerprint()} {self._digest}".encode()).hexdigest()

    def check_unchanged(self) -> None:
        """Raise InputError if a file has been written to since it was opened."""
        super().check_unchanged()
        self.genome.check_unchanged()
        self.transcripts.check_unchanged()

    def checked(self, method: Method, shard: str | None = None) -> int:
        """Read all variants, count them and those without a score, and return the number of scores."""
        if method != self.method:
            raise InputError(f"the variants were read for the method {self.method}, not {method}")
        digest, count, self.alleles = hashlib.sha256(), 0, 0
        self.without_score, self.partly, self.mismatches = Counter(), Counter(), []
        for record in self._records():
            for allele in self.alleles_of(record):
                self.alleles += 1
                count += len(allele.variants)
                counter = self.partly if allele.variants else self.without_score
                counter.update(set(allele.reasons) if allele.variants else allele.reasons[:1])
                if allele.reasons == ["reference_mismatch"] and len(self.mismatches) < _LISTED:
                    self.mismatches.append(self._mismatch(record))
                for variant in allele.variants:
                    digest.update(repr((variant.cells, variant.wild_type, variant.other, variant.changes)).encode())
        self._digest = digest.hexdigest()
        if not count:
            reasons = self._reasons() or "it has none"
            problem = f"none of its {self.alleles:,} alternative alleles can be scored ({reasons})"
            raise InputError(f"{self.path}: {problem}{self._chromosome_hint()}")
        return count

    def _reasons(self) -> str:
        return "; ".join(f"{number:,} {REASONS[reason]}" for reason, number in self.without_score.items())

    def _mismatch(self, record: VcfRecord) -> str:
        chromosome, position, _, reference, *_ = record.columns
        genome = self.genome.fetch(chromosome, record.position, record.position + len(reference))
        return f"{chromosome}:{position} {reference} (genome: {genome.replace('U', 'T') or 'its end'})"

    def _chromosome_hint(self) -> str:
        names = {record.columns[0] for record in self._records()}
        for kind, others in (("genome", set(self.genome.lengths)), ("regions", self.transcripts.chromosomes())):
            if names and not names & others:
                known = f"{min(names)!r} in the VCF file, {min(others)!r} in the {kind}"
                return f"; the chromosome names differ: {known}; rename them with bcftools annotate --rename-chrs"
        return ""

    def notes(self) -> Iterator[str]:
        """What had no score, in sentences."""
        if self.without_score:
            yield f"{self.without_score.total():,} of {self.alleles:,} alleles have no score: {self._reasons()}"
        if self.mismatches:
            examples = "; ".join(dict.fromkeys(self.mismatches))
            yield f"reference alleles that differ from the genome, for example {examples}"
        for reason, number in self.partly.items():
            yield f"{counted(number, 'allele')} scored in some transcripts but not in others: {REASONS[reason]}"
        if self.is_unsorted:
            yield "the output has no index because its records are not sorted by position"
        for reason, number in self.transcripts.left_out.items():
            yield f"{self.transcripts.path}: skipped {counted(number, 'transcript')} with {reason}"

    def summary(self, count: int) -> str:
        """What was scored, in words."""
        scored = self.alleles - self.without_score.total()
        return f"{counted(count, 'score')} of {counted(scored, 'allele')}"

    def _records(self) -> Iterator[VcfRecord]:
        return take_shard(self.vcf, self._shard)

    def _read(self) -> Iterator[Variant]:
        for record in self._records():
            for allele in self.alleles_of(record):
                yield from allele.variants

    def alleles_of(self, record: VcfRecord) -> Iterator[Allele]:
        """Each alternative allele of a record."""
        chromosome, _, name, reference, *_ = record.columns
        old, start, genome = _rna(reference), record.position, None
        if chromosome in self.genome.lengths:
            genome = self.genome.fetch(chromosome, start, start + len(reference))
        for alternative in record.alternatives:
            reason = ""
            if not alternative.isalpha():
                reason = "symbolic"
            elif genome is None:
                reason = "unknown_chromosome"
            elif genome != old:
                reason = "reference_mismatch"
            if reason:
                yield Allele(alternative, [], [reason])
            else:
                yield self._place((chromosome, start + 1, name, reference, alternative), old, _rna(alternative))

    def _place(self, cells: tuple[str, int, str, str, str], old: str, new: str) -> Allele:
        chromosome, position, *_, alternative = cells
        start, old, new = _trim(position - 1, old, new)
        end = start + len(old)
        allele = Allele(alternative, [], [])
        # An insertion is between two nucleotides.
        around = (start, end) if old else (start - 1, start + 1)
        for transcript in self.transcripts.overlapping(chromosome, *around):
            place = transcript.locate(start, end)
            if place is None:
                allele.reasons.append("exon_border")
            elif not set(old + new) <= set(NUCLEOTIDES):
                allele.reasons.append("other_letters")
            elif max(len(old), len(new)) > self.window:
                allele.reasons.append("longer_than_window")
            elif len(old) != len(new) and self.method not in ANY_LENGTH:
                allele.reasons.append("changes_length")
            else:
                allele.variants.append(self._variant(cells, transcript, place, old, new))
        if not allele.variants and not allele.reasons:
            allele.reasons.append("not_in_exon")
        return allele

    def _variant(
        self, record: tuple[str | int, ...], transcript: Transcript, place: Interval, old: str, new: str
    ) -> Variant:
        if transcript.strand == "-":
            old, new = reverse_complement(old), reverse_complement(new)
        sequence, (start, end) = self.genome.spliced(transcript), place
        change = f"{start + 1}{old or '-'}>{new or '-'}"
        cells = (*record, transcript.id, change)
        first, last = _window(len(sequence), start, end, self.window)
        if len(old) == len(new):
            changes = enumerate(zip(old, new, strict=True), start - first)
            return Variant(sequence[first:last], tuple((n, b) for n, (a, b) in changes if a != b), cells=cells)
        changed = sequence[:start] + new + sequence[end:]
        other = slice(*_window(len(changed), start, start + len(new), self.window))
        return Variant(sequence[first:last], other=changed[other], cells=cells)

    def lines(self, scores: Iterable[float], format: str = "vcf") -> Iterator[str]:
        """The lines of the output as text; `scores` are those of `read`, in order."""
        if format != "vcf":
            yield from super().lines(scores, format)
            return
        scores = iter(scores)
        yield from (line + "\n" for line in self.vcf.header[:-1])
        yield from (line + "\n" for line in self._header())
        yield self.vcf.header[-1] + "\n"
        for record in self._records():
            annotations, minima, reasons = [], [], []
            for allele in self.alleles_of(record):
                values = [score_text(next(scores)) for _ in allele.variants]
                for variant, value in zip(allele.variants, values, strict=True):
                    name, change = (quote(str(cell), safe=_SAFE) for cell in variant.cells[-2:])
                    annotations.append(f"{allele.alternative}|{name}|{change}|{value}")
                minima.append(min(values, key=float, default="."))
                reasons.append("." if values else allele.reasons[0])
            added = [
                f"{name}={','.join(cells)}"
                for name, cells in ((FIELD, annotations), (MINIMUM, minima), (REASON, reasons))
                if set(cells) - {"."}
            ]
            columns = record.columns.copy()
            columns[7] = ";".join([*([] if columns[7] in (".", "") else [columns[7]]), *added]) or "."
            yield "\t".join(columns) + "\n"

    def _header(self) -> Iterator[str]:
        settings = f"rinalmo {__version__}, model {self.model_name}, {self.method}, windows of {self.window} nt"
        fields = (
            (FIELD, ".", "String", f"Scores in transcripts, by {settings}: allele|transcript|change|score in nats"),
            (MINIMUM, "A", "Float", "The allele's lowest score in its transcripts; below 0 means less likely"),
            (REASON, "A", "String", f"Why an allele has no score: {', '.join(REASONS)}"),
        )
        for name, number, kind, text in fields:
            escaped = text.replace("\\", "\\\\").replace('"', '\\"')
            yield f'##INFO=<ID={name},Number={number},Type={kind},Description="{escaped}">'

    def write(self, unfinished: Path, scores: Iterable[float], ending: str) -> None:
        """Write the output under a temporary name, in the format of this ending."""
        if ending == ".vcf.gz":
            write_bgzip(unfinished, self.lines(scores))
        else:
            super().write(unfinished, scores, ending)

    def finish(self, output: Path) -> None:
        """Make the index of a compressed output."""
        if output.name.endswith(".vcf.gz") and index_vcf(output) is None:
            self.is_unsorted = True


# What INFO may hold without an escape, but for the separators of the annotations.
_SAFE = "".join(chr(code) for code in range(33, 127) if chr(code) not in "%,;=|")


def _rna(letters: str) -> str:
    return letters.upper().replace("T", "U")


def _trim(position: int, old: str, new: str) -> tuple[int, str, str]:
    """What differs between two alleles, and its position: without their common start, then without their common end."""
    while old and new and old[0] == new[0]:
        old, new, position = old[1:], new[1:], position + 1
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    return position, old, new


def _window(length: int, start: int, end: int, width: int) -> Interval:
    """The part of this width with `[start, end)` in its middle, or at the side where the sequence ends."""
    first = max(0, min((start + end) // 2 - width // 2, length - width))
    return first, min(length, first + width)
