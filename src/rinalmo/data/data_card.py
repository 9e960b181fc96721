"""Bar charts of a data card, as SVG: the same counts give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rinalmo.data.store import ROWS, SPLITS, TokenStore
from rinalmo.errors import MissingExtraError
from rinalmo.io.files import replacing
from rinalmo.plots.style import BLUE, figure_in, need_matplotlib, title_of
from rinalmo.rna.alphabet import NUCLEOTIDES

_TITLES = {
    "lengths": "Sequences by length (nt)",
    "sources": "Sequences by source",
    "families": "Sequences by family (the largest)",
    "clusters": "Clusters by size",
    "letters": "Nucleotides",
}
_LOGARITHMIC = ("clusters", "families", "sources")
_BARS = 25
_LONGEST_LABEL = 40
_PURPOSE = "drawing the plots of a data card"


def draw(facts: Mapping[str, Sequence[tuple[str, int]]], folder: Path) -> dict[str, str]:
    """Draw each kind of counts that has a title; returns the file name of each. Raises MissingExtraError."""
    need_matplotlib(_PURPOSE)
    folder.mkdir(exist_ok=True)
    drawn: dict[str, str] = {}
    for kind, title in _TITLES.items():
        if pairs := list(facts[kind][:_BARS]):
            _bars(title, pairs, folder / f"{kind}.svg", kind in _LOGARITHMIC)
            drawn[kind] = f"{kind}.svg"
    return drawn


def _bars(title: str, pairs: Sequence[tuple[str, int]], path: Path, logarithmic: bool) -> None:
    from matplotlib.ticker import NullFormatter

    size = (7, 0.9 + 0.24 * len(pairs))
    with figure_in(path, _PURPOSE, figsize=size, layout="constrained") as figure:
        axes = figure.subplots()
        numbers = [number for _, number in pairs]
        bars = axes.barh(range(len(pairs)), numbers, color=BLUE)
        axes.set_yticks(range(len(pairs)), [title_of(label, _LONGEST_LABEL) for label, _ in pairs])
        axes.bar_label(bars, [f"{number:,}" for number in numbers], padding=2)
        axes.invert_yaxis()
        axes.set_title(title, loc="left")
        if logarithmic:
            # From below 1, so that a bar of 1 is seen; room on the right for the numbers.
            axes.set(xscale="log", xlim=(0.7, max(numbers) * 2))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.margins(x=0.1)
        axes.xaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")


CARD, PLOTS = "card.md", "plots"
_LENGTHS = (16, 32, 64, 128, 256, 512, 1023, 2048, 4096)
_SIZES = (1, 2, 3, 5, 9, 17, 33, 65, 129, 257, 513, 1025, 4097, 16385)
_LISTED = 25


@dataclass(frozen=True)
class Facts:
    """What is counted in a store: number by label or by range, largest or shortest first."""

    lengths: list[tuple[str, int]]
    sources: list[tuple[str, int]]
    families: list[tuple[str, int]]
    clusters: list[tuple[str, int]]
    letters: list[tuple[str, int]]


def write_card(folder: Path, tell: Callable[[int], Any] = lambda count: None, *, name: str | None = None) -> Path:
    """Write `card.md` and `plots/` into a store, in the card called `name` or as its folder; returns the path."""
    store = TokenStore.open(folder)
    facts = count(store, tell)
    try:
        drawn = draw(facts.__dict__, folder / PLOTS)
        note = ""
    except MissingExtraError as error:
        drawn, note = {}, f"Without plots: {error}."
    text = "\n".join(_lines(store, name or folder.resolve().name, facts, drawn, note))
    with replacing(folder / CARD) as file:
        file.write(text.encode())
    return folder / CARD


def count(store: TokenStore, tell: Callable[[int], Any] = lambda count: None) -> Facts:
    """Count lengths, labels, cluster sizes and letters."""
    sizes = np.diff(store.cluster_starts.astype(np.int64))
    letters = np.zeros(256, dtype=np.int64)
    for number, block in enumerate(store.blocks(), start=1):
        letters += np.bincount(block, minlength=256)
        tell(min(number * ROWS, len(store)))
    plain = [(letter, int(letters[ord(letter)])) for letter in NUCLEOTIDES]
    other = int(letters.sum()) - sum(number for _, number in plain)
    return Facts(
        _ranges(store.lengths, _LENGTHS),
        _labels(store.sources, store.source_ids),
        [pair for pair in _labels(store.families, store.family_ids) if pair[0]],
        _ranges(sizes, _SIZES),
        [*plain, ("other", other)],
    )


def _ranges(values: NDArray[Any], edges: Sequence[int]) -> list[tuple[str, int]]:
    """How many values lie in each range between edges; empty ranges at the ends are left out."""
    limits = [1, *edges] if edges[0] > 1 else list(edges)
    numbers = np.bincount(np.searchsorted(limits, values, side="right") - 1, minlength=len(limits)).tolist()
    names = [str(a) if a == b - 1 else f"{a}–{b - 1}" for a, b in pairwise(limits)]
    pairs = list(zip([*names, f"{limits[-1]} or more"], numbers, strict=True))
    filled = [i for i, number in enumerate(numbers) if number]
    return pairs[filled[0] : filled[-1] + 1]


def _labels(labels: Sequence[str], ids: NDArray[Any]) -> list[tuple[str, int]]:
    numbers = np.bincount(ids, minlength=len(labels)).tolist()
    return sorted(zip(labels, numbers, strict=True), key=lambda pair: (-pair[1], pair[0]))


def _lines(store: TokenStore, name: str, facts: Facts, drawn: dict[str, str], note: str) -> Iterator[str]:
    manifest, provenance = store.manifest, store.manifest["provenance"]
    yield f"# Data card: {name}\n"
    yield (
        f"{len(store):,} sequences, {manifest['nucleotides']:,} nucleotides, {manifest['clusters']:,} clusters.  \n"
        f"Fingerprint `{store.fingerprint}`.\n"
    )
    if note:
        yield f"{note}\n"
    parts = [(split, len(store.sequence_range(split)), store.num_clusters(split)) for split in SPLITS]
    yield from _table(("split", "sequences", "clusters"), parts)
    if "report" in provenance:
        yield from _made(provenance)
    yield from _section("Sources", drawn.get("sources"), ("source", "sequences"), facts.sources, len(store))
    yield from _section("Lengths", drawn.get("lengths"), ("nucleotides", "sequences"), facts.lengths, len(store))
    with_family = sum(number for _, number in facts.families)
    yield f"## Families\n\n{with_family:,} sequences are of {len(facts.families):,} named families.\n"
    if facts.families:
        yield from _section("", drawn.get("families"), ("family", "sequences"), facts.families[:_LISTED], len(store))
    clusters = manifest["clusters"]
    yield from _section("Cluster sizes", drawn.get("clusters"), ("sequences", "clusters"), facts.clusters, clusters)
    letters = manifest["nucleotides"]
    yield from _section("Composition", drawn.get("letters"), ("letter", "nucleotides"), facts.letters, letters)


def _made(provenance: dict[str, Any]) -> Iterator[str]:
    """How the store was made: files, and what each step kept and dropped."""
    report = provenance["report"]
    yield f"## How it was made\n\nBy `rinalmo data prepare` {provenance['rinalmo']}, from these files:\n"
    given = [(label, file) for label, files in provenance["inputs"].items() for file in files]
    given += [(f"table of {label}", file) for label, file in provenance["tables"].items()]
    given += [("excluded", file) for file in provenance["exclude"]]
    rows = [(label, file["name"], f"`{file['sha256'][:16]}…`") for label, file in given[:_LISTED]]
    yield from _table(("as", "file", "sha256"), rows)
    if len(given) > _LISTED:
        yield f"and {len(given) - _LISTED:,} more (`report.json`, `manifest.json`).\n"
    yield from _table(("step", "sequences", "kept", "dropped"), _steps(report))
    clusters = report["clusters"]
    how = f"`{clusters['command']}`, version {clusters['version']}" if "command" in clusters else clusters["method"]
    yield (
        f"Clusters: {how}: {clusters['clusters']:,}, {clusters['of one sequence']:,} of one sequence, "
        f"the largest of {clusters['largest']:,}.\n"
    )
    types: dict[str, int] = {}
    for read in report["read"].values():
        for name, number in read["types"].items():
            types[name or "unknown"] = types.get(name or "unknown", 0) + number
    yield "RNA types as the sources name them, before equal sequences were dropped:\n"
    yield from _table(("type", "sequences"), sorted(types.items(), key=lambda pair: -pair[1])[:_LISTED])
    if report["equals"]["pairs"]:
        yield "Equal sequences, of which the first was kept (`duplicates.parquet` names the others):\n"
        yield from _table(("kept from", "also in", "sequences"), report["equals"]["pairs"][:_LISTED])


def _steps(report: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for label, read in report["read"].items():
        yield f"read {label}", read["records"], read["kept"], _dropped(read)
    for name in ("equals", "clusters"):
        yield name, report[name]["sequences"], report[name]["kept"], _dropped(report[name])


def _dropped(counts: dict[str, Any]) -> str:
    return "; ".join(f"{reason}: {number:,}" for reason, number in counts["dropped"].items()) or "none"


def _section(
    title: str, plot: str | None, head: tuple[str, str], pairs: Sequence[tuple[str, int]], total: int
) -> Iterator[str]:
    if title:
        yield f"## {title}\n"
    if plot:
        yield f"![{head[1]} by {head[0]}]({PLOTS}/{plot})\n"
    yield from _table((*head, "share"), [(label, number, f"{number / total:.2%}") for label, number in pairs])


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|") for cell in row)
        yield "| " + " | ".join(cells) + " |"
    yield ""
