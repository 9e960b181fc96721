"""`RiNALMoConfig`: `ModelConfig` and `HeadConfig` as a Hugging Face config.

Field names and file format are multimolecule's, so either package reads the other's `config.json`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from rinalmo.errors import InputError
from rinalmo.model.heads import PROBLEM_TYPES, HeadConfig

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "problem_type": (*PROBLEM_TYPES, None),
    "pooling": ("cls", "mean"),
    "loss_region": ("upper", "full"),
    "token_logits": ("all", "nucleotides", None),
}


class RiNALMoConfig(PreTrainedConfig):
    """Sizes, regularization and head of a RiNALMo; the defaults are those of giga. Values are checked when set.

    Args:
        num_labels: Number of labels of the prediction head.
        problem_type: "regression", "binary", "multiclass", "multilabel", transformers' names for the latter two
            (single_label_classification, multi_label_classification), or None: inferred from the labels at each call.
        head: Options of the prediction head (num_labels, problem_type, dropout, transform, transform_act, bias, act,
            layer_norm_eps); they take precedence when a config is made.
        token_logits: Tokens with logits in token classification: "all", "nucleotides" (without CLS and EOS, as in
            multimolecule), or None: the tokens that have labels, or all without labels.
        threshold: Probability above which a structure decoder accepts a pair.
        loss_region: "upper" (each pair once, as in the paper) or "full".
        pooling: The vector of a whole sequence: "cls", or "mean" over all of its tokens.
        tie_word_embeddings: Whether the masked-LM head's last matrix is that of the embedding; published models are
            not tied.

    Raises:
        InputError: A value is unknown.

    Examples:
        >>> from rinalmo import RiNALMoConfig
        >>> RiNALMoConfig(num_labels=3).hidden_size
        1280
    """

    model_type: ClassVar[str] = "rinalmo"

    vocab_size: int = 28
    hidden_size: int = 1280
    num_hidden_layers: int = 33
    num_attention_heads: int = 20
    intermediate_size: int = 5120
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    max_position_embeddings: int = 1024
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    position_embedding_type: str = "rotary"
    learnable_beta: bool = True
    token_dropout: bool = True
    head: dict[str, Any] | None = None
    lm_head: dict[str, Any] | None = None
    threshold: float | None = None
    loss_region: str = "upper"
    pooling: str = "cls"
    token_logits: str | None = None
    problem_type: str | None = None  # type: ignore[assignment]
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    unk_token_id: int | None = 3
    mask_token_id: int | None = 4
    null_token_id: int | None = 5

    def __post_init__(self, **kwargs: Any) -> None:
        head = self.head or {}
        if not isinstance(head, dict):
            raise InputError(f"config: head is {head!r}; it must be an object with the head's options, or null")
        if self.id2label is None:
            kwargs.setdefault("num_labels", 1)
        super().__post_init__(**kwargs)
        if head.get("num_labels") not in (None, self.num_labels):
            self.num_labels = head["num_labels"]  # makes new label names as well

    def __setattr__(self, key: str, value: Any) -> None:
        """Checked here, since `from_pretrained` sets what its caller gives after the config has been made."""
        if key in _CHOICES and value not in _CHOICES[key]:
            raise InputError(f"{key} {value!r} is unknown; use one of {', '.join(map(str, _CHOICES[key]))}")
        if key == "head" and isinstance(value, dict) and value.get("problem_type") not in _CHOICES["problem_type"]:
            kinds = ", ".join(map(str, _CHOICES["problem_type"]))
            raise InputError(f"problem_type {value['problem_type']!r} of the head is unknown; use one of {kinds}")
        super().__setattr__(key, value)

    def to_dict(self) -> dict[str, Any]:
        """As in the base class, plus `num_labels`, which multimolecule reads and the base class omits."""
        values = {**super().to_dict(), "num_labels": self.num_labels}
        if self.head and self.head.get("num_labels") is not None:
            values["head"] = {**self.head, "num_labels": self.num_labels}
        return values

    @property
    def effective_problem_type(self) -> str | None:
        """The problem type under our name, the head's before the model's; None if it is to be inferred."""
        kind = (self.head or {}).get("problem_type") or self.problem_type
        return PROBLEM_TYPES[kind] if kind else None

    def head_options(self) -> dict[str, Any]:
        """The arguments of `HeadConfig`."""
        names = {field.name for field in fields(HeadConfig)}
        given = {name: value for name, value in (self.head or {}).items() if name in names and value is not None}
        return {**given, "num_labels": self.num_labels}
