"""RiNALMo, the RNA language model.

    import rinalmo

    rinalmo.fill_mask("GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU")     # predict the masked nucleotide
    rinalmo.embed(["UAGCUUAUCAGACUGAUGUUGA"])                     # (1, hidden) array
    rinalmo.score("GGUCUCUCUGGUUAGACC", ["G2A", "G2A:C17U"])      # mutants compared with the wild type
    rinalmo.finetune("table", dataset, "run", target="half_life") # your own labels, from files or rows
    model = rinalmo.load("nano")                                  # torch module on packed tokens
    rinalmo.RiNALMoModel.from_pretrained(...)                     # Hugging Face class

Names are imported when first used: `import rinalmo` alone loads neither torch nor transformers. It does register the
model with the Hugging Face Auto classes and pipelines, as soon as transformers is imported (`rinalmo.hf.registration`).
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from rinalmo.hf.registration import install as _install

__version__ = "0.2.0"

if TYPE_CHECKING:
    from rinalmo.benchmarks import benchmark
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
    from rinalmo.inference.predict import predict
    from rinalmo.inference.variants import score
    from rinalmo.io.sequences import read_fasta
    from rinalmo.model.config import ModelConfig
    from rinalmo.rna.alphabet import Alphabet
    from rinalmo.tasks.evaluate import evaluate
    from rinalmo.training.finetune import finetune
    from rinalmo.weights.catalog import models, resolve
    from rinalmo.weights.checkpoint import convert, info, load, save

_NAMES = {
    "benchmarks": "benchmark",
    "engine.engine": "Engine clear_engine_cache",
    "errors": "CheckpointError DownloadError InputError MissingExtraError RinalmoError SequenceError",
    "hf.configuration": "RiNALMoConfig",
    "hf.modeling": (
        "RiNALMoForContactPrediction RiNALMoForMaskedLM RiNALMoForPreTraining RiNALMoForSecondaryStructurePrediction "
        "RiNALMoForSequencePrediction RiNALMoForTokenPrediction RiNALMoModel"
    ),
    "hf.tokenization": "RnaTokenizer",
    "inference.embed": "embed",
    "inference.fill_mask": "fill_mask",
    "inference.fold": "fold",
    "inference.predict": "predict",
    "inference.variants": "score",
    "io.sequences": "read_fasta",
    "model.config": "ModelConfig",
    "rna.alphabet": "Alphabet",
    "tasks.evaluate": "evaluate",
    "training.finetune": "finetune",
    "weights.catalog": "models resolve",
    "weights.checkpoint": "convert info load save",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

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
    "benchmark",
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
    if name not in _MODULES:
        raise AttributeError(f"module 'rinalmo' has no attribute {name!r}")
    value = getattr(_import_module(f"rinalmo.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


_install()
