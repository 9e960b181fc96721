"""The transformers pipeline `rna-secondary-structure`: what `rinalmo fold` computes, from `transformers.pipeline`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pipelines import Pipeline

from rinalmo.engine.engine import Engine
from rinalmo.errors import InputError
from rinalmo.hf.loading import HUB_OPTIONS, local_path
from rinalmo.hf.modeling import ModelEngine, RiNALMoForSecondaryStructurePrediction
from rinalmo.inference.fold import MODELS_OWN, Decoding, Folded, fold_records, folding_task
from rinalmo.io.sequences import Record, Sequences, as_records, require_nonempty
from rinalmo.tasks.evaluate import note_windows

TASK = "rna-secondary-structure"


class FoldingModel(nn.Module):
    """A folder or hub repository whose model folds, for `pipeline`, which loads it by `from_pretrained`."""

    device = torch.device("cpu")

    def __init__(self, path: Path | str, config: Any) -> None:
        super().__init__()
        self.path, self.config = path, config

    @classmethod
    def from_pretrained(cls, name: str, config: Any = None, **options: Any) -> FoldingModel:
        hub = {option: options[option] for option in HUB_OPTIONS if option in options}
        return cls(local_path(name, hub, None), config)


class SecondaryStructurePipeline(Pipeline):
    """Secondary structures as `rinalmo.fold` predicts them, with thermodynamics where that is the model's default.

    Args:
        threshold, method, canonical, min_distance, thermodynamics: The fields of `Decoding`; when the pipeline is made
            or called.

    Returns:
        For a sequence a mapping with `sequence`, `dot_bracket`, `pairs` (positions from 0), `confidence` (expected
        share of right pairs), `energy` (kcal/mol; None without ViennaRNA) and `probabilities`, `(length, length)`, or a
        `PairList` for an RNA that is folded in windows. For several sequences (what `rinalmo.embed` takes) a list of
        these; for a generator or data set a generator.

    Raises:
        InputError: The model does not fold.
    """

    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        if isinstance(model, FoldingModel):
            self.engine: Engine = Engine(model.path, "fp32", device=self.device)
        elif isinstance(model, RiNALMoForSecondaryStructurePrediction):
            self.engine = ModelEngine(model, heads=["structure_head"])
        else:
            raise InputError(
                f"a {type(model).__name__} cannot fold; give a RiNALMoForSecondaryStructurePrediction or the "
                "folder of a model that folds"
            )
        folding_task(self.engine.spec, model=str(getattr(model, "path", "")))

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = options.keys() - vars(MODELS_OWN).keys()
        if unknown:
            known = ", ".join(vars(MODELS_OWN))
            raise InputError(f"{TASK} has no option {', '.join(sorted(unknown))}; there are {known}")
        return {}, options, {}

    def __call__(
        self, inputs: Sequences, *_: Any, num_workers: Any = None, batch_size: Any = None, **options: Any
    ) -> Any:
        """As the class says; the engine batches by itself, so `batch_size` and `num_workers` change nothing."""
        decoding = Decoding(**{**self._forward_params, **self._sanitize_parameters(**options)[1]})
        task = folding_task(self.engine.spec)
        records = note_windows(require_nonempty(as_records(inputs)), task, warnings.warn)
        folded = fold_records(records, self.engine, decoding, window=task.window)
        answers: Iterator[dict[str, Any]] = map(self.postprocess, folded)
        if isinstance(inputs, str):
            return next(answers)
        return answers if isinstance(inputs, Iterator) else list(answers)

    def preprocess(self, input_: Record) -> Record:  # type: ignore[override]
        return input_

    def _forward(self, input_: Record, **options: Any) -> Folded:  # type: ignore[override]
        return next(fold_records([input_], self.engine, Decoding(**options)))

    def postprocess(self, folded: Folded) -> dict[str, Any]:  # type: ignore[override]
        structure, probabilities = folded
        return {
            "sequence": structure.sequence,
            "dot_bracket": structure.dot_bracket,
            "pairs": list(structure.pairs),
            "confidence": structure.confidence,
            "energy": structure.energy,
            "probabilities": probabilities,
        }
