"""The well-known RNAs of the package, and their accepted structures."""

from pathlib import Path

import rinalmo
from rinalmo.rna.formats import read_rows

EXAMPLES = Path(rinalmo.__file__).parent / "assets" / "examples"


def test_known_structures():
    rows = list(read_rows(EXAMPLES / "known_structures.csv"))
    assert len({structure.name for structure, _ in rows}) == 15
    cloverleaf = "(((((((..((((........)))).(((((.......))))).....(((((.......))))))))))))."  # Holley et al. 1965
    assert rows[0][0].dot_bracket == cloverleaf
    for structure, row in rows:
        assert set(structure.sequence) == set("ACGU")
        assert row["source"].startswith(("Rfam RF", "PDB "))
        paired = [i for pair in structure.pairs for i in pair]
        assert len(paired) > len(structure) / 5
        canonical = len(structure.canonical().pairs) / len(structure.pairs)
        assert canonical > 0.8, (structure.name, canonical)
