"""Batching and the `Engine`: many sequences through the model, in bounded memory, results in input order.

A window of sequences is read ahead, sorted by length so that equal lengths lie together, split into packed batches of
at most `batch_tokens` tokens (a longer sequence is a batch of its own) and computed; its results are yielded in input
order before the next window is read.

On a CPU each thread computes a batch of its own, since threads that share one wait for each other at every product of
a small model; where there are fewer batches than threads, a batch has several. On CUDA two threads compute, each on a
stream of its own: while one waits for its results or works on the host, the other keeps the GPU busy. The next window
is started before the results of the last are yielded.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import logging
import os
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from itertools import tee
from pathlib import Path
from threading import Lock, local
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rinalmo.engine.cpu_encoder import FastBlock, FastEncoder, PackedPrecision
from rinalmo.engine.devices import (
    DeviceLike,
    Precision,
    choose_device,
    choose_precision,
    default_batch_tokens,
    device_name,
    is_out_of_memory,
    packs_weights,
    release_memory,
)
from rinalmo.engine.gpu_encoder import GpuEncoder
from rinalmo.errors import InputError
from rinalmo.io.sequences import check_positive_int
from rinalmo.model.packing import Layout, chunked, pack, token_batches
from rinalmo.model.rinalmo import EncoderBlock, ModelSpec, RiNALMo
from rinalmo.weights.adapters import with_adapter
from rinalmo.weights.catalog import resolve
from rinalmo.weights.checkpoint import load, read_adapter, with_heads_of

logger = logging.getLogger(__name__)

R = TypeVar("R")
Item = TypeVar("Item")
Ids = np.ndarray
Compute = Callable[[Tensor, Layout], Sequence[R]]
Advance = Callable[[int], Any]  # called with how many more are done
# Makes the function that an engine applies to each of many items. It may be sent to other processes, so it has to be
# picklable.
Work = Callable[["Engine", Advance], Callable[[Item], R]]

CACHED_ENGINES = 2
_WINDOW_BATCHES = 8
_SMALLEST_SHARE = 1024  # tokens of a batch that is not divided among threads: much smaller ones compute more slowly
_WINDOW_SEQUENCES = 4096
_CUDA_BATCHES = 2  # in flight at once
# Streams are used again: torch caches memory freed in a stream for that stream.
_idle_streams: defaultdict[torch.device, deque[torch.cuda.Stream]] = defaultdict(deque)

_batch = local()  # .threads: how many CPU threads the batch has that this thread computes

# --- Batching ---


def map_packed(
    compute: Compute[R],
    sequences: Iterable[Ids],
    *,
    batch_tokens: Callable[[], int],
    device: torch.device | str = "cpu",
    in_flight: int | None = None,
) -> Iterator[R]:
    """Apply a function to all sequences, packed into batches.

    Args:
        compute: Takes packed ids and their layout, returns one result per sequence. With several batches in flight it
            is called from several threads. Results that are tensors on a CUDA device are copied to the host.
        sequences: Token ids, one array each; read in the caller's thread.
        batch_tokens: Returns the maximum number of tokens of a batch; called for each window, since it may shrink
            when a device's memory turns out to be too small.
        device: Where `compute` expects its input.
        in_flight: Batches computed at once; by default two on CUDA, and on a CPU as many as torch has threads, which
            they share.

    Yields:
        Results in the order of the input.
    """
    device = torch.device(device)
    count = in_flight or {"cuda": _CUDA_BATCHES, "cpu": torch.get_num_threads()}.get(device.type, 1)
    run = partial(_compute_batch, compute, device)
    if count > 1:
        yield from _overlapping(run, sequences, batch_tokens, count, shares_threads=device.type == "cpu")
        return
    for window in chunked(sequences, len, _WINDOW_BATCHES * batch_tokens(), _WINDOW_SEQUENCES):
        results: list[R | None] = [None] * len(window)
        for batch in token_batches(list(map(len, window)), batch_tokens()):
            for i, result in zip(batch, run([window[i] for i in batch]), strict=True):
                results[i] = result
        if device.type == "cpu" and len(window) > 1:
            _trim_heap()  # between the kernels that oneDNN keeps lie gaps as large as they
        yield from results  # type: ignore[misc]  # none of them is None now


def _overlapping(
    run: Callable[[Sequence[Ids], int | None], Sequence[R]],
    sequences: Iterable[Ids],
    batch_tokens: Callable[[], int],
    count: int,
    shares_threads: bool,
) -> Iterator[R]:
    """As `map_packed`, with `count` batches in flight; if they share threads, there are `count` of these, too."""
    window_tokens, threads = max(_WINDOW_BATCHES, count) * batch_tokens(), torch.get_num_threads()
    windows = chunked(sequences, len, window_tokens, _WINDOW_SEQUENCES)
    previous: list[_Started[R]] = []
    with ThreadPoolExecutor(count, thread_name_prefix="rinalmo-batch") as pool:
        try:
            while True:
                failure: Exception | None = None
                try:
                    window = next(windows, None)
                except Exception as error:  # of the input: results for what came before it are yielded first
                    failure, window = error, None
                lengths, budget, share = list(map(len, window or [])), batch_tokens(), None
                if shares_threads:
                    budget = min(budget, max(_SMALLEST_SHARE, -(-sum(lengths) // count)))
                batches = list(token_batches(lengths, budget))
                if shares_threads and batches:
                    share = max(1, count // (len(batches) + sum(not future.done() for *_, future in previous)))
                started: list[_Started[R]] = []
                for batch in batches:
                    ids = [window[i] for i in batch]  # type: ignore[index]
                    started.append((batch, ids, pool.submit(run, ids, share)))
                results: dict[int, R] = {}
                for batch, ids, future in previous:
                    try:
                        computed = future.result()
                    except Exception:
                        # Alone it may have the memory that it lacked beside another batch.
                        wait([other for _, _, other in (*previous, *started)])
                        computed = run(ids, None)
                    results.update(zip(batch, computed, strict=True))
                if shares_threads and len(results) > 1:
                    _trim_heap()
                yield from map(results.__getitem__, range(len(results)))
                previous = started
                if failure is not None:
                    raise failure
                if window is None:
                    return
        finally:
            pool.shutdown(cancel_futures=True)
            if shares_threads:
                torch.set_num_threads(threads)  # the number that new threads of the caller begin with


_Started = tuple[list[int], list[Ids], Future[Sequence[R]]]  # a batch's indices in the window, its ids, its results


def _compute_batch(
    compute: Compute[R], device: torch.device, sequences: Sequence[Ids], threads: int | None = None
) -> Sequence[R]:
    """Pack and compute one batch, with that many CPU threads; on CUDA in a stream of its own, results on the host."""
    if threads is not None:
        torch.set_num_threads(threads)
        _batch.threads = threads
    if device.type != "cuda":
        return compute(*pack(map(torch.from_numpy, sequences), device))
    idle = _idle_streams[device]
    try:
        stream = idle.pop()
    except IndexError:
        stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))  # where weights may still be on their way
    try:
        with torch.cuda.stream(stream):
            results = compute(*pack(map(torch.from_numpy, sequences), device))
            if isinstance(results, Tensor):
                return to_host(results)[0]
            on_host: list[Any] = list(results)
            indices = [i for i, result in enumerate(on_host) if isinstance(result, Tensor) and result.is_cuda]
            for i, result in zip(indices, to_host(*(on_host[i] for i in indices)), strict=True):
                on_host[i] = result
            return on_host
    finally:
        idle.append(stream)


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies on the host: all transfers at once, into pinned memory, and one wait. Host tensors are returned as is.

    The wait is for the current stream alone.
    """
    if not any(tensor.is_cuda for tensor in tensors):
        return tuple(tensor.cpu() for tensor in tensors)
    pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for buffer, tensor in zip(pinned, tensors, strict=True):
        buffer.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    done.synchronize()
    return tuple(buffer.clone() for buffer in pinned)  # results may be kept for long, and pinned memory is scarce


# --- The engine ---


class Engine:
    """A model with its device, precision, number of threads and token budget per batch.

    Args:
        model: A loaded `RiNALMo`, or a catalog name, folder or file. If the engine loads the model, only one copy of
            the encoder's weights is in memory: on a CPU the packed one.
        precision: "fp32"; "bf16"; "fp16" (GPUs); "int8" (weights and activations of matrix products, bf16 for the rest;
            CPUs with VNNI); "auto": bf16 if the device supports it natively, fp16 on other GPUs, else fp32.
        adapter: Folder of a LoRA adapter of this model, given by name or path; see `with_adapter`.
        threads: CPU threads that this engine uses, each for a batch of its own; torch's default if None.
        batch_tokens: Tokens per batch; memory grows with it, results do not depend on it. None: 4,096 on a CPU,
            depending on memory on a GPU. If a GPU runs out of memory, the engine halves it and continues.
        device: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N", "mps". None: where a loaded model
            is, "auto" for anything else.

    Attributes:
        device: The `torch.device` that computes.
        precision: The precision of the encoder; never "auto".
        batch_tokens: The token budget as given, or the default.
        config: The encoder's sizes.
        alphabet: The tokens that the model's ids stand for.
        head_model: The model whose heads are applied to the states; its encoder may be without weights.

    Raises:
        InputError: A precision that is unknown or not for this processor, a budget or threads below 1, or a device
            that this machine does not have.

    Examples:
        >>> import rinalmo
        >>> engine = rinalmo.Engine("nano", "fp32", device="cpu")
        >>> engine.describe()
        'cpu, fp32'
        >>> rinalmo.embed(["GGGAAAUCCC"], engine).shape
        (1, 320)
    """

    announce: Callable[[str], Any] | None = None  # called once, with a line on the device, before the first batch
    _encoder: GpuEncoder | FastEncoder | None = None  # prepared for the device; None: the plain one computes
    _reduced_tokens: int | None = None  # the budget after memory was full; `batch_tokens` stays as it was given

    def __init__(
        self,
        model: str | Path | RiNALMo = "nano",
        precision: Precision = "auto",
        *,
        adapter: str | Path | None = None,
        threads: int | None = None,
        batch_tokens: int | None = None,
        device: DeviceLike = None,
    ) -> None:
        if batch_tokens is not None:
            check_positive_int("batch_tokens", batch_tokens)
        if threads is not None:
            check_positive_int("threads", threads)
        if not isinstance(model, str | Path | RiNALMo):
            raise InputError(
                f"a {type(model).__name__} is not a model; give a name, a path or a model from rinalmo.load"
            )
        if isinstance(model, RiNALMo) and device is None:
            self.device = model.encoder.embedding.weight.device
        else:
            self.device = choose_device(device)
        self._source, self._threads = model, threads
        self._adapter: str | Path | None = None
        self.precision: Precision = choose_precision(precision, self.device)
        self.batch_tokens = default_batch_tokens(self.device) if batch_tokens is None else batch_tokens
        self.head_model: RiNALMo
        try:
            self.head_model, self._encoder = self._load(model)
            self.config, self.alphabet = self.head_model.config, self.head_model.alphabet
            if adapter is not None:
                self._add(adapter)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"the model does not fit into the memory of {device_name(self.device)}; use --device cpu"
            ) from None

    def _load(
        self, model: str | Path | RiNALMo, merged: str | Path | None = None
    ) -> tuple[RiNALMo, GpuEncoder | FastEncoder | None]:
        """The model, and its encoder prepared for the device; None where the plain one computes."""
        precision: Any = self.precision
        if self.device.type == "cpu":
            packs, blocks = packs_weights(precision), list[FastBlock]()
            if isinstance(model, RiNALMo):
                head_model = model.to(self.device)
            else:
                pack_block = partial(_pack_and_free, blocks=blocks, precision=precision)
                head_model = load(model, adapter=merged, consume=pack_block if packs else None)
            return head_model, FastEncoder(head_model.encoder, precision, blocks) if packs else None
        if isinstance(model, RiNALMo):
            head_model = model.to(self.device)
        else:
            head_model = load(model, adapter=merged)  # weights stay mapped; only the cast ones take memory
            for name in head_model.spec.heads:
                head_model.head(name).to(self.device)
        return head_model, GpuEncoder(head_model.encoder, precision, device=self.device)

    def with_adapter(self, adapter: str | Path) -> Engine:
        """An engine for this model with a LoRA adapter, beside the weights in memory, which the two share.

        So each further adapter takes only its own few megabytes. Results are those of the merged model up to rounding.
        An adapter that replaces tensors of the encoder is merged as the model is loaded once more.

        Args:
            adapter: Its folder, by PEFT or `rinalmo finetune`.

        Raises:
            CheckpointError: The folder has no adapter, or that of another model.
            InputError: This engine has an adapter, or was made from a model in memory.
        """
        engine = Engine.__new__(type(self))
        vars(engine).update(vars(self))
        engine._add(adapter)
        return engine

    def _add(self, folder: str | Path) -> None:
        if isinstance(self._source, RiNALMo):
            raise InputError("an adapter cannot be added to a loaded model; use rinalmo.load(model, adapter=…)")
        if self._adapter is not None:
            raise InputError(f"this engine has the adapter {self._adapter}; add {folder} to one without")
        adapter = read_adapter(folder)
        self._adapter = folder
        if any(name.startswith("encoder.") for name in adapter.whole):
            self.head_model, self._encoder = self._load(self._source, folder)
            return
        self.head_model = with_heads_of(self.head_model, adapter)
        for name in self.head_model.spec.heads:
            self.head_model.head(name).to(self.device)
        changes = adapter.by_block(self.config.num_hidden_layers)
        if isinstance(self._encoder, FastEncoder):
            self._encoder = self._encoder.with_adapter(changes)
        elif isinstance(self._encoder, GpuEncoder):
            self._encoder = copy.copy(self._encoder)
            self._encoder.encoder = with_adapter(self._encoder.encoder, changes)
        else:
            self.head_model.encoder = with_adapter(self.head_model.encoder, changes)

    @property
    def threads(self) -> int:
        """The number of CPU threads as given, or torch's own."""
        return self._threads or torch.get_num_threads()

    @property
    def model(self) -> RiNALMo:
        """The complete model, for example to save it or to create another engine.

        A model that this engine has loaded and packed is loaded again; its weights are memory-mapped, not copied.

        Raises:
            InputError: The file has been changed since the engine loaded it.
        """
        if isinstance(self._source, RiNALMo) or (self._encoder is None and self._adapter is None):
            return self.head_model
        whole = load(self._source, adapter=self._adapter, device=self.device)
        if fingerprint(whole) != self.fingerprint:
            raise InputError(f"{self._source}: has changed since it was loaded; create a new Engine")
        return whole

    @property
    def fingerprint(self) -> str:
        """A hash of config, vocabulary and the small tensors, all of which any training changes."""
        return fingerprint(self.head_model)

    @property
    def spec(self) -> ModelSpec:
        """All that is needed to build the model, except its weights."""
        return self.head_model.spec

    def head(self, name: str) -> torch.nn.Module:
        """One of the model's heads; raises CheckpointError if it does not have it."""
        return self.head_model.head(name)

    def describe(self) -> str:
        """Device and precision in a few words, such as `cpu, bf16`."""
        return f"{device_name(self.device)}, {self.precision}"

    def run(self, job: Work[Item, R], items: Iterable[tuple[int, Item]], advance: Advance) -> Iterator[tuple[int, R]]:
        """The job on numbered items, in this process. A `RayEngine` does the same in many, and in any order."""
        compute = job(self, advance)
        for number, item in items:
            yield number, compute(item)

    @torch.inference_mode()
    def hidden_states(self, ids: Tensor, layout: Layout, layers: Sequence[int]) -> list[Tensor]:
        """Packed states of some layers, in fp32.

        Args:
            ids: Packed token ids `(tokens,)`, on the engine's device.
            layout: Where each sequence lies.
            layers: 0 for the embedding, n for the output of block n; the last one is after the final layer norm.

        Returns:
            One tensor `(tokens, hidden)` per layer.
        """
        with self._computing():
            if self._encoder is not None:
                return self._encoder(ids, layout, layers)
            model, last, was_training = self.head_model, self.config.num_hidden_layers, self.head_model.training
            model.eval()
            try:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    intermediate = any(layer != last for layer in layers)
                    out = model.encoder(ids, layout, output_hidden_states=intermediate)
            finally:
                model.train(was_training)
            states = out.hidden_states or ()
            return [(out.last_hidden_state if layer == last else states[layer]).float() for layer in layers]

    def map(self, compute: Callable[[Tensor, Layout], Sequence[R]], sequences: Iterable[np.ndarray]) -> Iterator[R]:
        """`compute` over all sequences of ids, packed into batches.

        A batch that does not fit into the device's memory is computed in halves, and all later ones are smaller.

        Args:
            compute: Takes packed ids and their layout, returns one result per sequence; called from several threads.
            sequences: Token ids, one array each.

        Yields:
            Results one by one, in the order of the input.

        Raises:
            InputError: A single sequence does not fit.
        """

        def compute_batch(ids: Tensor, layout: Layout) -> Sequence[R]:
            try:
                with self._computing():
                    return compute(ids, layout)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Outside of the except clause, whose traceback keeps tensors alive that have to go.
            release_memory(self.device)
            self._reduce_budget(layout)
            middle, results = len(layout.lengths) // 2, list[R]()
            for part in (slice(None, middle), slice(middle, None)):
                half = Layout(layout.lengths[part], layout.device, layout.valid_lengths[part])
                start = layout.offsets[part.start or 0]
                results.extend(compute_batch(ids[start : start + half.total], half))
            return results

        # The plain encoder is switched between training and evaluation around each batch.
        in_flight = None if self.device.type != "cpu" else 1 if self._encoder is None else self._threads
        return map_packed(compute_batch, sequences, batch_tokens=self._budget, device=self.device, in_flight=in_flight)

    def _budget(self) -> int:
        return self.batch_tokens if self._reduced_tokens is None else min(self.batch_tokens, self._reduced_tokens)

    def _reduce_budget(self, layout: Layout) -> None:
        """Halve the token budget to below the size of a batch that was too large."""
        if len(layout.lengths) == 1:
            raise InputError(
                f"a sequence of {layout.total:,} tokens does not fit into the memory of {device_name(self.device)}; "
                "use --device cpu, or leave it out"
            )
        smaller = max(1, min(self._budget(), layout.total) // 2)
        if smaller < self._budget():
            if self._reduced_tokens is None:
                logger.warning(
                    "%s is out of memory: continuing with batches of at most %s tokens (--batch-tokens)",
                    device_name(self.device),
                    f"{smaller:,}",
                )
            self._reduced_tokens = smaller

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """This engine's types and number of threads for a while, whatever the caller's are."""
        announce, self.announce = self.announce, None
        if announce is not None:
            announce(f"device: {self.describe()}")
        before, threads = torch.get_num_threads(), getattr(_batch, "threads", self._threads)
        if threads is not None and threads != before:
            torch.set_num_threads(threads)
        try:
            with torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            if threads is not None and threads != before:
                torch.set_num_threads(before)

    def __reduce__(self) -> Any:
        # Packed weights cannot be copied: a copy loads or packs the model again.
        settings: dict[str, Any] = {"adapter": self._adapter, "threads": self._threads}
        settings |= {"batch_tokens": self.batch_tokens, "device": self.device}
        return partial(Engine, self._source, self.precision, **settings), ()


def fingerprint(model: RiNALMo) -> str:
    """A hash of a model's config, vocabulary and small tensors, all of which any training changes."""
    digest = hashlib.sha256(repr((model.config, model.alphabet.tokens)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.dim() < 2 or name == "encoder.embedding.weight":
            digest.update(tensor.float().cpu().numpy().tobytes())
    digest.update(model.adapter_sha256.encode())
    return digest.hexdigest()


def _pack_and_free(block: EncoderBlock, *, blocks: list[FastBlock], precision: PackedPrecision) -> None:
    """Pack a block's weights and free its matrices; its small tensors become copies, not views of the file."""
    blocks.append(FastBlock(block, precision))
    for module in block.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kept = parameter.to("meta") if parameter.dim() > 1 else parameter.clone()
            setattr(module, name, torch.nn.Parameter(kept, requires_grad=False))
    _trim_heap()


def _trim_heap() -> None:
    """Return freed memory to the system; glibc keeps the gaps between what is in use, such as packed weights."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


# --- The cache of engines ---

_cache: OrderedDict[tuple[Any, ...], Engine] = OrderedDict()
_cache_lock = Lock()


def map_encoded(
    engine: Engine, items: Iterable[Item], encode_item: Callable[[Item], np.ndarray], compute: Compute[R]
) -> Iterator[tuple[Item, R]]:
    """Each item with its result, in order: `engine.map` over the token ids of all items."""
    items, ahead = tee(items)
    for result, item in zip(engine.map(compute, map(encode_item, ahead)), items, strict=False):
        yield item, result


def as_engine(
    model: str | Path | RiNALMo | Engine,
    device: DeviceLike = None,
    precision: Precision = "fp32",
    *,
    adapter: str | Path | None = None,
    threads: int | None = None,
    batch_tokens: int | None = None,
) -> Engine:
    """An `Engine` for a model; an `Engine` is returned as it is, whatever the other settings.

    The last two engines of models given by name or path are cached, so that a second call with the same settings
    neither loads nor packs the model again, with this adapter or another. A changed file is loaded anew.
    `clear_engine_cache` empties the cache.

    Raises:
        InputError: An `Engine` together with a device other than its own; for other models, as `Engine`.
    """
    if isinstance(model, Engine):
        if str(device or "auto") != "auto" and choose_device(device) != choose_device(model.device):
            raise InputError(f"this engine runs on {model.device}; create another Engine for {device}")
        return model
    settings: dict[str, Any] = {"threads": threads, "batch_tokens": batch_tokens, "device": device}
    if adapter is not None:
        return as_engine(model, precision=precision, **settings).with_adapter(adapter)
    build = partial(Engine, model, precision, **settings)
    if isinstance(model, RiNALMo) or not isinstance(model, str | Path):
        return build()
    path, states = resolve(model), list[tuple[str, int, int]]()
    for file in sorted(filter(Path.is_file, path.iterdir())) if path.is_dir() else [path]:
        state = file.stat()
        states.append((str(file), state.st_size, state.st_mtime_ns))
    computing = (choose_device(device), precision, threads, batch_tokens, os.environ.get("RINALMO_CPU"))
    key = (path.absolute(), tuple(states), computing)
    with _cache_lock:
        engine = _cache.pop(key, None) or build()
        _cache[key] = engine
        while len(_cache) > CACHED_ENGINES:
            _cache.popitem(last=False)
    return engine


def clear_engine_cache() -> None:
    """Free the engines that `embed`, `fill_mask`, `score`, `fold`, `predict` and `evaluate` cache for later calls.

    Examples:
        >>> import rinalmo
        >>> rinalmo.clear_engine_cache()
    """
    with _cache_lock:
        _cache.clear()
    _trim_heap()
