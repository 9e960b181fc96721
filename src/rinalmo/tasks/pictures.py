"""The pictures of `rinalmo fold --plot`: which file shows which sequence, checked before anything is folded.

out.svg              the picture of the one sequence
pictures/{name}.svg  one picture a sequence, `{name}` standing for its name
pictures/            a folder: the same as pictures/{name}.svg
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rinalmo.errors import InputError, SequenceError
from rinalmo.plots.arcs import check_arcs, check_reference, draw_arcs
from rinalmo.plots.drawing import check_drawing, draw_structure
from rinalmo.plots.pair_map import check_map, draw_pair_map
from rinalmo.rna.fasta import Record
from rinalmo.rna.formats import read_structures
from rinalmo.rna.pair_list import PairList
from rinalmo.rna.reading import one_line
from rinalmo.rna.structure import Structure

Kind = Literal["drawing", "arcs", "map"]

_CHECKS = {"drawing": check_drawing, "arcs": check_arcs, "map": check_map}
_PLACE = "{name}"
_LONGEST_NAME = 100
# Windows takes these for devices, whatever follows a dot.
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10))}


@dataclass(frozen=True)
class Plot:
    """What is to be drawn. `kind` None is arcs if there is a `reference`, a file of structures, else a drawing."""

    path: Path
    kind: Kind | None = None
    reference: Path | None = None

    def pictures(self, records: list[Record]) -> list[Picture]:
        """One for each record. Raises InputError or MissingExtraError for what could not be drawn in the end."""
        kind: Kind = self.kind or ("drawing" if self.reference is None else "arcs")
        if kind == "drawing" and self.reference is not None:
            raise InputError(f"{self.reference}: a drawing shows no reference; use arcs or map")
        references = _references(self.reference, records)
        paths = _paths(self.path, [record.id for record in records])
        for path, record in zip(paths, records, strict=True):
            _CHECKS[kind](path, len(record.sequence))
        return [Picture(path, kind, reference) for path, reference in zip(paths, references, strict=True)]


@dataclass(frozen=True)
class Picture:
    """One file to draw."""

    path: Path
    kind: Kind
    reference: Structure | None = None

    def draw(self, structure: Structure, probabilities: np.ndarray | PairList) -> None:
        """Write the file."""
        if self.kind == "arcs":
            draw_arcs(structure, self.path, self.reference)
            return
        square = probabilities.matrix() if isinstance(probabilities, PairList) else probabilities
        if self.kind == "drawing":
            draw_structure(structure, self.path, square)
        else:
            draw_pair_map(structure, square, self.path, self.reference)


def _references(path: Path | None, records: list[Record]) -> list[Structure | None]:
    """The reference of each record: the one of its name, or the only one for an only record."""
    if path is None:
        return [None] * len(records)
    found = list(read_structures(path))
    by_name = {structure.name: structure for structure in found}
    if len(found) == len(records) == 1:
        by_name = {records[0].id: found[0]}
    elif len(by_name) < len(found):
        raise InputError(f"{path}: a name stands twice; give each reference its own")
    if missing := [one_line(record.id) for record in records if record.id not in by_name]:
        raise InputError(f"{path}: has no structure named {missing[0]!r}, which is in the sequences; add it")
    for record in records:
        try:
            check_reference(Structure(record.id, record.sequence), by_name[record.id])
        except SequenceError as error:
            raise error.found_in(str(path), None, error.record) from None
    return [by_name[record.id] for record in records]


def _paths(path: Path, names: list[str]) -> list[Path]:
    if path.is_dir():
        path = path / f"{_PLACE}.svg"
    if _PLACE in path.name:
        return [path.with_name(path.name.replace(_PLACE, name)) for name in _file_names(names)]
    if len(names) > 1:
        example = path.with_name(f"{path.stem}-{_PLACE}{path.suffix}")
        raise InputError(f"{path}: shows one sequence, but there are {len(names):,}; use {example}, or a folder")
    return [path] * len(names)


def _file_names(names: Iterable[str]) -> Iterator[str]:
    """Names that every file system takes, each once; one that stands twice gets its number added."""
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", name)[:_LONGEST_NAME].strip(".") or "sequence"
        if safe.partition(".")[0].upper() in _DEVICES:
            safe = f"_{safe}"
        while safe.lower() in seen:
            safe = f"{safe}_{number}"
        seen.add(safe.lower())
        yield safe
