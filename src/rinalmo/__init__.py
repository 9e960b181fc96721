"""RiNALMo, the RNA language model.

    import rinalmo

    rinalmo.fill_mask("GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU")     # what stands at the mask
    rinalmo.embed(["UAGCUUAUCAGACUGAUGUUGA"])                     # (1, hidden) array
    rinalmo.score("GGUCUCUCUGGUUAGACC", ["G2A", "G2A:C17U"])      # how likely mutants are, next to the wild type
    rinalmo.finetune("table", dataset, "run", target="half_life") # your own labels, from files or rows
    model = rinalmo.load("nano")                               # torch module on packed tokens
    rinalmo.RiNALMoModel.from_pretrained(...)                     # Hugging Face class

Names are imported when first used: `import rinalmo` alone loads neither torch nor transformers. It does make the
Hugging Face Auto classes and pipelines know the model, whenever transformers is imported (`rinalmo.hf.registration`).
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from rinalmo.hf.registration import install as _install

__version__ = "0.2.0"

if TYPE_CHECKING:
    from rinalmo.engine.engine import Engine, clear_engine_cache
    from rinalmo.errors import (
        CheckpointError,
        DownloadError,
        InputError,
        MissingExtraError,
        RinalmoError,
        SequenceError,
    )
    from rinalmo.hf.configuration import RiNALMoConfig
    from rinalmo.hf.modeling import (
        RiNALMoForContactPrediction,
        RiNALMoForMaskedLM,
        RiNALMoForPreTraining,
        RiNALMoForSecondaryStructurePrediction,
        RiNALMoForSequencePrediction,
        RiNALMoForTokenPrediction,
        RiNALMoModel,
    )
    from rinalmo.hf.tokenization import RnaTokenizer
    from rinalmo.inference.embed import embed
    from rinalmo.inference.fill_mask import fill_mask
    from rinalmo.inference.fold import fold
    from rinalmo.inference.variants import score
    from rinalmo.io.fasta import read_fasta
    from rinalmo.model.config import ModelConfig
    from rinalmo.rna.alphabet import Alphabet
    from rinalmo.tasks.evaluate import evaluate, predict
    from rinalmo.training.finetune import finetune
    from rinalmo.weights.catalog import models, resolve
    from rinalmo.weights.checkpoint import convert, info, load, save

_WHERE = {
    "Alphabet": "rna.alphabet",
    "CheckpointError": "errors",
    "DownloadError": "errors",
    "Engine": "engine.engine",
    "InputError": "errors",
    "MissingExtraError": "errors",
    "ModelConfig": "model.config",
    "RiNALMoConfig": "hf.configuration",
    "RiNALMoForContactPrediction": "hf.modeling",
    "RiNALMoForMaskedLM": "hf.modeling",
    "RiNALMoForPreTraining": "hf.modeling",
    "RiNALMoForSecondaryStructurePrediction": "hf.modeling",
    "RiNALMoForSequencePrediction": "hf.modeling",
    "RiNALMoForTokenPrediction": "hf.modeling",
    "RiNALMoModel": "hf.modeling",
    "RinalmoError": "errors",
    "RnaTokenizer": "hf.tokenization",
    "SequenceError": "errors",
    "clear_engine_cache": "engine.engine",
    "convert": "weights.checkpoint",
    "embed": "inference.embed",
    "evaluate": "tasks.evaluate",
    "fill_mask": "inference.fill_mask",
    "finetune": "training.finetune",
    "fold": "inference.fold",
    "info": "weights.checkpoint",
    "load": "weights.checkpoint",
    "models": "weights.catalog",
    "predict": "tasks.evaluate",
    "read_fasta": "io.fasta",
    "resolve": "weights.catalog",
    "save": "weights.checkpoint",
    "score": "inference.variants",
}

__all__ = [
    "Alphabet",
    "CheckpointError",
    "DownloadError",
    "Engine",
    "InputError",
    "MissingExtraError",
    "ModelConfig",
    "RiNALMoConfig",
    "RiNALMoForContactPrediction",
    "RiNALMoForMaskedLM",
    "RiNALMoForPreTraining",
    "RiNALMoForSecondaryStructurePrediction",
    "RiNALMoForSequencePrediction",
    "RiNALMoForTokenPrediction",
    "RiNALMoModel",
    "RinalmoError",
    "RnaTokenizer",
    "SequenceError",
    "__version__",
    "clear_engine_cache",
    "convert",
    "embed",
    "evaluate",
    "fill_mask",
    "finetune",
    "fold",
    "info",
    "load",
    "models",
    "predict",
    "read_fasta",
    "resolve",
    "save",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rinalmo' has no attribute {name!r}")
    value = getattr(_import_module(f"rinalmo.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


_install()
