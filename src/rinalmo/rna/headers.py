"""Header lines of the databases: name, RNA type, family and species, as far as each has them.

    RNAcentral   >URS000149A9AF rRNA from 1 species        >URS00000B15DA_9606 Homo sapiens (human) microRNA hsa-mir-21
    Rfam         >X01556.1/3-118 Halococcus morrhuae …     >RF00001;5S_rRNA;X01556.1/3-118   2252:Halococcus morrhuae
    Ensembl      >ENST00000364460.1 ncrna chromosome:… gene:… gene_biotype:snoRNA transcript_biotype:snoRNA …
    NCBI nt      >NR_024570.1 Escherichia coli strain U 5/41 16S ribosomal RNA, partial sequence

Much is missing. Rfam's own files have the family in the name of the file only (RF00001.fa.gz), Ensembl's the species.
RNAcentral and NCBI give the type in words only, which `type_in_words` reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header line; "" for those that it lacks."""

    name: str
    type: str = ""
    family: str = ""
    taxon: str = ""


_URS = re.compile(r"URS[0-9A-F]{10}(?:_(\d+))?$")
_COUNTED = re.compile(r"(\S.*?) from \d+ species$")
_RFAM_ID = re.compile(r"(RF\d{5});[^;]*;(\S+)$")
_RFAM_FILE = re.compile(r"(RF\d{5})\.")
_RFAM_TAXON = re.compile(r"(?:\d+:)?(.+?)(?:\s*\(.*)?$")
_ENSEMBL = re.compile(r"ncrna(?::(\S+))? ")
_BIOTYPE = re.compile(r"transcript_biotype:(\S+)")
_ENSEMBL_FILE = re.compile(r"([A-Z][a-z0-9]*(?:_[a-zA-Z0-9]+)+)\.")
_ACCESSION = re.compile(r"[A-Z]{1,6}_?\d{4,}\.\d+$")

# In this order: the first that matches decides.
_NOT_AN_RNA = re.compile(
    r"\b(?:mRNA|CDS|cds|proteins?|genome|chromosome|plasmid|scaffold|contig|clone library|exon|promoter)\b"
    r"|\b\w+ase\b(?! (?:P|MRP)\b)(?! RNA)"
)
_WORDS = [
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("tmRNA", r"\btmRNA\b|transfer-messenger RNA|\bssrA\b"),
        ("tRNA", r"\btRNA\b|\btRNA-|transfer RNA"),
        ("rRNA", r"\brRNA\b|ribosomal RNA|internal transcribed spacer"),
        ("pre_miRNA", r"\bpre[-_ ]?miRNA\b|\bmir(?:na)? precursor|microRNA precursor|stem-?loop"),
        ("miRNA", r"\bmiRNA\b|microRNA|\b[a-z]{3,4}-(?:mir|let)-"),
        ("scaRNA", r"\bscaRNA\b|small cajal body"),
        ("snoRNA", r"\bsnoRNA\b|small nucleolar RNA|\bsnord\d|\bsnora\d"),
        ("snRNA", r"\bsnRNA\b|small nuclear RNA|spliceosomal RNA"),
        ("RNase_P_RNA", r"\bRNase P\b|ribonuclease P"),
        ("RNase_MRP_RNA", r"\bRNase MRP\b|ribonuclease MRP"),
        ("SRP_RNA", r"\bSRP[ _]RNA\b|signal recognition particle|\b7SL\b"),
        ("telomerase_RNA", r"telomerase RNA"),
        ("ribozyme", r"ribozyme"),
        ("riboswitch", r"riboswitch"),
        ("piRNA", r"\bpiRNA\b|piwi-interacting"),
        ("siRNA", r"\bsiRNA\b|small interfering"),
        ("vault_RNA", r"vault RNA|\bvtRNA"),
        ("Y_RNA", r"\bY[ _]RNA\b"),
        ("circRNA", r"\bcircRNA\b|circular RNA"),
        ("lncRNA", r"\blncRNA\b|\blincRNA\b|long (?:intergenic )?non-?coding|non-?coding transcript"),
        ("antisense_RNA", r"antisense"),
        ("sRNA", r"\bsRNA\b|small RNA|regulatory RNA"),
        ("ncRNA", r"\bncRNA\b|non-?coding RNA|\bmisc_RNA\b|\bguide RNA\b|\bgRNA\b"),
    )
]


def read_header(id: str, description: str, style: str = "auto", file: str = "") -> Header:
    """Parse a header line.

    Args:
        id: Its first word.
        description: The rest of it.
        style: `rnacentral`, `rfam`, `ensembl`, `ncbi` or `plain`; `auto` recognizes it.
        file: The name of the file, which Rfam and Ensembl give meaning.
    """
    urs, rfam_id, rfam_file = _URS.match(id), _RFAM_ID.match(id), _RFAM_FILE.match(file)
    ensembl = _ENSEMBL.match(description)
    if style == "auto":
        if urs:
            style = "rnacentral"
        elif ensembl and not rfam_id:
            style = "ensembl"
        elif rfam_id or rfam_file:
            style = "rfam"
        elif _ACCESSION.match(id):
            style = "ncbi"
    match style:
        case "rnacentral":
            counted = _COUNTED.match(description)
            type_ = counted[1].replace(" ", "_") if counted else type_in_words(description)
            return Header(id, type_, taxon=(urs[1] or "") if urs else "")
        case "rfam":
            taxon = _RFAM_TAXON.match(description)
            family = rfam_id[1] if rfam_id else rfam_file[1] if rfam_file else ""
            return Header(rfam_id[2] if rfam_id else id, "", family, taxon[1] if taxon else "")
        case "ensembl":
            biotype, species = _BIOTYPE.search(description), _ENSEMBL_FILE.match(file)
            type_ = biotype[1] if biotype else (ensembl[1] or "") if ensembl else ""
            return Header(id, type_, taxon=species[1].replace("_", " ") if species else "")
        case "ncbi":
            # nt joins the headers of identical sequences with Control-A; the first one is used.
            first = description.split("\x01", 1)[0]
            words = first.removeprefix("PREDICTED: ").split()
            return Header(id, type_in_words(first), taxon=" ".join(words[:2]))
    return Header(id)


def type_in_words(text: str) -> str:
    """The RNA type named in a description, in RNAcentral's spelling; "" if there is none, or it is a protein's gene."""
    for name, pattern in _WORDS:
        if pattern.search(text):
            return "" if _NOT_AN_RNA.search(text) else name
    return ""
