"""Equal sequences, whatever they are called and wherever they come from: the first of them stays.

Each sequence is known by 128 bits of BLAKE2. The digests go to bucket files by their first byte, and each bucket is
sorted by itself, so that memory is one bucket and the result: 8 bytes a sequence. Two different sequences of a
billion share a digest with probability 1.5e-21.
"""

from __future__ import annotations

import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rinalmo.data.reading import Tell
from rinalmo.data.staged import Numbers, Staged

_BUCKETS = 256
_CHUNK = 1 << 16
_ENTRY = np.dtype([("high", ">u8"), ("low", ">u8"), ("index", "<i8")])


def first_of_equals(staged: Staged, folder: Path, tell: Tell) -> Numbers:
    """For each sequence the index of the first one with the same letters, itself if there is none before it.

    Needs 24 bytes a sequence of disk in `folder`, for the time being.
    """
    first = np.arange(len(staged))
    buckets = min(_BUCKETS, 1 + len(staged) // _CHUNK)
    with tempfile.TemporaryDirectory(prefix="buckets.", dir=folder) as name:
        paths = [Path(name) / str(number) for number in range(buckets)]
        _distribute(staged, paths, tell)
        for path in paths:
            if path.exists():
                _mark(np.fromfile(path, dtype=_ENTRY), first)
    return first


def _distribute(staged: Staged, paths: list[Path], tell: Tell) -> None:
    """Append each sequence's digest to its bucket."""
    for start in range(0, len(staged), _CHUNK):
        indices = range(start, min(start + _CHUNK, len(staged)))
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
