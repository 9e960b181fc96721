"""The Hugging Face classes of RiNALMo.

They take and give padded tensors. Inside, a batch is packed: `Grid` remembers where each token is in the padded form,
and converts between the two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
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

from rinalmo.engine.devices import default_batch_tokens
from rinalmo.engine.engine import Engine
from rinalmo.errors import InputError
from rinalmo.hf.configuration import RiNALMoConfig
from rinalmo.hf.fast_path import FastPath
from rinalmo.hf.loading import (
    HUB_OPTIONS,
    alphabet_of,
    find_adapter,
    our_name,
    read_for,
    suppress_load_report,
    write_tokenizer_and_card,
)
from rinalmo.inference.embed import Pooling, embed_records
from rinalmo.io.sequences import Sequences, as_records, require_nonempty
from rinalmo.model.config import ModelConfig
from rinalmo.model.heads import (
    IGNORE,
    ContactHead,
    HeadConfig,
    MaskedLMHead,
    Pooler,
    SequenceHead,
    StructureHead,
    TokenHead,
    ends,
    infer_problem_type,
    label_loss,
    structure_loss,
)
from rinalmo.model.kernels import Backend
from rinalmo.model.packing import Layout, PaddedLayout
from rinalmo.model.rinalmo import Embedding, Encoder, ModelSpec, RiNALMo, SwiGLU, functorch_transforms
from rinalmo.weights.adapters import CLASSIFIER_PARTS
from rinalmo.weights.checkpoint import translate
from rinalmo.weights.layouts import detect, plan_reading

_BACKENDS: dict[str, Backend] = {"eager": "eager", "sdpa": "auto", "flash_attention_2": "flash"}


@dataclass
class ContactPredictionOutput(ModelOutput):
    """loss `()`, logits `(batch, length, length, labels)` without CLS and EOS, hidden states, attentions."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Grid:
    """The row and column of each packed token in a `(batch, width)` tensor."""

    layout: Layout
    rows: Int[Tensor, " tokens"]
    columns: Int[Tensor, " tokens"]
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """`(batch, width)`."""
        return len(self.layout.lengths), self.width

    def scatter(self, x: Tensor) -> Tensor:
        """A packed `(tokens, …)` tensor as `(batch, width, …)`, zeros elsewhere."""
        padded = x.new_zeros((*self.shape, *x.shape[1:]))
        padded[self.rows, self.columns] = x
        return padded

    def gather(self, padded: Tensor) -> Tensor:
        """The entries of a `(batch, width, …)` tensor at the tokens."""
        return padded[self.rows.to(padded.device), self.columns.to(padded.device)]

    def pair_maps(self, head: nn.Module, states: Float[Tensor, "tokens hidden"]) -> list[Tensor]:
        """The head's `(length, length, labels)` map of each sequence."""
        return [head(sequence) for sequence in self.layout.split(states)]

    def scatter_pairs(self, maps: list[Tensor]) -> Tensor:
        """Per-sequence `(length, length, …)` maps as one `(batch, width, width, …)` tensor."""
        padded = maps[0].new_zeros((len(maps), self.width, self.width, *maps[0].shape[2:]))
        for index, pairs in zip(self._squares(padded.device), maps, strict=True):
            if len(pairs):
                padded[index] = pairs
        return padded

    def gather_pairs(self, padded: Tensor) -> list[Tensor]:
        """The per-sequence squares of a `(batch, width, width, …)` tensor."""
        return [padded[index] for index in self._squares(padded.device)]

    def _squares(self, device: torch.device) -> list[tuple[Any, ...]]:
        """The index of each sequence's square; slices, which copy nothing, where its columns have no gap."""
        squares: list[tuple[Any, ...]] = []
        for row, columns in enumerate(self.layout.split(self.columns.to(device))):
            first, last = (int(columns[0]), int(columns[-1])) if len(columns) else (0, -1)
            if last - first + 1 == len(columns):
                squares.append((row, slice(first, last + 1), slice(first, last + 1)))
            else:
                squares.append((row, columns[:, None], columns))
        return squares

    def states_hook(self, padded: list[Tensor]) -> Callable[[Tensor], Tensor]:
        """A hook that stores packed states in padded form, and returns what it stored: so it is part of the graph."""

        def hook(x: Tensor) -> Tensor:
            padded.append(self.scatter(x))
            return self.gather(padded[-1])

        return hook

    def attentions_hook(self, padded: list[Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
        """The same for attention weights, `(heads, length, length)` per sequence."""

        def hook(layer: list[Tensor]) -> list[Tensor]:
            maps = self.scatter_pairs([weights.permute(1, 2, 0) for weights in layer])
            padded.append(maps.permute(0, 3, 1, 2))
            return [square.permute(2, 0, 1) for square in self.gather_pairs(padded[-1].permute(0, 2, 3, 1))]

        return hook

    def nucleotides(
        self, ids: Int[Tensor, " tokens"] | None, config: ModelConfig
    ) -> tuple[Bool[Tensor, " tokens"], Grid]:
        """Which tokens are neither a leading CLS nor a trailing EOS, and a grid without these, narrower by them.

        A row without CLS does not move. Without ids, the first and the last token of each row count as CLS and EOS.
        """
        layout = self.layout
        if ids is None:
            last = layout.cu_seqlens.long().diff()[layout.sequence_ids] - 1
            leading, trailing = layout.indices == 0, (layout.indices == last) & (last > 0)
        else:
            leading, trailing = ends(ids, layout, config)
        keep = ~(leading | trailing)
        counts = torch.zeros(2, len(layout.lengths), dtype=torch.long, device=keep.device)
        for count, where in zip(counts, (leading, trailing), strict=True):
            count[layout.sequence_ids[where]] = 1
        columns = self.columns[keep] - counts[0][layout.sequence_ids[keep]]
        width = max(self.width - int(counts.sum(dim=0).max()), int(columns.max()) + 1 if len(columns) else 0)
        return keep, Grid(layout.select(keep), self.rows[keep], columns, width)


class ExportedGrid(Grid):
    """The grid of an exported program, whose tokens are all entries of the padded form: no shape depends on values.

    Heads on nucleotides take the first and the last token of each row for CLS and EOS.
    """

    layout: PaddedLayout

    def __init__(self, layout: PaddedLayout) -> None:
        object.__setattr__(self, "layout", layout)

    @property
    def shape(self) -> tuple[int, int]:
        return self.layout.mask.shape  # type: ignore[return-value]

    def scatter(self, x: Tensor) -> Tensor:
        mask = self.layout.mask
        return x.unflatten(0, mask.shape).masked_fill(~mask.unflatten(1, (-1,) + (1,) * (x.dim() - 1)), 0)

    def gather(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 1)

    def pair_maps(self, head: nn.Module, states: Float[Tensor, "tokens hidden"]) -> list[Tensor]:
        return [head(states.unflatten(0, self.layout.mask.shape), self.layout.mask)]

    def scatter_pairs(self, maps: list[Tensor]) -> Tensor:
        return maps[0]

    def nucleotides(
        self, ids: Int[Tensor, " tokens"] | None, config: ModelConfig
    ) -> tuple[Int[Tensor, " nucleotides"], Grid]:
        mask = self.layout.mask
        tokens = torch.arange(mask.numel(), device=mask.device).unflatten(0, mask.shape)
        return tokens[:, 1:-1].flatten(), ExportedGrid(PaddedLayout(mask[:, :-2] & mask[:, 1:-1] & mask[:, 2:]))


@dataclass
class Encoded:
    """The encoder's output for a padded batch: packed states, and padded states and attentions of all layers."""

    ids: Tensor | None
    states: Tensor
    grid: Grid
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class ModelEngine(Engine):
    """An engine that computes with a Hugging Face model's current weights and does not copy them.

    Args:
        model: The model.
        heads: The names of its heads that the engine's functions apply.
        batch_tokens: As in `Engine`.
    """

    def __init__(
        self, model: RiNALMoPreTrainedModel, heads: Sequence[str] = (), batch_tokens: int | None = None
    ) -> None:
        self.owner, self.device, self.precision, self._threads = model, model.device, "auto", None
        self.batch_tokens = default_batch_tokens(model.device) if batch_tokens is None else batch_tokens
        self.config, self.alphabet = model.encoder.config, alphabet_of(model.config)
        spec = ModelSpec(self.config, self.alphabet, {name: {} for name in heads}, model.config.threshold)
        with torch.device("meta"):
            self.head_model = RiNALMo(spec)
        for name in ("encoder", *heads):
            self.head_model.add_module(name, model.get_submodule(name))
        self.head_model.train(model.training)

    @torch.inference_mode()
    def hidden_states(self, ids: Tensor, layout: Layout, layers: Sequence[int]) -> list[Tensor]:
        encoder = self.owner.encoder
        last = len(encoder.blocks)
        all_layers = any(layer != last for layer in layers)
        states = self.owner._fast_states(ids, layout, all_layers)
        if states is None:
            encoder.set_attention_backend(self.owner._backend)
            out = encoder(ids, layout, output_hidden_states=all_layers)
            states = list(out.hidden_states or [out.last_hidden_state])
        return [states[-1 if layer == last else layer].float() for layer in layers]


# Arguments of transformers' encoders: without effect on one that has no cache, and why others are refused.
_WITHOUT_EFFECT = ("use_cache", "cache_position", "num_items_in_batch", "output_router_logits")
_REFUSED = {
    "past_key_values": "RiNALMo has no cache of keys and values; in place of prefix tuning, use LoRA, IA3 or prompts",
    "encoder_hidden_states": "RiNALMo has no cross-attention",
    "encoder_attention_mask": "RiNALMo has no cross-attention",
    "cross_attn_head_mask": "RiNALMo has no cross-attention",
    "is_causal": "RiNALMo attends in both directions",
    **dict.fromkeys(
        ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"),
        "RiNALMo packs batches itself; give one row per sequence",
    ),
}


def _check_arguments(kwargs: dict[str, Any]) -> None:
    """Accept arguments that have no effect; raise for those that would have one, and for unknown ones."""
    for name, value in kwargs.items():
        if name in _REFUSED and value is not None and value is not False:
            raise InputError(f"{name}: {_REFUSED[name]}")
        if name not in _REFUSED and name not in _WITHOUT_EFFECT:
            raise TypeError(f"RiNALMo's forward has no argument {name!r}")


def _padding_mask(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """The padding mask `(batch, length)` that a mask of pairs of tokens stands for, such as transformers makes them."""
    if _has_fixed_shapes():
        raise InputError("an exported RiNALMo takes attention_mask as (batch, length)")
    pairs = mask if mask.dim() == 4 else mask[:, None]
    batch, length = shape
    if pairs.shape[0] not in (1, batch) or pairs.shape[2] not in (1, length) or pairs.shape[3] != length:
        raise InputError(f"attention_mask has shape {tuple(mask.shape)}; expected (batch, length), here {shape}")
    if pairs.is_floating_point():  # added to the scores: 0, or so low that nothing is left
        if bool(((pairs != 0) & (pairs > -1000)).any()):
            raise InputError("attention_mask adds numbers to attention scores; RiNALMo can only leave out padding")
        pairs = pairs == 0
    attends = pairs.bool().expand(batch, -1, -1, -1)
    is_token = attends.any(dim=2).any(dim=1)
    of_padding = ~is_token[:, None, :, None] if pairs.shape[2] == length else is_token.new_zeros(())
    if not bool(((attends == is_token[:, None, None]) | of_padding).all()):
        raise InputError(
            "attention_mask differs between the tokens of a row; RiNALMo's tokens attend to their whole row: "
            "give each sequence a row of its own"
        )
    return is_token


class RiNALMoPreTrainedModel(PreTrainedModel):
    """Loading, saving and encoding, shared by all classes."""

    config_class = RiNALMoConfig
    config: RiNALMoConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["EncoderBlock"]  # noqa: RUF012  (the base class declares it so)

    transformer_backbone_name = ""  # for PEFT: this module itself, whose forward takes no prefix
    accepts_loss_kwargs = False  # `num_items_in_batch` has no effect, so a Trainer divides the loss itself

    encoder: Encoder
    _trained_problem_type: str | None = None

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
        From a folder or hub id with a PEFT adapter, the adapter is loaded onto its base.
        """
        adapter_options = dict(kwargs.pop("adapter_kwargs", None) or {})
        adapter_name = kwargs.pop("adapter_name", None) or "default"
        adapter_path = adapter_options.pop("_adapter_model_path", None)
        adapter = None
        if pretrained_model_name_or_path is not None and state_dict is None:
            hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs} | adapter_options
            adapter = find_adapter(pretrained_model_name_or_path, adapter_path, hub)
            if adapter is not None:
                pretrained_model_name_or_path = adapter.base
                for option, value in adapter.head_options().items():
                    if not isinstance(config, RiNALMoConfig):
                        kwargs.setdefault(option, value)
                    elif getattr(config, option) != value:
                        setattr(config, option, value)
            config, state_dict, kwargs = read_for(
                cls, pretrained_model_name_or_path, config, ignore_mismatched_sizes, kwargs
            )
        with suppress_load_report():
            loaded = super().from_pretrained(None, *model_args, config=config, state_dict=state_dict, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:
            model.config.name_or_path = str(pretrained_model_name_or_path)
            model.name_or_path = str(pretrained_model_name_or_path)
        if adapter is not None:
            adapter.apply(model, adapter_name)
        return loaded

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, state_dict: dict[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write config and weights in the port's layout, and tokenizer and card where they are missing."""
        if self.config.effective_problem_type is None:
            self.config.problem_type = self._trained_problem_type
        if kwargs.get("is_main_process", True) and not Path(save_directory).is_file():
            write_tokenizer_and_card(Path(save_directory), self.config, type(self).__name__)
        if not getattr(self, "_hf_peft_config_loaded", False):
            state = self.state_dict() if state_dict is None else state_dict
            state = {our_name(name): tensor for name, tensor in state.items()}
            if self.config.tie_word_embeddings and "lm_head.decoder.weight" in state:
                state["lm_head.decoder.weight"] = state["lm_head.decoder.weight"].clone()  # as other programs expect it
            state_dict = translate(state, "multimolecule")
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; also understands the port's names, which a Trainer's checkpoint has, and all of ours."""
        if any("encoder.layer." in name for name in state_dict):
            shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
            plan = plan_reading(detect(shapes), shapes)
            state_dict = {ours: torch.cat([state_dict[part] for part in parts]) for ours, parts in plan.items()}
        own = {our_name(name): name for name in self.state_dict()}
        state_dict = {own.get(name, name): tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def get_input_embeddings(self) -> nn.Module:
        """The module from ids `(batch, length)` to what `inputs_embeds` takes, `(batch, length, hidden)`."""
        return self.encoder.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.embedding = value  # type: ignore[assignment]  # any module from ids to vectors will do

    def get_output_embeddings(self) -> nn.Module | None:  # type: ignore[override]
        """The last layer of the masked-LM or token head; None for classes without one.

        PEFT leaves it out of "all-linear". For token classification it has to, since it trains the classifier as well.
        """
        head = self._last_head()
        return None if head is None else head.decoder  # type: ignore[return-value]

    def set_output_embeddings(self, value: nn.Module) -> None:
        head = self._last_head()
        if head is None:
            raise InputError(f"{type(self).__name__} has no output embeddings")
        head.decoder = value

    def _last_head(self) -> nn.Module | None:
        return getattr(self, "lm_head", None)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """The embeddings, if that is their size already; the vocabulary is fixed."""
        if new_num_tokens not in (None, self.config.vocab_size):
            raise InputError(
                f"RiNALMo's vocabulary of {self.config.vocab_size} tokens is fixed; it cannot become {new_num_tokens}"
            )
        return self.get_input_embeddings()

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None, every_n_layers: int = 1
    ) -> None:
        self.encoder.gradient_checkpointing = enable
        self.encoder.checkpointed_every = every_n_layers
        if gradient_checkpointing_func is not None:
            self.encoder.checkpointing_function = gradient_checkpointing_func

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
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        head_mask: Any,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        **kwargs: Any,
    ) -> Encoded:
        """Encode a padded batch; the arguments are those of `RiNALMoModel.forward`."""
        _check_arguments(kwargs)
        if torch.compiler.is_exporting() and (token_type_ids is not None or head_mask is not None):
            raise InputError("an exported RiNALMo takes no token_type_ids and no head_mask; leave them out")
        if token_type_ids is not None and bool((token_type_ids != 0).any()):
            raise InputError("token_type_ids are not all 0: RiNALMo has one type of token; leave them out")
        masks = head_mask if isinstance(head_mask, list | tuple) else [head_mask]
        if any(mask is not None and bool((mask != 1).any()) for mask in masks):
            raise InputError("head_mask is not all 1: RiNALMo's attention heads cannot be masked; leave it out")
        with_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if _has_fixed_shapes() and with_attentions:
            raise InputError("attention weights cannot be exported or vmapped; leave out output_attentions")
        grid = self._grid(input_ids, attention_mask, position_ids, inputs_embeds)
        ids = None if input_ids is None else grid.gather(input_ids)
        if ids is not None and grid.layout.position_ids is None and not with_attentions:
            fast = self._fast_states(ids, grid.layout, bool(with_states))
            if fast is not None:
                return Encoded(ids, fast[-1], grid, tuple(map(grid.scatter, fast)) if with_states else None, None)

        def embed() -> Tensor:
            return grid.gather(
                self.encoder.embedding(input_ids) if inputs_embeds is None else inputs_embeds.to(self.dtype)
            )

        layers: list[Tensor] = []
        attentions: list[Tensor] = []
        self.encoder.set_attention_backend(self._backend)
        # The embedding is called within the encoder, whose hooks may have to fetch its weights first.
        out = self.encoder(
            ids,
            grid.layout,
            inputs_embeds=embed,
            states_hook=grid.states_hook(layers) if with_states else None,
            weights_hook=grid.attentions_hook(attentions) if with_attentions else None,
        )
        hidden_states = tuple(layers) if with_states else None
        return Encoded(ids, out.last_hidden_state, grid, hidden_states, tuple(attentions) if with_attentions else None)

    def _grid(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Grid:
        """Where the tokens of a padded batch are; raises InputError for shapes that do not fit each other."""
        if torch.jit.is_tracing():
            raise InputError(
                "torch.jit.trace would fix the shapes of this batch; use torch.export, or torch.onnx.export"
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds")
        hidden_size, pad_id = self.config.hidden_size, self.config.pad_token_id
        if input_ids is not None:
            name, given, expected = "input_ids", input_ids, "(batch, length)"
            fits = given.dim() == 2
        else:
            assert inputs_embeds is not None
            name, given, expected = "inputs_embeds", inputs_embeds, f"(batch, length, {hidden_size})"
            fits = given.dim() == 3 and given.shape[2] == hidden_size
        if not fits:
            raise InputError(f"{name} has shape {tuple(given.shape)}; expected {expected}")
        shape, device = (given.shape[0], given.shape[1]), given.device
        if shape[0] == 0:
            raise InputError(f"{name} has no rows")
        if attention_mask is not None:
            if attention_mask.dim() in (3, 4):
                attention_mask = _padding_mask(attention_mask, shape)
            if attention_mask.shape != shape:
                raise InputError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}, {name} has {shape}; they must agree"
                )
            if not _has_fixed_shapes() and bool((attention_mask < 0).any()):
                raise InputError(
                    "attention_mask has negative values; give 1 for tokens and 0 for padding, not an additive mask"
                )
            is_token = attention_mask.bool()
        elif input_ids is not None and pad_id is not None:
            is_token = input_ids != pad_id
        else:
            is_token = torch.ones(shape, dtype=torch.bool, device=device)
        if position_ids is not None and (
            position_ids.shape not in ((shape[1],), (1, shape[1]), shape) or position_ids.is_floating_point()
        ):
            raise InputError(
                f"position_ids have shape {tuple(position_ids.shape)}; expected whole numbers of shape {shape}"
            )
        if _has_fixed_shapes():
            positions = None if position_ids is None else position_ids.expand(shape).flatten()
            return ExportedGrid(PaddedLayout(is_token, positions))
        rows, columns = is_token.to(device).nonzero(as_tuple=True)
        layout = Layout(tuple(is_token.sum(dim=1).tolist()), device)
        positions = columns  # so holes in the mask keep their positions
        if position_ids is not None:
            positions = position_ids.to(device).expand(shape)[rows, columns]
        # Rotary attention depends on differences alone, so a constant offset in a row does not matter.
        offset = positions - layout.indices
        first = layout.cu_seqlens.long()[layout.sequence_ids]
        if layout.total and not bool((offset == offset[first]).all()):
            layout = replace(layout, position_ids=positions)
        return Grid(layout, rows, columns, shape[1])

    @property
    def _backend(self) -> Backend:
        return _BACKENDS.get(self.config._attn_implementation or "sdpa", "auto")

    def _fast_states(self, ids: Tensor, layout: Layout, all_layers: bool) -> list[Tensor] | None:
        """States of all layers or the last one by the engine's encoder; None where the plain one has to compute."""
        fast = self._fast_path.of(self.encoder) if self._backend == "auto" and not _has_fixed_shapes() else None
        if fast is None:
            return None
        last = len(fast.blocks)
        return [layer.to(self.dtype) for layer in fast(ids, layout, range(last + 1) if all_layers else [last])]


class RiNALMoModel(RiNALMoPreTrainedModel):
    """The encoder and a pooled vector per sequence.

    Examples:
        >>> from rinalmo import RiNALMoModel, RnaTokenizer
        >>> tokenizer, model = RnaTokenizer.from_pretrained("nano"), RiNALMoModel.from_pretrained("nano")
        >>> output = model(**tokenizer("GGGAAACCC", return_tensors="pt"))
        >>> tuple(output.last_hidden_state.shape), tuple(output.pooler_output.shape)
        ((1, 11, 320), (1, 320))
    """

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
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode a padded batch.

        Args:
            input_ids: Token ids `(batch, length)`.
            attention_mask: 1 for a token, 0 for padding; without it, pad tokens are padding. Also masks of pairs of
                tokens, `(batch, heads or 1, length or 1, length)`, Boolean or additive, that stand for padding alone.
            position_ids: Rotary positions `(batch, length)`; only differences within a row matter. Default: columns.
            inputs_embeds: What `get_input_embeddings()` gives, `(batch, length, hidden)`, in place of `input_ids`.
                Vectors of zeros are masked tokens.
            token_type_ids: None or zeros: there is one type of token.
            head_mask: None or ones: attention heads cannot be masked.
            output_attentions: Whether to return attention weights, `(batch, heads, length, length)` per block.
            output_hidden_states: Whether to return the states of all layers.
            **kwargs: Arguments that transformers' encoders take and do not use, such as `use_cache`.

        Returns:
            `last_hidden_state (batch, length, hidden)`, zeros at padding; `pooler_output (batch, hidden)`.

        Raises:
            InputError: Arguments do not fit each other or the model.
        """
        encoded = self._encode(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            token_type_ids,
            head_mask,
            output_attentions,
            output_hidden_states,
            **kwargs,
        )
        layers = encoded.hidden_states
        return BaseModelOutputWithPooling(
            last_hidden_state=encoded.grid.scatter(encoded.states) if layers is None else layers[-1],
            pooler_output=None if self.pooler is None else self.pooler(encoded.states, encoded.grid.layout),
            hidden_states=layers,
            attentions=encoded.attentions,
        )

    def encode(
        self,
        sequences: Sequences,
        *,
        pooling: Pooling = "mean",
        layer: int = -1,
        normalize: bool = False,
        batch_tokens: int | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Embed sequences like `rinalmo.embed`, with this model's current weights.

        Args:
            sequences: As for `rinalmo.embed`.
            pooling: "mean" over the nucleotides, "cls", or "none" for one vector per nucleotide.
            layer: 0 is the embedding, n the output of block n, -1 the last.
            normalize: Scale vectors to length 1, so that their products are cosines.
            batch_tokens: Tokens per batch; results do not depend on it.

        Returns:
            `(sequences, hidden)` in fp32; `(hidden,)` for a single string; with pooling "none" a list of
            `(length, hidden)`.
        """
        was_training = self.training
        self.eval()
        try:
            engine = ModelEngine(self, batch_tokens=batch_tokens)
            pairs = embed_records(require_nonempty(as_records(sequences)), engine, pooling=pooling, layers=[layer])
            embeddings = [vectors for _, vectors in pairs]
        finally:
            self.train(was_training)
        if normalize:
            lengths = [np.linalg.norm(vectors, axis=-1, keepdims=True) for vectors in embeddings]
            embeddings = [
                vectors / np.maximum(length, 1e-12) for vectors, length in zip(embeddings, lengths, strict=True)
            ]
        if isinstance(sequences, str):
            return embeddings[0]
        return embeddings if pooling == "none" else np.stack(embeddings)


class RiNALMoHeadModel(RiNALMoPreTrainedModel):
    """An encoder with one head; subclasses define the logits, the loss and the output class."""

    output_class: type[ModelOutput]

    @property
    def base_model(self) -> nn.Module:
        """The encoder as a `RiNALMoModel`, whose weights are this model's: for freezing them, or for their states."""
        config = copy.copy(self.config)
        config.num_hidden_layers = 1  # soon built; this model's encoder takes its place
        with torch.device("meta"):
            model = RiNALMoModel(config, add_pooling_layer=False)
        model.config, model.encoder, model.training = self.config, self.encoder, self.training
        return model

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
        **kwargs: Any,
    ) -> ModelOutput:
        """Logits and, with labels, the loss; the class names their shapes.

        Other arguments are those of `RiNALMoModel`. With `inputs_embeds`, heads on nucleotides take the first and the
        last token of each row for CLS and EOS.
        """
        encoded = self._encode(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            token_type_ids,
            head_mask,
            output_attentions,
            output_hidden_states,
            **kwargs,
        )
        if _has_fixed_shapes() and labels is not None:
            raise InputError("losses cannot be exported or vmapped; leave out labels, and use the logits")
        loss, logits = self.loss_and_logits(encoded, labels)
        return self.output_class(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )

    def loss_and_logits(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Loss and padded logits."""
        raise TypeError(f"{type(self).__name__} is a base class; use one of the RiNALMoFor… classes")

    def _pair_maps(
        self, head: nn.Module, encoded: Encoded, labels: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor] | None, Grid]:
        """Per sequence the head's `(length, length, labels)` map and the labels of the same pairs; their grid."""
        keep, grid = encoded.grid.nucleotides(encoded.ids, self.encoder.config)
        maps = grid.pair_maps(head, encoded.states[keep])
        squares = None if labels is None else grid.gather_pairs(_batched(labels, (*grid.shape, grid.width)))
        return maps, squares, grid

    def _label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.effective_problem_type or infer_problem_type(labels, logits.shape[-1])
        if self.training:
            self._trained_problem_type = kind
        return label_loss(logits, labels, kind)  # type: ignore[arg-type]


# With `tie_word_embeddings`; published models are not tied.
_TIED = {"lm_head.decoder.weight": "encoder.embedding.weight"}


class RiNALMoForMaskedLM(RiNALMoHeadModel):
    """Masked-nucleotide prediction.

    Logits `(batch, length, vocabulary)` in fp32; `labels (batch, length)` of -100 are ignored.

    Examples:
        >>> from rinalmo import RiNALMoForMaskedLM, RnaTokenizer
        >>> tokenizer, model = RnaTokenizer.from_pretrained("nano"), RiNALMoForMaskedLM.from_pretrained("nano")
        >>> tuple(model(**tokenizer("GGG<mask>AACCC", return_tensors="pt")).logits.shape)
        (1, 11, 28)
    """

    _tied_weights_keys = _TIED
    output_class = MaskedLMOutput

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        self.lm_head = MaskedLMHead(self.encoder.config)
        self.post_init()

    def loss_and_logits(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        logits, grid = self.lm_head(encoded.states), encoded.grid
        loss = None
        if labels is not None:
            loss = label_loss(logits, grid.gather(_batched(labels, grid.shape)), "multiclass")
        return loss, grid.scatter(logits)


class RiNALMoForPreTraining(RiNALMoForMaskedLM):
    """Masked-LM is all of RiNALMo's pre-training: this is `RiNALMoForMaskedLM` under the card's other name."""


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
    """Labels per sequence: logits `(batch, labels)`; labels `(batch,)` or `(batch, labels)`.

    Examples:
        >>> import torch
        >>> from rinalmo import RiNALMoConfig, RiNALMoForSequencePrediction
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
        >>> model = RiNALMoForSequencePrediction(RiNALMoConfig(**sizes, num_labels=3))
        >>> tuple(model(torch.tensor([[1, 6, 7, 8, 9, 2]])).logits.shape)
        (1, 3)
    """

    output_class = SequenceClassifierOutput

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        self.classifier = SequenceClassifier(self)
        self.post_init()

    def loss_and_logits(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        logits = self.classifier(encoded.states, encoded.grid.layout)
        return None if labels is None else self._label_loss(logits, labels), logits


class RiNALMoForTokenPrediction(_WithClassifier):
    """Labels per nucleotide; logits and labels always line up.

    Without labels, and with labels `(batch, length[, labels])` as `DataCollatorForTokenClassification` pads them,
    logits are `(batch, length, labels)`, in the columns of `input_ids`; labels at CLS and EOS must be -100. With labels
    for nucleotides only, `(batch, length - 2[, labels])`, logits are `(batch, length - 2, labels)`.
    `config.token_logits` fixes one of the two: "all", or "nucleotides", which is multimolecule's; other labels then
    raise. For a batch of one labels may leave the batch axis out.

    Examples:
        >>> import torch
        >>> from rinalmo import RiNALMoConfig, RiNALMoForTokenPrediction
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
        >>> model = RiNALMoForTokenPrediction(RiNALMoConfig(**sizes, num_labels=3))
        >>> tuple(model(torch.tensor([[1, 6, 7, 8, 9, 2]])).logits.shape)
        (1, 6, 3)
    """

    output_class = TokenClassifierOutput

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        self.classifier = TokenClassifier(self)
        self.post_init()

    def loss_and_logits(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        grid, choice = encoded.grid, self.config.token_logits
        keep, narrow = grid.nucleotides(encoded.ids, self.encoder.config)
        for_all = labels is None or _fits(labels, grid.shape) or not _fits(labels, narrow.shape)
        if choice == "nucleotides" or not (choice == "all" or for_all):
            logits = self.classifier(encoded.states[keep])
            if labels is None:
                return None, narrow.scatter(logits)
            labels = _batched(labels, narrow.shape, "config.token_logits='all' needs labels for all tokens")
            return self._label_loss(logits, narrow.gather(labels)), narrow.scatter(logits)
        logits = self.classifier(encoded.states)
        if labels is None:
            return None, grid.scatter(logits)
        hint = "or labels for the nucleotides only"
        if choice == "all":
            hint = "config.token_logits='nucleotides' needs labels for the nucleotides only"
        token_labels = grid.gather(_batched(labels, grid.shape, hint))
        keep = keep.to(token_labels.device)
        at_ends = token_labels[~keep]
        if not bool(((at_ends == IGNORE) | at_ends.isnan()).all()):
            raise InputError(
                f"labels have shape {tuple(labels.shape)}, one for each token: CLS and EOS must have {IGNORE}; "
                "or give labels for the nucleotides only"
            )
        return self._label_loss(logits[keep], token_labels[keep]), grid.scatter(logits)

    def _last_head(self) -> nn.Module | None:
        return self.token_head  # type: ignore[no-any-return]


class RiNALMoForContactPrediction(RiNALMoHeadModel):
    """Labels per pair of nucleotides: logits `(batch, length - 2, length - 2, labels)`.

    Labels have that shape, the last axis optional; for a batch of one the batch axis may be left out.

    Examples:
        >>> import torch
        >>> from rinalmo import RiNALMoConfig, RiNALMoForContactPrediction
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
        >>> model = RiNALMoForContactPrediction(RiNALMoConfig(**sizes))
        >>> tuple(model(torch.tensor([[1, 6, 7, 8, 9, 2]])).logits.shape)
        (1, 4, 4, 1)
    """

    output_class = ContactPredictionOutput

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        self.contact_head = ContactHead(config.hidden_size, HeadConfig(**config.head_options()))
        self.post_init()

    def loss_and_logits(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        maps, squares, grid = self._pair_maps(self.contact_head, encoded, labels)
        loss = None
        if squares is not None:
            flat_logits, flat_labels = (torch.cat([each.flatten(0, 1) for each in of]) for of in (maps, squares))
            loss = self._label_loss(flat_logits, flat_labels)
        return loss, grid.scatter_pairs(maps)


class RiNALMoForSecondaryStructurePrediction(RiNALMoHeadModel):
    """Base-pairing logits `(batch, length - 2, length - 2, 1)`, each sequence computed on its own length.

    Labels are 0/1 pair matrices of that shape, -100 ignored. The loss is binary cross-entropy unless `problem_type` is
    "regression", averaged over `config.loss_region` of each structure and then over structures. Unlike in
    multimolecule's class, float labels do not imply regression. The masked-LM head is kept, as in the published class,
    so that such a checkpoint can still fill masks.

    Examples:
        >>> import torch
        >>> from rinalmo import RiNALMoConfig, RiNALMoForSecondaryStructurePrediction
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
        >>> model = RiNALMoForSecondaryStructurePrediction(RiNALMoConfig(**sizes))
        >>> tuple(model(torch.tensor([[1, 6, 7, 8, 9, 2]])).logits.shape)
        (1, 4, 4, 1)
    """

    _tied_weights_keys = _TIED
    output_class = ContactPredictionOutput

    def __init__(self, config: RiNALMoConfig) -> None:
        super().__init__(config)
        if config.effective_problem_type not in (None, "binary", "regression"):
            raise InputError(f"problem_type {config.effective_problem_type!r}: pairs are binary, or regression")
        self.lm_head = MaskedLMHead(self.encoder.config)
        self.lm_head.requires_grad_(False)  # no loss trains it, and DDP wants a gradient of all that require one
        self.structure_head = StructureHead(config.hidden_size, num_labels=config.num_labels or 1)
        self.post_init()

    def loss_and_logits(self, encoded: Encoded, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        maps, squares, grid = self._pair_maps(self.structure_head, encoded, labels)
        if squares is None:
            return None, grid.scatter_pairs(maps)
        region: Any = self.config.loss_region
        kind: Any = self.config.effective_problem_type or "binary"
        losses = []
        for logits, square in zip(maps, squares, strict=True):
            if square.numel() != logits.numel():
                raise InputError(
                    f"labels of shape {tuple(square.shape)} do not fit logits of shape {tuple(logits.shape)}"
                )
            targets = square.to(logits.device).reshape(logits.shape)
            channels = zip(logits.unbind(-1), targets.unbind(-1), strict=True)
            losses.append(torch.stack([structure_loss(*channel, region, kind) for channel in channels]).mean())
        return torch.stack(losses).mean(), grid.scatter_pairs(maps)


def _has_fixed_shapes() -> bool:
    """Whether no shape may depend on values: in an exported program, and under `torch.func.vmap`."""
    return torch.compiler.is_exporting() or "Vmap" in functorch_transforms()


def _fits(labels: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether labels have the leading axes `shape`; a batch of one may leave its first axis out."""
    return any(
        each.shape[: len(shape)] == shape and each.dim() <= len(shape) + 1 for each in (labels, labels.unsqueeze(0))
    )


def _batched(labels: Tensor, shape: tuple[int, ...], hint: str = "") -> Tensor:
    """Labels with the leading axes `shape`; anything else raises."""
    if not _fits(labels, shape):
        more = f"; {hint}" if hint else ""
        raise InputError(f"labels have shape {tuple(labels.shape)}; the logits need {tuple(shape)}{more}")
    has_batch_axis = labels.shape[: len(shape)] == shape and labels.dim() <= len(shape) + 1
    return labels if has_batch_axis else labels.unsqueeze(0)
