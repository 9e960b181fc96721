"""The answers of the page, without the page: what each tab and each endpoint of the API computes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.errors import InputError
from rinalmo.inference.embeddings import embed_records
from rinalmo.inference.engine import Engine
from rinalmo.inference.fill_mask import Prediction, predict
from rinalmo.inference.nucleotides import Nucleotides, columns
from rinalmo.rna.fasta import Record
from rinalmo.rna.formats.files import structure_text
from rinalmo.rna.structure import Structure
from rinalmo.tasks.fold_file import Decoding, fold_records, folding_task
from rinalmo.web import limits
from rinalmo.web.turns import Turns, Visit

Tell = Callable[[int, int], Any]

METHODS = ("masked-marginals", "wild-type-marginals")
"""Of scoring variants; `pll` takes a pass for each letter of each variant, too many for a page."""

BATCH_TOKENS = 512
"""Of a turn: few, so that nobody waits long for another's."""

_KEPT_SECONDS = 3600


@dataclass(frozen=True)
class Folded:
    """A structure with its pair probabilities `(length, length)`."""

    structure: Structure
    probabilities: np.ndarray

    def text(self, format: str) -> str:
        """As a file of structures."""
        return "".join(structure_text([self.structure], format))


@dataclass(frozen=True)
class Embedded:
    """Sequences with their vectors `(sequences, hidden)`."""

    records: list[Record]
    vectors: np.ndarray


class Service:
    """The models, once for all visitors, and a folder for files to be downloaded.

    `folding` is an engine of a model for secondary structure.
    """

    def __init__(self, engine: Engine, folding: Engine, folder: Path) -> None:
        self.engine, self.folding, self.folder = engine, folding, folder
        self.decoder = folding_task(folding.spec).decoder
        self.turns = Turns()

    def fill_mask(self, visit: Visit, text: str, top_k: int = 5) -> tuple[Record, list[list[Prediction]]]:
        """The candidates at each mask, best first."""
        record = limits.one_record(text, limits.FILL_MASK, "fill-mask", allow_mask=True)
        if (masks := record.sequence.count("<mask>")) > limits.MASKS:
            raise InputError(f"there are {masks:,} masks, and the page takes up to {limits.MASKS}; use the commands")
        (answer,) = visit.each(predict([record], self.engine, top_k=top_k))
        return answer

    def expected(self, visit: Visit, text: str, tell: Tell) -> tuple[Record, np.ndarray]:
        """The probabilities of A, C, G and U at each place, `(length, 4)`, each masked in turn; other masks stay."""
        record = limits.one_record(text, limits.LOGO, "fill-mask", allow_mask=True)
        return record, np.exp(self._masked_in_turn(visit, limits.letters_of(record), tell))

    def fold(self, visit: Visit, text: str, decoder: str | None = None, thermodynamics: float | None = None) -> Folded:
        """The structure of one RNA, as `Decoding` has it: by the model's own decoder if none is named."""
        record = limits.one_record(text, limits.FOLD, "fold")
        decoding = Decoding(decoder, thermodynamics=thermodynamics)
        folded = fold_records([record], self.folding, decoding, window=limits.FOLD)
        ((structure, probabilities),) = visit.each(folded)
        assert isinstance(probabilities, np.ndarray)  # it is not longer than the window
        return Folded(structure, probabilities)

    def embed(self, visit: Visit, text: str, upload: Path | None, tell: Tell) -> Embedded:
        """One vector for each sequence: the mean over its nucleotides."""
        records = limits.many_records(text, upload)
        vectors = []
        for _, vector in visit.each(embed_records(records, self.engine)):
            vectors.append(vector)
            tell(len(vectors), len(records))
        return Embedded(records, np.stack(vectors))

    def variants(self, visit: Visit, text: str, method: str, tell: Tell) -> tuple[Record, np.ndarray]:
        """Scores of every exchange of one letter, `(length, 4)`, as `rinalmo.inference.variants.saturation` has them.

        NaN where there is another letter than A, C, G or U.
        """
        if method not in METHODS:
            raise InputError(f"method {method!r} is unknown here; use one of {', '.join(METHODS)}")
        if method == "masked-marginals":
            record = limits.one_record(text, limits.VARIANTS, "score")
            found = self._masked_in_turn(visit, record.sequence, tell)
        else:
            record = limits.one_record(text, limits.ONE_PASS, "score")
            found = visit.turn(lambda: Nucleotides(self.engine).unmasked(record.sequence))
        own = columns(record.sequence)
        return record, np.where(own[:, None] >= 0, found - found[np.arange(len(own)), own][:, None], np.nan)

    def new_folder(self) -> Path:
        """An empty folder for files of one answer. What is older than an hour goes."""
        for old in self.folder.iterdir():
            if time.time() - old.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self.folder))

    def _masked_in_turn(self, visit: Visit, letters: str, tell: Tell) -> np.ndarray:
        """Log-probabilities `(length, 4)`; "?" is masked always."""
        masked = [n for n, letter in enumerate(letters) if letter == "?"]
        places: list[Sequence[int]] = [sorted({*masked, n}) for n in range(len(letters))]
        sequence = letters.replace("?", "N")
        rows = []
        answers = Nucleotides(self.engine).masked((sequence, each) for each in places)
        for n, answer in enumerate(visit.each(answers)):
            rows.append(answer[places[n].index(n)])
            tell(n + 1, len(letters))
        return np.stack(rows)
