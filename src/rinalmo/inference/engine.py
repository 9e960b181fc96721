"""`Engine`: a model made ready to compute many sequences fast."""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from rinalmo.errors import InputError
from rinalmo.inference.batching import BATCH_TOKENS, map_packed
from rinalmo.inference.fast_encoder import FastBlock, FastEncoder
from rinalmo.inference.fast_encoder import Precision as FastPrecision
from rinalmo.inference.inputs import require_whole
from rinalmo.inference.packed_linear import is_available, is_native
from rinalmo.model.block import EncoderBlock
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import ModelSpec, RiNALMo
from rinalmo.weights.checkpoint import load

Precision = Literal["auto", "fp32", "bf16", "int8"]
R = TypeVar("R")
Item = TypeVar("Item")
Advance = Callable[[int], Any]  # called with how many more are done
# What an engine is to do with each of many items. It may travel to other processes, so it has to be picklable.
Job = Callable[["Engine", Advance], Callable[[Item], R]]


class Engine:
    """A model, a precision, a number of threads and a token budget per batch.

    model         a loaded `RiNALMo`, or a catalog name, folder or file. What is loaded here keeps one copy of the
                  weights: on a CPU the packed one, and `engine.model.encoder` is then left without its matrices
    precision     "fp32"; "bf16"; "int8" (weights and activations of matrix products, bf16 elsewhere; CPUs with VNNI);
                  "auto": bf16 where the processor multiplies it natively, fp32 elsewhere
    threads       CPU threads for this process; torch's own choice if None
    batch_tokens  tokens computed at once; memory grows with it, results do not depend on it
    device        "cpu" or a CUDA device; where a loaded model is already if None

    Raises InputError for a precision that is unknown or not for this processor, a budget or threads below 1, and a
    device that is not there.
    """

    def __init__(
        self,
        model: str | Path | RiNALMo = "nano",
        precision: Precision = "auto",
        *,
        threads: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        device: torch.device | str | None = None,
    ) -> None:
        if precision not in get_args(Precision):
            raise InputError(f"precision {precision!r} is unknown; use one of {', '.join(get_args(Precision))}")
        require_whole("batch_tokens", batch_tokens)
        if threads is not None:
            require_whole("threads", threads)
        if not isinstance(model, str | Path | RiNALMo):
            raise InputError(
                f"a {type(model).__name__} is no model here; give a name, a path or what rinalmo.load gives"
            )
        if threads is not None:
            torch.set_num_threads(threads)
        self._given = model, device
        self.device = _device_of(model) if device is None else _usable(device)
        self.batch_tokens = batch_tokens
        self.precision: Precision = native_precision(self.device) if precision == "auto" else precision
        packs = self._packs()
        blocks: list[FastBlock] = []
        if isinstance(model, RiNALMo):
            self.model = model if device is None else model.to(device)
        else:
            take = partial(_take, blocks=blocks, precision=self.precision)  # type: ignore[arg-type]
            self.model = load(model, device=self.device, consume=take if packs else None)
        self._fast = FastEncoder(self.model.encoder, self.precision, blocks) if packs else None  # type: ignore[arg-type]

    @property
    def fingerprint(self) -> str:
        """A hash of config, vocabulary and the small tensors, which no training leaves as they were."""
        digest = hashlib.sha256(repr((self.model.config, self.model.alphabet.tokens)).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            if tensor.dim() < 2 or name == "encoder.embedding.weight":
                digest.update(tensor.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def spec(self) -> ModelSpec:
        """What the model is built from."""
        return self.model.spec

    def run(self, job: Job[Item, R], items: Iterable[tuple[int, Item]], advance: Advance) -> Iterator[tuple[int, R]]:
        """The job on numbered items, in this process. A `RayEngine` does the same in many, and in any order."""
        compute = job(self, advance)
        for number, item in items:
            yield number, compute(item)

    @torch.inference_mode()
    def hidden_states(self, ids: Tensor, layout: Layout, layers: Sequence[int]) -> list[Tensor]:
        """The packed states of the chosen layers (0 is the embedding, the number of blocks the final norm), fp32."""
        if self._fast is not None:
            with self._as_written():
                return self._fast(ids, layout, layers)
        last = self.model.config.num_hidden_layers
        with (
            _evaluating(self.model),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"),
        ):
            out = self.model.encoder(ids, layout, output_hidden_states=any(layer != last for layer in layers))
        states = out.hidden_states or ()
        return [(out.last_hidden_state if layer == last else states[layer]).float() for layer in layers]

    def _packs(self) -> bool:
        """Whether the encoder's weights are packed for this processor; elsewhere the plain one has to do."""
        fits = self.device.type == "cpu" and is_available()
        if self.precision == "int8" and not (fits and is_native("int8")):
            raise InputError(
                "precision 'int8' needs an x86 processor with AVX-512 VNNI, and torch with oneDNN; use 'auto' or 'fp32'"
            )
        return fits and is_native(self.precision)

    def map(self, compute: Callable[[Tensor, Layout], Sequence[R]], sequences: Iterable[np.ndarray]) -> Iterator[R]:
        """`compute` over all sequences of ids, packed into batches; results one by one, in the order of the input."""
        compute = self._as_written()(compute)
        return map_packed(compute, sequences, batch_tokens=self.batch_tokens, device=self.device)

    def _as_written(self) -> torch.autocast:
        """The types are the engine's own, also where the caller has autocast on."""
        return torch.autocast(self.device.type, enabled=False)

    def __reduce__(self) -> Any:
        # Packed weights cannot be copied. The number of threads is the process's own affair.
        model, device = self._given
        return _made, (model, self.precision, self.batch_tokens, device)


def _made(
    model: str | Path | RiNALMo, precision: Precision, batch_tokens: int, device: torch.device | str | None
) -> Engine:
    return Engine(model, precision, batch_tokens=batch_tokens, device=device)


def _take(block: EncoderBlock, *, blocks: list[FastBlock], precision: FastPrecision) -> None:
    """Pack a block's weights and leave the block without its matrices; what is small it keeps as its own."""
    blocks.append(FastBlock(block, precision))
    for module in block.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kept = parameter.to("meta") if parameter.dim() > 1 else parameter.clone()
            setattr(module, name, torch.nn.Parameter(kept, requires_grad=False))
    _give_back()


def _give_back() -> None:
    """Hand freed memory to the system. glibc keeps the gaps between packed weights, a third of their size in fp32."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _usable(device: torch.device | str) -> torch.device:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # the latter where torch was built without CUDA
        raise InputError(f"device {str(device)!r} is not there, or this torch cannot use it") from None
    return torch.device(device)


def _device_of(model: str | Path | RiNALMo) -> torch.device:
    return model.encoder.embedding.weight.device if isinstance(model, RiNALMo) else torch.device("cpu")


@contextmanager
def _evaluating(model: RiNALMo) -> Iterator[None]:
    """Evaluation mode for a while: a model in the middle of its training is given back as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def as_engine(model: str | Path | RiNALMo | Engine) -> Engine:
    """An engine for whatever stands for a model."""
    return model if isinstance(model, Engine) else Engine(model, "fp32")


def native_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """bf16 where the processor multiplies it natively, fp32 elsewhere."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if is_native("bf16") else "fp32"
