"""Preparing a token store: read, drop equal sequences, cluster, split, write, describe.

Each step leaves its result in a hidden folder beside the store, so that an interrupted run continues where it was.

The first of equal sequences is kept. Each sequence is identified by 128 bits of BLAKE2. The digests go to bucket files
by their first byte, and each bucket is sorted on its own, so that memory is one bucket and the result: 8 bytes a
sequence. Two different sequences of a billion share a digest with probability 1.5e-21.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
    COUNTS,
    Numbers,
    PrepareRecipe,
    Report,
    SequenceSource,
    SourceRecipe,
    SplitRecipe,
    Staged,
    TableRecipe,
    stage,
)
from rinalmo.data.store import SPLITS, StoreWriter, TokenStore
from rinalmo.errors import InputError
from rinalmo.io.files import (
    atomic_write,
    clear_temporaries,
    destination,
    empty_folder,
    file_sha256,
    lock_folder,
    publish_folder,
)
from rinalmo.io.recipe_files import flatten

_BUCKETS = 256
_DEDUPE_CHUNK = 1 << 16
_ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("index", "<i8")])


def first_of_equals(staged: Staged, folder: Path, report: Report) -> Numbers:
    """For each sequence the index of the first one with the same letters, which may be itself.

    Needs 24 bytes a sequence of disk in `folder`, for the time being.
    """
    first = np.arange(len(staged))
    buckets = min(_BUCKETS, 1 + len(staged) // _DEDUPE_CHUNK)
    with tempfile.TemporaryDirectory(prefix="buckets.", dir=folder) as name:
        paths = [Path(name) / str(number) for number in range(buckets)]
        for start in range(0, len(staged), _DEDUPE_CHUNK):
            indices = range(start, min(start + _DEDUPE_CHUNK, len(staged)))
            digests = b"".join(blake2b(staged.letters(index), digest_size=16).digest() for index in indices)
            entries = np.empty(len(indices), dtype=_ENTRY)
            words = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
            entries["high"], entries["low"], entries["index"] = words[:, 0], words[:, 1], indices
            bucket = (entries["high"] >> np.uint64(56)).astype(np.int64) * buckets >> 8
            order = np.argsort(bucket, kind="stable")
            cuts = np.searchsorted(bucket[order], np.arange(1, buckets))
            for path, part in zip(paths, np.split(entries[order], cuts), strict=True):
                if len(part):
                    with path.open("ab") as file:
                        file.write(part.tobytes())
            report(indices.stop)
        for path in paths:
            if not path.exists():
                continue
            entries = np.fromfile(path, dtype=_ENTRY)
            ordered = entries[np.lexsort((entries["low"], entries["high"]))]  # stable, so that the first stays first
            starts = np.ones(len(ordered), dtype=bool)
            starts[1:] = (ordered["high"][1:] != ordered["high"][:-1]) | (ordered["low"][1:] != ordered["low"][:-1])
            first[ordered["index"]] = ordered["index"][starts][np.cumsum(starts) - 1]
    return first


DUPLICATES = "duplicates.parquet"
_SCHEMA = pa.schema([("sequence", pa.int64()), ("source", pa.string()), ("name", pa.string())])
_CHUNK = 1 << 16
_EVERY = 10_000


def split(staged: Staged, clusters: Numbers, recipe: SplitRecipe) -> NDArray[np.bool_]:
    """Whether each cluster is for validation: the recipe's share of them, at least one of several if not zero."""
    kept = np.flatnonzero(clusters >= 0)
    # Clusters are numbered in the order of their first sequence, where the largest number so far grows.
    firsts = kept[np.diff(np.maximum.accumulate(clusters[kept]), prepend=-1) > 0]
    keys = np.empty(len(firsts), dtype=np.uint64)
    for number, index in enumerate(firsts):
        keys[number] = int.from_bytes(blake2b(staged.letters(int(index)), digest_size=8).digest())
    keys = sampling.random_key(recipe.seed, keys)
    count = round(recipe.validation_fraction * len(keys))
    if recipe.validation_fraction > 0 and len(keys) > 1:
        count = max(count, 1)
    validates = np.zeros(len(keys), dtype=bool)
    validates[np.argsort(keys, kind="stable")[:count]] = True
    return validates


def assemble(
    staged: Staged,
    first: Numbers,
    clusters: Numbers,
    validates: NDArray[np.bool_],
    target: Path,
    provenance: dict[str, Any],
    report: Report,
) -> None:
    """Write the store, and in it the names and sources of the duplicates of each sequence."""
    # Train first, by cluster, and within a cluster in the order of the sources.
    kept = np.flatnonzero(clusters >= 0)
    numbers = clusters[kept]
    numbers += validates[numbers] * len(validates)
    order = kept[np.argsort(numbers, kind="stable")]
    sources, source_tables = staged.labels("sources", clusters >= 0)
    families, family_tables = staged.labels("families", clusters >= 0)
    with StoreWriter(target, sources=sources, families=families, provenance=provenance) as writer:
        last = -1
        for done, index in enumerate(order):  # not as a list, which would take five times the memory
            if (number := int(clusters[index])) != last:
                writer.start_cluster(SPLITS[int(validates[number])])
                last = number
            part, place = staged.find(int(index))
            store = staged.stores[part]
            source = int(source_tables[part][store.source_ids[place]])
            family = int(family_tables[part][store.family_ids[place]])
            writer.add(store.name(place), store[place].tobytes(), source, family)
            if done % _EVERY == 0:
                report(done)
        _write_duplicates(staged, first, clusters, order, writer.folder / DUPLICATES)
    report(len(order))


def duplicate_pairs(staged: Staged, first: Numbers, excluded: int) -> list[list[Any]]:
    """How many sequences equal an earlier one: [source of the one kept, source of the others, number], most first."""
    pairs: Counter[tuple[str, str]] = Counter()
    for index in np.flatnonzero(first != np.arange(len(first))):
        if index >= excluded:
            pairs[staged.source(int(first[index])), staged.source(int(index))] += 1
    return [[kept, other, count] for (kept, other), count in pairs.most_common()]


def _write_duplicates(staged: Staged, first: Numbers, clusters: Numbers, order: Numbers, path: Path) -> None:
    place = np.full(len(first), -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    others = np.flatnonzero((clusters == DUPLICATE) & (place[first] >= 0))
    others = others[np.argsort(place[first[others]], kind="stable")]
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for start in range(0, len(others), _CHUNK):
            part = others[start : start + _CHUNK]
            names = [staged.name(int(index)) for index in part]
            sources = [staged.source(int(index)) for index in part]
            columns = [place[first[part]], sources, names]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))


REPORT = "report.json"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_EXCLUDED, _SETTINGS = "excluded", "settings.json"
_STEPS = (_EXCLUDED, "read-*", "equals.npy", "clusters.npy", "store")

Progress = Callable[[str], AbstractContextManager[Report]]
"""Called with the name of a step; gives a function to call with the number of sequences done so far."""


def quiet(step: str) -> AbstractContextManager[Report]:
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
    resume: bool = False,
    restart: bool = False,
    progress: Progress = quiet,
) -> TokenStore:
    """Prepare the token store `out`.

    Args:
        out: Folder of the store.
        sources: FASTA files or folders of them, each with a label; a label may have several.
        recipe: How sequences are filtered, clustered and split; None: the defaults.
        tables: A table of facts for a label.
        exclude: FASTA files whose sequences and cluster mates must not be in the store.
        threads: Threads of MMseqs2; None: all.
        resume: Continue an interrupted run, if there is one, after its last finished step.
        restart: Discard the results of an interrupted run. Without either they are kept, and InputError is raised.
        progress: Called for each step.

    Raises:
        InputError: The input or the recipe cannot be used, or changed since the run was started.
        ToolError: MMseqs2 failed.
        MissingExtraError: MMseqs2 is missing.
    """
    out = destination(Path(out).absolute())
    if resume and restart:
        raise InputError(f"{out}: --resume and --restart cannot be combined")
    recipe = recipe or PrepareRecipe()
    given = _sources(sources, tables or {}, recipe)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: exists; choose another name or delete it")
    mmseqs = MMseqs.find() if recipe.clustering.method == "mmseqs" else None
    excluded = SequenceSource(_EXCLUDED, tuple(exclude)) if exclude else None
    with progress("checking the files"):
        # Everything that decides what is in the store. File names have no folders, since a store is passed on.
        settings = {
            "rinalmo": __version__,
            "recipe": recipe.model_dump(mode="json"),
            "inputs": {source.label: [_fingerprint(file) for file in source.files()] for source in given},
            "tables": {source.label: _fingerprint(source.table) for source in given if source.table},
            "exclude": [_fingerprint(file) for file in excluded.files()] if excluded else [],
            "mmseqs": mmseqs.version if mmseqs else None,
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.partial")
    target = folder / "store"
    with lock_folder(folder, out, temporary=True):
        _open(folder, settings, out, resume, restart)
        try:
            if not target.exists():
                _write_store(target, recipe, given, excluded, mmseqs, settings, threads, progress)
            for part in (target, target / PLOTS):  # of a process that was killed while it wrote
                if part.is_dir():
                    clear_temporaries(part)
            report = TokenStore.open(target).manifest["provenance"]["report"]
            with atomic_write(target / REPORT) as file:
                file.write((json.dumps(report, indent=1) + "\n").encode())
            with progress("writing the data card") as count:
                write_card(target, count, name=out.name)
            _clear(folder, (_SETTINGS, "store"))
            publish_folder(target, out)
        finally:
            if not any(path.match(pattern) for path in folder.iterdir() for pattern in _STEPS):
                _clear(folder, ())
    return TokenStore.open(out)


def _write_store(
    target: Path,
    recipe: PrepareRecipe,
    sources: list[SequenceSource],
    excluded: SequenceSource | None,
    mmseqs: MMseqs | None,
    settings: dict[str, Any],
    threads: int | None,
    progress: Progress,
) -> None:
    """Run the steps up to the store, each from what the ones before it left in the folder."""
    folder = target.parent
    places = {source.label: folder / f"read-{source.label}" for source in sources}
    staged_in = list(places.values())
    if excluded:
        staged_in.insert(0, folder / _EXCLUDED)
    for source, place in zip([*([excluded] if excluded else []), *sources], staged_in, strict=True):
        if not place.exists():
            with progress(f"reading {source.label}") as report:
                stage(source, None if source is excluded else recipe.filters, place, report)
    staged = Staged(staged_in)
    num_excluded = len(staged.stores[0]) if excluded else 0

    def deduplicate() -> tuple[Numbers, dict[str, Any]]:
        with progress("removing duplicates") as report:
            first = first_of_equals(staged, folder, report)
        own = np.arange(len(first)) >= num_excluded
        same = own & (first != np.arange(len(first)))
        dropped = {
            "equal to an excluded sequence": int((same & (first < num_excluded)).sum()),
            "equal to an earlier sequence": int((same & (first >= num_excluded)).sum()),
        }
        counts = {
            "sequences": int(own.sum()),
            "kept": int((own & ~same).sum()),
            "dropped": {reason: count for reason, count in dropped.items() if count},
            "pairs": duplicate_pairs(staged, first, num_excluded),
        }
        return first, counts

    def find_clusters() -> tuple[Numbers, dict[str, Any]]:
        with progress("clustering") as report:
            distinct = Distinct(staged, first, num_excluded)
            return cluster(distinct, recipe.clustering, mmseqs, folder, threads or os.cpu_count() or 1, report)

    first, equals = _step(folder, "equals", deduplicate)
    clusters, clustered = _step(folder, "clusters", find_clusters)
    if not (clusters >= 0).any():
        raise InputError("every sequence is excluded, or shares a cluster with one that is")
    with progress("writing the store") as report:
        validates = split(staged, clusters, recipe.split)
        facts = {
            "read": {
                label: json.loads((place / COUNTS).read_text(encoding="utf-8")) for label, place in places.items()
            },
            "equals": equals,
            "clusters": clustered,
            "split": {"train": int((~validates).sum()), "validation": int(validates.sum())},
        }
        assemble(staged, first, clusters, validates, target, settings | {"report": facts}, report)


def _step(
    folder: Path, name: str, compute: Callable[[], tuple[Numbers, dict[str, Any]]]
) -> tuple[Numbers, dict[str, Any]]:
    """An array and its counts, computed or read; the array is written last, so that both are there if it is."""
    array, counts = folder / f"{name}.npy", folder / f"{name}.json"
    if not array.exists():
        numbers, counted = compute()
        with atomic_write(counts) as file:
            file.write(json.dumps(counted).encode())
        with atomic_write(array) as file:
            np.save(file, numbers)
    return np.load(array), json.loads(counts.read_text(encoding="utf-8"))


def _sources(
    given: Sequence[tuple[str, Path]], tables: Mapping[str, Path], recipe: PrepareRecipe
) -> list[SequenceSource]:
    paths: dict[str, list[Path]] = {}
    for label, path in given:
        if not _LABEL.fullmatch(label):
            raise InputError(f"{label!r} is not a valid label; use letters and digits, such as rfam=Rfam.fa.gz")
        paths.setdefault(label, []).append(Path(path))
    if not paths:
        raise InputError("no sources given; give them as LABEL=PATH")
    for kind, labels in (("the recipe describes", recipe.sources), ("a table is given for", tables)):
        if unknown := [label for label in labels if label not in paths]:
            raise InputError(
                f"{kind} the source {unknown[0]!r}, which was not given; the labels are {', '.join(paths)}"
            )
    sources = []
    for label, files in paths.items():
        how, table = recipe.sources.get(label, SourceRecipe()), tables.get(label)
        if how.table is not None and table is None:
            raise InputError(f"the recipe needs a table for {label}; add --table {label}=FILE")
        if table is not None and how.table is None:
            how = how.model_copy(update={"table": TableRecipe()})
        sources.append(SequenceSource(label, tuple(files), how, table))
    return sources


def _fingerprint(file: Path) -> dict[str, Any]:
    try:
        return {"name": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}
    except OSError as error:
        raise InputError.from_os_error(error, file, "cannot be read") from None


def _open(folder: Path, settings: dict[str, Any], out: Path, resume: bool, restart: bool) -> None:
    """Remove unfinished results of the last run; InputError for finished ones that are neither resumed nor discarded,
    and for another input or recipe."""
    kept = folder / _SETTINGS
    if restart or not kept.exists():
        _clear(folder, ())
        with atomic_write(kept) as file:
            file.write(json.dumps(settings).encode())
        return
    if not resume and any(path.match(pattern) for path in folder.iterdir() for pattern in _STEPS):
        kept_steps = "the finished steps of an interrupted run are saved"
        raise InputError(f"{out}: {kept_steps}; continue it with --resume, or discard it with --restart")
    try:
        before, now = flatten(json.loads(kept.read_text(encoding="utf-8"))), flatten(settings)
    except ValueError:
        raise InputError(f"{out}: the saved steps of the interrupted run are damaged ({kept}); use --restart") from None
    if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
        raise InputError(
            f"{out}: {', '.join(changed[:5])} changed since this run was started; restore the original, "
            "or use --restart to start over"
        )
    _clear(folder, (_SETTINGS, *_STEPS, "equals.json", "clusters.json"))


def _clear(folder: Path, keep: Sequence[str]) -> None:
    empty_folder(folder, lambda path: any(path.match(pattern) for pattern in keep))
