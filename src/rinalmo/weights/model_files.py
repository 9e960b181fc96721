"""Model files: named tensors and what stands beside them, read without executing code and written whole.

A model is either a folder (`config.json`, `model.safetensors` or its shards, `vocab.txt`) or one `.safetensors`,
`.pt`, `.pth`, `.bin` or `.ckpt` file. Tensors stay in the mapped file until they are used. Pickles are read with
torch's `weights_only`, which builds tensors and plain containers and nothing else.
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

_TOKENIZER = "tokenizer_config.json"
WEIGHTS, SHARDS, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_MAX_JSON = 16 << 20


@dataclass(frozen=True)
class ModelFiles:
    """The tensors of a model and the facts beside them, as found."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    tensor: Callable[[str], Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: tuple[str, ...] | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    noted: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    release: Callable[[], None] = lambda: None  # let go of the mapped file; what is asked for next maps it anew


def open_model(path: Path) -> ModelFiles:
    """Open a model folder or file; raises CheckpointError if it is missing, damaged, foreign or unsafe."""
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors":
        return _open_safetensors([path], path.parent)
    if path.suffix in PICKLES:
        return _open_pickle(path)
    raise CheckpointError(f"{path}: not a model file; expected a folder, .safetensors or one of {', '.join(PICKLES)}")


def _open_folder(path: Path) -> ModelFiles:
    if (path / WEIGHTS).exists():
        return _open_safetensors([path / WEIGHTS], path)
    if (path / SHARDS).exists():
        return _open_safetensors([path / name for name in shard_names(path / SHARDS)], path)
    if (path / PICKLE).exists():
        return _open_pickle(path / PICKLE)
    raise CheckpointError(f"{path}: no {WEIGHTS} in this folder")


def shard_names(index: Path) -> list[str]:
    """The files that a sharded model's index names; one outside its folder raises."""
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{index}: names a file outside its folder")
    return names


def _open_safetensors(paths: list[Path], folder: Path) -> ModelFiles:
    handles: dict[Path, Any] = {}

    def opened(path: Path) -> Any:
        if path not in handles:
            handles[path] = safe_open(str(path), framework="pt")
        return handles[path]

    homes: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with _readable(path):
            for name in opened(path).keys():  # noqa: SIM118  (the handle is no mapping)
                homes[name] = path
                shapes[name] = tuple(opened(path).get_slice(name).get_shape())
    return ModelFiles(
        path=paths[0] if len(paths) == 1 else folder,
        shapes=shapes,
        tensor=lambda name: opened(homes[name]).get_tensor(name),
        release=handles.clear,
        config=read_json(folder / "config.json") if (folder / "config.json").exists() else {},
        vocabulary=read_vocabulary(folder / "vocab.txt"),
        tokenizer_config=read_json(folder / _TOKENIZER) if (folder / _TOKENIZER).exists() else {},
    )


def _open_pickle(path: Path) -> ModelFiles:
    with _readable(path), warnings.catch_warnings():
        # torch remarks on pickle protocols that it did not write itself; the outcome says enough.
        warnings.simplefilter("ignore", UserWarning)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not named tensors")
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    scalars = {name: float(value) for name, value in named.items() if isinstance(value, float | int)}
    foreign = [str(name) for name in content if name not in tensors and name not in scalars]
    if foreign or not tensors:
        raise CheckpointError(f"{path}: not a RiNALMo checkpoint: {', '.join(foreign[:5]) or 'it holds no tensors'}")
    folder = path.parent
    own = path.name == PICKLE
    return ModelFiles(
        path=path,
        shapes={name: tuple(value.shape) for name, value in tensors.items()},
        tensor=tensors.__getitem__,
        config=read_json(folder / "config.json") if own and (folder / "config.json").exists() else {},
        vocabulary=read_vocabulary(folder / "vocab.txt") if own else None,
        scalars=scalars,
        noted=_noted(content),
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
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
        raise CheckpointError(f"{path}: cannot be read ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or _first_line(error)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; anything else raises CheckpointError."""
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


def read_vocabulary(path: Path) -> tuple[str, ...] | None:
    """The tokens of a `vocab.txt`, one a line, or None if there is no such file."""
    if not path.exists():
        return None
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({_first_line(error)})") from None


# A state dict's metadata is ignored by whoever loads it and survives a weights-only load: the one place in the
# official layout for the number of heads and what else its tensors do not show.
_NOTE = "rinalmo"


def write_pickle(
    path: Path, tensors: Mapping[str, Tensor], scalars: Mapping[str, float], note: Mapping[str, Any]
) -> None:
    """Write a flat state dict, with a note in its metadata."""
    content: OrderedDict[str, Any] = OrderedDict({**tensors, **scalars})
    content._metadata = {_NOTE: dict(note)}  # type: ignore[attr-defined]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_path(path) as partial:
            torch.save(content, partial)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer.
        raise CheckpointError(f"{path}: cannot be written ({_reason(error)})") from None


def _noted(content: Mapping[str, Any]) -> dict[str, Any]:
    metadata = getattr(content, "_metadata", None)
    note = metadata.get(_NOTE) if isinstance(metadata, dict) else None
    return note if isinstance(note, dict) else {}


def write_folder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    vocabulary: tuple[str, ...],
) -> None:
    """Write a model folder, complete or not at all."""
    try:
        destination(folder).parent.mkdir(parents=True, exist_ok=True)
        partial = temporary_folder(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({_reason(error)})") from None
    try:
        save_file(dict(tensors), partial / WEIGHTS, metadata={"format": "pt"})
        texts = {
            "config.json": json.dumps(dict(config), indent=2) + "\n",
            "vocab.txt": "\n".join(vocabulary) + "\n",
            "tokenizer_config.json": json.dumps(dict(tokenizer_config), indent=2) + "\n",
        }
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8", newline="\n")
        publish_folder(partial, folder, overwrite=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written ({_reason(error)})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# What a model folder may hold and still be replaced as a whole.
_MODEL_FILES = {WEIGHTS, SHARDS, PICKLE, "config.json", "vocab.txt", "tokenizer_config.json", "README.md", "loss.png"}


def require_replaceable(target: Path) -> None:
    """Raise unless `target` is absent, a model file, or a folder with a model's files and nothing else."""
    if target.is_dir():
        foreign = sorted(path.name for path in target.iterdir() if path.name not in _MODEL_FILES)
        if foreign:
            raise CheckpointError(f"{target}: holds {foreign[0]}, which is no part of a model; it is not overwritten")
    elif target.exists() and not (target.is_file() and target.suffix in PICKLES):
        raise CheckpointError(f"{target}: is not a model; it is not overwritten")
