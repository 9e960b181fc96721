"""The Hugging Face classes of the published model card.

Input is padded, as everywhere in transformers; it is unpacked once on the way in and padded once on the way out, so
padding changes no number. Files are written in the port's layout, which multimolecule reads too, and read in any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput, can_return_tuple

from rinalmo.errors import InputError
from rinalmo.hf.configuration import RiNALMoConfig
from rinalmo.hf.encoding import encode
from rinalmo.hf.loading import CLASSIFIER_PARTS
from rinalmo.hf.outputs import ContactPredictionOutput, Encoded
from rinalmo.hf.padded import Grid, inner
from rinalmo.hf.pretrained import RiNALMoPreTrainedModel, refuse
from rinalmo.inference.inputs import Sequences
from rinalmo.model.heads import ContactHead, HeadConfig, MaskedLMHead, Pooler, SequenceHead, TokenHead
from rinalmo.model.losses import IGNORE, infer_problem_type, label_loss, structure_loss
from rinalmo.model.packing import Layout
from rinalmo.model.task_heads import StructureHead


class RiNALMoModel(RiNALMoPreTrainedModel):
    """The encoder and a pooled vector per sequence."""

    def __init__(self, config: RiNALMoConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.pooler = Pooler(self.encoder.config, config.pooling) if add_pooling_layer else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode a padded batch.

        Args:
            input_ids: Token ids `(batch, length)`.
            attention_mask: 1 for a token, 0 for padding; without it, pad tokens are padding.
            position_ids: Rotary positions `(batch, length)`; only differences within a row count. Default: columns.
            inputs_embeds: What `get_input_embeddings()` gives, `(batch, length, hidden)`, in place of `input_ids`.
                Vectors of zeros are masked tokens.
            token_type_ids: None or zeros: there is one type of token.
            head_mask: None or ones: attention heads cannot be masked.
            output_attentions: Whether to return attention weights, `(batch, heads, length, length)` per block.
            output_hidden_states: Whether to return the states of all layers.

        Returns:
            `last_hidden_state (batch, length, hidden)`, zeros at padding; `pooler_output (batch, hidden)`.

        Raises:
            InputError: If arguments do not fit each other or the model.
        """
        refuse(token_type_ids, head_mask)
        encoded = self._encode(
            input_ids, attention_mask, position_ids, inputs_embeds, output_attentions, output_hidden_states
        )
        pooled = self.pooler(encoded.states, encoded.grid.layout) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=encoded.padded, pooler_output=pooled, **encoded.extras)

    def encode(self, sequences: Sequences, **options: Any) -> np.ndarray | list[np.ndarray]:
        """Embeddings of sequences, `(sequences, hidden)` in fp32, or of one text `(hidden,)`; takes what `embed` takes.

        pooling       "mean" over the nucleotides, "cls", or "none": a list of `(length, hidden)`
        layer         0 is the embedding, n the output of block n, -1 the last
        normalize     vectors of length 1, so that their products are cosines
        batch_tokens  tokens computed at once; results do not depend on it
        """
        return encode(self, sequences, **options)


class RiNALMoHeadModel(RiNALMoPreTrainedModel):
    """An encoder with one head: each subclass says how it answers and in what form."""

    output_class: type[ModelOutput]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ModelOutput:
        """Logits and, with labels, the loss; their shapes are those that the class names.

        Other arguments are those of `RiNALMoModel`. With `inputs_embeds`, heads on nucleotides take the first and the
        last token of each row for CLS and EOS.
        """
        refuse(token_type_ids, head_mask)
        encoded = self._encode(
            input_ids, attention_mask, position_ids, inputs_embeds, output_attentions, output_hidden_states
        )
        loss, logits = self.answer(encoded, labels)
        return self.output_class(loss=loss, logits=logits, **encoded.extras)

    def answer(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Loss and padded logits."""
        raise TypeError(f"{type(self).__name__} is a base class; use one of the RiNALMoFor… classes")

    def _label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.effective_problem_type or infer_problem_type(labels, logits.shape[-1])
        return label_loss(logits, labels, kind)  # type: ignore[arg-type]


class RiNALMoForMaskedLM(RiNALMoHeadModel):
    """Masked-nucleotide prediction.

    Logits `(batch, length, vocabulary)` in fp32; `labels (batch, length)` count where they are not -100.
    """

    output_class = MaskedLMOutput

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        self.lm_head = MaskedLMHead(self.encoder.config)
        self.post_init()

    def answer(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        logits, grid = self.lm_head(encoded.states), encoded.grid
        loss = None
        if labels is not None:
            labels = _unbatched(labels, grid.shape)
            loss = label_loss(logits, grid.gather(labels), "multiclass")
        return loss, grid.scatter(logits)


class RiNALMoForPreTraining(RiNALMoForMaskedLM):
    """Masked-LM is all of RiNALMo's pre-training; this is `RiNALMoForMaskedLM` under the card's other name."""


class SequenceClassifier(nn.Module):
    """Pooler and head on whole sequences, under the name by which PEFT finds what to train and save."""

    def __init__(self, model: RiNALMoPreTrainedModel) -> None:
        super().__init__()
        self.pooler = Pooler(model.encoder.config, model.config.pooling)
        self.sequence_head = SequenceHead(model.config.hidden_size, HeadConfig(**model.config.head_options()))

    def forward(self, states: Float[Tensor, "tokens hidden"], layout: Layout) -> Float[Tensor, "sequences labels"]:
        return self.sequence_head(self.pooler(states, layout))


class TokenClassifier(nn.Module):
    """Head on tokens, under the name by which PEFT finds what to train and save."""

    def __init__(self, model: RiNALMoPreTrainedModel) -> None:
        super().__init__()
        self.token_head = TokenHead(model.config.hidden_size, HeadConfig(**model.config.head_options()))

    def forward(self, states: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens labels"]:
        return self.token_head(states)


class _WithClassifier(RiNALMoHeadModel):
    """The parts of `classifier` can be read and set as parts of the model."""

    classifier: nn.Module

    def __getattr__(self, name: str) -> Any:
        if name in CLASSIFIER_PARTS and "classifier" in self._modules:
            return getattr(self.classifier, name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in CLASSIFIER_PARTS:
            setattr(self.classifier, name, value)
        else:
            super().__setattr__(name, value)


class RiNALMoForSequencePrediction(_WithClassifier):
    """Labels per sequence: logits `(batch, labels)`; labels `(batch,)` or `(batch, labels)`."""

    output_class = SequenceClassifierOutput

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        self.classifier = SequenceClassifier(self)
        self.post_init()

    def answer(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        logits = self.classifier(encoded.states, encoded.grid.layout)
        return None if labels is None else self._label_loss(logits, labels), logits


class RiNALMoForTokenPrediction(_WithClassifier):
    """Labels per nucleotide; logits and labels always line up.

    Without labels, and with labels `(batch, length[, labels])` as `DataCollatorForTokenClassification` pads them,
    logits are `(batch, length, labels)`, in the columns of `input_ids`; labels at CLS and EOS must be -100. With labels
    for nucleotides only, `(batch, length - 2[, labels])`, logits are `(batch, length - 2, labels)`.
    `config.token_logits` fixes one of the two: "all", or "nucleotides", which is multimolecule's; other labels then
    raise. For a batch of one labels may leave the batch axis out.
    """

    output_class = TokenClassifierOutput

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        self.classifier = TokenClassifier(self)
        self.post_init()

    def answer(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        grid, switch = encoded.grid, self.config.token_logits
        keep, narrow = inner(encoded.ids, grid, self.encoder.config)
        fits = labels is None or _fits(labels, grid.shape) or not _fits(labels, narrow.shape)
        if switch == "all" or (switch is None and fits):
            logits = self.classifier(encoded.states)
            loss = None if labels is None else self._label_loss(logits[keep], self._inner_labels(labels, grid, keep))
            return loss, grid.scatter(logits)
        logits = self.classifier(encoded.states[keep])
        if labels is None:
            return None, narrow.scatter(logits)
        labels = _unbatched(labels, narrow.shape, "config.token_logits='all' takes labels for all tokens")
        return self._label_loss(logits, narrow.gather(labels)), narrow.scatter(logits)

    def _last_head(self) -> nn.Module | None:
        return self.token_head  # type: ignore[no-any-return]

    def _inner_labels(self, labels: Tensor, grid: Grid, keep: Tensor) -> Tensor:
        """The nucleotides' labels out of labels for every token."""
        only = self.config.token_logits == "all"
        hint = "config.token_logits='nucleotides' takes labels" if only else "or labels for the nucleotides only"
        every = grid.gather(_unbatched(labels, grid.shape, hint))
        keep = keep.to(every.device)
        outer = every[~keep]
        if not bool(((outer == IGNORE) | outer.isnan()).all()):
            raise InputError(
                f"labels have shape {tuple(labels.shape)}, one for each token: CLS and EOS must have {IGNORE}; "
                "or give labels for the nucleotides only"
            )
        return every[keep]


class RiNALMoForContactPrediction(RiNALMoHeadModel):
    """Labels per pair of nucleotides: logits `(batch, length - 2, length - 2, labels)`.

    Labels have that shape, the last axis optional; for a batch of one the batch axis may be left out.
    """

    output_class = ContactPredictionOutput

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        self.contact_head = ContactHead(config.hidden_size, HeadConfig(**config.head_options()))
        self.post_init()

    def answer(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        keep, grid = inner(encoded.ids, encoded.grid, self.encoder.config)
        maps = [self.contact_head(states) for states in grid.layout.split(encoded.states[keep])]
        loss = None
        if labels is not None:
            squares = grid.gather_pairs(_unbatched(labels, (*grid.shape, grid.width)))
            loss = self._label_loss(
                torch.cat([pairs.flatten(0, 1) for pairs in maps]),
                torch.cat([square.flatten(0, 1) for square in squares]),
            )
        return loss, grid.scatter_pairs(maps)


class RiNALMoForSecondaryStructurePrediction(RiNALMoHeadModel):
    """Base-pairing logits `(batch, length - 2, length - 2, 1)`, each sequence computed on its own length.

    Labels are 0/1 pair matrices of that shape, -100 ignored. The loss is the mean over structures of each one's mean
    over `config.loss_region`, binary cross-entropy unless `problem_type` is "regression"; it is not inferred from the
    labels, as the port's class does, which takes float labels for regression. The masked-LM head is kept beside it, as
    in the published class, so that such a checkpoint can still fill masks.
    """

    output_class = ContactPredictionOutput

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        if config.effective_problem_type not in (None, "binary", "regression"):
            raise InputError(f"problem_type {config.effective_problem_type!r}: pairs are binary, or regression")
        self.lm_head = MaskedLMHead(self.encoder.config)
        self.structure_head = StructureHead(config.hidden_size, num_labels=config.num_labels or 1)
        self.post_init()

    def answer(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        keep, grid = inner(encoded.ids, encoded.grid, self.encoder.config)
        maps = [self.structure_head(states) for states in grid.layout.split(encoded.states[keep])]
        loss = None
        if labels is not None:
            squares = grid.gather_pairs(_unbatched(labels, (*grid.shape, grid.width)))
            losses = [self._structure_loss(pairs, square) for pairs, square in zip(maps, squares, strict=True)]
            loss = torch.stack(losses).mean()
        return loss, grid.scatter_pairs(maps)

    def _structure_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.numel() != logits.numel():
            raise InputError(f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}")
        targets = labels.to(logits.device).reshape(logits.shape)
        region: Any = self.config.loss_region
        kind: Any = self.config.effective_problem_type or "binary"
        per_label = [structure_loss(logits[..., n], targets[..., n], region, kind) for n in range(logits.shape[-1])]
        return torch.stack(per_label).mean()


def _fits(labels: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether labels have the leading axes `shape`; a batch of one may leave its first axis out."""
    inner_axes = len(shape) - 1
    if labels.shape[: len(shape)] == shape and labels.dim() <= len(shape) + 1:
        return True
    return shape[0] == 1 and labels.shape[:inner_axes] == shape[1:] and labels.dim() <= inner_axes + 1


def _unbatched(labels: Tensor, shape: tuple[int, ...], hint: str = "") -> Tensor:
    """Labels with the leading axes `shape`; anything else raises."""
    if not _fits(labels, shape):
        more = f"; {hint}" if hint else ""
        raise InputError(f"labels have shape {tuple(labels.shape)}; the logits need {tuple(shape)}{more}")
    batched = labels.shape[: len(shape)] == shape and labels.dim() <= len(shape) + 1
    return labels if batched else labels.unsqueeze(0)


__all__ = [
    "ContactPredictionOutput",
    "RiNALMoForContactPrediction",
    "RiNALMoForMaskedLM",
    "RiNALMoForPreTraining",
    "RiNALMoForSecondaryStructurePrediction",
    "RiNALMoForSequencePrediction",
    "RiNALMoForTokenPrediction",
    "RiNALMoModel",
]
