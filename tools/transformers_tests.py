"""Run transformers' own common tests on our Hugging Face classes.

    python tools/transformers_tests.py [FOLDER] [-- PYTEST ARGUMENTS]

transformers' source distribution carries the mixins that its models are tested with (`tests/test_modeling_common.py`
and others). This script downloads the one of the installed version with pip, unpacks its tests into FOLDER (a
temporary folder if not given), and plugs the seven model classes, the configuration and the tokenizer into them, for
four kinds of input: random ids, nucleotides, nucleotides between CLS and EOS, and the same padded on the left. What
these tests import from parts of the repository that are not distributed (generation, exporters, fixtures) is replaced
by the little that they need. The pipeline mixin is left out: it wants models from the Hub.

Prints the number of passed, skipped and failed tests, and every failure that is not in `EXPECTED`. Exit code 1 if there
is any. Takes three minutes on two cores; no part of `make test`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import transformers

# part of a test's name → why our classes differ
EXPECTED = {
    "test_resize_tokens_embeddings": "the vocabulary is fixed: the same size is accepted, others are refused",
    "test_resize_embeddings_untied": "the same",
    "test_model_weights_reload_no_missing_tied_weights": (
        "a file that holds none of the model's tensors is refused; transformers would return a random model"
    ),
    "gradient_checkpointing": "they look for a GradientCheckpointingLayer; our encoder checkpoints its blocks itself",
    "test_internal_consistency": "decoding puts a space between tokens, as multimolecule's tokenizer does",
    "test_pretokenized_inputs": "a space in a sequence is an unknown token, as in multimolecule's tokenizer",
    "test_tokenizer_store_full_signature": "the vocabulary file decides, so `alphabet` is not stored beside it",
}

MODEL_TESTS = """
import copy
import unittest
import torch
from transformers.models.auto import modeling_auto
from rinalmo import (
    RiNALMoConfig, RiNALMoForContactPrediction, RiNALMoForMaskedLM, RiNALMoForPreTraining,
    RiNALMoForSecondaryStructurePrediction, RiNALMoForSequencePrediction, RiNALMoForTokenPrediction, RiNALMoModel,
)
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin
from ...test_training_mixin import TrainingTesterMixin

# The mixins know what a class is for by the names in these tables.
modeling_auto.MODEL_MAPPING_NAMES["rinalmo"] = "RiNALMoModel"
KINDS = ("random", "nucleotides", "special", "left_padded")


class RiNALMoTester:
    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = 3, 9, 32, 2, 4
    is_training = True

    def __init__(self, parent, kind):
        self.parent, self.kind = parent, kind

    def get_config(self):
        return RiNALMoConfig(
            hidden_size=self.hidden_size, num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads, intermediate_size=64, hidden_dropout=0.0,
            attention_dropout=0.0, num_labels=2,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        shape = (self.batch_size, self.seq_length)
        mask = torch.ones(shape, dtype=torch.long)
        if self.kind == "random":
            ids = torch.randint(config.eos_token_id + 1, config.vocab_size, shape)
        else:
            ids = torch.randint(6, 10, shape)
        if self.kind in ("special", "left_padded"):
            ids[:, 0], ids[:, -1] = config.bos_token_id, config.eos_token_id
        if self.kind == "left_padded":
            ids = torch.nn.functional.pad(ids[:, 2:], (2, 0), value=config.pad_token_id)
            ids[:, 2] = config.bos_token_id
            mask[:, :2] = 0
        return config, {"input_ids": ids, "attention_mask": mask}


class _Common(ModelTesterMixin, TrainingTesterMixin):
    kind = None
    all_model_classes = (
        RiNALMoModel, RiNALMoForMaskedLM, RiNALMoForPreTraining, RiNALMoForSequencePrediction,
        RiNALMoForTokenPrediction, RiNALMoForContactPrediction, RiNALMoForSecondaryStructurePrediction,
    )
    model_tester = None

    def setUp(self):
        self.model_tester = RiNALMoTester(self, self.kind)
        self.config_tester = ConfigTester(self, config_class=RiNALMoConfig, hidden_size=32, num_attention_heads=4)

    def _get_trainable_model_class(self):
        return RiNALMoForMaskedLM

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels and model_class is not RiNALMoModel:
            ids = inputs["input_ids"]
            config = self.model_tester.get_config()
            special = (ids == config.bos_token_id) | (ids == config.eos_token_id)
            batch, length = ids.shape
            nucleotides = length - int(special[0].sum())  # pads stay columns of the logits
            special |= inputs["attention_mask"] == 0
            shapes = {
                RiNALMoForSequencePrediction: (batch,),
                RiNALMoForContactPrediction: (batch, nucleotides, nucleotides),
                RiNALMoForSecondaryStructurePrediction: (batch, nucleotides, nucleotides, 2),
            }
            inputs["labels"] = torch.zeros(shapes.get(model_class, (batch, length)), dtype=torch.long)
            if inputs["labels"].shape == ids.shape:
                inputs["labels"][special] = -100
        return inputs


for kind in KINDS:
    name = f"Test_{kind}"
    globals()[name] = type(name, (_Common, unittest.TestCase), {"kind": kind, "__module__": __name__})
"""

TOKENIZER_TESTS = """
import unittest
import rinalmo
from rinalmo import RnaTokenizer
from ...test_tokenization_common import TokenizerTesterMixin


class RnaTokenizerTest(TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = RnaTokenizer
    from_pretrained_id = str(rinalmo.resolve("nano"))
    test_seq2seq = False
    test_tokenizer_from_extractor = False
    integration_test_input_string = "ACGUNACGU"
    integration_expected_tokens = list("ACGUNACGU")
    integration_expected_token_ids = [6, 7, 8, 9, 10, 6, 7, 8, 9]

    def get_input_output_texts(self, tokenizer):
        return "acgtACGU", "ACGUACGU"
"""

STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'output_attentions': True,"
        " 'dtype': 'float16', 'chunk_size_feed_forward': 5, 'architectures': ['BertModel'], 'id2label': {0: 'label'},"
        " 'label2id': {'label': '0'}, 'problem_type': 'regression'}\n"
    ),
    "models/rinalmo/test_modeling_rinalmo.py": MODEL_TESTS,
    "models/rinalmo/test_tokenization_rinalmo.py": TOKENIZER_TESTS,
}


def prepare(folder: Path) -> None:
    """Unpack the tests of the installed version of transformers, with what they import and ours."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source = f"transformers=={transformers.__version__}"
    subprocess.run(
        [*pip, "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", folder, source],
        check=True,
    )
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "packages", "parameterized"], check=True)
    with tarfile.open(next(folder.glob("transformers-*.tar.gz"))) as archive:
        wanted = [member for member in archive if re.fullmatch(r"[^/]+/tests/[^/]+\.py", member.name)]
        archive.extractall(folder, wanted, filter="data")
    tests = folder / "tests"
    next(folder.glob("transformers-*/tests")).rename(tests)
    for name, text in STUBS.items():
        path = tests / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for parent in {tests, *(path.parent for path in tests.rglob("*.py")), tests / "models"}:
        (parent / "__init__.py").touch()
    (tests / "fixtures").mkdir(exist_ok=True)
    (tests / "fixtures" / "sample_text.txt").write_text("ACGUACGUNN\n\nGGGGAAAUCCCC\n")
    (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, help="where to unpack and run them (default: a temporary folder)"
    )
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="transformers-tests-"))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tests").exists():
        prepare(folder)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "packages"), *sys.path[1:]]),
        "HF_HUB_OFFLINE": "1",
    }
    report = folder / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        "-c",
        "pyproject.toml",
    ]
    subprocess.run(
        [*command, "tests/models/rinalmo", *given.pytest],
        cwd=folder,
        env=environment,
        check=False,
        stdout=subprocess.DEVNULL,
    )
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    unexpected = []
    for case in failed:
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        if not any(part in name for part in EXPECTED):
            problem = case.find("failure") if case.find("failure") is not None else case.find("error")
            unexpected.append(f"{name}: {(problem.get('message') or '').splitlines()[0][:160]}")
    passed, expected = len(cases) - len(failed) - skipped, len(failed) - len(unexpected)
    print(f"{passed} passed, {skipped} skipped, {len(failed)} failed, {expected} of them expected")
    print("\n".join(unexpected))
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
