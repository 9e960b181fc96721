"""From a file of embeddings to its map: `rinalmo embed --plot` and `rinalmo plot map`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rinalmo.errors import InputError
from rinalmo.inference.header_fields import OWN, read_column, table_of, values_of
from rinalmo.inference.readers import read_embeddings
from rinalmo.plots.embedding_map import Method, check_embedding_map, draw_embedding_map


@dataclass(frozen=True)
class MapPlot:
    """A picture to draw; `colour_by` is a field of `rinalmo.inference.header_fields`."""

    path: Path
    method: Method = "pca"
    colour_by: str | None = None

    def check(self, source: Path) -> None:
        """Raise InputError or MissingExtraError now for what could not be drawn of the embeddings in `source`."""
        check_embedding_map(self.path, self.method)
        if self.colour_by is None:
            return
        if (table := table_of(self.colour_by)) is not None:
            read_column(*table)
        elif source.suffix == ".npz" and self.colour_by not in OWN[:2]:
            raise InputError(
                f"{source}: .npz keeps no headers to colour by {self.colour_by!r}; write .parquet or .h5, "
                "or colour by TABLE:COLUMN"
            )

    def draw(self, source: Path) -> None:
        """Draw the embeddings of a file."""
        found = read_embeddings(source)
        labels = None
        if self.colour_by is not None:
            descriptions = found.descriptions or [""] * len(found.ids)
            labels = values_of(self.colour_by, found.ids, descriptions, found.lengths)
        table = table_of(self.colour_by) if self.colour_by else None
        name = table[1] if table else (self.colour_by or "")
        title = f"{source.name}, {len(found.ids):,} sequences"
        draw_embedding_map(found.values, self.path, labels, method=self.method, label_name=name, title=title)
