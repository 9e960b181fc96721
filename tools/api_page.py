"""Write docs/api.md from the docstrings of the public names.

    python tools/api_page.py

A page from `inspect` alone: the tools that make such pages bring a dozen packages, and the docstrings are plain prose.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import rinalmo

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
HEAD = """# Python API

What stands under *rinalmo* is imported as `from rinalmo import …`, and loads torch when it is first used, not before.
Written by `tools/api_page.py` from the docstrings.
"""
MODULES = {
    "rinalmo.engine.engine": ("Engine",),
    "rinalmo.inference.variants": ("saturation",),
    "rinalmo.rna.structure": ("Structure",),
    "rinalmo.rna.formats": ("read_structures", "read_rows", "write_structures"),
    "rinalmo.rna.decoding": ("decode",),
    "rinalmo.metrics": (),
    "rinalmo.plots": (),
    "rinalmo.data.store": ("TokenStore",),
    "rinalmo.model.packing": ("Layout", "pack_padded"),
}


def page() -> str:
    parts = [HEAD, "## rinalmo\n", *_entries(rinalmo, [name for name in rinalmo.__all__ if name != "__version__"])]
    for name, chosen in MODULES.items():
        module = importlib.import_module(name)
        parts += [f"## {name}\n", f"{_prose(_first(module))}\n", *_entries(module, chosen or module.__all__)]
    return "\n".join(parts)


def _entries(module: object, names: Iterator[str] | list[str] | tuple[str, ...]) -> Iterator[str]:
    for name in names:
        thing = getattr(module, name)
        yield f"### {name}\n"
        yield from _described(name, thing)
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            for method, value in vars(thing).items():
                value = getattr(value, "__func__", value)
                if inspect.isfunction(value) and not method.startswith("_") and value.__doc__:
                    yield from _described(f"{name}.{method}", value)


def _described(name: str, thing: object) -> Iterator[str]:
    yield f"```python\n{name}{_signature(thing)}\n```\n"
    yield f"{_prose(inspect.getdoc(thing) or '')}\n"


def _signature(thing: object) -> str:
    """As it is written in the source, without `self`; of a dataclass its fields."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return ""
    node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]  # type: ignore[arg-type]
    if isinstance(node, ast.ClassDef):
        own = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        if not own:
            fields = [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign)]
            return _call(fields) if fields else ""
        node = own[0]
    assert isinstance(node, ast.FunctionDef)
    result = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    arguments = re.split(r", (?![^\[(]*[\])])", ast.unparse(node.args))
    return _call([each for each in arguments if each not in ("self", "cls", "")]) + result


def _call(arguments: list[str]) -> str:
    line = f"({', '.join(arguments)})"
    return line if len(line) < 80 else "(\n" + "".join(f"    {each},\n" for each in arguments) + ")"


def _prose(text: str) -> str:
    """Markdown of a docstring: its tables of arguments, aligned by blanks, become blocks of code."""
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(
        _fenced(block) if re.search(r"^\S+   +\S", block, re.MULTILINE) else _escaped(block) for block in blocks
    )


def _fenced(block: str) -> str:
    return f"```text\n{block}\n```"


def _escaped(block: str) -> str:
    return block if block.startswith("    ") else re.sub(r"<(?=\w+>)(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)", r"\\<", block)


def _first(module: object) -> str:
    return (inspect.getdoc(module) or "").split("\n\n")[0]


if __name__ == "__main__":
    PAGE.write_text(page())
