"""Write docs/recipes.md: every key of every recipe, from the classes that validate them.

python tools/recipe_keys.py            # print the page
python tools/recipe_keys.py --write    # update it
"""

from __future__ import annotations

import argparse
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from rinalmo.data.sources import PrepareRecipe
from rinalmo.io.recipe_files import Section, names
from rinalmo.training.recipes import FinetuneRecipe, Recipe

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
KINDS = {"pretrain-": ("Pre-training", Recipe), "finetune-": ("Fine-tuning", FinetuneRecipe)}
KINDS["data-"] = ("Data preparation", PrepareRecipe)
HEAD = """# Recipe keys

A recipe is a YAML file that holds all settings of a run. `--set section.key=value` changes one of them. An unknown
key causes an error that suggests the most similar one. This page is generated from the classes that validate recipes
(`tools/recipe_keys.py`).
"""


def kind_of(annotation: Any) -> str:
    """A type as a reader of YAML would say it."""
    origin, inner = get_origin(annotation), [kind_of(each) for each in get_args(annotation)]
    if annotation is type(None):
        return "none"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(name for name in inner if name != "none")
    if origin in (list, tuple):
        return f"list of {inner[0]}"
    if origin is dict:
        return f"mapping of {inner[0]} to {inner[1]}"
    if origin is not None:  # Annotated
        return inner[0]
    known = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return known.get(annotation) or ("mapping" if isinstance(annotation, type) else str(annotation))


def described(section: type[Section]) -> tuple[str, dict[str, str]]:
    """The text of a section's docstring and its descriptions of single keys (`key, key   description`)."""
    text, keys, current = list[str](), dict[str, str](), list[str]()
    for line in (section.__doc__ or "").splitlines():
        found = re.match(r"^ {4}([a-z_]+(?:, [a-z_]+)*) {2,}(\S.*)$", line)
        if found and all(name in section.model_fields for name in found[1].split(", ")):
            current = found[1].split(", ")
            keys.update(dict.fromkeys(current, found[2]))
        elif current and line.startswith(" " * 8):
            keys.update({name: f"{keys[name]} {line.strip()}" for name in current})
        else:
            current = []
            text.append(line.strip())
    return " ".join(filter(None, text)), keys


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def default_of(field: Any) -> str:
    """The default as YAML writes it."""
    value = field.default_factory() if field.default_factory else field.default
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else list(value) if isinstance(value, tuple) else value}`"


def tables(section: type[Section], prefix: str = "") -> list[str]:
    """A table for the section itself and one for each section within it."""
    text, keys = described(section)
    rows, nested = list[str](), []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if section_in := next(
            filter(is_section, (inner, *(get_args(inner) if get_origin(inner) is not list else ()))), None
        ):
            nested.append((f"{prefix}{name}" + (".NAME" if get_origin(inner) is dict else ""), section_in))
            continue
        rows.append(f"| `{prefix}{name}` | {kind_of(inner)} | {default_of(field)} | {keys.get(name, '')} |")
    lines = [text.replace("|", "\\|"), ""] if text else []
    if rows:
        lines += ["| key | value | default | |", "|---|---|---|---|", *rows, ""]
    for path, inner in nested:
        lines += [f"### `{path}`", "", *tables(inner, f"{path}.")]
    return lines


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for prefix, (title, section) in KINDS.items():
        recipes = ", ".join(f"`{name}`" for name in names(prefix))
        lines += [f"## {title}", "", f"Recipes of the package: {recipes}.", "", *tables(section)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
