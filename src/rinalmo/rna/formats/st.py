"""ST, the format of bpRNA: dot-bracket, and the kind of loop that each nucleotide is in.

    #Name: bpRNA_RFAM_1
    #Length: 17
    #PageNumber: 1
    GGGAAACUUUCCCAAAA     sequence
    (((....)))......      structure
    SSSHHHHSSSEEEEEE      stem, Hairpin, Bulge, Internal, Multiloop, eXternal loop, End, from the round brackets alone
    NNNNNNNNNNNNNNNN      K where a nucleotide is in a pair of a pseudoknot
    S1 1..3 "GGG" ...     segments: read past, and not written

Read are the name, the sequence and the structure.

Reference: Danaee et al. 2018 (Nucleic Acids Res 46:5381).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rinalmo.errors import SequenceError
from rinalmo.rna.reading import record_name
from rinalmo.rna.structure import Structure

_LINES = ("sequence", "structure", "loops", "knots")


def read(lines: Iterable[str], file: str) -> Iterator[Structure]:
    """Yield the structures of an ST file; `file` is what errors call it."""
    name, start, records = "", 0, 0
    found: list[tuple[int, str]] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if line.startswith("#Name:"):
            if start:
                yield _structure(name, start, found, file, records)
            name, start, found, records = line.removeprefix("#Name:").strip(), number, [], records + 1
        elif line and not line.startswith("#"):
            if not start:
                raise SequenceError("comes before a line '#Name: ...'; this is not an ST file", file=file, line=number)
            if len(found) < len(_LINES):
                found.append((number, line))
    if start:
        yield _structure(name, start, found, file, records)


def _structure(name: str, start: int, found: list[tuple[int, str]], file: str, record: int) -> Structure:
    where = record_name(name, record)
    if len(found) < 2:
        raise SequenceError(f"has no {_LINES[len(found)]} line; add it", file=file, line=start, record=where)
    (sequence_line, sequence), (structure_line, structure), *rest = found
    for (line, text), what in zip(rest, _LINES[2:], strict=False):
        if len(text) != len(sequence):
            problem = (
                f"the line of {what} has {len(text):,} characters and the sequence {len(sequence):,}; both must fit"
            )
            raise SequenceError(problem, file=file, line=line, record=where)
    line = sequence_line
    try:
        Structure(name, sequence)
        line = structure_line
        return Structure.from_dot_bracket(name, sequence, structure)
    except SequenceError as error:
        raise error.found_in(file, line, where) from None


def write(structures: Iterable[Structure]) -> Iterator[str]:
    """Yield the text of each RNA."""
    for structure in structures:
        nested = structure.nested()
        knotted = {end for pair in set(structure.pairs) - set(nested.pairs) for end in pair}
        yield f"#Name: {structure.name}".rstrip() + f"\n#Length: {len(structure)}\n#PageNumber: {_pages(structure)}\n"
        yield f"{structure.sequence}\n{structure.dot_bracket}\n{loops(nested)}\n"
        yield "".join("K" if i in knotted else "N" for i in range(len(structure))) + "\n"


def _pages(structure: Structure) -> int:
    return max(1, len(set(structure.dot_bracket) - {"."}) // 2)


def loops(structure: Structure) -> str:
    """The kind of loop of each nucleotide of a structure without pseudoknots, one letter each."""
    letters = ["S" if partner >= 0 else "" for partner in structure.partners()]
    for stretches, is_closed in _loops(structure):
        kind = _kind(stretches) if is_closed else "X"
        for stretch in stretches:
            for i in stretch:
                letters[i] = kind
    length = len(structure)
    first, last = (structure.pairs[0][0], max(j for _, j in structure.pairs)) if structure.pairs else (length, length)
    return "".join(["E" * first, *letters[first : last + 1], "E" * (length - last - 1)])


def _kind(stretches: list[range]) -> str:
    """A closed loop has a stretch of unpaired nucleotides, maybe empty, before each of its stems and one at its end."""
    if len(stretches) == 2:
        return "I" if all(stretches) else "B"
    return "H" if len(stretches) == 1 else "M"


def _loops(structure: Structure) -> Iterator[tuple[list[range], bool]]:
    """The unpaired stretches of each loop, and whether a pair closes it: all but the outermost."""
    outer: list[range] = []
    open_, start = [outer], 0
    for position, partner in enumerate(structure.partners()):
        if partner < 0:
            continue
        open_[-1].append(range(start, position))
        if partner > position:
            open_.append([])
        else:
            yield open_.pop(), True
        start = position + 1
    yield [*outer, range(start, len(structure))], False
