"""Finding, reading and completing the folders and hub repositories of the Hugging Face classes.

A repository holds a model in any layout, or a PEFT adapter with or without the weights of its base.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import cached_file

import rinalmo
from rinalmo.errors import CheckpointError, InputError, import_extra
from rinalmo.hf.configuration import RiNALMoConfig
from rinalmo.io.cards import render_card
from rinalmo.io.files import read_json
from rinalmo.model.rinalmo import HEADS
from rinalmo.rna.alphabet import CARD_TOKENS, STANDARD_TOKENS, Alphabet
from rinalmo.weights.adapters import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS
from rinalmo.weights.catalog import find
from rinalmo.weights.checkpoint import (
    PICKLE,
    SHARDS,
    TOKENIZER_CONFIG,
    WEIGHTS,
    config_of,
    read,
    require_weights,
    shard_names,
)
from rinalmo.weights.layouts import listed

if TYPE_CHECKING:
    from rinalmo.hf.modeling import RiNALMoPreTrainedModel

logger = logging.getLogger(__name__)

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# Heads for the same thing: a fresh one is never made in silence beside a trained one.
_ALIKE = (
    {"sequence_head", "linear_head", "ribosome_load_head", "splice_site_head", "ncrna_family_head"},
    {"structure_head", "partner_head"},
)
_LAST_LAYER = re.compile(r"_head\.decoder\.(base_layer\.)?weight$")


@dataclass(frozen=True)
class Adapter:
    """Where an adapter is, which base model it belongs on, and the options of hub downloads."""

    source: str
    base: str
    hub: dict[str, Any]

    def head_options(self) -> dict[str, Any]:
        """What the config of a model says of the head that was saved with the adapter; empty if there is none."""
        from safetensors import safe_open

        path = _find_file(self.source, ADAPTER_WEIGHTS, self.hub)
        if path is None:
            return {}
        require_weights(Path(path))
        with safe_open(path, framework="pt") as tensors:
            heads = [name for name in tensors.keys() if _LAST_LAYER.search(name)]  # noqa: SIM118  no mapping
            if not heads:
                return {}
            options: dict[str, Any] = {"num_labels": tensors.get_slice(heads[0]).get_shape()[0]}
        config = _read_config(self.source, self.hub)
        options |= {name: config[name] for name in ("pooling", "problem_type") if config.get(name)}
        if config.get("id2label"):
            options["id2label"] = {int(index): label for index, label in config["id2label"].items()}
            options["label2id"] = {label: index for index, label in options["id2label"].items()}
        return options

    def apply(self, model: RiNALMoPreTrainedModel, name: str) -> None:
        """Load the adapter onto its base model, under this name.

        Raises CheckpointError if it does not fit, MissingExtraError without peft.
        """
        import_extra("peft", "lora", f"{self.source}: loading an adapter")
        info = model.load_adapter(self.source, adapter_name=name, adapter_kwargs=dict(self.hub))
        wrong = {*info.missing_keys, *info.unexpected_keys, *(key for key, *_ in info.mismatched_keys)}
        if wrong:
            raise CheckpointError(f"{self.source}: the adapter does not fit {type(model).__name__}: {listed(wrong)}")
        model.eval()


def find_adapter(source: str | Path, adapter_path: str | None, hub: dict[str, Any]) -> Adapter | None:
    """The adapter in a folder or hub repository, or None.

    Args:
        source: The argument of `from_pretrained`, or the base that an Auto class read from the adapter's config.
        adapter_path: Where an Auto class has found the adapter.
        hub: Options of hub downloads.

    Raises:
        CheckpointError: The adapter's weights are missing, or its config names no base model and has none beside it.
    """
    place = str(source if adapter_path is None else adapter_path)
    path = _find_file(place, ADAPTER_CONFIG, hub)
    if path is None:
        return None
    if adapter_path is not None and str(source) != place:
        base: str | None = str(source)
    elif any((Path(path).parent / name).is_file() for name in (WEIGHTS, SHARDS, PICKLE)):
        base = place
    else:
        base = read_json(Path(path), CheckpointError).get("base_model_name_or_path")
        own = _read_config(place, hub).get("_name_or_path")
        if own and base and not Path(base).exists():  # trained on another machine
            base = own
    if not any(_find_file(place, name, hub) for name in (ADAPTER_WEIGHTS, ADAPTER_PICKLE)):
        raise CheckpointError(f"{place}/{ADAPTER_WEIGHTS}: no such file; it holds the adapter's weights")
    if not base:
        raise CheckpointError(
            f"{place}: an adapter without its base model's weights, and {ADAPTER_CONFIG} does not name a base model"
        )
    return Adapter(place, base, hub)


def _read_config(source: str, hub: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` beside an adapter; empty if there is none."""
    path = _find_file(source, "config.json", hub)
    return {} if path is None else read_json(Path(path), CheckpointError)


def _find_file(source: str, name: str, hub: dict[str, Any]) -> str | None:
    """A file of a folder or, downloaded, of a hub repository; None if it is not there."""
    if Path(source).exists():
        path = Path(source, hub.get("subfolder") or "", name)
        return str(path) if path.is_file() else None
    if "/" not in source:
        return None
    path_or_none: str | None = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
        **{key: value for key, value in hub.items() if value is not None},
    )
    return path_or_none


def read_for(
    model_class: type[RiNALMoPreTrainedModel],
    source: str | Path,
    config: Any,
    ignore_mismatched_sizes: bool,
    options: dict[str, Any],
) -> tuple[RiNALMoConfig, dict[str, Tensor], dict[str, Any]]:
    """The config, the tensors for `model_class`, and the options that remain for the base class."""
    hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    checkpoint = read(local_path(source, hub, options.pop("variant", None)))
    path = checkpoint.files.path
    if not isinstance(config, RiNALMoConfig):
        # "auto" is no dtype that a config could hold; the base class resolves it.
        dtypes: dict[str, Any] = {name: options.pop(name) for name in ("dtype", "torch_dtype") if name in options}
        values = config_of(checkpoint.spec)
        if checkpoint.files.config:
            values.pop("head", None)  # num_labels is the same, and a caller may override that
            values.update(checkpoint.files.config)
        config, options = RiNALMoConfig.from_dict(values, return_unused_kwargs=True, **options)
        options |= dtypes
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "mask_token_id"):
        in_config, in_tensors = getattr(config, name), getattr(checkpoint.spec.config, name)
        if in_config != in_tensors:
            raise CheckpointError(f"{path}: the config says {name} {in_config}, the tensors say {in_tensors}")
    with torch.device("meta"):
        own_tensors = model_class(config).state_dict()
    own_names = {our_name(name): name for name in own_tensors}
    new_heads = {_head(name) for name in own_names} - {_head(name) for name in checkpoint.shapes}
    for name, own_name in own_names.items():
        shape, needed = checkpoint.shapes.get(name), tuple(own_tensors[own_name].shape)
        if shape == needed or _head(name) in new_heads:
            continue
        if not ignore_mismatched_sizes or _head(name) not in HEADS:
            problem = "missing" if shape is None else f"of shape {shape}"
            raise CheckpointError(f"{path}: {name} is {problem}; the model needs {needed}")
        new_heads.add(_head(name))
    unused = {_head(name) for name in checkpoint.shapes} - {_head(name) for name in own_names}
    other = [head for alike in _ALIKE if new_heads & alike for head in sorted(unused & alike)]
    if other and not ignore_mismatched_sizes:
        raise CheckpointError(
            f"{path}: predicts by its {other[0]}, which {model_class.__name__} does not have; use rinalmo.predict, or "
            "rinalmo.fold; or give ignore_mismatched_sizes=True to train a new head"
        )
    if new_heads:
        message = "%s from %s: %s is newly initialized with random weights; train it"
        logger.warning(message, model_class.__name__, source, listed(new_heads))
    if unused:
        logger.info("%s from %s: %s is not used", model_class.__name__, source, listed(unused))
    # Copied out of the mapped file one by one: matrix kernels round differently on unaligned memory, and a model that
    # has been saved and loaded is to give the same bits.
    loaded = [name for name in checkpoint.plan if name in own_names and _head(name) not in new_heads]
    return config, {own_names[name]: checkpoint.tensor(name).clone() for name in loaded}, options


def local_path(source: str | Path, hub: dict[str, Any], variant: str | None) -> Path | str:
    """A folder, file or catalog name that `read` takes; a hub repository is downloaded into the hub's cache."""
    path = Path(source)
    names = [WEIGHTS.replace(".", f".{variant}.")] if variant else [WEIGHTS, SHARDS, PICKLE]
    if path.exists():
        path = path / hub["subfolder"] if hub.get("subfolder") else path
        return path / names[0] if variant else path
    if "/" not in str(source) and find(str(source)) and not variant:
        return str(source)
    for name in names:
        weights = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False, **hub)
        if weights is not None:
            break
    else:
        raise CheckpointError(
            f"{source}: no such folder, and the Hub cannot be reached or its repository has no {names[0]}; "
            "`rinalmo models` lists the models that can be downloaded by name"
        )
    for extra in ("config.json", "vocab.txt"):
        cached_file(str(source), extra, _raise_exceptions_for_missing_entries=False, **hub)
    if name == SHARDS:
        for shard in shard_names(Path(weights)):
            cached_file(str(source), shard, **hub)
    return Path(weights) if variant else Path(weights).parent


def our_name(name: str) -> str:
    """The name of a tensor in `rinalmo.load`'s model, from its name in a Hugging Face class."""
    return name.removeprefix("classifier.")


def _head(name: str) -> str:
    return name.split(".")[0]


@contextmanager
def suppress_load_report() -> Iterator[None]:
    """Suppress the base class's table of missing keys, which names no file; `read_for` has warned already."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    base = logging.getLogger("transformers.modeling_utils")
    base.addFilter(is_other)
    try:
        yield
    finally:
        base.removeFilter(is_other)


def alphabet_of(config: RiNALMoConfig) -> Alphabet:
    """The tokens of a model; raises InputError for a vocabulary of unknown size."""
    for tokens in (STANDARD_TOKENS, CARD_TOKENS):
        if len(tokens) == config.vocab_size:
            return Alphabet(tokens)
    known = f"{len(STANDARD_TOKENS)} and {len(CARD_TOKENS)}"
    raise InputError(f"unknown vocabulary of {config.vocab_size} tokens; the known ones have {known}")


def write_tokenizer_and_card(folder: Path, config: RiNALMoConfig, class_name: str) -> None:
    """Write the tokenizer's files and the model card, as far as they are missing; make the folder if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"README.md": _card(folder.resolve().name, config, class_name)}
    if config.vocab_size in (len(STANDARD_TOKENS), len(CARD_TOKENS)):
        files["vocab.txt"] = "\n".join(alphabet_of(config).tokens) + "\n"
        files["tokenizer_config.json"] = json.dumps(TOKENIZER_CONFIG, indent=2) + "\n"
    for name, text in files.items():
        if not (folder / name).exists():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _card(name: str, config: RiNALMoConfig, class_name: str) -> str:
    metadata = {
        "language": "rna",
        "library_name": "rinalmo",
        "pipeline_tag": "fill-mask" if class_name in ("RiNALMoForMaskedLM", "RiNALMoForPreTraining") else None,
        "tags": ["Biology", "RNA"],
        "mask_token": "<mask>",
    }
    values = {"name": name, "class_name": class_name, "config": config, "version": rinalmo.__version__}
    return render_card("transformers_card.md.j2", metadata, **values)
