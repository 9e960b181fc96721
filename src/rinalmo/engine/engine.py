"""Many sequences through the model, in bounded memory and in the order they came.

A window of sequences is read ahead, sorted by length so that equal lengths lie together, cut into packed batches of
at most `batch_tokens` tokens (a longer sequence is a batch of its own) and computed; its results are handed out in
input order before the next window is read.

On CUDA two threads compute, each on a stream of its own: while one waits for its results or works on the host, the
other keeps the GPU busy. The next window is then begun before the results of the last are handed out.
"""

from __future__ import annotations

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
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from rinalmo.engine.cpu_encoder import FastBlock, FastEncoder
from rinalmo.engine.cpu_encoder import Precision as PackedPrecision
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
from rinalmo.engine.inputs import require_whole
from rinalmo.errors import InputError
from rinalmo.model.config import ModelConfig
from rinalmo.model.encoder import EncoderBlock
from rinalmo.model.packing import Layout, pack
from rinalmo.model.rinalmo import ModelSpec, RiNALMo
from rinalmo.rna.alphabet import Alphabet
from rinalmo.weights.catalog import resolve
from rinalmo.weights.checkpoint import load

R = TypeVar("R")
Ids = np.ndarray
Compute = Callable[[Tensor, Layout], Sequence[R]]

_WINDOW_BATCHES = 8
_WINDOW_SEQUENCES = 4096
_CUDA_BATCHES = 2  # in flight at once
# Streams are used again: torch keeps the memory that was freed in one for that one.
_idle_streams: defaultdict[torch.device, deque[torch.cuda.Stream]] = defaultdict(deque)


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
        compute: Packed ids and their layout to one result per sequence. With several batches in flight it is called
            from several threads. Results that are tensors on a CUDA device are brought to the host.
        sequences: Token ids, one array each; read in the caller's thread.
        batch_tokens: Tokens of a batch, asked before each window: it may shrink when a device's memory turns out to be
            too small.
        device: Where `compute` expects its input.
        in_flight: Batches computed at once; two on CUDA, else one, if None.

    Yields:
        Results in the order of the input.
    """
    device = torch.device(device)
    worker = _Worker(compute, device)
    count = in_flight or (_CUDA_BATCHES if device.type == "cuda" else 1)
    if count > 1:
        yield from _overlapping(worker, sequences, batch_tokens, count)
        return
    for window in windows(sequences, lambda: _WINDOW_BATCHES * batch_tokens()):
        results: list[R | None] = [None] * len(window)
        for batch in _batches(window, batch_tokens()):
            for i, result in zip(batch, worker([window[i] for i in batch]), strict=True):
                results[i] = result
        yield from results  # type: ignore[misc]  # every place has been filled


def _overlapping(
    worker: _Worker[R], sequences: Iterable[Ids], batch_tokens: Callable[[], int], count: int
) -> Iterator[R]:
    """As `map_packed`, with `count` batches in flight."""
    source = windows(sequences, lambda: _WINDOW_BATCHES * batch_tokens())
    before: list[_Started[R]] = []
    with ThreadPoolExecutor(count, thread_name_prefix="rinalmo-batch") as pool:
        try:
            while True:
                failure: Exception | None = None
                try:
                    window = next(source, None)
                except Exception as error:  # of the input: what came before it is handed out first
                    failure, window = error, None
                started: list[_Started[R]] = []
                for batch in _batches(window or [], batch_tokens()):
                    ids = [window[i] for i in batch]  # type: ignore[index]
                    started.append(_Started(batch, ids, pool.submit(worker, ids)))
                yield from _finished(before, worker, started)
                before = started
                if failure is not None:
                    raise failure
                if window is None:
                    return
        finally:
            pool.shutdown(cancel_futures=True)


class _Started(Generic[R]):
    """A batch that is being computed: its places in the window, its ids, and what will come of it."""

    def __init__(self, places: list[int], ids: list[Ids], results: Future[Sequence[R]]) -> None:
        self.places, self.ids, self.results = places, ids, results


def _finished(batches: list[_Started[R]], worker: _Worker[R], later: list[_Started[R]]) -> list[R]:
    """The results of a window's batches in the order of the input."""
    results: dict[int, R] = {}
    for batch in batches:
        try:
            found = batch.results.result()
        except Exception:
            # Alone it may have the memory that it lacked beside another.
            wait([other.results for other in (*batches, *later)])
            found = worker(batch.ids)
        results.update(zip(batch.places, found, strict=True))
    return [results[place] for place in range(len(results))]


class _Worker(Generic[R]):
    """Computes a batch; on CUDA in a stream of its own."""

    def __init__(self, compute: Compute[R], device: torch.device) -> None:
        self.compute, self.device = compute, device

    def __call__(self, sequences: Sequence[Ids]) -> Sequence[R]:
        with self._stream():
            ids, layout = pack((torch.from_numpy(sequence) for sequence in sequences), self.device)
            return _results_on_host(self.compute(ids, layout))

    @contextmanager
    def _stream(self) -> Iterator[None]:
        if self.device.type != "cuda":
            yield
            return
        idle = _idle_streams[self.device]
        try:
            stream = idle.pop()
        except IndexError:
            stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.default_stream(self.device))  # where weights may still be on their way
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            idle.append(stream)


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies on the host: all transfers at once, into pinned memory, and one wait. What is on the host stays as it is.

    The wait is for the current stream alone.
    """
    if not any(tensor.is_cuda for tensor in tensors):
        return tuple(tensor.cpu() for tensor in tensors)
    pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(pinned, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    done.synchronize()
    return tuple(copy.clone() for copy in pinned)  # results may be kept for long, and pinned memory is scarce


def _results_on_host(results: Sequence[R]) -> Sequence[R]:
    if isinstance(results, Tensor):
        return to_host(results)[0] if results.is_cuda else results
    found: list[Any] = list(results)
    places = [place for place, result in enumerate(found) if isinstance(result, Tensor) and result.is_cuda]
    for place, copy in zip(places, to_host(*(found[place] for place in places)) if places else (), strict=True):
        found[place] = copy
    return found


def _batches(window: Sequence[Ids], batch_tokens: int) -> Iterator[list[int]]:
    return cut(sorted(range(len(window)), key=lambda i: len(window[i])), window, batch_tokens)


def windows(sequences: Iterable[Ids], tokens: Callable[[], int]) -> Iterator[list[Ids]]:
    """Stretches of the input with about `tokens()` tokens, never empty."""
    window: list[Ids] = []
    total = 0
    for sequence in sequences:
        window.append(sequence)
        total += len(sequence)
        if total >= tokens() or len(window) >= _WINDOW_SEQUENCES:
            yield window
            window, total = [], 0
    if window:
        yield window


def cut(order: Iterable[int], window: Sequence[Ids], batch_tokens: int) -> Iterator[list[int]]:
    """Consecutive groups of `order` with at most `batch_tokens` tokens; an oversized sequence goes alone."""
    batch: list[int] = []
    total = 0
    for i in order:
        if batch and total + len(window[i]) > batch_tokens:
            yield batch
            batch, total = [], 0
        batch.append(i)
        total += len(window[i])
    if batch:
        yield batch


logger = logging.getLogger(__name__)

CACHED_ENGINES = 2

Item = TypeVar("Item")
Advance = Callable[[int], Any]  # called with how many more are done
# What an engine is to do with each of many items. It may travel to other processes, so it has to be picklable.
Job = Callable[["Engine", Advance], Callable[[Item], R]]


class Engine:
    """A model, a device, a precision, a number of threads and a token budget per batch.

    Args:
        model: A loaded `RiNALMo`, or a catalog name, folder or file. What is loaded here keeps one copy of the
            encoder's weights: on a CPU the packed one.
        precision: "fp32"; "bf16"; "fp16" (GPUs); "int8" (weights and activations of matrix products, bf16
            elsewhere; CPUs with VNNI); "auto": bf16, or fp16 on a GPU without it, where the device multiplies it
            natively, fp32 elsewhere.
        threads: CPU threads while this engine computes; torch's own choice if None.
        batch_tokens: Tokens computed at once; memory grows with it, results do not depend on it. None: 4,096 on a
            CPU, by its memory on a GPU. When a GPU's memory is full, the engine halves it and goes on.
        device: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N", "mps". None: where a loaded model
            is, "auto" for anything else.

    Raises:
        InputError: A precision that is unknown or not for this processor, a budget or threads below 1, or a device
            that this machine does not have.

    Example:
        >>> import rinalmo
        >>> engine = rinalmo.Engine("nano", "fp32", device="cpu")
        >>> rinalmo.embed(["GGGAAAUCCC"], engine).shape
        (1, 320)
    """

    announce: Callable[[str], Any] | None = None  # called once, with `describe()`, before the first batch
    _fitting_tokens: int | None = None  # the most that a full memory has left; `batch_tokens` stays what was asked for

    def __init__(
        self,
        model: str | Path | RiNALMo = "nano",
        precision: Precision = "auto",
        *,
        threads: int | None = None,
        batch_tokens: int | None = None,
        device: DeviceLike = None,
    ) -> None:
        if batch_tokens is not None:
            require_whole("batch_tokens", batch_tokens)
        if threads is not None:
            require_whole("threads", threads)
        if not isinstance(model, str | Path | RiNALMo):
            raise InputError(
                f"a {type(model).__name__} is no model here; give a name, a path or what rinalmo.load gives"
            )
        given = isinstance(model, RiNALMo)
        self._source, self._threads = model, threads
        self.device = _device_of(model) if given and device is None else choose_device(device)  # type: ignore[arg-type]
        self.precision: Precision = choose_precision(precision, self.device)
        self.batch_tokens = default_batch_tokens(self.device) if batch_tokens is None else batch_tokens
        self.head_model: RiNALMo
        self._encoder: GpuEncoder | FastEncoder | None
        try:
            self.head_model, self._encoder = self._on_cpu(model) if self.device.type == "cpu" else self._on_gpu(model)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"the model does not fit into the memory of {device_name(self.device)}; use --device cpu"
            ) from None

    def _on_cpu(self, model: str | Path | RiNALMo) -> tuple[RiNALMo, FastEncoder | None]:
        """The model, and its encoder with weights packed for this processor where that can be done."""
        packs, blocks = packs_weights(self.precision), list[FastBlock]()
        if isinstance(model, RiNALMo):
            heads = model.to(self.device)
        else:
            pack_block: Any = partial(_pack_and_free, blocks=blocks, precision=self.precision)  # type: ignore[arg-type]
            heads = load(model, consume=pack_block if packs else None)
        return heads, FastEncoder(heads.encoder, self.precision, blocks) if packs else None  # type: ignore[arg-type]

    def _on_gpu(self, model: str | Path | RiNALMo) -> tuple[RiNALMo, GpuEncoder]:
        """The model with its heads on the device, and its encoder there, cast once."""
        if isinstance(model, RiNALMo):
            heads = model.to(self.device)
        else:
            heads = load(model)  # the encoder's own weights stay mapped; only the cast ones take memory
            for name in heads.spec.heads:
                heads.head(name).to(self.device)
        return heads, GpuEncoder(heads.encoder, self.precision, device=self.device)  # type: ignore[arg-type]

    @property
    def model(self) -> RiNALMo:
        """The whole model, to embed with, to save, or to make another engine of.

        A model that this engine has loaded and packed is loaded again; its weights are mapped, not copied.

        Raises:
            InputError: The file has been changed since the engine loaded it.
        """
        if isinstance(self._source, RiNALMo) or self._encoder is None:
            return self.head_model
        whole = load(self._source, device=self.device)
        if fingerprint(whole) != self.fingerprint:
            raise InputError(f"{self._source}: was changed since it was loaded; make a new Engine")
        return whole

    @property
    def fingerprint(self) -> str:
        """A hash of config, vocabulary and the small tensors, which no training leaves as they were."""
        return fingerprint(self.head_model)

    @property
    def spec(self) -> ModelSpec:
        """What the model is built from."""
        return self.head_model.spec

    @property
    def config(self) -> ModelConfig:
        """The encoder's sizes."""
        return self.spec.config

    @property
    def alphabet(self) -> Alphabet:
        """The tokens that the model's ids stand for."""
        return self.spec.alphabet

    def head(self, name: str) -> nn.Module:
        """One of the model's heads; raises CheckpointError if it does not have it."""
        return self.head_model.head(name)

    def describe(self) -> str:
        """Device and precision in a few words, such as `cpu, bf16`."""
        return f"{device_name(self.device)}, {self.precision}"

    def run(self, job: Job[Item, R], items: Iterable[tuple[int, Item]], advance: Advance) -> Iterator[tuple[int, R]]:
        """The job on numbered items, in this process. A `RayEngine` does the same in many, and in any order."""
        compute = job(self, advance)
        for number, item in items:
            yield number, compute(item)

    @torch.inference_mode()
    def hidden_states(self, ids: Tensor, layout: Layout, layers: Sequence[int]) -> list[Tensor]:
        """The packed states of the chosen layers (0 is the embedding, the number of blocks the final norm), fp32."""
        with self._computing():
            if self._encoder is not None:
                return self._encoder(ids, layout, layers)
            last = self.config.num_hidden_layers
            with (
                _evaluating(self.head_model),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"),
            ):
                intermediate = any(layer != last for layer in layers)
                out = self.head_model.encoder(ids, layout, output_hidden_states=intermediate)
            states = out.hidden_states or ()
            return [(out.last_hidden_state if layer == last else states[layer]).float() for layer in layers]

    def map(self, compute: Callable[[Tensor, Layout], Sequence[R]], sequences: Iterable[np.ndarray]) -> Iterator[R]:
        """`compute` over all sequences of ids, packed into batches; results one by one, in the order of the input.

        A batch that does not fit into the device's memory is computed in halves, and all that follow are smaller.

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
            # Outside of the except clause: its traceback keeps the tensors alive that have to go.
            release_memory(self.device)
            self._require_smaller(layout)
            return [result for part in _halves(ids, layout) for result in compute_batch(*part)]

        return map_packed(compute_batch, sequences, batch_tokens=self._budget, device=self.device)

    def _budget(self) -> int:
        return self.batch_tokens if self._fitting_tokens is None else min(self.batch_tokens, self._fitting_tokens)

    def _require_smaller(self, layout: Layout) -> None:
        """Halve the token budget to below the size of a batch that was too large."""
        if len(layout.lengths) == 1:
            raise InputError(
                f"a sequence of {layout.total:,} tokens does not fit into the memory of {device_name(self.device)}; "
                "use --device cpu, or leave it out"
            )
        smaller = max(1, min(self._budget(), layout.total) // 2)
        if smaller < self._budget():
            if self._fitting_tokens is None:
                logger.warning(
                    "%s is out of memory: going on with batches of %s tokens and fewer (--batch-tokens)",
                    device_name(self.device),
                    f"{smaller:,}",
                )
            self._fitting_tokens = smaller

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """This engine's own types and threads for a while, whatever the caller's are."""
        announce, self.announce = self.announce, None
        if announce is not None:
            announce(self.describe())
        before = torch.get_num_threads()
        if self._threads is not None and self._threads != before:
            torch.set_num_threads(self._threads)
        try:
            with torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            if self._threads is not None and self._threads != before:
                torch.set_num_threads(before)

    def __reduce__(self) -> Any:
        # Packed weights cannot be copied.
        settings = {"threads": self._threads, "batch_tokens": self.batch_tokens, "device": self.device}
        return _rebuild, (self._source, self.precision, settings)


def _rebuild(model: str | Path | RiNALMo, precision: Precision, settings: dict[str, Any]) -> Engine:
    return Engine(model, precision, **settings)


def fingerprint(model: RiNALMo) -> str:
    """A hash of a model's config, vocabulary and small tensors, which no training leaves as they were."""
    digest = hashlib.sha256(repr((model.config, model.alphabet.tokens)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.dim() < 2 or name == "encoder.embedding.weight":
            digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _pack_and_free(block: EncoderBlock, *, blocks: list[FastBlock], precision: PackedPrecision) -> None:
    """Pack a block's weights and leave the block without its matrices; what is small it keeps as its own."""
    blocks.append(FastBlock(block, precision))
    for module in block.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kept = parameter.to("meta") if parameter.dim() > 1 else parameter.clone()
            setattr(module, name, torch.nn.Parameter(kept, requires_grad=False))
    _trim_heap()


def _trim_heap() -> None:
    """Hand freed memory to the system. glibc keeps the gaps between packed weights, a third of their size in fp32."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _device_of(model: RiNALMo) -> torch.device:
    return model.encoder.embedding.weight.device


def _halves(ids: Tensor, layout: Layout) -> Iterator[tuple[Tensor, Layout]]:
    """The sequences of a packed batch in two parts."""
    middle = len(layout.lengths) // 2
    start = 0
    for part in (slice(None, middle), slice(middle, None)):
        half = Layout(layout.lengths[part], layout.device, layout.valid_lengths[part])
        yield ids[start : start + half.total], half
        start += half.total


@contextmanager
def _evaluating(model: RiNALMo) -> Iterator[None]:
    """Evaluation mode for a while: a model in the middle of its training is given back as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


_cache: OrderedDict[tuple[Any, ...], Engine] = OrderedDict()
_cache_lock = Lock()


def as_engine(
    model: str | Path | RiNALMo | Engine,
    device: DeviceLike = None,
    precision: Precision = "fp32",
    *,
    threads: int | None = None,
    batch_tokens: int | None = None,
) -> Engine:
    """An `Engine` for a model; an `Engine` is returned as it is, whatever the other settings.

    The last two engines of models given by name or path are cached, so that a second call with the same settings
    neither loads nor packs the model again. A changed file is loaded anew. `clear_engine_cache` empties the cache.

    Raises:
        InputError: An `Engine` together with a device other than its own; for other models, as `Engine`.
    """
    if isinstance(model, Engine):
        if str(device or "auto") != "auto" and choose_device(device) != choose_device(model.device):
            raise InputError(f"the engine computes on {model.device}; make another Engine for {device}")
        return model
    build = partial(Engine, model, precision, threads=threads, batch_tokens=batch_tokens, device=device)
    if isinstance(model, RiNALMo) or not isinstance(model, str | Path):
        return build()
    path = resolve(model)
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    states = tuple((file.name, state.st_size, state.st_mtime_ns) for file in files if (state := file.stat()))
    settings = (choose_device(device), precision, threads, batch_tokens, os.environ.get("RINALMO_CPU"))
    key = (path.absolute(), states, settings)
    with _cache_lock:
        engine = _cache.pop(key, None) or build()
        _cache[key] = engine
        while len(_cache) > CACHED_ENGINES:
            _cache.popitem(last=False)
    return engine


def clear_engine_cache() -> None:
    """Forget the engines that `embed`, `fill_mask`, `score`, `fold`, `predict` and `evaluate` keep for later calls.

    Example:
        >>> import rinalmo
        >>> rinalmo.clear_engine_cache()
    """
    with _cache_lock:
        _cache.clear()
    _trim_heap()
