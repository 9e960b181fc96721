"""Header lines as the databases write them."""

import pytest

from rinalmo.rna.headers import Header, read_header, type_in_words

REAL = [
    # RNAcentral, active and species-specific files
    ("URS000149A9AF rRNA from 1 species", "", Header("URS000149A9AF", "rRNA")),
    (
        "URS0000000001 signal recognition particle RNA from 12 species",
        "",
        Header("URS0000000001", "signal_recognition_particle_RNA"),
    ),
    (
        "URS0000000055_9606 Homo sapiens (human) ZNF451 regulatory antisense RNA",
        "",
        Header("URS0000000055_9606", "antisense_RNA", taxon="9606"),
    ),
    (
        "URS00005EB5B7_9606 Homo sapiens (human) microRNA hsa-let-7a-1 precursor",
        "",
        Header("URS00005EB5B7_9606", "miRNA", taxon="9606"),
    ),
    # Rfam: the old joint file, and a family's own file
    (
        "RF00001;5S_rRNA;DQ397844.1/16860-16979 414005:Cenarchaeum symbiosum B",
        "Rfam.fasta.gz",
        Header("DQ397844.1/16860-16979", "", "RF00001", "Cenarchaeum symbiosum B"),
    ),
    (
        "RF00001;5S_rRNA;AADB02014418.1/10140-10240   9606:Homo sapiens (human)",
        "Rfam.fasta.gz",
        Header("AADB02014418.1/10140-10240", "", "RF00001", "Homo sapiens"),
    ),
    (
        "X01556.1/3-118 Halococcus morrhuae",
        "RF00001.fa.gz",
        Header("X01556.1/3-118", "", "RF00001", "Halococcus morrhuae"),
    ),
    # Ensembl since release 76, and Ensembl Genomes before
    (
        "ENST00000364460.1 ncrna chromosome:GRCh38:6:29550026:29550109:1 gene:ENSG00000201330.1 gene_biotype:snoRNA "
        "transcript_biotype:snoRNA gene_symbol:SNORD32B description:small nucleolar RNA, C/D box 32B [Source:HGNC]",
        "Homo_sapiens.GRCh38.ncrna.fa.gz",
        Header("ENST00000364460.1", "snoRNA", taxon="Homo sapiens"),
    ),
    (
        "ENST00000347977 ncrna:miRNA chromosome:NCBI35:1:217347790:217347874:-1 gene:ENSG00000195671",
        "all.fa",
        Header("ENST00000347977", "miRNA"),
    ),
    # NCBI nt
    (
        "NR_024570.1 Escherichia coli strain U 5/41 16S ribosomal RNA, partial sequence",
        "nt.gz",
        Header("NR_024570.1", "rRNA", taxon="Escherichia coli"),
    ),
    (
        "NR_029684.1 Homo sapiens microRNA 143 (MIR143), microRNA\x01NR_1.1 another",
        "nt.gz",
        Header("NR_029684.1", "miRNA", taxon="Homo sapiens"),
    ),
    (
        "XR_001736926.2 PREDICTED: Homo sapiens uncharacterized LOC105378614 (LOC105378614), ncRNA",
        "nt.gz",
        Header("XR_001736926.2", "ncRNA", taxon="Homo sapiens"),
    ),
    (
        "NM_000546.6 Homo sapiens tumor protein p53 (TP53), transcript variant 1, mRNA",
        "nt.gz",
        Header("NM_000546.6", "", taxon="Homo sapiens"),
    ),
    # Names only
    ("NC000001", "core.fa.gz", Header("NC000001")),
    ("ENSG00000228794 some words", "my.fa", Header("ENSG00000228794")),
]


@pytest.mark.parametrize(("line", "file", "expected"), REAL, ids=[line[:24] for line, _, _ in REAL])
def test_real_headers_are_recognised(line, file, expected):
    id_, _, description = line.partition(" ")
    assert read_header(id_, description.strip(), "auto", file) == expected


def test_a_style_can_be_given():
    assert read_header("NR_024570.1", "16S ribosomal RNA", "plain") == Header("NR_024570.1")
    assert read_header("my_16S", "Escherichia coli 16S ribosomal RNA", "ncbi").type == "rRNA"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bacillus subtilis tRNA-Ala gene", "tRNA"),
        ("transfer-messenger RNA, SsrA", "tmRNA"),
        ("Homo sapiens ribonuclease P RNA component H1 (RPPH1), RNase P RNA", "RNase_P_RNA"),
        ("Homo sapiens 7SL RNA, signal recognition particle", "SRP_RNA"),
        ("Mus musculus long non-coding RNA Xist", "lncRNA"),
        ("Escherichia coli 16S rRNA methyltransferase RsmA", ""),
        ("Escherichia coli K-12, complete genome with tRNA genes", ""),
        ("uncultured fungus internal transcribed spacer 1", "rRNA"),
        ("nothing of the kind", ""),
        ("", ""),
    ],
)
def test_types_in_words(text, expected):
    assert type_in_words(text) == expected
