"""What all Hugging Face classes share: loading, saving, embeddings, and the encoder between padded tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from rinalmo.errors import InputError
from rinalmo.hf.adapters import find_adapter
from rinalmo.hf.configuration import RiNALMoConfig
from rinalmo.hf.fast_path import FastPath
from rinalmo.hf.loading import HUB_OPTIONS, our_name, quiet_report, read_for
from rinalmo.hf.model_folder import complete
from rinalmo.hf.outputs import Encoded
from rinalmo.hf.padded import Grid, grid_of
from rinalmo.inference.fast_encoder import FastEncoder
from rinalmo.model.backends import Backend
from rinalmo.model.block import SwiGLU
from rinalmo.model.config import ModelConfig
from rinalmo.model.embedding import Embedding
from rinalmo.model.encoder import Encoder, EncoderOutput
from rinalmo.model.packing import Layout
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
                labels = adapter.num_labels()
                if labels is not None and isinstance(config, RiNALMoConfig) and config.num_labels != labels:
                    config.num_labels = labels
                elif labels is not None and config is None:
                    kwargs.setdefault("num_labels", labels)
            config, state_dict, kwargs = read_for(
                cls, pretrained_model_name_or_path, config, ignore_mismatched_sizes, kwargs
            )
        with quiet_report():
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
        if kwargs.get("is_main_process", True) and not Path(save_directory).is_file():
            complete(Path(save_directory), self.config, type(self).__name__)
        if not getattr(self, "_hf_peft_config_loaded", False):
            state = self.state_dict() if state_dict is None else state_dict
            state_dict = translate({our_name(name): tensor for name, tensor in state.items()}, "multimolecule")
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's, and understands the port's names, which is what a Trainer's checkpoint holds, and all of ours."""
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
        output_attentions: bool | None,
        output_hidden_states: bool | None,
    ) -> Encoded:
        want_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        want_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        grid = self._grid(input_ids, attention_mask, position_ids, inputs_embeds)
        ids = None if input_ids is None else grid.gather(input_ids)
        counted = ids is not None and grid.layout.position_ids is None
        fast = self._fast(self._backend) if counted and not want_attentions else None
        if fast is not None and ids is not None:
            out = self._from_fast(fast, ids, grid.layout, bool(want_states))
            states = tuple(map(grid.scatter, out.hidden_states)) if out.hidden_states is not None else None
            return Encoded(ids, out.last_hidden_state, grid, states, None)
        layers: list[Tensor] | None = [] if want_states else None
        maps: list[Tensor] | None = [] if want_attentions else None
        self.encoder.set_attention_backend(self._backend)
        # The embedding is called within the encoder, whose hooks may have to fetch its weights first.
        out = self.encoder(
            ids,
            grid.layout,
            inputs_embeds=lambda: grid.gather(self._embedded(input_ids, inputs_embeds)),
            states_hook=None if layers is None else grid.padder(layers),
            weights_hook=None if maps is None else grid.pair_padder(maps),
        )
        return Encoded(ids, out.last_hidden_state, grid, _tuple(layers), _tuple(maps))

    def _embedded(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        return self.encoder.embedding(input_ids) if inputs_embeds is None else inputs_embeds.to(self.dtype)

    def _grid(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Grid:
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            raise InputError(
                "RiNALMo cannot be exported (torch.export, ONNX, torch.jit.trace): its batches are unpacked by their "
                "values, which a trace would fix"
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds")
        name, given, axes = "input_ids", input_ids, "(batch, length)"
        if inputs_embeds is not None:
            name, given, axes = "inputs_embeds", inputs_embeds, f"(batch, length, {self.config.hidden_size})"
        assert given is not None
        if given.dim() != axes.count(",") + 1 or (given is inputs_embeds and given.shape[2] != self.config.hidden_size):
            raise InputError(f"{name} has shape {tuple(given.shape)}; expected {axes}")
        pad = self.config.pad_token_id
        real = None if input_ids is None or pad is None else input_ids != pad
        return grid_of(name, (given.shape[0], given.shape[1]), given.device, real, attention_mask, position_ids)

    @property
    def _backend(self) -> Backend:
        return _BACKENDS.get(self.config._attn_implementation or "sdpa", "auto")

    def _fast(self, backend: Backend) -> FastEncoder | None:
        """The engine's encoder where it can stand in."""
        return self._fast_path.of(self.encoder) if backend == "auto" else None

    def _from_fast(self, fast: FastEncoder, ids: Tensor, layout: Layout, all_layers: bool) -> EncoderOutput:
        last = len(fast.blocks)
        states = [layer.to(self.dtype) for layer in fast(ids, layout, range(last + 1) if all_layers else [last])]
        return EncoderOutput(states[-1], tuple(states) if all_layers else None, None)

    def _states(self, ids: Tensor, layout: Layout, all_layers: bool) -> EncoderOutput:
        """States of a packed batch, from the engine's encoder where it can stand in, else from the plain one."""
        fast = self._fast(self._backend)
        if fast is not None:
            return self._from_fast(fast, ids, layout, all_layers)
        self.encoder.set_attention_backend(self._backend)
        return self.encoder(ids, layout, output_hidden_states=all_layers)


def refuse(token_type_ids: Tensor | None, head_mask: Any) -> None:
    """Raise for arguments of other models that ask for what RiNALMo does not have."""
    if token_type_ids is not None and bool((token_type_ids != 0).any()):
        raise InputError("token_type_ids are not all 0: RiNALMo has one type of token; leave them out")
    masks = head_mask if isinstance(head_mask, list | tuple) else [head_mask]
    if any(mask is not None and bool((mask != 1).any()) for mask in masks):
        raise InputError("head_mask is not all 1: RiNALMo's attention heads cannot be masked; leave it out")


def _tuple(layers: list[Tensor] | None) -> tuple[Tensor, ...] | None:
    return None if layers is None else tuple(layers)
