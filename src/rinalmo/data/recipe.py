"""What `rinalmo data prepare` does with its sources, as a recipe. Paths are not part of it: they are given beside it.

sources:
  core:                             # a label of the command line
    headers: plain                  # how header lines are read (rinalmo.rna.headers); auto recognises them
    table:                          # a table of facts by id, given as --table core=facts.csv.gz
      id: id
      source: source                # replaces the label
      family: {column: source_id, pattern: '^(RF\\d{5})'}
      type: rna_type
      cluster: cluster70            # used with clustering.method: column
    drop: {type: [mRNA], split: [dev]}      # by type, taxon, family, source, or any column of the table
filters: {min_length: 16, max_length: 8192, max_unknown: 0.1}
clustering: {method: mmseqs, min_identity: 0.7, coverage: 0.8}
split: {validation_fraction: 0.01, seed: 0}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt

from rinalmo.recipe_files import Section, load

PREFIX = "data-"

Share = Annotated[float, Field(ge=0, le=1)]
Rules = dict[str, list[str]]  # fact → values


def _pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"no regular expression ({error})") from None
    return pattern


class Column(Section):
    """A column of a table, or the part of it that `pattern` finds: its first group, else the whole match."""

    column: str
    pattern: Annotated[str, AfterValidator(_pattern)] | None = None


def _as_column(value: object) -> object:
    return {"column": value} if isinstance(value, str) else value


ColumnOrName = Annotated[Column, BeforeValidator(_as_column)]


class TableRecipe(Section):
    """Which columns of a source's table say what. Ids are the first words of the header lines."""

    id: str = "id"
    source: ColumnOrName | None = None
    family: ColumnOrName | None = None
    type: ColumnOrName | None = None
    taxon: ColumnOrName | None = None
    cluster: ColumnOrName | None = None


class SourceRecipe(Section):
    """One source. `keep` and `drop` list values by fact (type, taxon, family, source or a column); "" is unknown."""

    headers: Literal["auto", "plain", "rnacentral", "rfam", "ensembl", "ncbi"] = "auto"
    table: TableRecipe | None = None
    keep: Rules = Field(default_factory=dict)
    drop: Rules = Field(default_factory=dict)


class FilterRecipe(Section):
    """Which sequences are usable; `max_unknown` is the largest share of N and X."""

    min_length: PositiveInt = 16
    max_length: PositiveInt = 8192
    max_unknown: Share = 1.0


class ClusteringRecipe(Section):
    """mmseqs: `easy-linclust` with these limits; column: as the tables say; none: each sequence its own cluster."""

    method: Literal["mmseqs", "column", "none"] = "mmseqs"
    min_identity: Share = 0.7
    coverage: Share = 0.8


class SplitRecipe(Section):
    """Share of the clusters that are set apart for validation, and the seed that chooses them."""

    validation_fraction: Share = 0.01
    seed: int = 0


class PrepareRecipe(Section):
    """Everything that decides what is in a store, but for the files."""

    sources: dict[str, SourceRecipe] = Field(default_factory=dict)
    filters: FilterRecipe = FilterRecipe()
    clustering: ClusteringRecipe = ClusteringRecipe()
    split: SplitRecipe = SplitRecipe()


def load_recipe(source: str | Path | None = None, overrides: Sequence[str] = ()) -> PrepareRecipe:
    """A recipe by name or file, or the defaults, with `section.key=value` overrides.

    Raises InputError naming the key, its value and, for an unknown key, the nearest one.
    """
    return load(PrepareRecipe, source, overrides, PREFIX)
