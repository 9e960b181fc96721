"""The files of figures of structures, checked before anything is computed.

out.svg             the only sequence
figures/{name}.svg  one figure per sequence, with its name for `{name}`
figures/            a folder: the same as figures/{name}.svg
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.files import one_line
from rinalmo.io.sequences import Record
from rinalmo.plots.drawing import check_drawing, draw_structure
from rinalmo.plots.pairs import check_arcs, check_map, check_reference, draw_arcs, draw_pair_map
from rinalmo.rna.constraints import read_reactivities
from rinalmo.rna.formats import read_structures
from rinalmo.rna.structure import RECORD, PairList, Structure

Kind = Literal["drawing", "arcs", "map"]

_CHECKS = {"drawing": check_drawing, "arcs": check_arcs, "map": check_map}
_NAME = "{name}"
# Windows takes these for devices, whatever follows a dot.
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10))}


@dataclass(frozen=True)
class Plot:
    """Figures to draw.

    Attributes:
        kind: None is arcs if there is a `reference`, else a drawing.
        reference: A file of structures.
        values: A file of numbers for the nucleotides of a drawing, as `rinalmo.rna.constraints.read_reactivities` reads
            it; its name without ending is theirs.
    """

    path: Path
    kind: Kind | None = None
    reference: Path | None = None
    values: Path | None = None

    def figures(self, records: list[Record]) -> list[StructureFigure]:
        """One for each record. Raises InputError or MissingExtraError for what could not be drawn in the end."""
        kind: Kind = self.kind or ("arcs" if self.reference and not self.values else "drawing")
        if self.values is not None and kind != "drawing":
            raise InputError(f"{self.values}: values can only color a drawing, not {kind}")
        references = _references(self.reference, records)
        tracks = _tracks(self.values, records)
        paths = _paths(self.path, [record.id for record in records])
        for path, record in zip(paths, records, strict=True):
            _CHECKS[kind](path, len(record.sequence))
        figures = zip(paths, references, tracks, strict=True)
        return [StructureFigure(path, kind, reference, track) for path, reference, track in figures]


@dataclass(frozen=True)
class StructureFigure:
    """One file to draw."""

    path: Path
    kind: Kind
    reference: Structure | None = None
    track: tuple[np.ndarray, str] | None = None

    def draw(self, structure: Structure, probabilities: np.ndarray | None = None) -> None:
        """Write the file. A map needs probabilities, a square matrix or an array of `RECORD`."""
        if self.kind == "arcs":
            draw_arcs(structure, self.path, self.reference)
            return
        square = probabilities
        if square is not None and square.dtype == RECORD:
            square = PairList.from_records(len(structure), square).matrix()
        if self.kind == "drawing":
            draw_structure(structure, self.path, square, reference=self.reference, track=self.track)
        elif square is None:
            raise InputError(f"{self.path}: a map needs pair probabilities; give them, or draw arcs")
        else:
            draw_pair_map(structure, square, self.path, self.reference)


def _references(path: Path | None, records: list[Record]) -> list[Structure | None]:
    """The reference of each record: the one of its name, or the only one for an only record."""
    if path is None:
        return [None] * len(records)
    structures = list(read_structures(path))
    by_name = {structure.name: structure for structure in structures}
    if len(structures) == len(records) == 1:
        by_name = {records[0].id: structures[0]}
    elif len(by_name) < len(structures):
        raise InputError(f"{path}: two structures have the same name; reference names must be unique")
    if missing := [one_line(record.id) for record in records if record.id not in by_name]:
        raise InputError(f"{path}: has no structure for the sequence {missing[0]!r}; add it")
    for record in records:
        try:
            check_reference(Structure(record.id, record.sequence), by_name[record.id])
        except SequenceError as error:
            raise error.with_location(str(path), None, error.record) from None
    return [by_name[record.id] for record in records]


def _tracks(path: Path | None, records: list[Record]) -> list[tuple[np.ndarray, str] | None]:
    """The values of each record's nucleotides, NaN where there is none, and their name."""
    if path is None:
        return [None] * len(records)
    known, name, tracks = read_reactivities(path), path.name.split(".")[0], []
    for record in records:
        values = known.of(record.id, record.sequence, alone=len(records) == 1)
        if values is None:
            raise InputError(f"{path}: has no values for {one_line(record.id)!r}; add them")
        tracks.append((np.array([np.nan if value is None else value for value in values]), name))
    return [*tracks]


def read_probabilities(path: Path, structures: Sequence[Structure]) -> list[np.ndarray]:
    """The pair probabilities `(length, length)` of each structure in an .npz file of `rinalmo fold --probabilities`.

    Raises InputError where there are none of its name (the only ones are those of an only structure) or of its length.
    """
    keys = [structure.name.replace("/", "_") for structure in structures]
    try:
        with np.load(path) as archive:
            if len(archive.files) == len(keys) == 1:
                keys = archive.files
            arrays = {key: archive[key] for key in keys if key in archive.files}
    except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        problem = "cannot be read as an .npz file from `rinalmo fold --probabilities`"
        raise InputError.from_os_error(error, path, problem) from None
    matrices = []
    for key, structure in zip(keys, structures, strict=True):
        name, length = one_line(structure.name), len(structure)
        if key not in arrays:
            raise InputError(f"{path}: has no probabilities for {name!r}")
        values = arrays[key]
        if values.dtype == RECORD and (not len(values) or max(values["i"].max(), values["j"].max()) < length):
            values = PairList.from_records(length, values).matrix()
        if values.shape != (length, length) or values.dtype == RECORD:
            raise InputError(f"{path}: the probabilities of {name!r} do not fit its {length:,} nt")
        matrices.append(values.astype(np.float32))
    return matrices


def _paths(path: Path, names: list[str]) -> list[Path]:
    """The file of each record; names become what every file system takes, each once."""
    if path.is_dir():
        path = path / f"{_NAME}.svg"
    if _NAME not in path.name:
        if len(names) > 1:
            example = path.with_name(f"{path.stem}-{_NAME}{path.suffix}")
            raise InputError(
                f"{path}: a figure shows one sequence, but there are {len(names):,}; use {example}, or a folder"
            )
        return [path] * len(names)
    paths, used = [], set[str]()
    for number, name in enumerate(names, 1):
        safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", name)[:100].strip(".") or "sequence"
        if safe.partition(".")[0].upper() in _DEVICES:
            safe = f"_{safe}"
        while safe.lower() in used:
            safe = f"{safe}_{number}"
        used.add(safe.lower())
        paths.append(path.with_name(path.name.replace(_NAME, safe)))
    return paths
