"""Folders and hub repositories that hold a PEFT adapter, with or without the weights of its base."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import cached_file

from rinalmo.errors import CheckpointError, MissingExtraError
from rinalmo.weights.files import PICKLE, SHARDS, WEIGHTS
from rinalmo.weights.layouts import listed

if TYPE_CHECKING:
    from rinalmo.hf.pretrained import RiNALMoPreTrainedModel

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LAST_LAYER = re.compile(r"_head\.decoder\.(base_layer\.)?weight$")


@dataclass(frozen=True)
class Adapter:
    """Where an adapter is and which base model it belongs on."""

    source: str
    base: str
    hub: dict[str, Any]

    def num_labels(self) -> int | None:
        """Number of labels of the head that was saved with the adapter; None if there is none."""
        from safetensors import safe_open

        path = _file(self.source, _WEIGHTS, self.hub)
        if path is None:
            return None
        with safe_open(path, framework="pt") as tensors:
            heads = [name for name in tensors.keys() if _LAST_LAYER.search(name)]  # noqa: SIM118  no mapping
            return tensors.get_slice(heads[0]).get_shape()[0] if heads else None

    def apply(self, model: RiNALMoPreTrainedModel, name: str) -> None:
        """Load the adapter onto its base.

        Args:
            model: The base model.
            name: The adapter's name in the model.

        Raises:
            CheckpointError: If the adapter does not fit.
            MissingExtraError: If peft is not installed.
        """
        try:
            import peft  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtraError("peft", "lora", f"{self.source}: loading an adapter") from None
        info = model.load_adapter(self.source, adapter_name=name, adapter_kwargs=dict(self.hub))
        wrong = {*info.missing_keys, *info.unexpected_keys, *(key for key, *_ in info.mismatched_keys)}
        if wrong:
            raise CheckpointError(f"{self.source}: the adapter does not fit {type(model).__name__}: {listed(wrong)}")
        model.eval()


def find_adapter(source: str | Path, given: str | None, hub: dict[str, Any]) -> Adapter | None:
    """The adapter that a folder or hub repository holds.

    Args:
        source: What `from_pretrained` was asked for, or the base that an Auto class found for it.
        given: Where an Auto class has found the adapter.
        hub: Options of hub downloads.

    Returns:
        The adapter; None if there is none.

    Raises:
        CheckpointError: If there are no weights beside it and its config names no base model.
    """
    place = str(source if given is None else given)
    path = _file(place, _CONFIG, hub)
    if path is None:
        return None
    if given is not None and str(source) != place:
        base: str | None = str(source)
    elif any((Path(path).parent / name).is_file() for name in (WEIGHTS, SHARDS, PICKLE)):
        base = place
    else:
        base = json.loads(Path(path).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise CheckpointError(f"{place}: an adapter without weights of its base, and {_CONFIG} names no base model")
    return Adapter(place, base, hub)


def _file(source: str, name: str, hub: dict[str, Any]) -> str | None:
    folder = Path(source, hub.get("subfolder") or "")
    if Path(source).exists():
        return str(folder / name) if (folder / name).is_file() else None
    if "/" not in source:
        return None
    options = {key: value for key, value in hub.items() if value is not None}
    found = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
        **options,
    )
    return None if found is None else str(found)
