"""`rinalmo data prepare`: from database files to a token store, step by step, and on from the step it was in.

    read (each source) ─► equals ─► clusters ─► split ─► store ─► card

Each step leaves one file or folder in the work folder beside the output, which appears when the step is done; a run
that was stopped does over what is not there. At the end the store is moved to its place in one step.

    .OUT.partial/  settings.json · lock · excluded/ · read-LABEL/ · equals.npy · clusters.npy · store/
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo import __version__
from rinalmo.data.assembling import Selection, assemble, duplicate_pairs, split
from rinalmo.data.card import PLOTS, write_card
from rinalmo.data.clustering import Distinct, cluster
from rinalmo.data.dedupe import first_of_equals
from rinalmo.data.filters import Filters
from rinalmo.data.mmseqs import MMseqs
from rinalmo.data.reading import Source, Tell, read_counts, stage
from rinalmo.data.recipe import PrepareRecipe, SourceRecipe, TableRecipe
from rinalmo.data.staged import Numbers, Staged
from rinalmo.data.store import TokenStore
from rinalmo.durable import clear_temporaries, destination, empty_folder, file_sha256, held, publish_folder, replacing
from rinalmo.errors import InputError

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
    banned = Source(_EXCLUDED, tuple(exclude)) if exclude else None
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
    sources: list[Source]
    banned: Source | None
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

    def _place(self, source: Source) -> Path:
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


def _sources(given: Sequence[tuple[str, Path]], tables: Mapping[str, Path], recipe: PrepareRecipe) -> list[Source]:
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


def _source(label: str, paths: tuple[Path, ...], table: Path | None, recipe: PrepareRecipe) -> Source:
    how = recipe.sources.get(label, SourceRecipe())
    if how.table is not None and table is None:
        raise InputError(f"the recipe wants a table for {label}; give it with --table {label}=FILE")
    if table is not None and how.table is None:
        how = how.model_copy(update={"table": TableRecipe()})
    return Source(label, paths, how, table)


def _settings(
    recipe: PrepareRecipe, sources: list[Source], banned: Source | None, mmseqs: MMseqs | None
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
