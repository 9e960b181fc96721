"""Tensor names in each checkpoint layout, as tables that are read in both directions.

    rinalmo         ours: encoder.blocks.0.attention.qkv.weight, lm_head.decoder.weight
    multimolecule   the port's: model.encoder.layer.0.attention.self.query.weight, lm_head.decoder.weight
    official        the authors': transformer.blocks.0.mh_attn.Wqkv.weight, pred_head.linear_in.weight

A `Rule` maps one of our tensors to one of theirs, or to several that are concatenated along the first axis. `{i}` is a
block's number. A key without a rule raises, in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from rinalmo.errors import CheckpointError
from rinalmo.rna.alphabet import Alphabet, vocabulary_map

LayoutName = Literal["rinalmo", "multimolecule", "official"]
Shapes = Mapping[str, tuple[int, ...]]

_NUMBERED = re.compile(r"\b(blocks|layers?)\.(\d+)\.")
# Buffers that older classes stored and that can be computed.
_IGNORED = re.compile(r"(^|\.)(inv_freq|position_ids)$")


@dataclass(frozen=True)
class Rule:
    """One of our tensors and those of theirs that are concatenated to it, in order.

    Names in the `trunk` carry the file's prefix (`model.`, `lm.`, …), others do not.
    """

    ours: str
    theirs: tuple[str, ...]
    trunk: bool = True


@dataclass(frozen=True)
class KeyMap:
    """The rules of one layout, and the prefixes that its trunk may carry, the usual one first."""

    rules: tuple[Rule, ...]
    embedding: str
    prefixes: tuple[str, ...]


def _rules(table: Mapping[str, str], trunk: bool = True, ours: str = "", theirs: str = "") -> tuple[Rule, ...]:
    return tuple(
        Rule(ours + key, tuple(theirs + part for part in value.split()), trunk) for key, value in table.items()
    )


def _affine(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


_PORT_BLOCK = {
    **_affine("attention_norm", "attention.layer_norm"),
    "attention.qkv.weight": " ".join(f"attention.self.{name}.weight" for name in ("query", "key", "value")),
    "attention.output.weight": "attention.output.dense.weight",
    **_affine("ffn_norm", "layer_norm"),
    "ffn.beta": "intermediate.bias",  # the swish's slope, under a misleading name
    "ffn.gate_up.weight": "intermediate.linear.weight intermediate.linear_gate.weight",
    "ffn.gate_up.bias": "intermediate.linear.bias intermediate.linear_gate.bias",
    **_affine("ffn.down", "output.dense"),
}

_PORT_LABEL_HEAD = {
    **_affine("transform.dense", "transform.dense"),
    **_affine("transform.norm", "transform.layer_norm"),
    **_affine("decoder", "decoder"),
}

_PORT = KeyMap(
    rules=(
        *_rules({"encoder.embedding.weight": "embeddings.word_embeddings.weight"}),
        *_rules(_PORT_BLOCK, ours="encoder.blocks.{i}.", theirs="encoder.layer.{i}."),
        *_rules(_affine("encoder.final_norm", "encoder.layer_norm")),
        *_rules(_affine("pooler.dense", "pooler.dense")),
        *_rules(
            {
                **_affine("dense", "transform.dense"),
                **_affine("norm", "transform.layer_norm"),
                "decoder.weight": "decoder.weight",
                "decoder.bias": "bias",
            },
            trunk=False,
            ours="lm_head.",
            theirs="lm_head.",
        ),
        *(
            rule
            for head in ("sequence_head.", "token_head.", "contact_head.")
            for rule in _rules(_PORT_LABEL_HEAD, trunk=False, ours=head, theirs=head)
        ),
        *_rules(
            {
                **_affine("projection", "projection"),
                **{f"blocks.{{i}}.conv{n}.weight": f"convnet.layers.{{i}}.conv{n}.weight" for n in (1, 2, 3)},
                **_affine("prediction", "prediction"),
            },
            trunk=False,
            ours="structure_head.",
            theirs="ss_head.",
        ),
    ),
    embedding="embeddings.word_embeddings.weight",
    prefixes=("model.", "rinalmo.", ""),
)

_OFFICIAL_FFN = {
    **_affine("attention_norm", "attn_layer_norm"),
    **_affine("ffn_norm", "out_layer_norm"),
    "ffn.beta": "transition.0.beta",
    "ffn.gate_up.weight": "transition.0.linear.weight transition.0.linear_gate.weight",
    "ffn.gate_up.bias": "transition.0.linear.bias transition.0.linear_gate.bias",
    **_affine("ffn.down", "transition.2"),
}

_OFFICIAL_ATTENTION = {
    "attention.qkv.weight": "mh_attn.Wqkv.weight",
    "attention.output.weight": "mh_attn.out_proj.weight",
}

# What the authors' class without flash-attn writes.
_OFFICIAL_SPLIT_ATTENTION = {
    "attention.qkv.weight": " ".join(f"mh_attn.mh_attn.to_{letter}.weight" for letter in "qkv"),
    "attention.output.weight": "mh_attn.mh_attn.out_proj.weight",
}

_OFFICIAL_HEADS = {
    "structure_head": {
        **_affine("projection", "linear_in"),
        **{f"blocks.{{i}}.conv{n}.weight": f"resnet.blocks.{{i}}.conv_net.{3 * n - 3}.weight" for n in (1, 2, 3)},
        **_affine("prediction", "conv_out"),
    },
    "ribosome_load_head": {
        **_affine("projection", "linear_in"),
        **{f"blocks.{{i}}.conv{n}.weight": f"resnet.blocks.{{i}}.conv_net.{3 * n - 3}.weight" for n in (1, 2)},
        **_affine("prediction", "linear_out"),
    },
    "splice_site_head": {**_affine("dense", "classifier.0"), **_affine("decoder", "classifier.2")},
    "ncrna_family_head": {**_affine("dense", "classifier.0"), **_affine("decoder", "classifier.2")},
}

_SCALER = {"target_mean": "_mean", "target_std": "_std"}
_OFFICIAL_PREFIXES = {"structure_head": "lm.", "ribosome_load_head": "lm.", None: ""}


def _official(head: str | None, attention: Mapping[str, str]) -> KeyMap:
    heads = _rules(_OFFICIAL_HEADS[head], trunk=False, ours=f"{head}.", theirs="pred_head.") if head else ()
    scaler = _rules(_SCALER, trunk=False, ours=f"{head}.", theirs="scaler.") if head == "ribosome_load_head" else ()
    usual = _OFFICIAL_PREFIXES.get(head, "rinalmo.")
    return KeyMap(
        rules=(
            *_rules({"encoder.embedding.weight": "embedding.weight"}),
            *_rules({**attention, **_OFFICIAL_FFN}, ours="encoder.blocks.{i}.", theirs="transformer.blocks.{i}."),
            *_rules(_affine("encoder.final_norm", "transformer.final_layer_norm")),
            *_rules(
                {
                    **_affine("dense", "linear1"),
                    **_affine("norm", "layer_norm"),
                    **_affine("decoder", "linear2"),
                },
                ours="lm_head.",
                theirs="lm_mask_head.",
            ),
            *heads,
            *scaler,
        ),
        embedding="embedding.weight",
        prefixes=(usual, *(prefix for prefix in ("lm.", "rinalmo.", "") if prefix != usual)),
    )


def detect(keys: Iterable[str]) -> LayoutName:
    """The layout that these tensor names belong to."""
    names = sorted(keys)
    for name in names:
        if "encoder.layer." in name:
            return "multimolecule"
        if "transformer.blocks." in name:
            return "official"
        if name.startswith("encoder.blocks."):
            return "rinalmo"
    raise CheckpointError(f"not a RiNALMo: no layout has tensors such as {', '.join(names[:3]) or 'none'}")


def plan_reading(layout: LayoutName, shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """For each of our tensors the names of theirs to concatenate; raises for unmatched and missing names."""
    if layout == "rinalmo":
        return {name: (name,) for name in shapes if not _IGNORED.search(name)}
    if layout == "multimolecule":
        key_map = _PORT
    else:
        is_split = any("mh_attn.mh_attn." in name for name in shapes)
        key_map = _official(_official_head(shapes), _OFFICIAL_SPLIT_ATTENTION if is_split else _OFFICIAL_ATTENTION)
    for prefix in key_map.prefixes:
        if prefix + key_map.embedding in shapes:
            break
    else:
        raise CheckpointError(f"the file has no token embedding ({key_map.embedding})")
    rule_of = {}
    for rule in key_map.rules:
        for part, their_name in enumerate(rule.theirs):
            rule_of[prefix * rule.trunk + their_name] = rule, part
    plan: dict[str, list[str]] = {}
    unmatched = []
    for name in shapes:
        template, number = _template(name)
        if _IGNORED.search(name):
            continue
        if template in rule_of:
            rule, part = rule_of[template]
            plan.setdefault(rule.ours.replace("{i}", number), [""] * len(rule.theirs))[part] = name
        # The port's decoder.bias is the same tensor as lm_head.bias; some files hold both.
        elif name != "lm_head.decoder.bias" or "lm_head.bias" not in shapes:
            unmatched.append(name)
    if unmatched:
        raise CheckpointError(f"unknown tensors in {layout} layout: {listed(unmatched)}")
    complete: dict[str, tuple[str, ...]] = {}
    for ours, parts in plan.items():
        if "" in parts:
            partners = listed(filter(None, parts))
            raise CheckpointError(f"tensors without their counterparts (query/key/value, gate/up): {partners}")
        complete[ours] = tuple(parts)
    return complete


def plan_writing(layout: LayoutName, keys: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each of our tensors the names of theirs that it is split into, equally along the first axis."""
    names = list(keys)
    if layout == "rinalmo":
        return {name: (name,) for name in names}
    if layout not in get_args(LayoutName):
        raise CheckpointError(f"unknown layout {layout!r}; use {', '.join(get_args(LayoutName))}")
    modules = {name.split(".")[0] for name in names}
    if layout == "multimolecule":
        key_map = _PORT
        prefix = key_map.prefixes[0] if modules - {"encoder", "pooler"} else ""
    else:
        heads = [head for head in _OFFICIAL_HEADS if head in modules]
        if len(heads) > 1:
            raise CheckpointError(f"the official layout holds only one task head, not {', '.join(heads)}")
        key_map = _official(heads[0] if heads else None, _OFFICIAL_ATTENTION)
        prefix = key_map.prefixes[0]
    rules = {rule.ours: rule for rule in key_map.rules}
    plan, unmatched = {}, []
    for name in names:
        template, number = _template(name)
        if template in rules:
            rule = rules[template]
            plan[name] = tuple((prefix * rule.trunk + part).replace("{i}", number) for part in rule.theirs)
        else:
            unmatched.append(name)
    if unmatched:
        raise CheckpointError(f"tensors that the {layout} layout has no name for: {listed(unmatched)}")
    return plan


@cache
def embedding_names() -> frozenset[str]:
    """The names of the token embedding in all layouts, with each prefix."""
    maps = (_PORT, _official(None, _OFFICIAL_ATTENTION))
    return frozenset(("encoder.embedding.weight", *(prefix + m.embedding for m in maps for prefix in m.prefixes)))


def _official_head(shapes: Shapes) -> str | None:
    """The task of an official `pred_head`; the file does not name it, its tensors show it."""
    if "pred_head.conv_out.weight" in shapes:
        return "structure_head"
    if "pred_head.linear_out.weight" in shapes:
        return "ribosome_load_head"
    if "pred_head.classifier.2.weight" in shapes:
        return "splice_site_head" if shapes["pred_head.classifier.2.weight"][:1] == (1,) else "ncrna_family_head"
    return None


def _template(name: str) -> tuple[str, str]:
    match = _NUMBERED.search(name)
    return (_NUMBERED.sub(r"\1.{i}.", name), match.group(2)) if match else (name, "")


def listed(names: Iterable[str]) -> str:
    """Names for an error message: the first few, and how many more."""
    ordered = sorted(names)
    return ", ".join(ordered[:8]) + (f" and {len(ordered) - 8} more" if len(ordered) > 8 else "")


# Tensors with one row per token.
TOKEN_TENSORS = ("encoder.embedding.weight", "lm_head.decoder.weight", "lm_head.decoder.bias")
_SEED = 20250316
_STD = 0.02


def move_rows(name: str, rows: Tensor, source: Alphabet, target: Alphabet) -> Tensor:
    """The tensor `name`, one row per token of `source`, as one row per token of `target`.

    A new row is the mean of A, C, G and U for X, 0 in a bias, and otherwise random with a fixed seed.
    """
    origin = torch.from_numpy(vocabulary_map(source, target))
    moved = rows[origin.clamp(min=0)].clone()
    for index in (origin < 0).nonzero().flatten().tolist():
        if target.tokens[index] == "X":
            moved[index] = rows[list(source.nucleotide_ids)].mean(dim=0)
        elif rows.dim() == 1:
            moved[index] = 0
        else:
            generator = torch.Generator().manual_seed(_SEED + 1000 * TOKEN_TENSORS.index(name) + index)
            moved[index] = torch.randn(rows.shape[1], generator=generator).mul(_STD).to(rows.dtype)
    return moved


def added_tokens(source: Alphabet, target: Alphabet) -> str:
    """The tokens of `target` that get new rows, except X, separated by spaces."""
    origin = vocabulary_map(source, target).tolist()
    return " ".join(token for token, index in zip(target.tokens, origin, strict=True) if index < 0 and token != "X")
