"""The encoder's states of all examples, computed once for a backbone that does not learn.

    RUN/states-….npy   fp32 `(tokens, hidden)`, CLS and EOS included, one sequence after the other

The name ends in a sum over everything that decides the contents, so that another model, precision or file never meets
old states. A hundred thousand nucleotides take 4 × hidden size × 100 kB: 128 MB for nano, 512 MB for giga.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from rinalmo.durable import replacing_path
from rinalmo.inference.batching import to_host
from rinalmo.inference.engine import Engine
from rinalmo.model.packing import Layout
from rinalmo.training.distributed import Ranks


def cached_states(engine: Engine, ids: Sequence[np.ndarray], folder: Path, ranks: Ranks) -> list[np.ndarray]:
    """States of each sequence, mapped from the file; process 0 makes it if it is not there."""
    digest = hashlib.sha256(f"{engine.fingerprint} {engine.precision}".encode())
    for sequence in ids:
        digest.update(sequence.tobytes() + b"|")
    path = folder / f"states-{digest.hexdigest()[:16]}.npy"
    ranks.first(lambda: None if path.exists() else _compute(engine, ids, path))
    states = np.load(path, mmap_mode="r")
    ends = np.cumsum([len(sequence) for sequence in ids])
    return [states[end - len(sequence) : end] for end, sequence in zip(ends, ids, strict=True)]


def _compute(engine: Engine, ids: Sequence[np.ndarray], path: Path) -> None:
    shape = (sum(map(len, ids)), engine.config.hidden_size)
    last = engine.config.num_hidden_layers

    def compute(packed: Tensor, layout: Layout) -> list[np.ndarray]:
        states = engine.hidden_states(packed, layout, [last])[0]
        return [part.numpy() for part in layout.split(to_host(states)[0])]

    with replacing_path(path) as partial:
        file = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for states in engine.map(compute, ids):
            file[start : start + len(states)] = states
            start += len(states)
        file.flush()
        del file  # Windows renames no file that is open
