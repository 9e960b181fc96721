"""Writing a token store: cluster by cluster, in one pass, into a folder that appears when it is complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from rinalmo.data.store import COLUMNS, FORMAT, MANIFEST, ROWS, SCHEMA, SEQUENCES, SPLITS, VERSION, manifest_sum
from rinalmo.durable import destination, file_sha256, publish_folder, temporary_folder
from rinalmo.errors import InputError


class StoreWriter:
    """A context manager that makes the store `path` from calls of `start_cluster` and `add`.

    All train clusters come before the validation clusters. `sources`, `families` and `provenance` become part of the
    manifest as they are when the block ends. Until it ends without an error everything is in `folder`, beside `path`;
    other files put there become part of the folder. Memory: `ROWS` sequences.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        sources: Sequence[str],
        families: Sequence[str] = ("",),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise InputError(f"{self.path}: exists; choose another place or remove it")
        self.manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "sequences": 0,
            "clusters": 0,
            "nucleotides": 0,
            "splits": {split: {"sequences": [0, 0], "clusters": [0, 0]} for split in SPLITS},
        }
        self.labels = {"sources": sources, "families": families}
        self.provenance = provenance or {}
        self._split = SPLITS[0]
        self._rows: dict[str, list[Any]] = {}
        self._starts: list[int] = []

    def __enter__(self) -> StoreWriter:
        destination(self.path).parent.mkdir(parents=True, exist_ok=True)
        self.folder = temporary_folder(self.path)
        self._columns: dict[str, BinaryIO] = {name: (self.folder / f"{name}.bin").open("wb") for name in COLUMNS}
        self._file = (self.folder / SEQUENCES).open("wb")
        self._arrow = pa.ipc.new_file(self._file, SCHEMA)
        self._clear_rows()
        return self

    def start_cluster(self, split: str = "train") -> None:
        """The sequences added next are a cluster of this split."""
        if SPLITS.index(split) < SPLITS.index(self._split):
            raise ValueError(f"a cluster of {split} after those of {self._split}")
        if split != self._split:
            self._end_split()
            self._split = split
        self._starts.append(self.manifest["sequences"])
        self.manifest["clusters"] += 1

    def add(self, name: str, letters: bytes, source: int = 0, family: int = 0) -> None:
        """Add a sequence to the cluster: its letters as ASCII, and its places in `sources` and `families`."""
        for column, value in zip(self._rows.values(), (name, letters, source, family), strict=True):
            column.append(value)
        self.manifest["sequences"] += 1
        self.manifest["nucleotides"] += len(letters)
        if len(self._rows["letters"]) == ROWS:
            self._flush()

    def _clear_rows(self) -> None:
        self._rows = {"name": [], "letters": [], "sources": [], "families": []}

    def _flush(self) -> None:
        rows = self._rows
        if rows["letters"]:
            arrays = [pa.array(rows[field.name], field.type) for field in SCHEMA]
            self._arrow.write_batch(pa.record_batch(arrays, schema=SCHEMA))
        numbers = {"lengths": [len(letters) for letters in rows["letters"]], "clusters": self._starts}
        for name, values in (numbers | {name: rows[name] for name in ("sources", "families")}).items():
            self._columns[name].write(np.array(values, dtype=COLUMNS[name]).tobytes())
        self._starts = []
        self._clear_rows()

    def _end_split(self) -> None:
        at = {"sequences": self.manifest["sequences"], "clusters": self.manifest["clusters"]}
        for split in SPLITS[SPLITS.index(self._split) :]:
            for kind, count in at.items():
                ends = self.manifest["splits"][split][kind]
                ends[1] = count
                if split != self._split:
                    ends[0] = count

    def _finish(self) -> None:
        if not self.manifest["sequences"]:
            raise InputError(f"{self.path}: no sequence is left to store")
        self._end_split()
        self._starts.append(self.manifest["sequences"])
        self._flush()
        self.manifest |= {name: list(labels) for name, labels in self.labels.items()}
        self.manifest["provenance"] = dict(self.provenance)
        self._arrow.close()
        names = [SEQUENCES, *(f"{name}.bin" for name in COLUMNS)]
        for file in (self._file, *self._columns.values()):
            file.close()
        self.manifest["files"] = {
            name: {"bytes": (self.folder / name).stat().st_size, "sha256": file_sha256(self.folder / name)}
            for name in names
        }
        self.manifest["sha256"] = manifest_sum(self.manifest)
        text = json.dumps(self.manifest, indent=1, sort_keys=True) + "\n"
        (self.folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
                publish_folder(self.folder, self.path)
        finally:
            for file in (self._file, *self._columns.values()):
                file.close()
            shutil.rmtree(self.folder, ignore_errors=True)
