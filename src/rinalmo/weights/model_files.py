"""Model files on disk: named tensors and their metadata, read without executing code and written atomically.

A model is a folder (`config.json`, `model.safetensors` or its shards, `vocab.txt`) or one `.safetensors`, `.pt`,
`.pth`, `.bin` or `.ckpt` file. Tensors stay memory-mapped until they are used. Pickles are read with torch's
`weights_only`, which builds tensors and plain containers and nothing else.
"""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rinalmo.errors import CheckpointError
from rinalmo.io.files import destination, publish_folder, replacing_path, temporary_folder

WEIGHTS, SHARDS, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_MAX_JSON = 16 << 20
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


def shard_names(index: Path) -> list[str]:
    """The files that a sharded model's index lists; raises CheckpointError for one outside its folder."""
    names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{index}: names a file outside its folder")
    return names


def _open_safetensors(paths: list[Path], folder: Path) -> ModelFiles:
    handles: dict[Path, Any] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    path_of: dict[str, Path] = {}
    for path in paths:
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
    with _one_line_errors(path), warnings.catch_warnings():
        # torch warns about pickle protocols that it does not write itself; errors are enough here.
        warnings.simplefilter("ignore", UserWarning)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not named tensors")
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
        raise CheckpointError(f"{path}: not a RiNALMo checkpoint: {', '.join(foreign[:5]) or 'it holds no tensors'}")
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
            contents[field_name] = _read_json(folder / file)
    vocabulary = folder / "vocab.txt"
    if vocabulary.exists():
        try:
            contents["vocabulary"] = tuple(vocabulary.read_text(encoding="utf-8").splitlines())
        except (UnicodeDecodeError, OSError) as error:
            raise CheckpointError(f"{vocabulary}: cannot be read ({_first_line(error)})") from None
    return contents


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise CheckpointError(f"{path}: larger than any config")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({_first_line(error)})") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}, not an object")
    return values


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
    return text.splitlines()[0][:160] if text else type(error).__name__


def write_pickle(
    path: Path, tensors: Mapping[str, Tensor], scalars: Mapping[str, float], metadata: Mapping[str, Any]
) -> None:
    """Write a flat state dict with metadata that a weights-only load keeps."""
    content: OrderedDict[str, Any] = OrderedDict({**tensors, **scalars})
    content._metadata = {_METADATA_KEY: dict(metadata)}  # type: ignore[attr-defined]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_path(path) as partial:
            torch.save(content, partial)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer.
        raise CheckpointError(f"{path}: cannot be written ({_first_line(error)})") from None


def write_folder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    vocabulary: tuple[str, ...],
) -> None:
    """Write a model folder atomically."""
    partial = None
    try:
        destination(folder).parent.mkdir(parents=True, exist_ok=True)
        partial = temporary_folder(folder)
        save_file(dict(tensors), partial / WEIGHTS, metadata={"format": "pt"})
        for name, text in (
            ("config.json", json.dumps(dict(config), indent=2)),
            ("vocab.txt", "\n".join(vocabulary)),
            ("tokenizer_config.json", json.dumps(dict(tokenizer_config), indent=2)),
        ):
            (partial / name).write_text(text + "\n", encoding="utf-8", newline="\n")
        publish_folder(partial, folder, overwrite=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written ({_first_line(error)})") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def require_replaceable(target: Path) -> None:
    """Raise unless `target` is absent, a model file, or a folder that holds a model's files and nothing else."""
    if target.is_dir():
        foreign = sorted(path.name for path in target.iterdir() if path.name not in _MODEL_FILES)
        if foreign:
            raise CheckpointError(f"{target}: holds {foreign[0]}, which is not a model file; it is not overwritten")
    elif target.exists() and not (target.is_file() and target.suffix in PICKLES):
        raise CheckpointError(f"{target}: is not a model; it is not overwritten")
