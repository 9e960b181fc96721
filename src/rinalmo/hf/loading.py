"""Folders and hub repositories that hold a PEFT adapter, with or without the weights of its base."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor
from transformers.utils import cached_file

import rinalmo
from rinalmo.errors import CheckpointError, InputError, MissingExtraError
from rinalmo.hf.configuration import RiNALMoConfig
from rinalmo.model.rinalmo import HEADS
from rinalmo.rna.alphabet import CARD_TOKENS, STANDARD_TOKENS, Alphabet
from rinalmo.weights.catalog import find
from rinalmo.weights.checkpoint import TOKENIZER_CONFIG, Checkpoint, config_of, read
from rinalmo.weights.layouts import listed
from rinalmo.weights.model_files import PICKLE, SHARDS, WEIGHTS, shard_names

if TYPE_CHECKING:
    from rinalmo.hf.modeling import RiNALMoPreTrainedModel


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


_PIPELINES = {"RiNALMoForMaskedLM": "fill-mask", "RiNALMoForPreTraining": "fill-mask"}


def alphabet_of(config: RiNALMoConfig) -> Alphabet:
    """The tokens of a model; raises InputError for a vocabulary of another size than the two that are known."""
    for tokens in (STANDARD_TOKENS, CARD_TOKENS):
        if len(tokens) == config.vocab_size:
            return Alphabet(tokens)
    known = f"{len(STANDARD_TOKENS)} and {len(CARD_TOKENS)}"
    raise InputError(f"a vocabulary of {config.vocab_size} tokens is unknown here; known are those of {known}")


def complete(folder: Path, config: RiNALMoConfig, class_name: str) -> None:
    """Write what is missing of tokenizer and card into a folder, made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"README.md": _card(folder.resolve().name, config, class_name)}
    if config.vocab_size in (len(STANDARD_TOKENS), len(CARD_TOKENS)):
        files["vocab.txt"] = "\n".join(alphabet_of(config).tokens) + "\n"
        files["tokenizer_config.json"] = json.dumps(TOKENIZER_CONFIG, indent=2) + "\n"
    for name, text in files.items():
        if not (folder / name).exists():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _card(name: str, config: RiNALMoConfig, class_name: str) -> str:
    values: Mapping[str, Any] = {
        "language": "rna",
        "library_name": "rinalmo",
        "pipeline_tag": _PIPELINES.get(class_name),
        "tags": ["Biology", "RNA"],
        "mask_token": "<mask>",
    }
    header = yaml.safe_dump({key: value for key, value in values.items() if value}, sort_keys=False)
    return (
        f"---\n{header}---\n\n# {name}\n\n"
        f"A RiNALMo RNA language model (`{class_name}`): {config.num_hidden_layers} layers of width "
        f"{config.hidden_size}.\n\n## Use\n\n```python\nimport rinalmo  # pip install rinalmo\n\n"
        f'model = rinalmo.{class_name}.from_pretrained("path/to/this/folder")\n'
        'tokenizer = rinalmo.RnaTokenizer.from_pretrained("path/to/this/folder")\n```\n\n'
        f"Written by rinalmo {rinalmo.__version__}. What it was trained on, how, and what it reaches is to be added.\n"
    )


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
