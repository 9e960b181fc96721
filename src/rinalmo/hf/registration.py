"""Registers RiNALMo with the Hugging Face Auto classes, pipelines and PEFT, without importing transformers or peft.

Importing `rinalmo` calls `install`. If their modules are loaded already, our classes are registered at once;
otherwise an import hook registers them when each has been loaded. So importing rinalmo costs nothing, and the
order of imports does not matter.

multimolecule registers the same model type. Whichever package registers last serves `AutoModel`; both read the same
files, and `rinalmo`'s own classes work either way.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_PIPELINES = "transformers.pipelines"
_PEFT_DEFAULTS = "peft.utils.constants"
_MODULES = {_PIPELINES, _PEFT_DEFAULTS} | {
    f"transformers.models.auto.{kind}_auto" for kind in ("configuration", "tokenization", "modeling")
}


def install() -> None:
    """Register with transformers and peft now or as soon as they are imported; harmless to call again."""
    for name in _MODULES & sys.modules.keys():
        _register(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register(auto: ModuleType) -> None:
    """Register our classes in one of transformers' modules, or the default target modules of adapters in PEFT's."""
    if auto.__name__ == _PEFT_DEFAULTS:
        # As BERT's; one matrix holds queries, keys and values here. Layer norms have no default for BERT.
        of_bert = {("query", "value"): ["qkv"], ("key", "value", "output.dense"): ["qkv", "down"]}
        of_bert[("output.dense",)] = ["down"]
        for name, targets in vars(auto).items():
            if isinstance(targets, dict) and (modules := of_bert.get(tuple(targets.get("bert") or ()))):
                targets.setdefault("rinalmo", modules)
            elif "_LNTUNING_" in name:
                targets.setdefault("rinalmo", ["attention_norm", "ffn_norm", "final_norm"])
        return
    if auto.__name__ == _PIPELINES:
        from rinalmo.hf import pipelines

        auto.PIPELINE_REGISTRY.supported_tasks.pop(pipelines.TASK, None)  # multimolecule's, which would cause a warning
        auto.PIPELINE_REGISTRY.register_pipeline(
            pipelines.TASK, pipelines.SecondaryStructurePipeline, pipelines.FoldingModel, type="text"
        )
        return
    from rinalmo.hf.configuration import RiNALMoConfig

    kind = auto.__name__.rpartition(".")[2]
    if kind == "configuration_auto":
        auto.AutoConfig.register(RiNALMoConfig.model_type, RiNALMoConfig, exist_ok=True)
    elif kind == "tokenization_auto":
        from rinalmo.hf.tokenization import RnaTokenizer

        auto.AutoTokenizer.register(RiNALMoConfig, tokenizer_class=RnaTokenizer, exist_ok=True)
    else:
        from rinalmo.hf import modeling

        auto.AutoModel.register(RiNALMoConfig, modeling.RiNALMoModel, exist_ok=True)
        auto.AutoModelForPreTraining.register(RiNALMoConfig, modeling.RiNALMoForPreTraining, exist_ok=True)
        auto.AutoModelForMaskedLM.register(RiNALMoConfig, modeling.RiNALMoForMaskedLM, exist_ok=True)
        classify_sequences, classify_tokens = modeling.RiNALMoForSequencePrediction, modeling.RiNALMoForTokenPrediction
        auto.AutoModelForSequenceClassification.register(RiNALMoConfig, classify_sequences, exist_ok=True)
        auto.AutoModelForTokenClassification.register(RiNALMoConfig, classify_tokens, exist_ok=True)


class _AfterImport:
    """Finds their modules as usual, and registers our classes once one has been executed.

    No subclass of `importlib.abc.MetaPathFinder`: importing that takes as long as the rest of `import rinalmo`.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _MODULES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
