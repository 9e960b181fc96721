"""Models on disk in any layout: the files, the `RiNALMo` made from them, and writing one.

A model is a folder (`config.json`, `model.safetensors` or its shards, `vocab.txt`) or one `.safetensors`, `.pt`,
`.pth`, `.bin` or `.ckpt` file. It is read without executing code and written atomically. Tensors stay memory-mapped
until they are used. Pickles are read with torch's `weights_only`, which builds tensors and plain containers and nothing
else.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rinalmo.errors import CheckpointError, InputError
from rinalmo.io.files import atomic_write_folder, atomic_write_path, file_sha256, read_json
from rinalmo.model.config import PRESETS, PUBLISHED_TOKENS, ModelConfig, Specification, specification
from rinalmo.model.heads import POOLINGS, PROBLEM_TYPES, HeadConfig
from rinalmo.model.rinalmo import EncoderBlock, ModelSpec, RiNALMo
from rinalmo.rna.alphabet import CARD_TOKENS, OFFICIAL_TOKENS, STANDARD_TOKENS, Alphabet
from rinalmo.weights.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    PREFIX,
    LoraAdapter,
    check_fits,
    low_rank,
)
from rinalmo.weights.catalog import find, resolve
from rinalmo.weights.layouts import (
    TOKEN_TENSORS,
    LayoutName,
    added_tokens,
    detect,
    embedding_names,
    listed,
    move_rows,
    plan_reading,
    plan_writing,
)

WEIGHTS, SHARDS, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
# Loaders ignore a state dict's metadata, and it survives a weights-only load: the one place in the official layout
# for the number of attention heads and other values that its tensors do not show.
_METADATA_KEY = "rinalmo"
# A folder with these files and no others may be overwritten.
_MODEL_FILES = {WEIGHTS, SHARDS, PICKLE, "config.json", "vocab.txt", "tokenizer_config.json", "README.md", "loss.png"}


@dataclass(frozen=True)
class ModelFiles:
    """The tensors of a model and the metadata beside them, unchecked."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    tensor: Callable[[str], Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: tuple[str, ...] | None = None
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    release: Callable[[], None] = lambda: None  # unmaps the file; the next tensor maps it again


def open_model(path: Path) -> ModelFiles:
    """Open a model folder or file; raises CheckpointError if it is missing, damaged, foreign or unsafe."""
    if path.is_dir():
        if (path / WEIGHTS).exists():
            return _open_safetensors([path / WEIGHTS], path)
        if (path / SHARDS).exists():
            return _open_safetensors([path / name for name in shard_names(path / SHARDS)], path)
        if (path / PICKLE).exists():
            return _open_pickle(path / PICKLE)
        raise CheckpointError(f"{path}: no {WEIGHTS} in this folder")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        return _open_safetensors([path], path.parent)
    if path.suffix in PICKLES:
        return _open_pickle(path)
    raise CheckpointError(f"{path}: not a model file; expected a folder, .safetensors or one of {', '.join(PICKLES)}")


def _unwrapped(files: ModelFiles) -> ModelFiles:
    """The files with the names of the model alone: without those that DDP, `torch.compile` and Lightning put before
    them."""
    names = {re.sub(r"(^|\.)(?:(?:module|_orig_mod)\.)+", r"\1", name): name for name in files.shapes}
    if len(names) < len(files.shapes):
        raise CheckpointError(f"{files.path}: contains tensors of two models, one of them under module. or _orig_mod.")
    while not names.keys() & embedding_names():
        attribute = next(iter(names), "").partition(".")[0] + "."
        if not names or not all(name.startswith(attribute) for name in names):
            break
        names = {name.removeprefix(attribute): old for name, old in names.items()}
    if all(name == old for name, old in names.items()):
        return files
    shapes = {name: files.shapes[old] for name, old in names.items()}
    return replace(files, shapes=shapes, tensor=lambda name: files.tensor(names[name]))


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def require_weights(path: Path) -> None:
    """Raise CheckpointError for what is fetched in place of a file of weights: a pointer, or a web page."""
    with _one_line_errors(path), path.open("rb") as file:
        start = file.read(256).lstrip()
    if start.startswith(_LFS_POINTER):
        raise CheckpointError(
            f"{path}: is a git-lfs pointer, not the weights; run `git lfs pull`, or download the file"
        )
    if start[:1] == b"<" and any(tag in start.lower() for tag in (b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path}: is a web page, not the weights; download the file itself")


def shard_names(index: Path) -> list[str]:
    """The files that a sharded model's index lists; raises CheckpointError for one outside its folder."""
    names = sorted(set(read_json(index, CheckpointError).get("weight_map", {}).values()))
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{index}: names a file outside its folder")
    return names


def _open_safetensors(paths: list[Path], folder: Path) -> ModelFiles:
    handles: dict[Path, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    path_of: dict[str, Path] = {}
    for path in paths:
        require_weights(path)
        with _one_line_errors(path):
            handles[path] = safe_open(str(path), framework="pt")
            for name in handles[path].keys():  # noqa: SIM118  (the handle is no mapping)
                path_of[name] = path
                shapes[name] = tuple(handles[path].get_slice(name).get_shape())

    def tensor(name: str) -> Tensor:
        path = path_of[name]
        if path not in handles:
            handles[path] = safe_open(str(path), framework="pt")
        loaded: Tensor = handles[path].get_tensor(name)
        return loaded

    path = paths[0] if len(paths) == 1 else folder
    return ModelFiles(path, shapes, tensor, **_metadata_files(folder), release=handles.clear)


def _open_pickle(path: Path) -> ModelFiles:
    require_weights(path)
    # torch warns about pickle protocols that it does not write itself; errors are enough here.
    with _one_line_errors(path), warnings.catch_warnings(action="ignore", category=UserWarning):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    for key in ("state_dict", "model_state_dict", "model", "module"):  # of Lightning, of training loops
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: contains a {type(content).__name__}, not named tensors")
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, float] = {}
    foreign: list[str] = []
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(name, str) and isinstance(value, float | int):
            scalars[name] = float(value)
        else:
            foreign.append(str(name))
    if foreign or not tensors:
        raise CheckpointError(f"{path}: not a RiNALMo checkpoint: {', '.join(foreign[:5]) or 'it contains no tensors'}")
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    metadata = getattr(content, "_metadata", None)
    metadata = metadata.get(_METADATA_KEY) if isinstance(metadata, dict) else None
    return ModelFiles(
        path,
        shapes,
        tensors.__getitem__,
        **(_metadata_files(path.parent) if path.name == PICKLE else {}),
        scalars=scalars,
        metadata=metadata if isinstance(metadata, dict) else {},
    )


def _metadata_files(folder: Path) -> dict[str, Any]:
    """`config.json`, `tokenizer_config.json` and the tokens of `vocab.txt`, as far as they are in the folder."""
    contents: dict[str, Any] = {}
    for field_name, file in (("config", "config.json"), ("tokenizer_config", "tokenizer_config.json")):
        if (folder / file).exists():
            contents[field_name] = read_json(folder / file, CheckpointError)
    vocabulary = folder / "vocab.txt"
    if vocabulary.exists():
        try:
            contents["vocabulary"] = tuple(vocabulary.read_text(encoding="utf-8").splitlines())
        except (UnicodeDecodeError, OSError) as error:
            raise CheckpointError(f"{vocabulary}: cannot be read ({_first_line(error)})") from None
    return contents


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Turn what readers raise on a damaged or unsafe file into one clear line."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({_first_line(error)})") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it is damaged or would execute code when loaded ({_first_line(error)})"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: damaged, or not a PyTorch checkpoint ({_first_line(error)})") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error).strip()
    return text.splitlines()[0][:160] if re.search("[a-z]", text) else type(error).__name__


def require_replaceable(target: Path) -> None:
    """Raise unless `target` is absent, a model file, or a folder that holds a model's files and nothing else."""
    if target.is_dir():
        foreign = sorted(path.name for path in target.iterdir() if path.name not in _MODEL_FILES)
        if foreign:
            raise CheckpointError(f"{target}: contains {foreign[0]}, which is not a model file; it is not overwritten")
    elif target.exists() and not (target.is_file() and target.suffix in PICKLES):
        raise CheckpointError(f"{target}: is not a model; it is not overwritten")


OFFICIAL = Alphabet(OFFICIAL_TOKENS)
STANDARD = Alphabet(STANDARD_TOKENS)
_VOCABULARIES = {len(STANDARD_TOKENS): STANDARD_TOKENS, len(CARD_TOKENS): CARD_TOKENS}
_OFFICIAL_ATTENTION_HEADS = 20  # in all models that the authors released
# Config values that the official tensors do not show; stored as metadata in a `.pt` file.
_METADATA = ("num_attention_heads", "layer_norm_eps", "attention_dropout", "hidden_dropout", "token_dropout")
_BLOCK = re.compile(r"^encoder\.blocks\.(\d+)\.")
# Head → `architectures` of config.json; the first that a model has counts.
_ARCHITECTURES = {
    "sequence_head": "RiNALMoForSequencePrediction",
    "token_head": "RiNALMoForTokenPrediction",
    "contact_head": "RiNALMoForContactPrediction",
    "structure_head": "RiNALMoForSecondaryStructurePrediction",
    "lm_head": "RiNALMoForMaskedLM",
}
# The tokenizer_config.json that makes `AutoTokenizer` read the vocab.txt beside it.
TOKENIZER_CONFIG = {
    "tokenizer_class": "RnaTokenizer",
    "bos_token": "<cls>",
    "cls_token": "<cls>",
    "eos_token": "<eos>",
    "sep_token": "<eos>",
    "mask_token": "<mask>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "extra_special_tokens": ["<null>"],
    "nmers": 1,
    "codon": False,
    "replace_T_with_U": True,
    "do_upper_case": True,
}


# Variants of LoRA that change a matrix in another way, or start from another one than the base's.
_VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "velora_config",
)
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk whose names, shapes and config have been checked.

    Attributes:
        spec: What to build.
        layout: The layout that it is in.
        files: The opened files.
        plan: For each of our tensors the names of the file's to concatenate.
        notes: What the user should know about the conversion to our layout.
        shapes: Of our tensors.
        adapter: Merged into the tensors as they are read.
    """

    spec: ModelSpec
    layout: LayoutName
    files: ModelFiles
    plan: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    adapter: LoraAdapter | None = None

    def tensor(self, name: str) -> Tensor:
        """One tensor under our name: a view of the mapped file where nothing has to be concatenated."""
        if self.adapter and name in self.adapter.whole:
            return self._checked(name, self.adapter.whole[name])
        parts = self.plan[name]
        tensor = self.files.tensor(parts[0])
        if len(parts) > 1:
            tensor = torch.cat([tensor, *map(self.files.tensor, parts[1:])])
        if self.layout == "official" and name in TOKEN_TENSORS:
            tensor = move_rows(name, tensor, OFFICIAL, self.spec.alphabet)
        tensor, change = self._checked(name, tensor), self.adapter.low_rank.get(name) if self.adapter else None
        return tensor if change is None else self._checked(name, change.merged(tensor))

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{self.files.path}: tensor {name} is {tensor.dtype}; weights are floating-point numbers"
            )
        # A sum is finite when all its terms are, short of overflow, and needs no copy of the tensor.
        if not (torch.isfinite(tensor.sum(dtype=torch.float32)) or torch.isfinite(tensor).all()):
            raise CheckpointError(f"{self.files.path}: tensor {name} contains NaN or infinite values")
        return tensor

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All names and tensors, read one at a time."""
        return ((name, self.tensor(name)) for name in self.plan)


def read(
    source: str | Path, *, adapter: str | Path | None = None, num_attention_heads: int | None = None
) -> Checkpoint:
    """Open a model and check its names, shapes and config, without reading the tensors.

    The arguments are those of `load`.
    """
    path = resolve(source)
    added = None if adapter is None else read_adapter(adapter)
    if added is None and (path / ADAPTER_CONFIG).is_file():
        added = read_adapter(path)
        path = base_of(added)
    files = _unwrapped(open_model(path))
    try:
        return _checked(files, added, num_attention_heads)
    except CheckpointError as error:
        raise CheckpointError(f"{files.path}: {error}") from None


def read_adapter(folder: str | Path) -> LoraAdapter:
    """Read the adapter in a folder; raises CheckpointError for one that is damaged or not plain LoRA."""
    folder = Path(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(_not_an_adapter(folder))
    settings = read_json(folder / ADAPTER_CONFIG, CheckpointError)
    if str(settings.get("peft_type")).upper() != "LORA":
        raise CheckpointError(f"{folder}: a {settings.get('peft_type')} adapter; only LoRA can be merged here")
    odd = [name for name in _VARIANTS if settings.get(name)]
    if settings.get("init_lora_weights") not in _PLAIN_INITS:
        odd.append(f"init_lora_weights {settings['init_lora_weights']}")
    if odd:
        raise CheckpointError(f"{folder}: {odd[0]} is not plain LoRA; merge it with PEFT's merge_and_unload, and save")
    is_pickle = (folder / ADAPTER_PICKLE).is_file() and not (folder / ADAPTER_WEIGHTS).is_file()
    path = folder / (ADAPTER_PICKLE if is_pickle else ADAPTER_WEIGHTS)
    files = _open_pickle(path) if is_pickle else _open_safetensors([path], folder)
    tensors = {name: files.tensor(name) for name in files.shapes}
    if wrong := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(f"{path}: tensor {wrong[0]} contains NaN or infinite values")
    named: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        named[key.removeprefix(PREFIX).removeprefix("classifier.").replace(".base_layer.", ".")] = tensor
    try:
        changes = low_rank(named, settings)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; merge it with PEFT's merge_and_unload, and save") from None
    whole = {name: tensor for name, tensor in named.items() if "lora_" not in name}
    own = folder / "config.json"
    return LoraAdapter(
        folder,
        settings.get("base_model_name_or_path"),
        changes,
        whole,
        read_json(own, CheckpointError) if own.is_file() else {},
        file_sha256(path),
    )


def _not_an_adapter(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: no such folder; an adapter is the folder that `rinalmo finetune` or PEFT wrote"
    inside = (
        next((path.parent for path in sorted(folder.glob(f"*/{ADAPTER_CONFIG}"))), None) if folder.is_dir() else None
    )
    if inside is not None:
        return f"{folder}: is not an adapter, but contains one: {inside}"
    if (folder / "config.json").is_file():
        return f"{folder}: is a model, not an adapter (no {ADAPTER_CONFIG}); give it as the model, without --adapter"
    return f"{folder}: is not an adapter (no {ADAPTER_CONFIG}); give the folder that `rinalmo finetune` or PEFT wrote"


def base_of(adapter: LoraAdapter) -> Path:
    """The base model of an adapter: beside it, or where its config says."""
    if any((adapter.path / name).is_file() for name in (WEIGHTS, SHARDS, PICKLE)):
        return adapter.path
    names = [name for name in (adapter.config.get("_name_or_path"), adapter.base) if name]
    for name in names:
        if Path(name).exists() or find(name):
            return resolve(name)
    named = f"its base model {names[-1]!r} was not found" if names else "it names no base model"
    raise CheckpointError(
        f"{adapter.path}: this is an adapter, and {named}; give its base as the model and this folder as the adapter"
    )


def _checked(files: ModelFiles, adapter: LoraAdapter | None, num_attention_heads: int | None) -> Checkpoint:
    layout = detect(files.shapes)
    plan = plan_reading(layout, files.shapes)
    if adapter is not None:
        files = replace(files, config=adapter.config or _without_heads(files.config, adapter))
    shapes: dict[str, tuple[int, ...]] = {}
    blocks = set()
    for name, parts in plan.items():
        shape = files.shapes[parts[0]]
        for part in parts[1:]:
            shape = (shape[0] + files.shapes[part][0], *shape[1:])
        shapes[name] = shape
        if match := _BLOCK.match(name):
            blocks.add(int(match.group(1)))
    if adapter is not None:
        check_fits(adapter, shapes)
        new_heads = {name.split(".")[0] for name in adapter.whole} - {"encoder"}
        if new_heads:  # a head of the base would not fit the changed encoder
            shapes = {n: shape for n, shape in shapes.items() if n.split(".")[0] in {"encoder", "lm_head", *new_heads}}
        shapes |= {name: tuple(tensor.shape) for name, tensor in adapter.whole.items()}
        plan = {name: plan.get(name, ()) for name in shapes}
    embedding = shapes.get("encoder.embedding.weight")
    if embedding is None:
        raise CheckpointError("the file has no token embedding")
    if len(embedding) != 2:
        raise CheckpointError(f"the token embedding has shape {embedding}; expected (tokens, hidden)")
    alphabet, notes = _alphabet(files, layout, embedding[0])
    if layout == "official":
        for name in TOKEN_TENSORS:
            if name in shapes:
                shapes[name] = (alphabet.size, *shapes[name][1:])
    if blocks != set(range(len(blocks))) or not blocks:
        raise CheckpointError(f"the file's blocks are not numbered from 0: {listed(map(str, blocks))}")
    values: dict[str, Any] = {**files.metadata, **files.config, "vocab_size": alphabet.size}
    values.update(mask_token_id=alphabet.mask_id, cls_token_id=alphabet.cls_id, eos_token_id=alphabet.eos_id)
    for name, size in (("hidden_size", embedding[1]), ("num_hidden_layers", len(blocks))):
        if values.setdefault(name, size) != size:
            raise CheckpointError(f"{name} is {values[name]} in config.json but {size} in the tensors")
    if num_attention_heads is not None or "num_attention_heads" not in values:
        values["num_attention_heads"] = num_attention_heads or _attention_heads(
            files, layout, embedding[1], len(blocks)
        )
    config = ModelConfig.from_dict(values)
    threshold = files.scalars.get("threshold", files.config.get("threshold"))
    if not isinstance(threshold, float | int | None):
        raise CheckpointError(f"config: threshold is {threshold!r}; it must be a number")
    task = values.get("task")
    # Two tasks share a head. The authors' ribosome-load files hold the scale of the targets, the others do not.
    if not task and "ribosome_load_head.projection.weight" in shapes and "ribosome_load_head.target_mean" not in shapes:
        task = {"name": "translation-efficiency"}
    if not isinstance(task, dict | None):
        raise CheckpointError(f"config: task is {task!r}; it must be an object")
    pooling = values.get("pooling") or "cls"
    if pooling not in POOLINGS:
        raise CheckpointError(f"config: pooling is {pooling!r}; it must be one of {', '.join(POOLINGS)}")
    head = files.config.get("head")
    head_options: dict[str, Any] = {}
    if isinstance(head, dict):
        for option in fields(HeadConfig):
            if head.get(option.name) is not None:
                head_options[option.name] = head[option.name]
    spec = ModelSpec(config, alphabet, threshold=threshold, task=task or None)
    spec = _with_labels(spec.with_heads(shapes, HeadConfig(**head_options), pooling), files.config)
    _check_shapes(spec, shapes)
    return Checkpoint(spec, layout, files, plan, notes, shapes, adapter)


def _with_labels(spec: ModelSpec, config: Mapping[str, Any]) -> ModelSpec:
    """The spec with what a config of transformers says of its head's outputs.

    A table's task is left out if the head has other outputs by now, as when a Trainer has put a new one in its place.
    """
    name = next((name for name in ("sequence_head", "token_head") if name in spec.heads), None)
    if name is None:
        return spec
    count, head = spec.heads[name]["num_labels"], config.get("head")
    given = (head.get("problem_type") if isinstance(head, dict) else None) or config.get("problem_type")
    kind = PROBLEM_TYPES.get(str(given))
    by_id = config.get("id2label")
    labels = [str(by_id[key]) for key in sorted(by_id, key=int)] if isinstance(by_id, dict) else []
    if len(labels) != count or labels == [f"LABEL_{index}" for index in range(count)]:
        labels = []
    task = spec.task
    if task is not None and task.get("name") == "table":
        own = list(task.get("classes") or task.get("targets") or ())
        if len(own) != count or labels not in ([], own) or kind not in (None, task.get("kind")):
            task = None
    return replace(spec, task=task, problem_type=kind, labels=tuple(labels))


def _without_heads(config: Mapping[str, Any], adapter: LoraAdapter) -> Mapping[str, Any]:
    """The base's config; what it says of heads does not hold if the adapter brings its own."""
    if not adapter.whole:
        return config
    of_heads = ("task", "head", "num_labels", "id2label", "label2id", "problem_type", "threshold")
    return {name: value for name, value in config.items() if name not in of_heads}


def _alphabet(files: ModelFiles, layout: LayoutName, rows: int) -> tuple[Alphabet, tuple[str, ...]]:
    """The vocabulary, and a note on rows that are new; official rows are moved to the standard vocabulary."""
    if layout == "official":
        if rows != OFFICIAL.size:
            raise CheckpointError(f"the file has {rows} token rows, but the official vocabulary has {OFFICIAL.size}")
        return STANDARD, (
            f"the official vocabulary has no {added_tokens(OFFICIAL, STANDARD)}: their rows are random (fixed seed); "
            "X is the mean of A C G U",
        )
    tokens = files.vocabulary or _VOCABULARIES.get(rows)
    if tokens is None:
        raise CheckpointError(f"{rows} token rows fit no known vocabulary; put vocab.txt next to the file")
    if len(tokens) != rows:
        raise CheckpointError(f"the file has {rows} token rows, but vocab.txt has {len(tokens)} tokens")
    try:
        return Alphabet(tuple(tokens)), ()
    except InputError as error:
        raise CheckpointError(f"vocab.txt: {error}") from None


def _attention_heads(files: ModelFiles, layout: LayoutName, hidden_size: int, blocks: int) -> int:
    """Number of attention heads without a config: from a rotary buffer, or that of a published model."""
    for name, shape in files.shapes.items():
        if name.endswith("inv_freq") and shape:
            return hidden_size // (2 * shape[0])
    published = {(preset["hidden_size"], preset["num_hidden_layers"]) for preset in PRESETS.values()}
    if layout == "official" or (hidden_size, blocks) in published:
        return _OFFICIAL_ATTENTION_HEADS
    raise CheckpointError(
        f"there is no config.json, and {blocks} blocks of width {hidden_size} are not a published size "
        f"({', '.join(PRESETS)}); give the number of attention heads "
        "(num_attention_heads, or --heads of rinalmo convert)"
    )


def _check_shapes(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        expected = RiNALMo(spec).state_dict()
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "of the wrong shape": []}
    for name, tensor in expected.items():
        if name not in shapes and ".target_" not in name:
            problems["missing"].append(name)
        elif name in shapes and shapes[name] != tensor.shape:
            problems["of the wrong shape"].append(f"{name} {shapes[name]} instead of {tuple(tensor.shape)}")
    for name in shapes:
        if name not in expected:
            problems["unexpected"].append(name)
    if any(problems.values()):
        described = "; ".join(f"{kind}: {listed(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"tensors {described}")


def load(
    source: str | Path = "nano",
    *,
    adapter: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    num_attention_heads: int | None = None,
    consume: Callable[[EncoderBlock], None] | None = None,
) -> RiNALMo:
    """Load a model with its weights, in evaluation mode and without gradients (`requires_grad_(True)` to train it).

    The file is memory-mapped, not copied.

    Args:
        source: A name from `rinalmo models`, a folder or a file, in our layout, the authors' or multimolecule's; or the
            folder of a LoRA adapter that names its base model.
        adapter: Folder of a LoRA adapter, by PEFT or `rinalmo finetune`, to merge into this model.
        dtype: Converts each tensor; None converts fp16 to fp32 and nothing else.
        device: Device of the model.
        num_attention_heads: Needed only for a file of unpublished size without `config.json`.
        consume: Called with each block, in order, as soon as its weights are loaded. It may take the weights: blocks
            are read one at a time, and the memory of a block that keeps none of them is freed before the next is read.

    Returns:
        The model. Its `forward` takes packed tokens.

    Raises:
        CheckpointError: A damaged, foreign or unsafe file.
        DownloadError: A published model cannot be downloaded.

    Examples:
        >>> import rinalmo
        >>> model = rinalmo.load("nano")
        >>> model.config.hidden_size, model.config.num_hidden_layers
        (320, 6)
    """
    checkpoint = read(source, adapter=adapter, num_attention_heads=num_attention_heads)
    model = _without_weights(checkpoint, device)
    names_of_block: dict[int | None, list[str]] = {}
    for name in checkpoint.plan:
        match = _BLOCK.match(name)
        names_of_block.setdefault(int(match.group(1)) if match else None, []).append(name)
    for block in (*range(checkpoint.spec.config.num_hidden_layers), None):
        for name in names_of_block.get(block, ()):
            tensor = checkpoint.tensor(name)
            new_dtype = dtype or (torch.float32 if tensor.dtype == torch.float16 else None)
            _assign(model, name, tensor.to(device=device, dtype=new_dtype))
        if consume and block is not None:
            consume(model.encoder.get_submodule(f"blocks.{block}"))  # type: ignore[arg-type]
            checkpoint.files.release()
    return model


def with_heads_of(model: RiNALMo, adapter: LoraAdapter) -> RiNALMo:
    """A model with the heads and the task of an adapter that shares the encoder of `model`, which stays as it is.

    Raises:
        CheckpointError: The adapter belongs on another model.
    """
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    files = ModelFiles(adapter.path, shapes, state.__getitem__, config_of(model.spec), model.alphabet.tokens)
    try:
        checkpoint = _checked(files, adapter, None)
    except CheckpointError as error:
        raise CheckpointError(f"{adapter.path}: {error}") from None
    device = model.encoder.embedding.weight.device
    changed = _without_weights(checkpoint, device)
    changed.encoder = model.encoder
    for name in checkpoint.plan:
        if not name.startswith("encoder."):
            _assign(changed, name, checkpoint.tensor(name).to(device, torch.float32))
    return changed


def _without_weights(checkpoint: Checkpoint, device: torch.device | str) -> RiNALMo:
    """The model with buffers as new ones have them; its parameters take no memory."""
    with torch.device("meta"):
        model = RiNALMo(checkpoint.spec).eval().requires_grad_(False)
    model.adapter_sha256 = checkpoint.adapter.sha256 if checkpoint.adapter else ""
    for name, buffer in model.named_buffers():
        _assign(model, name, torch.full(buffer.shape, float(name.endswith("std")), device=device))
    return model


def _assign(model: RiNALMo, name: str, tensor: Tensor) -> None:
    module, _, last = name.rpartition(".")
    owner = model.get_submodule(module)
    setattr(owner, last, nn.Parameter(tensor, requires_grad=False) if last in owner._parameters else tensor)


def save(model: RiNALMo, target: str | Path, layout: LayoutName = "rinalmo", *, overwrite: bool = False) -> Path:
    """Write a model as a folder (`rinalmo`, `multimolecule`) or a `.pt` file (`official`).

    Args:
        model: The model.
        target: The folder or file.
        layout: Checkpoint format.
        overwrite: Replace an existing model, once the new one is complete.

    Returns:
        The absolute path.

    Raises:
        CheckpointError: The target exists or cannot be written, or the layout cannot store this model.

    Examples:
        >>> import rinalmo, tempfile
        >>> folder = rinalmo.save(rinalmo.load("nano"), tempfile.mkdtemp() + "/copy")
        >>> sorted(path.name for path in folder.iterdir())
        ['config.json', 'model.safetensors', 'tokenizer_config.json', 'vocab.txt']
    """
    return _write(model.spec, model.state_dict(), Path(target), layout, None, overwrite)


def convert(
    source: str | Path,
    target: str | Path,
    layout: LayoutName = "rinalmo",
    *,
    num_attention_heads: int | None = None,
    half: bool = False,
    overwrite: bool = False,
) -> Checkpoint:
    """Write a model in another layout.

    Args:
        source: As for `load`.
        target: The folder (`rinalmo`, `multimolecule`) or `.pt` file (`official`).
        layout: Layout of the target.
        num_attention_heads: As for `load`.
        half: Write matrices in fp16.
        overwrite: Replace an existing model.

    Returns:
        The source as it was read; its `notes` say what could not be converted.

    Raises:
        CheckpointError: The source cannot be read, or the target cannot be written.

    Examples:
        >>> import rinalmo, tempfile
        >>> rinalmo.convert("nano", tempfile.mkdtemp() + "/nano.pt", "official").layout
        'multimolecule'
    """
    checkpoint = read(source, num_attention_heads=num_attention_heads)
    spec, notes = checkpoint.spec, list(checkpoint.notes)
    state = {name: tensor.half() if half and tensor.dim() > 1 else tensor for name, tensor in checkpoint.tensors()}
    _write(spec, state, Path(target), layout, checkpoint.files, overwrite)
    if layout == "multimolecule" and spec.pooling != "cls":
        notes.append("multimolecule's own pooler would use CLS; this model's uses the mean of all tokens")
    if layout == "official":
        missing = added_tokens(OFFICIAL, spec.alphabet)
        notes.append(f"the official vocabulary has no {missing} X: their rows are dropped")
    if layout == "official" and "pooler" in spec.heads:
        notes.append("the official layout has no pooler: it is dropped")
    return replace(checkpoint, notes=tuple(notes))


def translate(state: Mapping[str, Tensor], layout: LayoutName) -> dict[str, Tensor]:
    """A state dict under our names as the given layout's; tensors only, the vocabulary stays."""
    translated = {}
    for ours, names in plan_writing(layout, state).items():
        pieces = state[ours].chunk(len(names)) if len(names) > 1 else [state[ours]]
        for name, piece in zip(names, pieces, strict=True):
            translated[name] = piece.contiguous()
    return translated


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """The `config.json` of a model, with the keys that the Hugging Face classes and multimolecule share."""
    architecture, head_options = "RiNALMoModel", None
    for name, class_name in _ARCHITECTURES.items():
        if name in spec.heads:
            architecture = class_name
            head_options = dict(spec.heads[name]) if name in ("sequence_head", "token_head", "contact_head") else None
            break
    values: dict[str, Any] = {"model_type": "rinalmo", "architectures": [architecture], **vars(spec.config)}
    del values["cls_token_id"]
    alphabet = spec.alphabet
    values.update(bos_token_id=alphabet.cls_id, eos_token_id=alphabet.eos_id)
    values.update(pad_token_id=alphabet.pad_id, unk_token_id=alphabet.unk_id)
    if head_options:
        values.update(head=head_options, num_labels=head_options["num_labels"])
    if spec.pooling != "cls":
        values["pooling"] = spec.pooling
    if spec.threshold is not None:
        values["threshold"] = spec.threshold
    if spec.task is not None:
        values["task"] = dict(spec.task)
    if spec.problem_type is not None:
        values["problem_type"] = spec.problem_type
    if spec.labels:
        values["id2label"] = {str(index): name for index, name in enumerate(spec.labels)}
        values["label2id"] = {name: index for index, name in enumerate(spec.labels)}
    return {**values, "tie_word_embeddings": False}


def _write(
    spec: ModelSpec,
    state: Mapping[str, Tensor],
    target: Path,
    layout: LayoutName,
    original: ModelFiles | None,
    overwrite: bool,
) -> Path:
    target = target.absolute()
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} exists; choose another name or use --overwrite")
    require_replaceable(target)
    if layout == "official":
        _write_official(spec, state, target)
        return target
    if target.suffix in (*PICKLES, ".safetensors"):
        raise CheckpointError(f"{target}: the {layout} layout is a folder, not a {target.suffix} file")
    config = {**(original.config if original else {}), **config_of(spec)}
    tokenizer = {**TOKENIZER_CONFIG, **(original.tokenizer_config if original else {})}
    texts = {"config.json": json.dumps(config, indent=2), "vocab.txt": "\n".join(spec.alphabet.tokens)}
    texts["tokenizer_config.json"] = json.dumps(tokenizer, indent=2)
    try:
        with atomic_write_folder(target) as partial:
            save_file(translate(state, layout), partial / WEIGHTS, metadata={"format": "pt"})
            for name, text in texts.items():
                (partial / name).write_text(text + "\n", encoding="utf-8", newline="\n")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{target}: cannot be written ({_first_line(error)})") from None
    return target


def _write_official(spec: ModelSpec, state: Mapping[str, Tensor], target: Path) -> None:
    if target.suffix not in PICKLES:
        raise CheckpointError(f"{target}: the official layout is one file; use the extension .pt")
    if "lm_head" not in spec.heads:
        raise CheckpointError("the official layout needs a masked-LM head, which this model does not have")
    if spec.pooling != "cls":
        raise CheckpointError("the authors' heads use CLS, but this model's head uses the mean of all tokens")
    left_out = {"pooler"}  # the authors have none
    mean, std = (state.get(f"ribosome_load_head.target_{name}") for name in ("mean", "std"))
    if mean is not None and std is not None and float(mean) == 0 and float(std) == 1:
        left_out |= {"ribosome_load_head.target_mean", "ribosome_load_head.target_std"}
    tensors = {}
    for name, tensor in state.items():
        if name not in left_out and name.split(".")[0] not in left_out:
            is_rows = name in TOKEN_TENSORS
            tensors[name] = move_rows(name, tensor, spec.alphabet, OFFICIAL) if is_rows else tensor
    content: OrderedDict[str, Any] = OrderedDict(translate(tensors, "official"))
    if spec.threshold is not None:
        content["threshold"] = spec.threshold
    metadata = {name: getattr(spec.config, name) for name in _METADATA}
    if spec.task is not None:
        metadata["task"] = dict(spec.task)
    content._metadata = {_METADATA_KEY: metadata}  # type: ignore[attr-defined]  # kept by a weights-only load
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write_path(target) as partial:
            torch.save(content, partial)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        raise CheckpointError(f"{target}: cannot be written ({_first_line(error)})") from None


def info(model: str | Path | ModelConfig | None = None, *, tokens: int = PUBLISHED_TOKENS) -> list[Specification]:
    """Sizes and costs of models. Published models are not downloaded: their presets suffice.

    Args:
        model: A preset, a model's name, folder or file, or a config; None for all presets.
        tokens: Sequence length for `flops` and `macs`.

    Returns:
        One specification per model.

    Raises:
        CheckpointError: The model cannot be read.

    Examples:
        >>> import rinalmo
        >>> [giga] = rinalmo.info("giga")
        >>> giga.parameters
        650878731
    """
    if model is None:
        return [specification(name, ModelConfig.preset(name), tokens) for name in PRESETS]
    if isinstance(model, ModelConfig):
        return [specification("custom", model, tokens)]
    entry = find(str(model)) if not Path(model).exists() else None
    preset = entry.name if entry else str(model)
    if preset in PRESETS:
        return [specification(preset, ModelConfig.preset(preset), tokens)]
    return [specification(str(model), read(model).spec.config, tokens)]
