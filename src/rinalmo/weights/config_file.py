"""What stands in a model's `config.json` and `tokenizer_config.json`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec


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
