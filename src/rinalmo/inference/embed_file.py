"""A FASTA file or table in, a file of embeddings out: the work of `rinalmo embed`, resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rinalmo import __version__
from rinalmo.errors import InputError
from rinalmo.inference.embeddings import Pooling, embed_records, layer_indices
from rinalmo.inference.engine import Advance, Engine
from rinalmo.inference.inputs import read_from, read_sequences
from rinalmo.inference.ray_engine import RayEngine
from rinalmo.inference.runs import Chunk, Run, adding, chunked, input_sum, shard
from rinalmo.inference.writers import check_output, write_embeddings
from rinalmo.rna.fasta import Record


def embed_file(
    fasta: str | Path,
    output: str | Path,
    engine: Engine | RayEngine,
    *,
    pooling: Pooling = "mean",
    layers: Sequence[int] = (-1,),
    resume: bool = False,
    restart: bool = False,
    part: str | None = None,
    tell: Callable[[int], Any] = lambda count: None,
    model_name: str | None = None,
) -> int:
    """Embed every sequence of `fasta` ("-" is standard input) and write `output`; returns their number.

    The ending of `output` chooses the format (`rinalmo.inference.writers`). `part` "i/n" takes every n-th sequence from
    the i-th on; no result depends on it. `tell` is called with the number of sequences done so far.
    `model_name` is what an .h5ad file calls the model.

    An interrupted run keeps what it has finished in a hidden folder beside the output. The same call continues it, and
    the result is the same to the byte; `resume` refuses an input that can be read only once, and `restart` discards
    what is kept. Raises InputError if input or options are not those that the interrupted run was started with.
    """
    output = Path(output)
    per_token = pooling == "none"
    layers = layer_indices(layers, engine.spec.config.num_hidden_layers)
    check_output(output, per_token=per_token, num_layers=len(layers))
    records = shard(read_sequences(fasta), part)
    settings = {
        "input": input_sum(fasta, resume=resume),
        "model": engine.fingerprint,
        "precision": engine.precision,
        "device": engine.device.type,
        "batch_tokens": engine.batch_tokens,
        "pooling": pooling,
        "layers": list(layers),
        "shard": part,
    }
    run = Run(output)
    job = partial(_embedding, pooling=pooling, layers=layers)
    with read_from(Path(fasta)), run.opened(settings, resume=resume, restart=restart):
        # A GPU runs dry at the end of each chunk, so it gets larger ones; less so for single nucleotides: gigabytes.
        scale = 1 if engine.device.type == "cpu" else 4 if per_token else 16
        chunks = run.missing(chunked(records, lambda record: len(record.sequence), scale=scale))
        for number, chunk in engine.run(job, chunks, adding(tell, run.finished())):
            run.write(number, chunk)
        count = run.finished()
        if count == 0:
            raise InputError(f"{fasta}: no sequence falls in --shard {part}")
        about: dict[str, Any] = {"model": model_name or "", "fingerprint": engine.fingerprint}
        about |= {"precision": engine.precision, "pooling": pooling, "layer": layers[0], "rinalmo": __version__}
        write_embeddings(output, run.chunks, run.folder, per_token=per_token, about=about)
        run.remove()
    return count


def check_input(fasta: str | Path) -> None:
    """Raise InputError for a file that cannot be opened or does not start as FASTA or a table; nothing for a stream."""
    path = Path(fasta)
    if str(fasta) != "-" and (path.is_file() or not path.exists()):
        next(read_sequences(fasta), None)


def _embedding(
    engine: Engine, advance: Advance, *, pooling: Pooling, layers: Sequence[int]
) -> Callable[[list[Record]], Chunk]:
    def compute(records: list[Record]) -> Chunk:
        found = []
        for _, values in embed_records(records, engine, pooling=pooling, layers=layers):
            found.append(values)
            advance(1)
        return Chunk.of(records, found, per_token=pooling == "none")

    return compute
