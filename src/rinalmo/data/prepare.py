"""Equal sequences, whatever they are called and wherever they come from: the first of them stays.

Each sequence is known by 128 bits of BLAKE2. The digests go to bucket files by their first byte, and each bucket is
sorted by itself, so that memory is one bucket and the result: 8 bytes a sequence. Two different sequences of a
billion share a digest with probability 1.5e-21.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rinalmo import __version__
from rinalmo.data import sampling
from rinalmo.data.cluster import DUPLICATE, Distinct, MMseqs, cluster
from rinalmo.data.data_card import PLOTS, write_card
from rinalmo.data.sources import (
    Filters,
    Numbers,
    PrepareRecipe,
    SequenceSource,
    SourceRecipe,
    SplitRecipe,
    Staged,
    TableRecipe,
    Tell,
    read_counts,
    stage,
)
from rinalmo.data.store import SPLITS, StoreWriter, TokenStore
from rinalmo.errors import InputError
from rinalmo.io.files import clear_temporaries, destination, empty_folder, file_sha256, held, publish_folder, replacing

_BUCKETS = 256
_DEDUPE_CHUNK = 1 << 16
_ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("index", "<i8")])


def first_of_equals(staged: Staged, folder: Path, tell: Tell) -> Numbers:
    """For each sequence the index of the first one with the same letters, itself if there is none before it.

    Needs 24 bytes a sequence of disk in `folder`, for the time being.
    """
    first = np.arange(len(staged))
    buckets = min(_BUCKETS, 1 + len(staged) // _DEDUPE_CHUNK)
    with tempfile.TemporaryDirectory(prefix="buckets.", dir=folder) as name:
        paths = [Path(name) / str(number) for number in range(buckets)]
        _distribute(staged, paths, tell)
        for path in paths:
            if path.exists():
                _mark(np.fromfile(path, dtype=_ENTRY), first)
    return first


def _distribute(staged: Staged, paths: list[Path], tell: Tell) -> None:
    """Append each sequence's digest to its bucket."""
    for start in range(0, len(staged), _DEDUPE_CHUNK):
        indices = range(start, min(start + _DEDUPE_CHUNK, len(staged)))
        digests = b"".join(blake2b(staged.letters(index), digest_size=16).digest() for index in indices)
        entries = np.empty(len(indices), dtype=_ENTRY)
        words = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
        entries["high"], entries["low"], entries["index"] = words[:, 0], words[:, 1], indices
        bucket = (entries["high"] >> np.uint64(56)).astype(np.int64) * len(paths) >> 8
        order = np.argsort(bucket, kind="stable")
        cuts = np.searchsorted(bucket[order], np.arange(1, len(paths)))
        for path, part in zip(paths, np.split(entries[order], cuts), strict=True):
            if len(part):
                with path.open("ab") as file:
                    file.write(part.tobytes())
        tell(indices.stop)


def _mark(entries: NDArray[Any], first: Numbers) -> None:
    """Note the first of each group of equals in one bucket, whose entries are in the order of their index."""
    order = np.lexsort((entries["low"], entries["high"]))  # stable, so that the first stays first
    ordered = entries[order]
    starts = np.ones(len(ordered), dtype=bool)
    starts[1:] = (ordered["high"][1:] != ordered["high"][:-1]) | (ordered["low"][1:] != ordered["low"][:-1])
    group = np.cumsum(starts) - 1
    first[ordered["index"]] = ordered["index"][starts][group]


DUPLICATES = "duplicates.parquet"
_SCHEMA = pa.schema([("sequence", pa.int64()), ("source", pa.string()), ("name", pa.string())])
_CHUNK = 1 << 16
_EVERY = 10_000


@dataclass(frozen=True)
class Selection:
    """The staged sequences, the first equal of each, and the cluster of each that is to be stored."""

    staged: Staged
    first: Numbers
    clusters: Numbers


def split(chosen: Selection, recipe: SplitRecipe) -> NDArray[np.bool_]:
    """For each cluster whether it validates: the recipe's share of them, at least one of several if not zero."""
    kept = np.flatnonzero(chosen.clusters >= 0)
    # Clusters are numbered as they come, so that each begins where the largest number so far grows.
    firsts = kept[np.diff(np.maximum.accumulate(chosen.clusters[kept]), prepend=-1) > 0]
    keys = np.empty(len(firsts), dtype=np.uint64)
    for number, index in enumerate(firsts):
        keys[number] = int.from_bytes(blake2b(chosen.staged.letters(int(index)), digest_size=8).digest())
    keys = sampling.random_key(recipe.seed, keys)
    count = round(recipe.validation_fraction * len(keys))
    if recipe.validation_fraction > 0 and len(keys) > 1:
        count = max(count, 1)
    validates = np.zeros(len(keys), dtype=bool)
    validates[np.argsort(keys, kind="stable")[:count]] = True
    return validates


def assemble(
    chosen: Selection,
    validates: NDArray[np.bool_],
    target: Path,
    provenance: dict[str, Any],
    tell: Tell,
) -> None:
    """Write the store, and beside it which sequences of which sources were equal to those that stayed."""
    staged, clusters = chosen.staged, chosen.clusters
    order = _order(clusters, validates)
    sources, source_tables = staged.labels("sources", clusters >= 0)
    families, family_tables = staged.labels("families", clusters >= 0)
    with StoreWriter(target, sources=sources, families=families, provenance=provenance) as writer:
        last = -1
        for done, index in enumerate(order):  # not as a list, which would take five times the memory
            if (number := int(clusters[index])) != last:
                writer.start_cluster(SPLITS[int(validates[number])])
                last = number
            which, place = staged.find(int(index))
            store = staged.stores[which]
            source = int(source_tables[which][store.source_ids[place]])
            family = int(family_tables[which][store.family_ids[place]])
            writer.add(store.name(place), store[place].tobytes(), source, family)
            if done % _EVERY == 0:
                tell(done)
        _write_duplicates(chosen, order, writer.folder / DUPLICATES)
    tell(len(order))


def _order(clusters: Numbers, validates: NDArray[np.bool_]) -> Numbers:
    """The sequences to store: train first, by cluster, and within a cluster as they came."""
    kept = np.flatnonzero(clusters >= 0)
    numbers = clusters[kept]
    numbers += validates[numbers] * len(validates)
    return kept[np.argsort(numbers, kind="stable")]


def duplicate_pairs(staged: Staged, first: Numbers, excluded: int) -> list[list[Any]]:
    """How many sequences equal an earlier one: [source of the one kept, source of the others, number], most first."""
    pairs: Counter[tuple[str, str]] = Counter()
    for index in np.flatnonzero(first != np.arange(len(first))):
        if index >= excluded:
            pairs[staged.source(int(first[index])), staged.source(int(index))] += 1
    return [[kept, other, count] for (kept, other), count in pairs.most_common()]


def _write_duplicates(chosen: Selection, order: Numbers, path: Path) -> None:
    staged = chosen.staged
    place = np.full(len(chosen.first), -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    others = np.flatnonzero((chosen.clusters == DUPLICATE) & (place[chosen.first] >= 0))
    others = others[np.argsort(place[chosen.first[others]], kind="stable")]
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for start in range(0, len(others), _CHUNK):
            part = others[start : start + _CHUNK]
            names = [staged.name(int(index)) for index in part]
            sources = [staged.source(int(index)) for index in part]
            columns = [place[chosen.first[part]], sources, names]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))


REPORT = "report.json"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_EXCLUDED, _SETTINGS = "excluded", "settings.json"
_STEPS = (_EXCLUDED, "read-*", "equals.npy", "clusters.npy", "store")

Progress = Callable[[str], AbstractContextManager[Tell]]
"""Called with what is being done; gives a function to call with the number of sequences done so far."""


def quiet(what: str) -> AbstractContextManager[Tell]:
    """No progress."""
    return nullcontext(lambda count: None)


def prepare(
    out: str | Path,
    sources: Sequence[tuple[str, Path]],
    *,
    recipe: PrepareRecipe | None = None,
    tables: Mapping[str, Path] | None = None,
    exclude: Sequence[Path] = (),
    threads: int | None = None,
    restart: bool = False,
    progress: Progress = quiet,
) -> TokenStore:
    """Make the token store `out` from FASTA files or folders of them, each with a label; a label may have several.

    `tables` has the table of facts of a label, `exclude` FASTA files whose sequences, with their cluster mates, must
    not be in the store. A run that was stopped goes on where it was; `restart` throws away what it had done.

    Raises InputError if the input or the recipe cannot be used, or changed since the run was started; ToolError and
    MissingExtraError if MMseqs2 fails or is missing.
    """
    out = destination(Path(out).absolute())
    recipe = recipe or PrepareRecipe()
    given = _sources(sources, tables or {}, recipe)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists; choose another place or remove it")
    mmseqs = MMseqs.find() if recipe.clustering.method == "mmseqs" else None
    banned = SequenceSource(_EXCLUDED, tuple(exclude)) if exclude else None
    with progress("checking the files"):
        settings = _settings(recipe, given, banned, mmseqs)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.partial")
    with held(folder, out, temporary=True):
        _open(folder, settings, out, restart)
        try:
            threads = threads or os.cpu_count() or 1
            _Run(out.name, folder, recipe, given, banned, mmseqs, settings, threads, progress).finish()
            _clear(folder, (_SETTINGS, "store"))
            publish_folder(folder / "store", out)
        finally:
            if not any(path.match(pattern) for path in folder.iterdir() for pattern in _STEPS):
                _clear(folder, ())
    return TokenStore.open(out)


@dataclass(frozen=True)
class _Run:
    """The steps, each from what the ones before it left in the folder."""

    name: str
    folder: Path
    recipe: PrepareRecipe
    sources: list[SequenceSource]
    banned: SequenceSource | None
    mmseqs: MMseqs | None
    settings: dict[str, Any]
    threads: int
    progress: Progress

    def finish(self) -> None:
        """Do what is not done yet."""
        target = self.folder / "store"
        if not target.exists():
            self._write(target)
        for folder in (target, target / PLOTS):  # what a process that was killed was writing does not stay in a store
            if folder.is_dir():
                clear_temporaries(folder)
        report = TokenStore.open(target).manifest["provenance"]["report"]
        with replacing(target / REPORT) as file:
            file.write((json.dumps(report, indent=1) + "\n").encode())
        with self.progress("writing the data card") as tell:
            write_card(target, tell, name=self.name)

    def _write(self, target: Path) -> None:
        staged = self._staged()
        excluded = len(staged.stores[0]) if self.banned else 0
        first, equals = self._step("equals", lambda: self._equals(staged, excluded))
        distinct = Distinct(staged, first, excluded)
        clusters, clustered = self._step("clusters", lambda: self._clusters(distinct))
        if not (clusters >= 0).any():
            raise InputError("every sequence is excluded, or shares a cluster with one that is")
        chosen = Selection(staged, first, clusters)
        with self.progress("writing the store") as tell:
            validates = split(chosen, self.recipe.split)
            report = {
                "read": {source.label: read_counts(self._place(source)) for source in self.sources},
                "equals": equals,
                "clusters": clustered,
                "split": {"train": int((~validates).sum()), "validation": int(validates.sum())},
            }
            assemble(chosen, validates, target, self.settings | {"report": report}, tell)

    def _staged(self) -> Staged:
        everything = [*([self.banned] if self.banned else []), *self.sources]
        for source in everything:
            if not self._place(source).exists():
                with self.progress(f"reading {source.label}") as tell:
                    filters = None if source is self.banned else Filters(self.recipe.filters)
                    stage(source, filters, self._place(source), tell)
        return Staged([self._place(source) for source in everything])

    def _place(self, source: SequenceSource) -> Path:
        return self.folder / (_EXCLUDED if source is self.banned else f"read-{source.label}")

    def _equals(self, staged: Staged, excluded: int) -> tuple[Numbers, dict[str, Any]]:
        with self.progress("finding equal sequences") as tell:
            first = first_of_equals(staged, self.folder, tell)
        own = np.arange(len(first)) >= excluded
        same = own & (first != np.arange(len(first)))
        dropped = {
            "equal to an excluded sequence": int((same & (first < excluded)).sum()),
            "equal to an earlier sequence": int((same & (first >= excluded)).sum()),
        }
        counts = {
            "sequences": int(own.sum()),
            "kept": int((own & ~same).sum()),
            "dropped": {reason: count for reason, count in dropped.items() if count},
            "pairs": duplicate_pairs(staged, first, excluded),
        }
        return first, counts

    def _clusters(self, distinct: Distinct) -> tuple[Numbers, dict[str, Any]]:
        with self.progress("clustering") as tell:
            return cluster(distinct, self.recipe.clustering, self.mmseqs, self.folder, self.threads, tell)

    def _step(self, name: str, make: Callable[[], tuple[Numbers, dict[str, Any]]]) -> tuple[Numbers, dict[str, Any]]:
        """An array and its counts, made or read; the array is written last and says that both are there."""
        array, counts = self.folder / f"{name}.npy", self.folder / f"{name}.json"
        if not array.exists():
            numbers, counted = make()
            with replacing(counts) as file:
                file.write(json.dumps(counted).encode())
            with replacing(array) as file:
                np.save(file, numbers)
        return np.load(array), json.loads(counts.read_text(encoding="utf-8"))


def _sources(
    given: Sequence[tuple[str, Path]], tables: Mapping[str, Path], recipe: PrepareRecipe
) -> list[SequenceSource]:
    paths: dict[str, list[Path]] = {}
    for label, path in given:
        if not _LABEL.fullmatch(label):
            raise InputError(f"{label!r} is no label; write letters and digits, such as rfam=Rfam.fa.gz")
        paths.setdefault(label, []).append(Path(path))
    if not paths:
        raise InputError("there is nothing to prepare; give sources as LABEL=PATH")
    for kind, labels in (("the recipe describes", recipe.sources), ("a table is given for", tables)):
        if unknown := [label for label in labels if label not in paths]:
            raise InputError(f"{kind} the source {unknown[0]!r}, which is not given; the labels are {', '.join(paths)}")
    return [_source(label, tuple(files), tables.get(label), recipe) for label, files in paths.items()]


def _source(label: str, paths: tuple[Path, ...], table: Path | None, recipe: PrepareRecipe) -> SequenceSource:
    how = recipe.sources.get(label, SourceRecipe())
    if how.table is not None and table is None:
        raise InputError(f"the recipe wants a table for {label}; give it with --table {label}=FILE")
    if table is not None and how.table is None:
        how = how.model_copy(update={"table": TableRecipe()})
    return SequenceSource(label, paths, how, table)


def _settings(
    recipe: PrepareRecipe, sources: list[SequenceSource], banned: SequenceSource | None, mmseqs: MMseqs | None
) -> dict[str, Any]:
    """Everything that decides what is in the store. File names without their folders, since a store is passed on."""
    return {
        "rinalmo": __version__,
        "recipe": recipe.model_dump(mode="json"),
        "inputs": {source.label: [_described(file) for file in source.files()] for source in sources},
        "tables": {source.label: _described(source.table) for source in sources if source.table},
        "exclude": [_described(file) for file in banned.files()] if banned else [],
        "mmseqs": mmseqs.version if mmseqs else None,
    }


def _described(file: Path) -> dict[str, Any]:
    try:
        return {"name": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def _open(folder: Path, settings: dict[str, Any], out: Path, restart: bool) -> None:
    """Clear away what was being made when the last run stopped, and refuse to go on with another input or recipe."""
    kept = folder / _SETTINGS
    if restart or not kept.exists():
        _clear(folder, ())
        with replacing(kept) as file:
            file.write(json.dumps(settings).encode())
        return
    try:
        before, now = _flat(json.loads(kept.read_text(encoding="utf-8"))), _flat(settings)
    except ValueError:
        raise InputError(f"{out}: what an interrupted run kept is damaged ({kept}); use --restart") from None
    if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
        raise InputError(
            f"{out}: {', '.join(changed[:5])} changed since this run was started; give what was given then, "
            "or --restart to start anew"
        )
    _clear(folder, (_SETTINGS, *_STEPS, "equals.json", "clusters.json"))


def _clear(folder: Path, keep: Sequence[str]) -> None:
    empty_folder(folder, lambda path: any(path.match(pattern) for pattern in keep))


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    parts = [_flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items()]
    return {key: value for part in parts for key, value in part.items()}
