"""The Hugging Face classes of the published model card.

Input is padded, as everywhere in transformers; it is unpacked once on the way in and padded once on the way out, so
padding changes no number. Files are written in the port's layout, which multimolecule reads too, and read in any.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
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
from rinalmo.hf.fast_path import FastPath
from rinalmo.hf.loading import quiet_report, read_for
from rinalmo.hf.model_folder import complete
from rinalmo.hf.outputs import ContactPredictionOutput, Encoded
from rinalmo.hf.padded import Grid, inner, unpad
from rinalmo.inference.inputs import Sequences
from rinalmo.model.backends import Backend
from rinalmo.model.block import SwiGLU
from rinalmo.model.config import ModelConfig
from rinalmo.model.embedding import Embedding
from rinalmo.model.encoder import Encoder, EncoderOutput
from rinalmo.model.heads import ContactHead, HeadConfig, MaskedLMHead, Pooler, SequenceHead, TokenHead
from rinalmo.model.losses import IGNORE, infer_problem_type, label_loss, structure_loss
from rinalmo.model.packing import Layout
from rinalmo.model.task_heads import StructureHead
from rinalmo.weights.checkpoint import translate
from rinalmo.weights.layouts import detect, plan_reading

_BACKENDS: dict[str, Backend] = {"eager": "eager", "sdpa": "auto", "flash_attention_2": "flash"}


class RiNALMoPreTrainedModel(PreTrainedModel):
    """Loading, saving and encoding, shared by all."""

    config_class = RiNALMoConfig
    config: RiNALMoConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["EncoderBlock"]  # noqa: RUF012  (the base class declares it so)

    encoder: Encoder

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(ModelConfig.from_dict(config.to_dict()))
        self._fast_path = FastPath()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *model_args: Any,
        config: Any = None,
        state_dict: dict[str, Tensor] | None = None,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load from a folder or hub id in our layout or the port's, the authors' `.pt` file, or a catalog name.

        A head that the file lacks starts fresh, and a warning names it; anything else missing or unexpected raises.
        """
        if pretrained_model_name_or_path is not None and state_dict is None:
            config, state_dict, kwargs = read_for(
                cls, pretrained_model_name_or_path, config, ignore_mismatched_sizes, kwargs
            )
        with quiet_report():
            loaded = super().from_pretrained(None, *model_args, config=config, state_dict=state_dict, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:
            model.config.name_or_path = str(pretrained_model_name_or_path)
            model.name_or_path = str(pretrained_model_name_or_path)
        return loaded

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write config and weights in the port's layout, and tokenizer and card where they are missing."""
        if kwargs.get("is_main_process", True) and not Path(save_directory).is_file():
            complete(Path(save_directory), self.config, type(self).__name__)
        if not getattr(self, "_hf_peft_config_loaded", False):
            state_dict = translate(self.state_dict() if state_dict is None else state_dict, "multimolecule")
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's, and understands the port's names, which is what a Trainer's checkpoint holds."""
        if any("encoder.layer." in name for name in state_dict):
            shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
            plan = plan_reading(detect(shapes), shapes)
            state_dict = {ours: torch.cat([state_dict[part] for part in parts]) for ours, parts in plan.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embedding

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError("RiNALMo's vocabulary is fixed; it cannot be resized")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        elif isinstance(module, SwiGLU):
            init.ones_(module.beta)
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            init.zeros_(bias)

    def _encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
    ) -> Encoded:
        want_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        want_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        ids, grid = unpad(input_ids, attention_mask, self.config.pad_token_id)
        out = self._states(ids, grid.layout, bool(want_states), bool(want_attentions))
        states = tuple(map(grid.scatter, out.hidden_states)) if out.hidden_states is not None else None
        attentions = tuple(_square(layer, grid) for layer in out.attentions) if out.attentions is not None else None
        return Encoded(ids, out.last_hidden_state, grid, states, attentions)

    def _states(self, ids: Tensor, layout: Layout, all_layers: bool, attentions: bool) -> EncoderOutput:
        """From the engine's encoder where it can stand in, else from the plain one."""
        backend = _BACKENDS.get(self.config._attn_implementation or "sdpa", "auto")
        fast = self._fast_path.of(self.encoder) if backend == "auto" and not attentions else None
        if fast is None:
            self.encoder.set_attention_backend(backend)
            return self.encoder(ids, layout, output_hidden_states=all_layers, output_attentions=attentions)
        last = len(fast.blocks)
        found = [states.to(self.dtype) for states in fast(ids, layout, range(last + 1) if all_layers else [last])]
        return EncoderOutput(found[-1], tuple(found) if all_layers else None, None)


class RiNALMoModel(RiNALMoPreTrainedModel):
    """The encoder and a pooled vector per sequence."""

    def __init__(self, config: RiNALMoConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.pooler = Pooler(self.encoder.config, config.pooling) if add_pooling_layer else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """`last_hidden_state (batch, length, hidden)`, zeros at padding; `pooler_output (batch, hidden)`."""
        encoded = self._encode(input_ids, attention_mask, output_attentions, output_hidden_states)
        pooled = self.pooler(encoded.states, encoded.grid.layout) if self.pooler is not None else None
        return BaseModelOutputWithPooling(
            last_hidden_state=encoded.grid.scatter(encoded.states), pooler_output=pooled, **encoded.extras
        )

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
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ModelOutput:
        """Logits and, with labels, the loss; their shapes are those that the class names."""
        encoded = self._encode(input_ids, attention_mask, output_attentions, output_hidden_states)
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

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head.decoder

    def answer(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        logits, grid = self.lm_head(encoded.states), encoded.grid
        loss = None
        if labels is not None:
            labels = _unbatched(labels, grid.shape)
            loss = label_loss(logits, grid.gather(labels), "multiclass")
        return loss, grid.scatter(logits)


class RiNALMoForPreTraining(RiNALMoForMaskedLM):
    """Masked-LM is all of RiNALMo's pre-training; this is `RiNALMoForMaskedLM` under the card's other name."""


class RiNALMoForSequencePrediction(RiNALMoHeadModel):
    """Labels per sequence: logits `(batch, labels)`; labels `(batch,)` or `(batch, labels)`."""

    output_class = SequenceClassifierOutput

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        self.pooler = Pooler(self.encoder.config, config.pooling)
        self.sequence_head = SequenceHead(config.hidden_size, HeadConfig(**config.head_options()))
        self.post_init()

    def answer(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        logits = self.sequence_head(self.pooler(encoded.states, encoded.grid.layout))
        return None if labels is None else self._label_loss(logits, labels), logits


class RiNALMoForTokenPrediction(RiNALMoHeadModel):
    """Labels per nucleotide: logits `(batch, length - 2, labels)`, without CLS and EOS.

    Labels are `(batch, length - 2[, labels])`; for a batch of one the batch axis may be left out. Labels aligned with
    `input_ids`, as `DataCollatorForTokenClassification` pads them, are taken too if CLS and EOS have -100.
    """

    output_class = TokenClassifierOutput

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        self.token_head = TokenHead(config.hidden_size, HeadConfig(**config.head_options()))
        self.post_init()

    def answer(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        keep, grid = inner(encoded.ids, encoded.grid, self.encoder.config)
        logits = self.token_head(encoded.states[keep])
        loss = None
        if labels is not None:
            aligned = labels.shape[:2] == encoded.grid.shape != grid.shape
            found = (
                _inner_labels(labels, encoded.grid, keep) if aligned else grid.gather(_unbatched(labels, grid.shape))
            )
            loss = self._label_loss(logits, found)
        return loss, grid.scatter(logits)


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


def _unbatched(labels: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Labels with the leading axes `shape`; a batch of one may leave its first axis out. Anything else raises."""
    shape = tuple(shape)
    if labels.shape[: len(shape)] == shape and labels.dim() <= len(shape) + 1:
        return labels
    inner_axes = len(shape) - 1
    if shape[0] == 1 and labels.shape[:inner_axes] == shape[1:] and labels.dim() <= inner_axes + 1:
        return labels.unsqueeze(0)
    raise InputError(f"labels have shape {tuple(labels.shape)}; the logits need {shape}")


def _inner_labels(labels: Tensor, grid: Grid, keep: Tensor) -> Tensor:
    """The nucleotides' labels out of labels for every token."""
    found = grid.gather(labels)
    outer = found[~keep.to(found.device)]
    if not bool(((outer == IGNORE) | outer.isnan()).all()):
        raise InputError(
            f"labels have shape {tuple(labels.shape)}, one for each token: CLS and EOS must have {IGNORE}; "
            "or give labels for the nucleotides only"
        )
    return found[keep.to(found.device)]


def _square(layer: list[Tensor], grid: Grid) -> Tensor:
    """Per-sequence attention `(heads, length, length)` as `(batch, heads, width, width)`."""
    maps = [weights.permute(1, 2, 0) for weights in layer]
    return grid.scatter_pairs(maps).permute(0, 3, 1, 2)


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
