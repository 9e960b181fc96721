"""What inference uses of this processor: the instructions it has, up to the cap in `RINALMO_CPU`.

    RINALMO_CPU=plain   the encoder of `rinalmo.model`, in fp32; no packed weights
    RINALMO_CPU=fp32    packed weights, in fp32
    RINALMO_CPU=bf16    up to bfloat16, or float16
    RINALMO_CPU=int8    no cap; the default

The variable is read whenever it matters, so a program may set it after importing this package.
"""

from __future__ import annotations

import os

import torch

from rinalmo.errors import InputError

VARIABLE = "RINALMO_CPU"
LEVELS = ("plain", "fp32", "bf16", "int8")


def cpu_cap() -> str:
    """The most that may be used: one of `LEVELS`.

    Raises:
        InputError: If `RINALMO_CPU` has another value.
    """
    level = os.environ.get(VARIABLE) or LEVELS[-1]
    if level not in LEVELS:
        raise InputError(f"{VARIABLE} is {level!r}; use one of {', '.join(LEVELS)}, or unset it for no cap")
    return level


def has_onednn() -> bool:
    """Whether this build of torch has the oneDNN operators that `packed_linear` is made of; on a Mac it has not."""
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
    if not _within_cap(precision) or not has_onednn():
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
    """Accept a precision that was asked for by name.

    Raises:
        InputError: If it is beyond the cap, or is int8 and this processor would compute it far too slowly.
    """
    if precision != "auto" and not _within_cap(precision):
        raise InputError(
            f"precision {precision!r} is beyond the cap {VARIABLE}={cpu_cap()}; use 'auto', or lift the cap"
        )
    if precision == "int8" and not is_native("int8"):
        raise InputError(
            "precision 'int8' needs an x86 processor with AVX-512 VNNI, and torch with oneDNN; use 'auto' or 'fp32'"
        )


def _within_cap(precision: str) -> bool:
    level = "bf16" if precision == "fp16" else precision  # which GPUs compute in, and training on a CPU can
    return LEVELS.index(level) <= max(LEVELS.index(cpu_cap()), LEVELS.index("fp32"))
