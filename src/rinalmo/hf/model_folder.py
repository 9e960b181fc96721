"""What stands beside the weights in a folder of `save_pretrained`, so that it is whole when it is uploaded.

`vocab.txt` and `tokenizer_config.json` follow from the size of the vocabulary, and a short `README.md` with the hub's
metadata from the config. What is there already, such as a tokenizer of other settings or a card, is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import rinalmo
from rinalmo.alphabet import CARD_TOKENS, STANDARD_TOKENS, Alphabet
from rinalmo.errors import InputError
from rinalmo.hf.configuration import RiNALMoConfig
from rinalmo.weights.config_file import tokenizer_config_of

_PIPELINES = {"RiNALMoForMaskedLM": "fill-mask", "RiNALMoForPreTraining": "fill-mask"}


def alphabet_of(config: RiNALMoConfig) -> Alphabet:
    """The tokens of a model; raises InputError for a vocabulary of another size than the two that are known."""
    for tokens in (STANDARD_TOKENS, CARD_TOKENS):
        if len(tokens) == config.vocab_size:
            return Alphabet(tokens)
    known = f"{len(STANDARD_TOKENS)} and {len(CARD_TOKENS)}"
    raise InputError(f"a vocabulary of {config.vocab_size} tokens is unknown here; known are those of {known}")


def complete(folder: Path, config: RiNALMoConfig, class_name: str) -> None:
    """Write what is missing of tokenizer and card into a folder, made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"README.md": _card(folder.resolve().name, config, class_name)}
    if config.vocab_size in (len(STANDARD_TOKENS), len(CARD_TOKENS)):
        files["vocab.txt"] = "\n".join(alphabet_of(config).tokens) + "\n"
        files["tokenizer_config.json"] = json.dumps(tokenizer_config_of(), indent=2) + "\n"
    for name, text in files.items():
        if not (folder / name).exists():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _card(name: str, config: RiNALMoConfig, class_name: str) -> str:
    values: Mapping[str, Any] = {
        "language": "rna",
        "library_name": "rinalmo",
        "pipeline_tag": _PIPELINES.get(class_name),
        "tags": ["Biology", "RNA"],
        "mask_token": "<mask>",
    }
    header = yaml.safe_dump({key: value for key, value in values.items() if value}, sort_keys=False)
    return (
        f"---\n{header}---\n\n# {name}\n\n"
        f"A RiNALMo RNA language model (`{class_name}`): {config.num_hidden_layers} layers of width "
        f"{config.hidden_size}.\n\n## Use\n\n```python\nimport rinalmo  # pip install rinalmo\n\n"
        f'model = rinalmo.{class_name}.from_pretrained("path/to/this/folder")\n'
        'tokenizer = rinalmo.RnaTokenizer.from_pretrained("path/to/this/folder")\n```\n\n'
        f"Written by rinalmo {rinalmo.__version__}. What it was trained on, how, and what it reaches is to be added.\n"
    )
