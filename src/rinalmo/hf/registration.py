"""Makes the Hugging Face Auto classes know RiNALMo, without importing transformers.

Importing `rinalmo` calls `install`. If transformers' auto modules are loaded already, our classes are registered
at once; otherwise an import hook waits for each of them and registers when it has been loaded. Importing rinalmo
therefore costs nothing, and the order of imports does not matter.

multimolecule registers the same model type. Whichever package registers last serves `AutoModel`; both read the same
files, and `rinalmo`'s own classes work either way.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto."


def _register_config(auto: ModuleType) -> None:
    from rinalmo.hf.configuration import RiNALMoConfig

    auto.AutoConfig.register(RiNALMoConfig.model_type, RiNALMoConfig, exist_ok=True)


def _register_tokenizer(auto: ModuleType) -> None:
    from rinalmo.hf.configuration import RiNALMoConfig
    from rinalmo.hf.tokenization import RnaTokenizer

    auto.AutoTokenizer.register(RiNALMoConfig, tokenizer_class=RnaTokenizer, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    from rinalmo.hf import modeling
    from rinalmo.hf.configuration import RiNALMoConfig

    for auto_class, model_class in {
        "AutoModel": modeling.RiNALMoModel,
        "AutoModelForPreTraining": modeling.RiNALMoForPreTraining,
        "AutoModelForMaskedLM": modeling.RiNALMoForMaskedLM,
        "AutoModelForSequenceClassification": modeling.RiNALMoForSequencePrediction,
        "AutoModelForTokenClassification": modeling.RiNALMoForTokenPrediction,
    }.items():
        getattr(auto, auto_class).register(RiNALMoConfig, model_class, exist_ok=True)


_REGISTER: dict[str, Callable[[ModuleType], None]] = {
    f"{_AUTO}configuration_auto": _register_config,
    f"{_AUTO}tokenization_auto": _register_tokenizer,
    f"{_AUTO}modeling_auto": _register_models,
}


def install() -> None:
    """Register with transformers now or as soon as it is imported; harmless to call again."""
    for name, register in _REGISTER.items():
        if name in sys.modules:
            register(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport:
    """Finds the three auto modules as usual and has them followed by our registration.

    No subclass of `importlib.abc.MetaPathFinder`: importing that takes as long as all else that `import rinalmo` does.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _REGISTER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _follow(spec.loader, _REGISTER[fullname])
        return spec


def _follow(loader: Any, register: Callable[[ModuleType], None]) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        register(module)

    loader.exec_module = exec_module
