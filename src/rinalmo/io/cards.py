"""Cards of models and token stores: Jinja2 templates (`rinalmo/templates/`) filled in as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parents[1] / "templates"


def render_card(template: str, metadata: Mapping[str, Any] | None = None, **values: Any) -> str:
    """Fill in a template; `metadata` is the YAML header of the Hugging Face Hub, without empty entries."""
    # Not at the top: most commands write no card.
    from huggingface_hub import CardData
    from jinja2 import Environment, StrictUndefined

    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["fmt"] = format
    environment.globals["table"] = markdown_table
    header = CardData(**{key: value for key, value in (metadata or {}).items() if value}).to_yaml()
    text = environment.from_string((TEMPLATES / template).read_text()).render(values, metadata=header)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"  # conditions leave empty lines behind


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; integers get thousands separators."""
    lines = [header, ["---"] * len(header)]
    for row in rows:
        lines.append([f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|") for cell in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
