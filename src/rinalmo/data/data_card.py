"""Data cards: a token store's counts as tables (`data_card.md.j2`) and charts. Same counts, same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rinalmo.data.store import ROWS, SPLITS, TokenStore
from rinalmo.errors import MissingExtraError
from rinalmo.io.cards import render_card
from rinalmo.io.files import atomic_write
from rinalmo.plots.charts import draw_bars
from rinalmo.plots.style import need_matplotlib
from rinalmo.rna.alphabet import NUCLEOTIDES

CARD, PLOTS = "card.md", "plots"
Counts = list[tuple[str, int]]

_TITLES = {
    "lengths": "Sequences by length (nt)",
    "sources": "Sequences by source",
    "families": "Sequences by family (the largest)",
    "clusters": "Clusters by size",
    "letters": "Nucleotides",
}
_LOGARITHMIC = ("clusters", "families", "sources")
_LISTED = 25  # rows of a table, bars of a chart
_PURPOSE = "drawing the plots of a data card"
_LENGTHS = (16, 32, 64, 128, 256, 512, 1023, 2048, 4096)
_SIZES = (1, 2, 3, 5, 9, 17, 33, 65, 129, 257, 513, 1025, 4097, 16385)


def write_card(folder: Path, report: Callable[[int], Any] = lambda count: None, *, name: str | None = None) -> Path:
    """Write `card.md` and `plots/` into a store, under `name` or that of the folder; returns the card's path."""
    store = TokenStore.open(folder)
    counts = count(store, report)
    note, plots = "", dict.fromkeys(_TITLES, "")
    try:
        need_matplotlib(_PURPOSE)
        (folder / PLOTS).mkdir(exist_ok=True)
        for kind, title in _TITLES.items():
            if bars := counts[kind][:_LISTED]:
                plots[kind] = f"{PLOTS}/{kind}.svg"
                logarithmic = kind in _LOGARITHMIC
                draw_bars({"": dict(bars)}, folder / plots[kind], title=title, digits=0, logarithmic=logarithmic)
    except MissingExtraError as error:
        note = f"Without plots: {error}."
    provenance = store.manifest["provenance"]
    made = provenance.get("report")
    values: dict[str, Any] = {"files": [], "steps": [], "types": []}
    if made:
        files = [(label, file) for label, files in provenance["inputs"].items() for file in files]
        files += [(f"table of {label}", file) for label, file in provenance["tables"].items()]
        files += [("excluded", file) for file in provenance["exclude"]]
        values["files"] = [(label, file["name"], f"`{file['sha256'][:16]}…`") for label, file in files]
        values["steps"] = list(_steps(made))
        types: Counter[str] = Counter()
        for read in made["read"].values():
            for kind, number in read["types"].items():
                types[kind or "unknown"] += number
        values["types"] = types.most_common()
    text = render_card(
        "data_card.md.j2",
        name=name or folder.resolve().name,
        num_sequences=len(store),
        manifest=store.manifest,
        note=note,
        splits=[(split, len(store.sequence_range(split)), len(store.cluster_range(split))) for split in SPLITS],
        report=made,
        counts=counts,
        plots=plots,
        listed=_LISTED,
        shares=lambda rows, total: [(label, number, f"{number / total:.2%}") for label, number in rows],
        **values,
    )
    with atomic_write(folder / CARD) as file:
        file.write(text.encode())
    return folder / CARD


def count(store: TokenStore, report: Callable[[int], Any] = lambda count: None) -> dict[str, Counts]:
    """Sequences by length, source and family, clusters by size, and nucleotides by letter."""
    sizes = np.diff(store.cluster_starts.astype(np.int64))
    letters = np.zeros(256, dtype=np.int64)
    for number, block in enumerate(store.blocks(), start=1):
        letters += np.bincount(block, minlength=256)
        report(min(number * ROWS, len(store)))
    nucleotides = [(letter, int(letters[ord(letter)])) for letter in NUCLEOTIDES]
    other = int(letters.sum()) - sum(number for _, number in nucleotides)
    return {
        "lengths": _ranges(store.lengths, _LENGTHS),
        "sources": _labels(store.sources, store.source_ids),
        "families": [pair for pair in _labels(store.families, store.family_ids) if pair[0]],
        "clusters": _ranges(sizes, _SIZES),
        "letters": [*nucleotides, ("other", other)],
    }


def _ranges(values: NDArray[Any], edges: Sequence[int]) -> Counts:
    """The number of values in each range between edges, without empty ranges at the ends."""
    limits = [1, *edges] if edges[0] > 1 else list(edges)
    numbers = np.bincount(np.searchsorted(limits, values, side="right") - 1, minlength=len(limits))
    names = [str(a) if a == b - 1 else f"{a}–{b - 1}" for a, b in pairwise(limits)]
    pairs = list(zip([*names, f"{limits[-1]} or more"], numbers.tolist(), strict=True))
    occupied = np.flatnonzero(numbers)
    return pairs[occupied[0] : occupied[-1] + 1]


def _labels(labels: Sequence[str], ids: NDArray[Any]) -> Counts:
    numbers = np.bincount(ids, minlength=len(labels)).tolist()
    return sorted(zip(labels, numbers, strict=True), key=lambda pair: (-pair[1], pair[0]))


def _steps(report: dict[str, Any]) -> Iterator[tuple[str, int, int, str]]:
    """What each step of preparing read, kept and dropped."""
    steps = {f"read {label}": read for label, read in report["read"].items()}
    for name, counts in (steps | {name: report[name] for name in ("equals", "clusters")}).items():
        dropped = "; ".join(f"{reason}: {number:,}" for reason, number in counts["dropped"].items())
        yield name, counts["records" if name in steps else "sequences"], counts["kept"], dropped or "none"
