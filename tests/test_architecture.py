"""What importing costs and leaves behind, and which names there are. `lint-imports` checks who may import whom."""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import rinalmo

SOURCE = Path(rinalmo.__file__).parent


def test_no_file_is_called_by_what_it_is_not_about():
    stems = {path.stem for path in SOURCE.rglob("*.py")}
    assert not stems & {"utils", "helpers", "common", "misc"}


def test_no_two_rooms_have_a_file_of_the_same_name():
    stems = Counter(path.stem for path in SOURCE.rglob("*.py"))
    assert {stem for stem, count in stems.items() if count > 1} <= {"__init__", "base", "checkpoint"}


def test_no_class_name_stands_twice():
    trees = (ast.parse(path.read_text()) for path in SOURCE.rglob("*.py"))
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert {name for name, count in names.items() if count > 1} == set()


VAGUE = {
    "by",
    "shown",
    "filled",
    "hidden",
    "real",
    "Run",
    "planes",
    "adding",
    "input_sum",
    "read_from",
    "require_whole",
    "peeked",
    "joined",
    "company",
    "Spread",
    "rest",
    "awaken",
    "conduct",
    "SILENCE",
    "remembered",
    "learned",
    "understood",
    "judge",
    "tuned",
    "goodness",
    "found",
    "what",
    "said",
    "told",
    "least",
}


def test_names_say_what_they_hold():
    vague = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "id", getattr(node, "arg", getattr(node, "attr", getattr(node, "name", None))))
            if name in VAGUE:
                vague.append(f"{path.name}:{node.lineno}: {name}")
    assert vague == []


def in_fresh_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_FORKS = """
import json, os, sys
import huggingface_hub, scipy.optimize, torch._dynamo, torch.distributed.tensor
for line in sys.stdin:
    code, printed = json.loads(line)
    if not os.fork():
        with open(printed, "w", 1) as sys.stdout:
            exec(code, {})
        os._exit(0)
    print(os.wait()[1], flush=True)
"""


@pytest.fixture(scope="module")
def in_fork_of_fresh_python(tmp_path_factory):
    """What code prints, alone in a process that has imported what transformers does: most of the time is in that."""
    printed = tmp_path_factory.mktemp("forks") / "printed"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", _FORKS], **pipes) as process:

        def run(code):
            print(json.dumps([code, str(printed)]), file=process.stdin, flush=True)
            assert process.stdout.readline().strip() == "0", code
            return printed.read_text().strip()

        yield run


@pytest.mark.parametrize("code", ["import rinalmo", "import rinalmo.cli; rinalmo.cli.cli.get_help"])
def test_import_loads_nothing_heavy(code):
    heavy = "{'torch', 'transformers', 'numpy', 'pyarrow', 'rich'} & set(sys.modules)"
    assert in_fresh_python(f"import sys; {code}; print(sorted({heavy}))") == "[]"


@pytest.mark.posix_only
def test_import_has_no_side_effects(in_fork_of_fresh_python):
    code = """
import random, socket
def refuse(*a, **k): raise AssertionError("network at import")
socket.socket.connect = refuse
state = random.getstate()
import torch
seed = torch.random.get_rng_state()
import rinalmo
for name in rinalmo.__all__:
    getattr(rinalmo, name)
assert random.getstate() == state
assert torch.equal(torch.random.get_rng_state(), seed)
print("unchanged")
"""
    assert in_fork_of_fresh_python(code) == "unchanged"


def test_import_leaves_the_process_as_it_was(in_fork_of_fresh_python):
    code = """
import csv, locale, logging, os, signal, sys, threading, warnings
def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    hooks = sys.excepthook, threading.excepthook, warnings.showwarning, sys.stdout, sys.stderr
    level = logging.root.level, list(logging.root.handlers)
    filters, limit = warnings.filters[:], csv.field_size_limit()
    return dict(os.environ), handlers, hooks, level, filters, locale.setlocale(locale.LC_ALL), limit
before = state()
import rinalmo, rinalmo.cli, rinalmo.io.files, rinalmo.io.tables
assert state() == before
print("unchanged")
"""
    assert in_fork_of_fresh_python(code) == "unchanged"


def test_public_names():
    assert rinalmo.__all__ == sorted(rinalmo.__all__)
    assert set(rinalmo._MODULES) | {"__version__"} == set(rinalmo.__all__)
    for name in rinalmo.__all__:
        assert getattr(rinalmo, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rinalmo.nothing  # noqa: B018


@pytest.mark.posix_only
@pytest.mark.parametrize(
    "order",
    [
        "import rinalmo; import transformers",
        pytest.param("import transformers; import rinalmo", marks=pytest.mark.slow),
        pytest.param(
            "import transformers; transformers.AutoModel; transformers.AutoTokenizer; import rinalmo",
            marks=pytest.mark.slow,
        ),
        pytest.param("import rinalmo; from transformers import pipeline", marks=pytest.mark.slow),
    ],
)
def test_auto_classes_know_the_model_in_any_order_of_imports(in_fork_of_fresh_python, order):
    code = """
from transformers import AutoModelForMaskedLM, AutoTokenizer
name = str(rinalmo.resolve("nano"))
print(type(AutoModelForMaskedLM.from_pretrained(name)).__module__, type(AutoTokenizer.from_pretrained(name)).__module__)
"""
    assert in_fork_of_fresh_python(order + code) == "rinalmo.hf.modeling rinalmo.hf.tokenization"


_OTHER = """
import transformers
class RiNALMoConfig(transformers.PreTrainedConfig):
    model_type = "rinalmo"
class RiNALMoModel(transformers.PreTrainedModel):
    config_class = RiNALMoConfig
class RnaTokenizer(transformers.BertTokenizer):
    pass
def other_package():
    transformers.AutoConfig.register("rinalmo", RiNALMoConfig, exist_ok=True)
    transformers.AutoModel.register(RiNALMoConfig, RiNALMoModel, exist_ok=True)
    transformers.AutoTokenizer.register(RiNALMoConfig, tokenizer_class=RnaTokenizer, exist_ok=True)
"""


@pytest.mark.posix_only
@pytest.mark.slow
@pytest.mark.parametrize("order", ["other_package(); import rinalmo", "import rinalmo; other_package()"])
def test_another_package_with_the_same_model_type(in_fork_of_fresh_python, order):
    """multimolecule registers `rinalmo` too; our classes work whoever comes last."""
    code = """
name = str(rinalmo.resolve("nano"))
model = rinalmo.RiNALMoForMaskedLM.from_pretrained(name)
tokenizer = rinalmo.RnaTokenizer.from_pretrained(name)
fill = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer)
print(type(model.config).__module__, fill("GGUC<mask>CUCU")[0]["token_str"] in "ACGU")
"""
    assert in_fork_of_fresh_python(_OTHER + order + code) == "rinalmo.hf.configuration True"
