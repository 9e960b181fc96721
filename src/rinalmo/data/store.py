"""The token store: prepared sequences in a folder that opens instantly, whatever its size.

    manifest.json       format, version, counts, labels, provenance, size and sha256 of each file; written last
    sequences.arrow     names and letters, `ROWS` sequences a record batch, so that sequence i is found by division
    lengths.bin, sources.bin, families.bin      one little-endian number a sequence
    clusters.bin        the first sequence of each cluster, and at the end the number of sequences

Sequences are in the order train, validation, and within each by cluster, so that a cluster is a range. Letters are
ASCII, one byte a nucleotide, so that a store serves every vocabulary: ids are one table look-up away.

Opening a store reads little: it checks the manifest, the sizes and Arrow's own footer. A record batch is checked
against `lengths.bin` when it is first used; flipped bits in letters are found by `verify` alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rinalmo.errors import InputError
from rinalmo.io.files import destination, file_sha256, publish_folder, temporary_folder

FORMAT, VERSION = "rinalmo token store", 1
MANIFEST, SEQUENCES = "manifest.json", "sequences.arrow"
ROWS = 4096
COLUMNS = {"lengths": "<u4", "sources": "<u2", "families": "<u4", "clusters": "<u8"}
SPLITS = ("train", "validation")
# Arrow's plain string arrays end at 2 GB, which a batch of very long sequences may pass.
SCHEMA = pa.schema([pa.field("name", pa.large_string(), False), pa.field("letters", pa.large_string(), False)])


class _RowGroup(NamedTuple):
    """One record batch as arrays: row r of a column is values[offsets[r] : offsets[r + 1]]."""

    name_offsets: NDArray[np.int64]
    names: NDArray[np.uint8]
    letter_offsets: NDArray[np.int64]
    letters: NDArray[np.uint8]


class TokenStore:
    """Sequences by index and by cluster, memory-mapped; made by `TokenStore.open`. Threads may share a store.

    Attributes:
        path: The store's folder.
        manifest: The content of `manifest.json`.
        fingerprint: The sha256 of the manifest, which contains those of the files: identifies exactly this content.
        sources: Names of the sources.
        families: Names of the families; family 0 is "", for sequences without one.
        lengths: Nucleotides of each sequence `(sequences,)`.
        source_ids: The source of each sequence `(sequences,)`.
        family_ids: The family of each sequence `(sequences,)`.
        cluster_starts: The first sequence of each cluster, then the number of sequences `(clusters + 1,)`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.fingerprint = str(manifest["sha256"])
        self.sources: list[str] = manifest["sources"]
        self.families: list[str] = manifest["families"]
        columns: dict[str, NDArray[Any]] = {}
        for name, dtype in COLUMNS.items():
            columns[name] = np.memmap(path / f"{name}.bin", dtype=dtype, mode="r")
        self.lengths, self.cluster_starts = columns["lengths"], columns["clusters"]
        self.source_ids, self.family_ids = columns["sources"], columns["families"]
        self._row_groups: dict[int, _RowGroup] = {}
        self._lock = threading.Lock()
        self._reader = pa.ipc.open_file(pa.memory_map(str(path / SEQUENCES)))
        if not self._reader.schema.equals(SCHEMA) or self._reader.num_record_batches != -(-len(self) // ROWS):
            raise InputError(f"{path / SEQUENCES}: does not fit the manifest; copy or prepare the store again")

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """Open the store in a folder.

        Args:
            path: The folder.

        Raises:
            InputError: The folder is no store, of another version, or its files are not those of its manifest.

        Examples:
            >>> import tempfile
            >>> from rinalmo.data.store import StoreWriter, TokenStore
            >>> folder = tempfile.mkdtemp() + "/store"
            >>> with StoreWriter(folder, sources=["mine"]) as writer:
            ...     writer.start_cluster("train")
            ...     writer.add("first", b"GGGAAACCC")
            >>> store = TokenStore.open(folder)
            >>> len(store), store.name(0), store[0].tobytes()
            (1, 'first', b'GGGAAACCC')
        """
        path = Path(path)
        manifest = read_manifest(path)
        for name, facts in manifest["files"].items():
            size = (path / name).stat().st_size if (path / name).is_file() else None
            if size != facts["bytes"]:
                actual = "is missing" if size is None else f"has {size} bytes"
                raise InputError(
                    f"{path / name}: {actual}, but the manifest says {facts['bytes']}; copy the store again"
                )
        with _read_errors(path):
            return cls(path, manifest)

    def __len__(self) -> int:
        return int(self.manifest["sequences"])

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """The letters of a sequence `(length,)`: a read-only view of the mapped file."""
        group, row = self._row_group(index)
        return group.letters[group.letter_offsets[row] : group.letter_offsets[row + 1]]

    def name(self, index: int) -> str:
        """The id of the sequence in its source."""
        group, row = self._row_group(index)
        return group.names[group.name_offsets[row] : group.name_offsets[row + 1]].tobytes().decode()

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """The letters of all sequences, end to end, one record batch at a time."""
        for start in range(0, len(self), ROWS):
            group, _ = self._row_group(start)
            yield group.letters[: group.letter_offsets[-1]]

    def sequence_range(self, split: str) -> range:
        """The sequences of `train` or `validation`."""
        return self._range(split, "sequences")

    def cluster_range(self, split: str) -> range:
        """The clusters of `train` or `validation`."""
        return self._range(split, "clusters")

    def _range(self, split: str, kind: str) -> range:
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        return range(*self.manifest["splits"][split][kind])

    def members(self, cluster: int) -> range:
        """The sequences of a cluster."""
        starts, stops = self.spans(np.array([cluster]))
        return range(int(starts[0]), int(stops[0]))

    def spans(self, clusters: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first sequence of each cluster, and one past its last; arrays of the shape of `clusters`."""
        starts = self.cluster_starts[clusters].astype(np.int64)
        stops = self.cluster_starts[clusters + 1].astype(np.int64)
        if not ((starts < stops) & (stops <= len(self))).all():
            raise InputError(f"{self.path / 'clusters.bin'}: damaged; copy or prepare the store again")
        return starts, stops

    def clusters_of(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """The cluster of each sequence."""
        # With another type, numpy would convert all starts at each call.
        return np.searchsorted(self.cluster_starts, sequences.astype(self.cluster_starts.dtype), side="right") - 1

    def verify(self) -> None:
        """Read every file and compare its checksum with the manifest's; InputError for the first that differs."""
        for name, facts in self.manifest["files"].items():
            if (actual := file_sha256(self.path / name)) != facts["sha256"]:
                raise InputError(
                    f"{self.path / name}: damaged: its sha256 is {actual}, but the manifest says {facts['sha256']}; "
                    "copy or prepare the store again"
                )

    def _row_group(self, index: int) -> tuple[_RowGroup, int]:
        """The record batch of a sequence, and the sequence's row in it.

        Batches are checked when they are first used. Their views are kept: a kilobyte for `ROWS` sequences.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: there is no sequence {index} among {len(self)}")
        number, row = divmod(int(index), ROWS)
        if (known := self._row_groups.get(number)) is not None:
            return known, row
        with self._lock, _read_errors(self.path):
            names, letters = self._reader.get_batch(number).columns
            group = _RowGroup(*_views(names), *_views(letters))
        offsets = group.letter_offsets
        intact = offsets[0] == 0 and offsets[-1] <= len(group.letters)
        if not (intact and np.array_equal(np.diff(offsets), self.lengths[number * ROWS : (number + 1) * ROWS])):
            raise InputError(f"{self.path / SEQUENCES}: damaged at sequence {number * ROWS} or later; copy it again")
        self._row_groups[number] = group
        return group, row

    def __repr__(self) -> str:
        return f"TokenStore({str(self.path)!r}, {len(self):,} sequences, {self.manifest['clusters']:,} clusters)"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store; InputError if there is none, it is damaged, or of another version."""
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{folder}: not a token store; make one with `rinalmo data prepare`") from None
    try:
        manifest = json.loads(text)
    except ValueError:
        raise InputError(f"{path}: damaged; copy or prepare the store again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path}: not the manifest of a token store")
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{folder}: a token store of version {manifest.get('version')}, but this rinalmo reads version {VERSION}; "
            "prepare it again or use the rinalmo that wrote it"
        )
    if manifest.get("sha256") != manifest_sum(manifest):
        raise InputError(f"{path}: damaged or edited (wrong checksum); copy or prepare the store again")
    return manifest


def manifest_sum(manifest: dict[str, Any]) -> str:
    """The sha256 of all entries but "sha256"."""
    entries = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _views(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Offsets and values of a string column, without copying."""
    _, offsets, values = column.buffers()
    rows = np.frombuffer(offsets, dtype=np.int64)[: len(column) + 1]
    return rows, np.frombuffer(values, dtype=np.uint8) if values is not None else np.empty(0, dtype=np.uint8)


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: damaged, or not a token store ({reason})") from None


class StoreWriter:
    """A context manager that writes the store `path`, from calls of `start_cluster` and `add`.

    All train clusters come before the validation clusters. `sources`, `families` and `provenance` are written to the
    manifest as they are when the block ends. Until then everything is in `folder`, beside `path`; other files put there
    become part of the store. Memory: `ROWS` sequences.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        sources: Iterable[str],
        families: Iterable[str] = ("",),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise InputError(f"{self.path}: exists; choose another name or delete it")
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
        self._rows: list[tuple[str, bytes, int, int]] = []
        self._starts: list[int] = []

    def __enter__(self) -> StoreWriter:
        destination(self.path).parent.mkdir(parents=True, exist_ok=True)
        self.folder = temporary_folder(self.path)
        self._columns: dict[str, BinaryIO] = {name: (self.folder / f"{name}.bin").open("wb") for name in COLUMNS}
        self._file = (self.folder / SEQUENCES).open("wb")
        self._arrow = pa.ipc.new_file(self._file, SCHEMA)
        return self

    def start_cluster(self, split: str = "train") -> None:
        """Start a cluster of this split with the sequences added next."""
        if SPLITS.index(split) < SPLITS.index(self._split):
            raise ValueError(f"a cluster of {split} after those of {self._split}")
        if split != self._split:
            self._end_split()
            self._split = split
        self._starts.append(self.manifest["sequences"])
        self.manifest["clusters"] += 1

    def add(self, name: str, letters: bytes, source: int = 0, family: int = 0) -> None:
        """Add a sequence to the cluster: its letters as ASCII, and its indices in `sources` and `families`."""
        self._rows.append((name, letters, source, family))
        self.manifest["sequences"] += 1
        self.manifest["nucleotides"] += len(letters)
        if len(self._rows) == ROWS:
            self._flush()

    def _flush(self) -> None:
        names, letters, sources, families = zip(*self._rows, strict=True) if self._rows else ((), (), (), ())
        if self._rows:
            arrays = [pa.array(values, field.type) for values, field in zip((names, letters), SCHEMA, strict=True)]
            self._arrow.write_batch(pa.record_batch(arrays, schema=SCHEMA))
        numbers = {"lengths": list(map(len, letters)), "sources": sources, "families": families}
        for name, values in (numbers | {"clusters": self._starts}).items():
            self._columns[name].write(np.array(values, dtype=COLUMNS[name]).tobytes())
        self._starts, self._rows = [], []

    def _end_split(self) -> None:
        at = {"sequences": self.manifest["sequences"], "clusters": self.manifest["clusters"]}
        for split in SPLITS[SPLITS.index(self._split) :]:
            for kind, count in at.items():
                ends = self.manifest["splits"][split][kind]
                ends[1] = count
                if split != self._split:
                    ends[0] = count

    def _write_manifest(self) -> None:
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
                self._write_manifest()
                publish_folder(self.folder, self.path)
        finally:
            for file in (self._file, *self._columns.values()):
                file.close()
            shutil.rmtree(self.folder, ignore_errors=True)
