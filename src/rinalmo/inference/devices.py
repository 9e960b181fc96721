"""Devices: which one computes, in which precision, and how many tokens at once.

`auto` takes CUDA, then MPS (Apple's GPUs), then the CPU. Reduced precision is taken by default only where the
device multiplies it natively:

    CUDA   bf16 from compute capability 8.0 on, fp16 on older GPUs
    MPS    fp32 (it has no fp64 at all; sums that the CPU keeps in fp64 are fp32 there)
    CPU    bf16 with AVX-512 BF16 or AMX, fp32 elsewhere; no more than `RINALMO_CPU` allows (see `cpu`)
"""

from __future__ import annotations

import gc
from typing import Literal, get_args

import torch

from rinalmo.errors import InputError
from rinalmo.inference.cpu import check_precision, is_native

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
DeviceLike = torch.device | str | None

CPU_BATCH_TOKENS = 4096
MAX_BATCH_TOKENS = 65_536
_FULL = ("MPS backend out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_BYTES_PER_TOKEN = 256 * 1024  # of device memory for each token of a batch; giga's widest layer takes about 80 kB


def choose_device(device: DeviceLike = None) -> torch.device:
    """The device to compute on.

    Args:
        device: "auto" or None, "cpu", "cuda", "cuda:N", "mps", or a `torch.device`.

    Returns:
        The device; a CUDA one always has its number, since the current device is each thread's own.

    Raises:
        InputError: no such device on this machine, or this build of torch cannot use it.
    """
    name = str(device or "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:N or mps")
    if chosen.type == "cuda":
        _require_cuda(chosen)
    elif chosen.type == "mps" and not _has_mps():
        raise InputError(f"device {name!r}: this machine has no MPS (Apple GPU), or this torch cannot use it; use cpu")
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"device {name!r} is not there, or this torch cannot use it; use cpu") from None
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps") if chosen.type == "mps" else chosen


def _require_cuda(device: torch.device) -> None:
    count = torch.cuda.device_count()
    if torch.cuda.is_available() and (device.index or 0) < count:
        return
    if torch.version.cuda is None and torch.version.hip is None:
        reason = "this torch is a build without CUDA (see https://pytorch.org/get-started)"
    elif count:
        reason = f"this machine has {count} GPU{'s' * (count > 1)}, counted from cuda:0"
    else:
        reason = "no NVIDIA GPU and driver are found"
    raise InputError(f"device {str(device)!r}: {reason}; use --device cpu or auto")


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def choose_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16", "fp16", "int8"]:
    """The precision to compute in; "auto" is the fastest that the device has natively.

    Raises:
        InputError: an unknown precision, one that this kind of device does not offer, or one beyond `RINALMO_CPU`.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision {precision!r} is unknown; use one of {', '.join(get_args(Precision))}")
    if precision == "auto":
        return native_precision(device)
    if precision == "int8" and device.type != "cpu":
        raise InputError(f"precision 'int8' is for CPUs, not for {device.type}; use 'auto'")
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision 'fp16' is for GPUs; on a CPU use 'auto', 'bf16' or 'fp32'")
    if device.type == "cpu":
        check_precision(precision)
    return precision  # type: ignore[return-value]


def native_precision(device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The fastest floating-point precision that the device multiplies natively."""
    if device.type == "cuda":
        native = torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
        return "bf16" if native else "fp16"
    return "bf16" if device.type == "cpu" and is_native("bf16") else "fp32"


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of a batch, by the device's memory; 4,096 on a CPU, whose caches larger batches would leave."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    elif device.type == "mps":
        memory = torch.mps.recommended_max_memory()
    else:
        return CPU_BATCH_TOKENS
    return max(CPU_BATCH_TOKENS, min(MAX_BATCH_TOKENS, memory // _BYTES_PER_TOKEN // 1024 * 1024))


def device_name(device: torch.device) -> str:
    """The device for a reader, such as `cuda:0 (NVIDIA H200)` or `cpu`."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return f"cuda:{index} ({torch.cuda.get_device_name(index)})"
    return "mps (Apple GPU)" if device.type == "mps" else device.type


def sum_dtype(device: torch.device) -> torch.dtype:
    """The type for long sums on a device: fp64, or fp32 on MPS, which has no fp64."""
    return torch.float32 if device.type == "mps" else torch.float64


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is full; MPS and CUDA's libraries raise a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in _FULL)
    )


def release_memory(device: torch.device) -> None:
    """Give cached blocks of a GPU's memory back, so that smaller ones can be had in their place."""
    if device.type == "cpu":
        return
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
