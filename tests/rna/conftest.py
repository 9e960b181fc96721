"""Structures that everybody knows, typed in."""

import pytest

from rinalmo.rna.structure import Structure

KNOWN = {
    "yeast tRNA-Phe": (
        "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA",
        "(((((((..((((........)))).(((((.......))))).....(((((.......))))))))))))....",
    ),
    "HIV-1 TAR": ("GGCAGAUCUGAGCCUGGGAGCUCUCUGCC", "((((((...((((......))))))))))"),
    "BWYV pseudoknot": ("GGCGCGGCACCGUCCGCGGAACAAACGG", "..(((((..[[[.))))).......]]]"),
    "unpaired": ("ACGUacgtN", "........."),
}


@pytest.fixture
def known() -> dict[str, Structure]:
    return {name: Structure.from_dot_bracket(name, *texts) for name, texts in KNOWN.items()}
