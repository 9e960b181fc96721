"""From whatever `from_pretrained` was given to a config and a state dict under our names."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import cached_file

from rinalmo.errors import CheckpointError
from rinalmo.hf.configuration import RiNALMoConfig
from rinalmo.model.rinalmo import HEADS
from rinalmo.weights.catalog import find
from rinalmo.weights.checkpoint import Checkpoint, read
from rinalmo.weights.config_file import config_of
from rinalmo.weights.files import PICKLE, SHARDS, WEIGHTS, shard_names
from rinalmo.weights.layouts import listed

if TYPE_CHECKING:
    from rinalmo.hf.pretrained import RiNALMoPreTrainedModel

logger = logging.getLogger(__name__)

# Heads that PEFT's task types train and save stand under `classifier`, which is what PEFT looks for.
CLASSIFIER_PARTS = ("pooler", "sequence_head", "token_head")

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def read_for(
    model_class: type[RiNALMoPreTrainedModel],
    source: str | Path,
    config: Any,
    ignore_mismatched_sizes: bool,
    options: dict[str, Any],
) -> tuple[RiNALMoConfig, dict[str, Tensor], dict[str, Any]]:
    """The config, the tensors for `model_class`, and the options that remain for the base class."""
    hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    checkpoint = read(_local(source, hub, options.pop("variant", None)))
    if not isinstance(config, RiNALMoConfig):
        # "auto" is no dtype that a config could hold; the base class resolves it.
        dtypes: dict[str, Any] = {name: options.pop(name) for name in ("dtype", "torch_dtype") if name in options}
        config, options = RiNALMoConfig.from_dict(_config_values(checkpoint), return_unused_kwargs=True, **options)
        options |= dtypes
    _agree(config, checkpoint)
    with torch.device("meta"):
        shell = model_class(config).state_dict()
    own = {our_name(name): name for name in shell}
    expected = {ours: tuple(shell[name].shape) for ours, name in own.items()}
    fresh = _fresh_heads(checkpoint, expected, ignore_mismatched_sizes)
    unused = {_head(name) for name in checkpoint.shapes} - {_head(name) for name in expected}
    _report(model_class.__name__, source, fresh, unused)
    # Copied out of the mapped file one by one: matrix kernels round differently on unaligned memory, and a model that
    # has been saved and loaded is to give the same bits.
    state = {own[n]: t.clone() for n, t in checkpoint.tensors() if n in expected and _head(n) not in fresh}
    return config, state, options


def _config_values(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the file says, and where it says nothing what its tensors show."""
    shown = config_of(checkpoint.spec)
    if checkpoint.files.config:
        shown.pop("head", None)  # num_labels says it too, and a caller may override that
    return {**shown, **checkpoint.files.config}


def _local(source: str | Path, hub: dict[str, Any], variant: str | None) -> Path | str:
    """A folder, file or catalog name that `read` takes; a hub id is fetched into the hub's cache."""
    path = Path(source)
    names = [WEIGHTS.replace(".", f".{variant}.")] if variant else [WEIGHTS, SHARDS, PICKLE]
    if path.exists():
        path = path / hub["subfolder"] if hub.get("subfolder") else path
        return path / names[0] if variant else path
    if "/" not in str(source) and find(str(source)) and not variant:
        return str(source)
    for name in names:
        found = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False, **hub)
        if found is not None:
            break
    else:
        raise CheckpointError(
            f"{source}: no such folder, and the hub cannot be reached or its repository has no {names[0]}; "
            "`rinalmo models` lists what can be fetched by name"
        )
    for name in ("config.json", "vocab.txt"):
        cached_file(str(source), name, _raise_exceptions_for_missing_entries=False, **hub)
    if name == SHARDS:
        for shard in shard_names(Path(found)):
            cached_file(str(source), shard, **hub)
    return Path(found) if variant else Path(found).parent


def _agree(config: RiNALMoConfig, checkpoint: Checkpoint) -> None:
    """The tensors' sizes are facts; a config that contradicts them is refused before anything is built."""
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "mask_token_id"):
        said, found = getattr(config, name), getattr(checkpoint.spec.config, name)
        if said != found:
            raise CheckpointError(f"{checkpoint.files.path}: the config says {name} {said}, the tensors say {found}")


def _fresh_heads(checkpoint: Checkpoint, expected: dict[str, tuple[int, ...]], forgive: bool) -> set[str]:
    """Heads of the class that the file does not have (or, if forgiven, has in another shape)."""
    have = {_head(name) for name in checkpoint.shapes}
    fresh = {_head(name) for name in expected} - have
    for name, shape in expected.items():
        found = checkpoint.shapes.get(name)
        if found == shape or _head(name) in fresh:
            continue
        if not forgive or _head(name) not in HEADS:
            said = "missing" if found is None else f"of shape {found}"
            raise CheckpointError(f"{checkpoint.files.path}: {name} is {said}; the model needs {shape}")
        fresh.add(_head(name))
    return fresh


def our_name(name: str) -> str:
    """The name of a tensor in `rinalmo.load`'s model, from its name in a Hugging Face class."""
    return name.removeprefix("classifier.")


def _head(name: str) -> str:
    return name.split(".")[0]


@contextmanager
def quiet_report() -> Iterator[None]:
    """Keep the base class's table of missing keys back: it knows no file name, and ours has been given."""
    base = logging.getLogger("transformers.modeling_utils")
    base.addFilter(_not_a_report)
    try:
        yield
    finally:
        base.removeFilter(_not_a_report)


def _not_a_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _report(class_name: str, source: Any, fresh: set[str], unused: set[str]) -> None:
    if fresh:
        logger.warning("%s from %s: %s is new, with random weights; train it", class_name, source, listed(fresh))
    if unused:
        logger.info("%s from %s: %s is not used", class_name, source, listed(unused))
