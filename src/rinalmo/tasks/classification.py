"""The paper's classification tasks: splice sites (yes or no) and ncRNA families.

Both are tables with one column and a head of their own, which sees the CLS token, or the mean of all tokens
(`options.pooling`). Classes are named by the training data, in alphabetical order; the published family model has 88
without names.

Reference: Penić et al. 2025 (arXiv:2403.00043), supplement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from rinalmo.io.tables import is_missing
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import Columns, Example, require
from rinalmo.tasks.examples import class_name, parse_bool, read_single_target, require_several
from rinalmo.tasks.table import Table


class SpliceSite(Table):
    """Whether the centre of the sequence is a splice site; one model for donors, another for acceptors."""

    name = "splice-site"
    options = ("pooling",)

    def __init__(self, pooling: str = "cls") -> None:
        super().__init__("binary", "sequence", ["splice_site"], pooling=pooling)
        self.settings, self.selection_metric = self.pooling_options, "f1"

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        examples = read_single_target(path, columns, ("label", "target", "splice_site"), cls.name)
        return [replace(example, target=parse_bool(example, example.target)) for example in examples]

    @classmethod
    def from_examples(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        require_several({str(int(example.target)) for example in examples}, "the label")
        return cls(**options)

    def encode_targets(self, examples: Sequence[Example]) -> list[Example]:
        return [replace(example, target=np.array([example.target], dtype=int)) for example in examples]

    def heads(self) -> dict[str, dict[str, Any]]:
        return {"splice_site_head": self.pooling_options}

    def forward(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        return list(model.head("splice_site_head")(states, layout))

    def answer(self, values: np.ndarray) -> dict[str, Any]:
        return {"splice_site": int(values[0] > 0.5), "probability": float(values[0])}


class NcrnaFamily(Table):
    """The family of a non-coding RNA."""

    name = "ncrna-family"
    options = ("pooling",)

    def __init__(self, classes: Sequence[str], pooling: str = "cls") -> None:
        super().__init__("multiclass", "sequence", ["family"], classes, pooling=pooling)
        self.settings = {"classes": self.classes} | self.pooling_options

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        examples = read_single_target(path, columns, ("label", "family", "class", "rna_type", "target"), cls.name)
        hint = "delete the row, or rename the class"
        for example in examples:
            value = example.target
            require(class_name(value) != "", example, "has no class; delete the row or add its class")
            missing = f"the class is {value!r}, which stands for a missing value; {hint}"
            require(not is_missing(value), example, missing)
        return [replace(example, target=class_name(example.target)) for example in examples]

    @classmethod
    def from_examples(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        classes = sorted({example.target for example in examples})
        require_several(classes, "the class")
        return cls(classes, **options)

    def encode_targets(self, examples: Sequence[Example]) -> list[Example]:
        return [replace(example, target=np.array(self.class_id(example, example.target))) for example in examples]

    def heads(self) -> dict[str, dict[str, Any]]:
        return {"ncrna_family_head": {"num_labels": len(self.classes)} | self.pooling_options}

    def forward(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        return list(model.head("ncrna_family_head")(states, layout))
