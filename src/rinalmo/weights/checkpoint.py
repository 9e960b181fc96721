"""What stands in a model's `config.json` and `tokenizer_config.json`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rinalmo.errors import CheckpointError, InputError
from rinalmo.model.config import PRESETS, ModelConfig
from rinalmo.model.cost import PUBLISHED_TOKENS, Specification, specification
from rinalmo.model.encoder import EncoderBlock
from rinalmo.model.heads import POOLINGS, HeadConfig
from rinalmo.model.rinalmo import ModelSpec, RiNALMo
from rinalmo.rna.alphabet import CARD_TOKENS, OFFICIAL_TOKENS, STANDARD_TOKENS, Alphabet
from rinalmo.weights.catalog import find, resolve
from rinalmo.weights.layouts import (
    ROW_TENSORS,
    LayoutName,
    detect,
    invented,
    listed,
    move_rows,
    plan_reading,
    plan_writing,
)
from rinalmo.weights.model_files import PICKLES, ModelFiles, open_model, require_replaceable, write_folder, write_pickle


def config_of(spec: ModelSpec) -> dict[str, Any]:
    """The `config.json` of a model, in the terms that the Hugging Face classes and the port share."""
    alphabet = spec.alphabet
    values: dict[str, Any] = {field.name: getattr(spec.config, field.name) for field in fields(ModelConfig)}
    del values["cls_token_id"]
    ids = {"bos": alphabet.cls_id, "eos": alphabet.eos_id, "pad": alphabet.pad_id, "unk": alphabet.unk_id}
    values.update({f"{name}_token_id": index for name, index in ids.items()})
    labels = next((dict(head) for name, head in spec.heads.items() if name in _LABEL_HEADS), None)
    if labels:
        values.update(head=labels, num_labels=labels["num_labels"])
    if spec.pooling != "cls":
        values["pooling"] = spec.pooling
    if spec.threshold is not None:
        values["threshold"] = spec.threshold
    if spec.task is not None:
        values["task"] = dict(spec.task)
    return {"model_type": "rinalmo", "architectures": [_architecture(spec)], **values, "tie_word_embeddings": False}


_LABEL_HEADS = {
    "sequence_head": "RiNALMoForSequencePrediction",
    "token_head": "RiNALMoForTokenPrediction",
    "contact_head": "RiNALMoForContactPrediction",
}


def _architecture(spec: ModelSpec) -> str:
    heads = {
        **_LABEL_HEADS,
        "structure_head": "RiNALMoForSecondaryStructurePrediction",
        "lm_head": "RiNALMoForMaskedLM",
    }
    return next((name for head, name in heads.items() if head in spec.heads), "RiNALMoModel")


def tokenizer_config_of() -> dict[str, Any]:
    """The `tokenizer_config.json` that makes `AutoTokenizer` read `vocab.txt` beside it."""
    return {
        "tokenizer_class": "RnaTokenizer",
        **{f"{name}_token": f"<{token}>" for name, token in _SPECIALS.items()},
        "extra_special_tokens": ["<null>"],
        "nmers": 1,
        "codon": False,
        "replace_T_with_U": True,
        "do_upper_case": True,
    }


_SPECIALS = {"bos": "cls", "cls": "cls", "eos": "eos", "sep": "eos", "mask": "mask", "pad": "pad", "unk": "unk"}


OFFICIAL = Alphabet(OFFICIAL_TOKENS)
STANDARD = Alphabet(STANDARD_TOKENS)
_VOCABULARIES = {len(STANDARD_TOKENS): STANDARD_TOKENS, len(CARD_TOKENS): CARD_TOKENS}
_OFFICIAL_HEADS = 20  # every model that the authors released
# Config values that the official tensors do not show; noted where the file allows it.
_NOTED = ("num_attention_heads", "layer_norm_eps", "attention_dropout", "hidden_dropout", "token_dropout")
_BLOCK = re.compile(r"^encoder\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, understood: what to build, and where each of its tensors comes from."""

    spec: ModelSpec
    layout: LayoutName
    files: ModelFiles
    plan: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Our names and tensors, one at a time; views of the mapped file where nothing has to be stacked."""
        return ((name, self.tensor(name)) for name in self.plan)

    def tensor(self, name: str) -> Tensor:
        """One tensor under our name."""
        parts = [self.files.tensor(source) for source in self.plan[name]]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.layout == "official" and name in ROW_TENSORS:
            tensor = move_rows(name, tensor, OFFICIAL, self.spec.alphabet)
        return _finite(tensor, name, self.files.path)

    def by_block(self) -> Iterator[tuple[int | None, list[str]]]:
        """The names of each block in turn, then (None) all others."""
        number = {name: int(match.group(1)) for name in self.plan if (match := _BLOCK.match(name))}
        for block in range(self.spec.config.num_hidden_layers):
            yield block, [name for name, of in number.items() if of == block]
        yield None, [name for name in self.plan if name not in number]


def read(source: str | Path, *, num_attention_heads: int | None = None) -> Checkpoint:
    """Understand a model: a name of the catalog, a folder or a file, in any layout.

    Names, shapes and config are checked here; tensors are not read yet. `num_attention_heads` is needed only for
    a file of unpublished size without `config.json`.
    """
    files = open_model(resolve(source))
    layout = _in_file(files, lambda: detect(files.shapes))
    plan = _in_file(files, lambda: plan_reading(layout, files.shapes))
    _in_file(files, lambda: _check_embedding(files, plan))
    shapes = {name: _stacked([files.shapes[part] for part in parts]) for name, parts in plan.items()}
    alphabet, notes = _alphabet(files, layout, shapes)
    if layout == "official":
        shapes = {name: (alphabet.size, *shape[1:]) if name in ROW_TENSORS else shape for name, shape in shapes.items()}
    spec = _in_file(files, lambda: _spec(files, layout, shapes, alphabet, num_attention_heads))
    _in_file(files, lambda: _check_shapes(spec, shapes))
    return Checkpoint(spec, layout, files, plan, notes, shapes)


def load(
    source: str | Path = "nano",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    num_attention_heads: int | None = None,
    consume: Callable[[EncoderBlock], None] | None = None,
) -> RiNALMo:
    """A model with its weights, in evaluation mode and without gradients (`requires_grad_(True)` to train it).

    `source` is a name of the catalog (`rinalmo models` lists them), a folder or a file, in our layout, the authors'
    or multimolecule's. The file is mapped, not copied; `dtype` converts tensor by tensor, None only fp16 to fp32.

    `consume` is called with each block, in order, as soon as it has its weights, and may take them: blocks are read
    one at a time, and the memory of one that keeps nothing of the file is free before the next is read.

    Raises CheckpointError for a damaged, foreign or unsafe file, DownloadError when a published model is not here.
    """
    checkpoint = read(source, num_attention_heads=num_attention_heads)
    with torch.device("meta"):
        model = RiNALMo(checkpoint.spec).eval().requires_grad_(False)
    for name, buffer in model.named_buffers():
        _assign(model, name, torch.full(buffer.shape, float(name.endswith("std")), device=device))
    for block, names in checkpoint.by_block():
        for name in names:
            tensor = checkpoint.tensor(name)
            wanted = dtype or (torch.float32 if tensor.dtype == torch.float16 else None)
            _assign(model, name, tensor.to(device=device, dtype=wanted))
        if consume and block is not None:
            consume(model.encoder.get_submodule(f"blocks.{block}"))  # type: ignore[arg-type]
            checkpoint.files.release()
    return model


def _assign(model: RiNALMo, name: str, tensor: Tensor) -> None:
    module, _, last = name.rpartition(".")
    owner = model.get_submodule(module)
    setattr(owner, last, nn.Parameter(tensor, requires_grad=False) if last in owner._parameters else tensor)


def save(model: RiNALMo, target: str | Path, layout: LayoutName = "rinalmo", *, overwrite: bool = False) -> Path:
    """Write a model as a folder (`rinalmo`, `multimolecule`) or a `.pt` file (`official`).

    An existing target is refused unless `overwrite`; it is then replaced once the new one is complete.
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
    """Write a model in another layout (`half`: matrices in fp16); returns what was read, with notes for the user."""
    checkpoint = read(source, num_attention_heads=num_attention_heads)
    state = {name: tensor.half() if half and tensor.dim() > 1 else tensor for name, tensor in checkpoint.tensors()}
    _write(checkpoint.spec, state, Path(target), layout, checkpoint.files, overwrite)
    return replace(checkpoint, notes=(*checkpoint.notes, *_losses(checkpoint.spec, layout)))


def translate(state: Mapping[str, Tensor], layout: LayoutName) -> dict[str, Tensor]:
    """A state dict under our names as the given layout's; tensors only, the vocabulary stays."""
    plan = plan_writing(layout, state)
    return {
        name: piece.contiguous()
        for ours, names in plan.items()
        for name, piece in zip(names, state[ours].chunk(len(names)) if len(names) > 1 else [state[ours]], strict=True)
    }


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
        raise CheckpointError(f"{target} exists; choose another name or ask to overwrite it")
    require_replaceable(target)
    if layout == "official":
        _write_official(spec, state, target)
    else:
        if target.suffix in (*PICKLES, ".safetensors"):
            raise CheckpointError(f"{target}: the {layout} layout is a folder, not a {target.suffix} file")
        config = {**(original.config if original else {}), **config_of(spec)}
        tokenizer = {**tokenizer_config_of(), **(original.tokenizer_config if original else {})}
        write_folder(target, translate(state, layout), config, tokenizer, spec.alphabet.tokens)
    return target


def _write_official(spec: ModelSpec, state: Mapping[str, Tensor], target: Path) -> None:
    if target.suffix not in PICKLES:
        raise CheckpointError(f"{target}: the official layout is one file; give a name that ends in .pt")
    if "lm_head" not in spec.heads:
        raise CheckpointError("the official layout needs a masked-LM head, which this model does not have")
    if spec.pooling != "cls":
        raise CheckpointError("the authors' heads look at CLS; this model's looks at the mean of all tokens")
    alphabet = spec.alphabet
    rows = {name: move_rows(name, state[name], alphabet, OFFICIAL) for name in ROW_TENSORS}
    kept = {**state, **rows}
    kept = {name: tensor for name, tensor in kept.items() if not name.startswith("pooler.")}  # they have no pooler
    if kept.get("ribosome_load_head.target_std") is not None and _is_unscaled(kept):
        kept = {name: tensor for name, tensor in kept.items() if ".target_" not in name}
    scalars = {"threshold": spec.threshold} if spec.threshold is not None else {}
    note = {name: getattr(spec.config, name) for name in _NOTED}
    if spec.task is not None:
        note["task"] = dict(spec.task)
    write_pickle(target, translate(kept, "official"), scalars, note)


def _losses(spec: ModelSpec, layout: LayoutName) -> list[str]:
    """What the other layouts have no place for, in words."""
    if layout == "multimolecule" and spec.pooling != "cls":
        return ["multimolecule's own pooler would look at CLS; this model's looks at the mean of all tokens"]
    if layout != "official":
        return []
    dropped = " ".join(token for token in invented(OFFICIAL, spec.alphabet))
    notes = [f"the official vocabulary has no {dropped} X: their rows are left out"]
    if "pooler" in spec.heads:
        notes.append("the official layout has no pooler: it is left out")
    return notes


def _is_unscaled(state: Mapping[str, Tensor]) -> bool:
    mean, std = state["ribosome_load_head.target_mean"], state["ribosome_load_head.target_std"]
    return float(mean) == 0.0 and float(std) == 1.0


def _check_embedding(files: ModelFiles, plan: Mapping[str, tuple[str, ...]]) -> None:
    name = "encoder.embedding.weight"
    if name not in plan:
        raise CheckpointError("the file has no token embedding")
    shape = files.shapes[plan[name][0]]
    if len(shape) != 2:
        raise CheckpointError(f"the token embedding has shape {shape}; expected (tokens, hidden)")


def _alphabet(
    files: ModelFiles, layout: LayoutName, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Alphabet, tuple[str, ...]]:
    """The vocabulary of the tensors; official rows are moved onto the standard one."""
    rows = shapes["encoder.embedding.weight"][0]
    if layout == "official":
        if rows != OFFICIAL.size:
            raise CheckpointError(f"{files.path}: {rows} token rows; the official vocabulary has {OFFICIAL.size}")
        made_up = " ".join(invented(OFFICIAL, STANDARD))
        return STANDARD, (
            f"the official vocabulary has no {made_up}: their rows are random (fixed seed); X is the mean of A C G U",
        )
    tokens = files.vocabulary or _VOCABULARIES.get(rows)
    if tokens is None:
        raise CheckpointError(f"{files.path}: {rows} token rows fit no known vocabulary; put vocab.txt beside the file")
    if len(tokens) != rows:
        raise CheckpointError(f"{files.path}: {rows} token rows, but vocab.txt has {len(tokens)} tokens")
    try:
        return Alphabet(tuple(tokens)), ()
    except InputError as error:
        raise CheckpointError(f"{files.path.parent / 'vocab.txt'}: {error}") from None


def _spec(
    files: ModelFiles,
    layout: LayoutName,
    shapes: Mapping[str, tuple[int, ...]],
    alphabet: Alphabet,
    num_attention_heads: int | None,
) -> ModelSpec:
    hidden = shapes["encoder.embedding.weight"][-1]
    blocks = {int(match.group(1)) for name in shapes if (match := _BLOCK.match(name))}
    if blocks != set(range(len(blocks))) or not blocks:
        raise CheckpointError(f"the file's blocks are not numbered from 0 on: {listed(map(str, blocks))}")
    values = {**files.noted, **files.config, "vocab_size": alphabet.size, **_special_ids(alphabet)}
    for name, found in (("hidden_size", hidden), ("num_hidden_layers", len(blocks))):
        if values.setdefault(name, found) != found:
            raise CheckpointError(f"config.json says {name} {values[name]}, the tensors say {found}")
    if num_attention_heads is not None or "num_attention_heads" not in values:
        values["num_attention_heads"] = num_attention_heads or _heads_of(files, layout, hidden, len(blocks))
    config = ModelConfig.from_dict(values)
    threshold = files.scalars.get("threshold", files.config.get("threshold"))
    if not isinstance(threshold, float | int | None):
        raise CheckpointError(f"config: threshold is {threshold!r}; it must be a number")
    task = values.get("task") or _unsaid_task(shapes)
    if not isinstance(task, dict | None):
        raise CheckpointError(f"config: task is {task!r}; it must be an object")
    pooling = values.get("pooling") or "cls"
    if pooling not in POOLINGS:
        raise CheckpointError(f"config: pooling is {pooling!r}; it must be one of {', '.join(POOLINGS)}")
    spec = ModelSpec(config, alphabet, threshold=threshold, task=task)
    return spec.with_heads(shapes, _head_config(files.config), pooling)


def _unsaid_task(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Two tasks have one head. The authors' ribosome-load files hold the scale of the targets, the others do not."""
    head = "ribosome_load_head"
    plain = f"{head}.projection.weight" in shapes and f"{head}.target_mean" not in shapes
    return {"name": "translation-efficiency"} if plain else None


def _special_ids(alphabet: Alphabet) -> dict[str, int]:
    return {
        "mask_token_id": alphabet.mask_id,
        "cls_token_id": alphabet.cls_id,
        "eos_token_id": alphabet.eos_id,
    }


def _heads_of(files: ModelFiles, layout: LayoutName, hidden: int, blocks: int) -> int:
    """Number of attention heads of a file that does not say: seen in a rotary buffer, or published."""
    inverse_frequencies = next((s for name, s in files.shapes.items() if name.endswith("inv_freq")), None)
    if inverse_frequencies:
        return hidden // (2 * inverse_frequencies[0])
    published = {(preset["hidden_size"], preset["num_hidden_layers"]) for preset in PRESETS.values()}
    if layout == "official" or (hidden, blocks) in published:
        return _OFFICIAL_HEADS
    raise CheckpointError(
        f"no config.json beside it, and {blocks} blocks of width {hidden} are no published size "
        f"({', '.join(PRESETS)}); say how many attention heads it has "
        "(num_attention_heads, or --heads of rinalmo convert)"
    )


def _head_config(config: Mapping[str, Any]) -> HeadConfig:
    names = {field.name for field in fields(HeadConfig)}
    given = config.get("head")
    values = {name: value for name, value in given.items() if name in names} if isinstance(given, dict) else {}
    return HeadConfig(**{name: value for name, value in values.items() if value is not None})


def _check_shapes(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in RiNALMo(spec).state_dict().items()}
    missing = [name for name in expected if name not in shapes and ".target_" not in name]
    surplus = [name for name in shapes if name not in expected]
    wrong = [f"{n} {shapes[n]} instead of {expected[n]}" for n in expected if n in shapes and shapes[n] != expected[n]]
    problems = [
        f"{what}: {listed(names)}"
        for what, names in (("missing", missing), ("unexpected", surplus), ("of the wrong shape", wrong))
        if names
    ]
    if problems:
        raise CheckpointError(f"tensors {'; '.join(problems)}")


def _stacked(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]


def _finite(tensor: Tensor, name: str, path: Path) -> Tensor:
    if not tensor.is_floating_point():
        raise CheckpointError(f"{path}: tensor {name} is {tensor.dtype}; weights are floating-point numbers")
    # A sum is finite when all its terms are, short of overflow, and needs no copy of the tensor.
    if not (torch.isfinite(tensor.sum(dtype=torch.float32)) or torch.isfinite(tensor).all()):
        raise CheckpointError(f"{path}: tensor {name} holds NaN or infinite values")
    return tensor


def _in_file(files: ModelFiles, step: Any) -> Any:
    """Run a step; name the file in what it raises."""
    try:
        return step()
    except CheckpointError as error:
        raise CheckpointError(f"{files.path}: {error}") from None


def info(model: str | Path | ModelConfig | None = None, *, tokens: int = PUBLISHED_TOKENS) -> list[Specification]:
    """The specification of a preset, a model's name, folder or file, or a config; of all presets by default.

    Costs are for one sequence of `tokens` tokens. A published model is not fetched for this: its preset says it all.
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
