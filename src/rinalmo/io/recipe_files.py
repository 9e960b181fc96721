"""Recipes: YAML files that are validated before anything is computed.

A recipe is given by name (one of those in `rinalmo/recipes/`) or path. An error names the key, and for an unknown key
the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rinalmo.errors import InputError

RECIPES = Path(__file__).parents[1] / "recipes"
_MAX_BYTES = 1 << 20


class Section(BaseModel):
    """Part of a recipe: unknown keys are errors, and values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Share = Annotated[float, Field(ge=0, le=1)]
R = TypeVar("R", bound=Section)


def names(prefix: str = "") -> list[str]:
    """The recipes of the package."""
    return sorted(path.stem for path in RECIPES.glob(f"{prefix}*.yaml"))


def find(source: str | Path, prefix: str = "") -> Path:
    """The file of a recipe given by name or path; names begin with `prefix`."""
    if Path(source).is_file():
        return Path(source)
    name = str(source).removesuffix(".yaml")
    path = RECIPES / f"{name}.yaml"
    if name.startswith(prefix) and path.parent == RECIPES and path.is_file():
        return path
    known = names(prefix)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise InputError(f"no recipe {str(source)!r} and no such file; {hint}")


def read(path: Path) -> dict[str, Any]:
    """The nested values of a YAML file."""
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file.read(_MAX_BYTES), Loader=_NoDuplicates)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    except OSError as error:
        raise InputError.from_os_error(error, path, "cannot be read") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: contains no sections")
    return values


def parse(kind: type[R], values: Mapping[str, Any], source: str) -> R:
    """A recipe from nested values; `source` is its name in messages."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = _nearest(kind, key)
        problem = f"no key {key!r}" + (f"; did you mean {near}?" if near else "")
    elif first["type"] == "missing":
        problem = f"{key} is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        problem = f"{key} is {first['input']!r}: {message[0].lower()}{message[1:]}"
    raise InputError(f"{source}: {problem}")


def load(
    kind: type[R],
    source: str | Path | None,
    overrides: Sequence[str] = (),
    prefix: str = "",
    given: Mapping[str, Any] | None = None,
) -> R:
    """A recipe by name or file, or the defaults, with values `given` by key, then `section.key=value` overrides."""
    values = read(find(source, prefix)) if source is not None else {}
    for key, value in (given or {}).items():
        _set(values, key.split("."), value)
    for override in overrides:
        key, sign, text = override.partition("=")
        keys = key.strip().split(".")
        if not sign or not keys[-1]:
            raise InputError(f"--set {override!r}: give section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        _set(values, keys, value)
    return parse(kind, values, "options" if source is None else str(source))


def _set(values: dict[str, Any], names: Sequence[str], value: Any) -> None:
    *sections, last = names
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, dict) else {}
        values = values[section]
    values[last] = value


class _NoDuplicates(yaml.SafeLoader):
    """YAML in which a repeated key is an error; PyYAML alone silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"{key} occurs twice, line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _nearest(kind: type[BaseModel], key: str) -> str | None:
    """The known key nearest to this one: almost the same, the same name in another section, or a similar spelling."""
    known = list(_keys(kind))
    if almost := difflib.get_close_matches(key, known, n=1, cutoff=0.9):
        return almost[0]
    last = key.rpartition(".")[2]
    by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
    if last in by_last:
        return by_last[last]
    similar = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or difflib.get_close_matches(last, by_last, n=1)
    return by_last.get(similar[0], similar[0]) if similar else None


def _keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield prefix + name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                inner = "" if part is field.annotation or part in get_args(field.annotation)[:1] else "*."
                yield from _keys(part, f"{prefix}{name}.{inner}")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value})
    return flat
