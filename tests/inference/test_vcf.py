"""Variants of a genome: each score is that of sequences spliced by hand, and the VCF is otherwise as it was."""

import gzip
import os
import random
import re
from collections import Counter

import numpy as np
import pytest

from rinalmo.engine.engine import Engine
from rinalmo.errors import InputError, MissingExtraError
from rinalmo.inference.fill_mask import NucleotideScorer
from rinalmo.inference.variants import score, score_file
from rinalmo.inference.vcf import REASONS, VcfSource
from rinalmo.io import genome as genomes
from rinalmo.io.genome import Genome, Transcripts, reverse_complement

pysam = pytest.importorskip("pysam")

HEADER = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture(scope="module")
def engine(backbone):
    return Engine(backbone, "fp32", threads=1)


def rna(dna):
    return dna.upper().replace("T", "U")


class Simulated:
    """Two chromosomes with genes on both strands, of one to four exons, with isoforms, and random variants."""

    def __init__(self, folder, variants, seed=0):
        rng = random.Random(seed)
        self.folder, self.chromosomes, self.transcripts = folder, {}, {}
        for name in ("chr1", "chr2"):
            self.chromosomes[name] = "".join(rng.choices("ACGTacgt", k=6000))
            for gene in range(8):
                edges = sorted(rng.sample(range(700 * gene + 100, 700 * gene + 700, 5), 2 * rng.randint(1, 4)))
                exons = list(zip(edges[::2], edges[1::2], strict=True))
                strand = rng.choice("+-")
                self.transcripts[f"{name}.{gene}a"] = name, strand, exons
                if len(exons) > 1:
                    self.transcripts[f"{name}.{gene}b"] = name, strand, exons[:-1]
        self.records = []
        for _ in range(variants):
            name, _, exons = rng.choice(list(self.transcripts.values()))
            first, last = rng.choice(exons)
            start, size = rng.randrange(first - 5, last + 5), rng.choice((1, 1, 1, 1, 1, 2, 3, 6))
            old = self.chromosomes[name][start : start + size].upper()
            new = "".join(rng.choices("ACGT", k=rng.choice((size, size, size, 1, 3))))
            if rng.random() < 0.5:  # as callers write insertions and deletions: with the nucleotide before them
                before = self.chromosomes[name][start - 1].upper()
                start, old, new = start - 1, before + old, before + new
            if old != new:
                self.records.append((name, start, old, new))
        self.records.sort()
        self.genome, self.vcf = folder / "genome.fa", folder / "variants.vcf"
        with self.genome.open("w") as file:
            for name, sequence in self.chromosomes.items():
                file.write(f">{name} x\n" + "".join(sequence[k : k + 60] + "\n" for k in range(0, 6000, 60)))
        rows = (f"{n}\t{start + 1}\t.\t{old}\t{new}\t.\t.\t.\n" for n, start, old, new in self.records)
        self.vcf.write_text(HEADER + "".join(rows))
        self.regions = folder / "genes.gtf"
        self.regions.write_text("".join(self.lines('gene_id "g"; transcript_id "{}";')))

    def lines(self, attributes):
        for name, (chromosome, strand, exons) in self.transcripts.items():
            for start, end in exons if strand == "+" else reversed(exons):
                columns = (chromosome, "x", "exon", start + 1, end, ".", strand, ".", attributes.format(name))
                yield "\t".join(map(str, columns)) + "\n"

    def spliced_by_hand(self):
        """(wild type, variant, first changed nucleotide) of each allele in each transcript that has all of it.

        The variant is made in the chromosome, which is spliced again.
        """
        for chromosome, start, old, new in self.records:
            sequence, end = self.chromosomes[chromosome], start + len(old)
            changed = sequence[:start] + new + sequence[end:]
            while old and new and old[0] == new[0]:
                old, new, start = old[1:], new[1:], start + 1
            while old and new and old[-1] == new[-1]:
                old, new, end = old[:-1], new[:-1], end - 1
            for name, strand, exons in self.transcripts.values():
                inside = [n for n, (a, b) in enumerate(exons) if (a <= start and end <= b if old else a < start < b)]
                if name != chromosome or not inside:
                    continue
                shift = len(new) - len(old)
                moved = [(a + shift * (n > inside[0]), b + shift * (n >= inside[0])) for n, (a, b) in enumerate(exons)]
                before = rna("".join(sequence[a:b] for a, b in exons))
                after = rna("".join(changed[a:b] for a, b in moved))
                first = sum(min(b, start) - a for a, b in exons if a < start)
                if strand == "-":
                    first = len(before) - first - len(old)
                    before, after = reverse_complement(before), reverse_complement(after)
                yield before, after, first, len(old), len(new)

    def windows_by_hand(self, width):
        for before, after, first, old, new in self.spliced_by_hand():
            parts = []
            for sequence, size in ((before, old), (after, new)):
                middle = (2 * first + size) // 2
                left = min(max(middle - width // 2, 0), max(len(sequence) - width, 0))
                parts.append(sequence[left : left + width])
            yield tuple(parts)

    def scores_by_hand(self, engine, width):
        """Length-corrected: the wild type's pseudo-log-likelihood per nucleotide, times the variant's length."""
        windows = list(self.windows_by_hand(width))
        distinct = list(dict.fromkeys(part for pair in windows for part in pair))
        sums = dict(zip(distinct, NucleotideScorer(engine).pseudo_log_likelihoods(distinct), strict=True))
        return [sums[after] - sums[before] / len(before) * len(after) for before, after in windows]


def records(path):
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [line.split("\t") for line in text.splitlines() if not line.startswith("#")]


def scores(path):
    infos = (dict(part.partition("=")[::2] for part in record[7].split(";")) for record in records(path))
    return [float(each.split("|")[3]) for info in infos if "RINALMO" in info for each in info["RINALMO"].split(",")]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return Simulated(tmp_path_factory.mktemp("genome"), 80)


def source(simulated, method="length-corrected-pll", window=24, **files):
    files = {"vcf": simulated.vcf, "genome": simulated.genome, "regions": simulated.regions} | files
    return VcfSource(**files, window=window, method=method)


def test_each_score_is_that_of_the_sequences_spliced_by_hand(simulated, engine, tmp_path):
    count = score_file(source(simulated), tmp_path / "out.vcf", engine, method="length-corrected-pll")
    expected = simulated.scores_by_hand(engine, 24)
    assert count == len(expected) > 80
    np.testing.assert_allclose(scores(tmp_path / "out.vcf"), expected, atol=1e-4)


def test_ten_thousand_variants_are_in_the_sequences_spliced_by_hand(tmp_path):
    simulated = Simulated(tmp_path, 12_000, seed=1)
    assert len(simulated.records) > 10_000
    windows = [(variant.wild_type, variant.sequence) for variant in source(simulated, window=200).read()]
    assert windows == list(simulated.windows_by_hand(200))


@pytest.mark.slow
def test_ten_thousand_scores(engine, tmp_path):
    simulated = Simulated(tmp_path, 10_000, seed=1)
    count = score_file(source(simulated, window=20), tmp_path / "out.vcf.gz", engine, method="length-corrected-pll")
    expected = simulated.scores_by_hand(engine, 20)
    assert count == len(expected) > 10_000
    np.testing.assert_allclose(scores(tmp_path / "out.vcf.gz"), expected, atol=1e-4)


def test_whole_transcripts_by_masked_marginals(simulated, engine, tmp_path):
    count = score_file(source(simulated, "masked-marginals", 1000), tmp_path / "out.csv", engine)
    pairs = [(before, after) for before, after, *_ in simulated.spliced_by_hand() if len(before) == len(after)]
    assert count == len(pairs)
    rows = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert rows[0] == ["chromosome", "position", "id", "ref", "alt", "transcript", "change", "score"]
    few = range(0, count, 9)
    expected = [score(pairs[n][0], [pairs[n][1]], engine)[0] for n in few]
    np.testing.assert_allclose([float(rows[1 + n][-1]) for n in few], expected, atol=1e-5)


def test_windows_have_equal_lengths_unless_the_transcript_is_shorter(simulated):
    for variant in source(simulated, window=60).read():
        assert len(variant.wild_type) == len(variant.sequence) == 60 or len(variant.wild_type) < 60


def test_regions_in_any_format_and_compressed_files_give_the_same(simulated, engine, tmp_path):
    (tmp_path / "genes.gff3").write_text(
        "##gff-version 3\n" + "".join(simulated.lines("ID=e;Parent={}")) + "##FASTA\n>chr1\nACGT\n"
    )
    with (tmp_path / "genes.bed").open("w") as bed:
        for name, (chromosome, strand, exons) in simulated.transcripts.items():
            first = exons[0][0]
            sizes = "".join(f"{end - start}," for start, end in exons)
            starts = "".join(f"{start - first}," for start, _ in exons)
            columns = (chromosome, first, exons[-1][1], name, 0, strand, 0, 0, 0, len(exons), sizes, starts)
            bed.write("\t".join(map(str, columns)) + "\n")
    (tmp_path / "genes.gtf.gz").write_bytes(gzip.compress(simulated.regions.read_bytes()))
    pysam.tabix_compress(str(simulated.genome), str(tmp_path / "genome.fa.gz"))
    pysam.tabix_compress(str(simulated.vcf), str(tmp_path / "variants.vcf.gz"))
    packed = {"genome": tmp_path / "genome.fa.gz", "vcf": tmp_path / "variants.vcf.gz"}
    expected = list(source(simulated).read())
    for name in ("genes.gff3", "genes.bed", "genes.gtf.gz"):
        assert list(source(simulated, regions=tmp_path / name, **packed).read()) == expected
    score_file(source(simulated, "masked-marginals"), tmp_path / "plain.vcf", engine)
    score_file(source(simulated, "masked-marginals", **packed), tmp_path / "packed.vcf.gz", engine)
    assert records(tmp_path / "packed.vcf.gz") == records(tmp_path / "plain.vcf")
    with pysam.VariantFile(str(tmp_path / "packed.vcf.gz")) as file:
        found = [(record.pos, record.info.get("RINALMO_MIN")) for record in file.fetch("chr2", 1000, 3000)]
    assert len(found) == sum(r[0] == "chr2" and 1000 < int(r[1]) <= 3000 for r in records(tmp_path / "plain.vcf"))
    assert any(value for _, value in found)


def test_shards_together_are_the_whole(simulated, engine, tmp_path):
    lines = []
    for n in (1, 2, 3):
        score_file(source(simulated, "masked-marginals"), tmp_path / f"{n}.vcf", engine, shard=f"{n}/3")
        lines.append(records(tmp_path / f"{n}.vcf"))
    score_file(source(simulated, "masked-marginals"), tmp_path / "whole.vcf", engine)
    whole = [lines[n % 3][n // 3] for n in range(sum(map(len, lines)))]
    assert [r[:7] for r in whole] == [r[:7] for r in records(tmp_path / "whole.vcf")]


#      0         1         2         3
#      0123456789012345678901234567890123456789
ONE = "TTTTGGGACCATTTTTTTTTTCAGGNTCCTTTTTTTTTTT"
# Two exons, "GGGACCA" and "CAGGNTCC"; spliced, GGGACCACAGGNUCC.
GTF = "".join(
    f'one\tx\t{kind}\t{start}\t{end}\t.\t{strand}\t.\ttranscript_id "{name}"; note "a";\n'
    for kind, start, end, strand, name in (
        ("exon", 5, 11, "+", "forward"),
        ("CDS", 5, 40, "+", "forward"),
        ("exon", 22, 29, "+", "forward"),
        ("exon", 22, 29, "-", "re verse|"),
        ("exon", 5, 11, ".", "strandless"),
        ("exon", 5, 11, "+", "both"),
        ("exon", 22, 29, "-", "both"),
        ("exon", 5, 11, "+", "overlapping"),
        ("exon", 9, 19, "+", "overlapping"),
    )
)


@pytest.fixture
def small(tmp_path):
    (tmp_path / "g.fa").write_text(f">one\n{ONE}\n>two\nACGT\n")
    (tmp_path / "r.gtf").write_text(GTF)

    def make(rows, header=HEADER, **options):
        lines = (row if row.count("\t") else "\t".join([*row.split(), ".", "PASS", "AC=1;X"]) for row in rows)
        (tmp_path / "v.vcf").write_text(header + "".join(line + "\n" for line in lines))
        return VcfSource(tmp_path / "v.vcf", tmp_path / "g.fa", tmp_path / "r.gtf", **options)

    return make


def test_what_cannot_be_scored_is_counted_and_named(small, engine, tmp_path):
    rows = {
        "one 5 . G A": None,
        "one 5 . G <DEL>,*,N": ("symbolic", "symbolic", "other_letters"),
        "one 5 . G .": None,
        "one 5 . G G[one:9[": ("symbolic",),
        "three 5 . G A": ("unknown_chromosome",),
        "one 5 . C A,G": ("reference_mismatch", "reference_mismatch"),
        "one 39 . TTTT A": ("reference_mismatch",),
        "one 15 . T A": ("not_in_exon",),
        "one 10 . CAT C": ("exon_border",),
        "one 11 . A AG": ("exon_border",),
        "one 4 . T TG": ("exon_border",),
        "one 26 . N A": ("other_letters",),
        "one 6 . GG G": ("changes_length",),
        "one 5 . GGGACCA CCCTGGT": ("longer_than_window",),
    }
    notes = []
    made = small(rows, window=6)
    assert score_file(made, tmp_path / "out.vcf", engine, note=notes.append) == 1
    reasons = {}
    for row, record in zip(rows, records(tmp_path / "out.vcf"), strict=True):
        assert record[:7] == [*row.split(), ".", "PASS"]
        assert record[7].startswith("AC=1;X")
        info = dict(part.partition("=")[::2] for part in record[7].split(";"))
        reasons[row] = tuple(info["RINALMO_REASON"].split(",")) if "RINALMO_REASON" in info else None
    assert reasons == rows
    assert set(REASONS) == {reason for each in rows.values() if each for reason in each}
    counts = Counter(reason for each in rows.values() if each for reason in each)
    text = "; ".join(f"{count} {REASONS[reason]}" for reason, count in counts.items())
    assert notes[0] == f"{counts.total()} of {counts.total() + 1} alleles have no score: {text}"
    assert notes[1].endswith("for example one:5 C (genome: G); one:39 TTTT (genome: TT)")
    assert [note.split(": ")[1] for note in notes[2:]] == [
        "skipped 1 transcript with no strand",
        "skipped 1 transcript with exons on both strands",
        "skipped 1 transcript with overlapping exons",
    ]


def test_alleles_and_transcripts_of_one_record(small, engine, tmp_path):
    made = small(["one 24 rs1 G A,C", "one 21 . TC T"], method="pll", window=100)
    score_file(made, tmp_path / "out.vcf", engine, method="pll")
    (first, second) = records(tmp_path / "out.vcf")
    info = dict(part.partition("=")[::2] for part in first[7].split(";"))
    found = [each.split("|") for each in info["RINALMO"].split(",")]
    forward, reverse = "GGGACCACAGGNUCC", "GGANCCUG"
    changes = {
        ("A", "forward", "10G>A"): (forward, "GGGACCACAAGNUCC"),
        ("A", "re%20verse%7C", "6C>U"): (reverse, "GGANCUUG"),
        ("C", "forward", "10G>C"): (forward, "GGGACCACACGNUCC"),
        ("C", "re%20verse%7C", "6C>G"): (reverse, "GGANCGUG"),
    }
    assert [tuple(each[:3]) for each in found] == list(changes)
    expected = [score(before, [after], engine, method="pll")[0] for before, after in changes.values()]
    np.testing.assert_allclose([float(each[3]) for each in found], expected, atol=1e-5)
    lowest = [min(expected[:2]), min(expected[2:])]
    np.testing.assert_allclose([float(n) for n in info["RINALMO_MIN"].split(",")], lowest, atol=1e-5)
    # A deletion of the first nucleotide of an exon, written with the intron's last.
    assert "RINALMO=T|forward|8C>-|" in second[7]
    with pysam.VariantFile(str(tmp_path / "out.vcf")) as file:
        assert next(file).info["RINALMO_MIN"] == pytest.approx(lowest, abs=1e-5)


def test_only_info_changes(small, engine, tmp_path):
    header = (
        '##fileformat=VCFv4.2\n##INFO=<ID=AF,Number=A,Type=Float,Description="é">\n##contig=<ID=one>\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS 1\n"
    )
    row = "one\t5\t.\tg\ta\t29.123456789\tq10\tAF=0.123456789;UNKNOWN=x\tGT:DP\t0|1:3"
    score_file(small([row], header), tmp_path / "out.vcf", engine)
    *lines, scored = (tmp_path / "out.vcf").read_text().splitlines()
    assert [line for line in lines if "RINALMO" not in line] == header.splitlines()
    assert re.sub(r";RINALMO=a\|forward\|1G>A\|[-.0-9]+;RINALMO_MIN=[-.0-9]+", "", scored) == row


def test_length_correction_is_per_nucleotide_that_is_scored(engine):
    long, short = "GGGACNCACAGG", "GGGNCACAGG"
    old, new = NucleotideScorer(engine).pseudo_log_likelihoods([long, short])
    assert score(long, [short], engine, method="length-corrected-pll")[0] == pytest.approx(new - 9 / 11 * old, abs=1e-5)
    same = score(long, ["GGGACNCACAGU"], engine, method="pll")
    assert score(long, ["GGGACNCACAGU"], engine, method="length-corrected-pll") == pytest.approx(same, abs=1e-6)


def test_an_unsorted_file_has_no_index(small, engine, tmp_path):
    notes = []
    (tmp_path / "out.vcf.gz.tbi").write_text("of an older file")
    score_file(small(["one 6 . G A", "one 5 . G A"]), tmp_path / "out.vcf.gz", engine, note=notes.append)
    assert not (tmp_path / "out.vcf.gz.tbi").exists()
    assert "the output has no index" in notes[0]
    assert [record[1] for record in records(tmp_path / "out.vcf.gz")] == ["6", "5"]


def test_bcf_is_read(small, engine, tmp_path):
    header = HEADER.replace("\n#", "\n##contig=<ID=one>\n#")
    score_file(small(["one\t5\t.\tG\tA\t.\t.\t."], header), tmp_path / "a.vcf", engine)
    text = pysam.VariantFile(str(tmp_path / "v.vcf"))
    with text, pysam.VariantFile(str(tmp_path / "v.bcf"), "wb", header=text.header) as bcf:
        for record in text:
            bcf.write(record)
    made = VcfSource(tmp_path / "v.bcf", tmp_path / "g.fa", tmp_path / "r.gtf")
    score_file(made, tmp_path / "b.vcf", engine)
    assert scores(tmp_path / "b.vcf") == scores(tmp_path / "a.vcf")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("v.vcf", "", "v.vcf: is not VCF"),
        ("v.vcf", "chrom,pos\n", "is not VCF"),
        ("v.vcf", "##fileformat=VCFv4.2\none\t5\t.\tG\tA\t.\t.\t.\n", "has no tab-separated header line #CHROM"),
        ("v.vcf", HEADER + "one\t5\t.\tG\tA\t.\t.\n", "line 3: has 7 tab-separated columns, but the header has 8"),
        ("v.vcf", HEADER + "one\tx\t.\tG\tA\t.\t.\t.\n", "line 3: POS is 'x'; it must be a whole number"),
        ("v.vcf", HEADER + "one\t5\t.\t.\tA\t.\t.\t.\n", "line 3: REF is .*; it must be nucleotides"),
        ("v.vcf", HEADER, "none of its 0 alternative alleles can be scored .it has none"),
        (
            "v.vcf",
            HEADER + "one\t15\t.\tT\tA\t.\t.\t.\n",
            "none of its 1 alternative alleles can be scored .1 outside exons",
        ),
        ("v.vcf", HEADER + "1\t15\t.\tT\tA\t.\t.\t.\n", "'1' in the VCF file, 'one' in the genome; rename them"),
        (
            "v.vcf",
            HEADER.replace("#C", "##INFO=<ID=RINALMO,x>\n#C") + "one\t5\t.\tG\tA\t.\t.\t.\n",
            "already has INFO RINALMO",
        ),
        ("g.fa", ">one\nAC\nACG\nA\n", "g.fa: cannot be read by position"),
        (
            "g.fa",
            ">one\nTTTTGGGA\n",
            "forward ends at one:29, but the chromosome at 8; genome and regions must be from the same",
        ),
        ("r.gtf", "one\tx\texon\t5\t9\t.\t+\n", "r.gtf, line 1: has 7 tab-separated columns"),
        ("r.gtf", "one\tx\texon\t9\t5\t.\t+\t.\ttranscript_id x\n", "start 9 and end 5 are not an interval"),
        ("r.gtf", "one\tx\texon\t5\t9\t.\t+\t.\tParent=x\n", "line 1: this exon has no transcript_id"),
        ("r.gtf", "one\tx\tgene\t5\t9\t.\t+\t.\tgene_id x\n", "has no usable transcript .there is no exon"),
        ("r.gtf", "one\tx\texon\t5\t9\t.\t.\t.\ttranscript_id x\n", "has no usable transcript .1 with no strand"),
    ],
)
def test_faults(small, engine, tmp_path, file, text, words):
    small(["one 5 . G A"])
    (tmp_path / "g.fa.fai").unlink(missing_ok=True)
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=words):
        score_file(VcfSource(tmp_path / "v.vcf", tmp_path / "g.fa", tmp_path / "r.gtf"), tmp_path / "out.vcf", engine)
    assert not (tmp_path / "out.vcf").exists()


def test_faults_of_bed(tmp_path):
    for text, words in (
        ("one\t5\n", "line 3: has 2 tab-separated columns"),
        ("one\t5\t9\n", "1 with no strand"),
        ("one\t5\t9\tx\t0\t+\t5\t9\t0\t2\t1,1\t0\n", "equally many whole numbers"),
        ("one\t5\t9\tx\t0\t+\t5\t9\t0\t2\t1,1\t0,2\n", "the blocks do not cover"),
    ):
        (tmp_path / "r.bed").write_text("# x\ntrack name=x\n" + text)
        with pytest.raises(InputError, match=words):
            Transcripts(tmp_path / "r.bed")
    with pytest.raises(InputError, match="for regions; use"):
        Transcripts(tmp_path / "r.txt")


def test_exons_that_touch_are_one(tmp_path):
    (tmp_path / "r.bed").write_text("one\t5\t9\tx\t0\t-\t5\t9\t0\t2\t2,2\t0,2\n")
    (transcript,) = Transcripts(tmp_path / "r.bed").overlapping("one", 8, 9)
    assert transcript.exons == ((5, 9),)
    assert (transcript.locate(6, 8), transcript.locate(7, 7), transcript.locate(9, 9)) == ((1, 3), (2, 2), None)


def test_an_index_older_than_the_genome_is_noticed(tmp_path, caplog):
    (tmp_path / "g.fa").write_text(">one\nACGT\n")
    assert Genome(tmp_path / "g.fa").fetch("one", 1, 9) == "CGU"
    os.utime(tmp_path / "g.fa.fai", (1, 1))
    Genome(tmp_path / "g.fa")
    assert "is older than the genome" in caplog.text


def test_without_pysam(small, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pysam", None)
    with pytest.raises(MissingExtraError, match=r"a genome needs the package 'pysam'; .*rinalmo\[vcf\]"):
        small(["one 5 . G A"])
    assert genomes.reverse_complement("ACGUN") == "NACGU"
