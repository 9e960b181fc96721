"""How much the page takes, and what a visitor pasted as records.

The command line has no such limits: whatever is too much here is told which command takes it.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rinalmo.engine.engine import Engine
from rinalmo.errors import InputError, RinalmoError, SequenceError
from rinalmo.inference.embed import embed_records
from rinalmo.inference.fill_mask import Nucleotides, Prediction, columns, fill_mask_records
from rinalmo.inference.fold import Decoding, fold_records, folding_task
from rinalmo.io.fasta import Record, make_record, parse_fasta
from rinalmo.io.files import read_chunks
from rinalmo.rna.formats import structure_text
from rinalmo.rna.structure import Structure

TEXT = 500_000
"""Characters of a pasted text, and bytes of an uploaded file, unpacked."""

REQUEST = 4_000_000
"""Bytes of any request; more is refused before it is read."""

FILL_MASK, LOGO, FOLD, VARIANTS, ONE_PASS = 1000, 200, 500, 200, 1000
"""Nucleotides: of a masked RNA, its logo, a fold, and variants with masks or in one pass."""

MASKS = 20
SEQUENCES, EMBED, EMBED_TOGETHER = 500, 2000, 100_000
"""Sequences to embed, nucleotides of each, nucleotides together."""

_PASTED = "pasted text"
_NAME = "RNA"


def one_record(text: str, longest: int, command: str, *, allow_mask: bool = False) -> Record:
    """The one RNA of a text: a sequence, or FASTA with one record. `command` takes what is longer.

    Raises InputError for everything else.
    """
    found = list(_pasted(text, allow_mask)) if text.lstrip().startswith(">") else [_bare(text, allow_mask)]
    if len(found) > 1:
        raise InputError(f"the {_PASTED} has {len(found):,} sequences, and this takes one; use `rinalmo {command}`")
    return _checked(found[0], longest, command)


def many_records(text: str, upload: Path | None) -> list[Record]:
    """The sequences of FASTA, pasted or in an uploaded file (plain, gzip or zstd), or one pasted sequence a line.

    Raises InputError for what is neither or more than the page takes.
    """
    if upload is not None and text.strip():
        raise InputError("there are a pasted text and an uploaded file; remove one of them")
    if upload is not None:
        records = parse_fasta(_limited(read_chunks(upload), upload.name), upload.name)
    elif text.lstrip().startswith(">"):
        records = _pasted(text, allow_mask=False)
    else:
        lines = _measured(text).split()
        records = (make_record(line, str(number), number=number) for number, line in enumerate(lines, 1))
    return _within(records)


def letters_of(record: Record) -> str:
    """The sequence with one character a nucleotide; `?` is a mask."""
    return record.sequence.replace("<mask>", "?")


def _within(records: Iterable[Record]) -> list[Record]:
    found, total = [], 0
    for record in records:
        found.append(_checked(record, EMBED, "embed"))
        total += len(record.sequence)
        if len(found) > SEQUENCES or total > EMBED_TOGETHER:
            more = f"{SEQUENCES:,} sequences and {EMBED_TOGETHER:,} nt together"
            raise InputError(f"the page embeds up to {more}, and here are more; use `rinalmo embed`")
    return found


def _checked(record: Record, longest: int, command: str) -> Record:
    if (length := len(letters_of(record))) > longest:
        remedy = f"this takes up to {longest:,}; give a part of it, or use `rinalmo {command}`"
        raise SequenceError(f"has {length:,} nt, and {remedy}", record=record.id[:60])
    return record


def _bare(text: str, allow_mask: bool) -> Record:
    return make_record(_measured(text), _NAME, allow_mask=allow_mask)


def _pasted(text: str, allow_mask: bool) -> Iterator[Record]:
    return parse_fasta([_measured(text).encode("utf-8", "surrogatepass")], _PASTED, allow_mask=allow_mask)


def _measured(text: str) -> str:
    if not text.strip():
        raise InputError("there is no sequence yet; paste an RNA")
    if len(text) > TEXT:
        raise InputError(f"the text has {len(text):,} characters, and the page takes up to {TEXT:,}; use the commands")
    return text


def _limited(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """What a small compressed file unpacks to may be very large: it is not unpacked to its end."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > TEXT:
            raise InputError(f"{name} holds more than {TEXT:,} bytes, and the page takes no more; use `rinalmo embed`")
        yield chunk


T = TypeVar("T")

_END = object()


class GoneError(RinalmoError):
    """The visitor has left, or the server stops: nothing more is computed for this request."""


class Turns:
    """A line of visitors. `stop` ends all work at the next turn, `leave` that of one session."""

    def __init__(self) -> None:
        self._computing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="turns")
        self._changing = threading.Lock()
        self._visits: set[Visit] = set()
        self._waiting = 0
        self._stopping = False

    @property
    def waiting(self) -> int:
        """How many turns have been asked for and have not begun."""
        return self._waiting

    @contextmanager
    def visit(self, session: str | None) -> Iterator[Visit]:
        """One request of a session, from its start to its end."""
        visit = Visit(self, session)
        with self._changing:
            self._visits.add(visit)
        try:
            yield visit
        finally:
            with self._changing:
                self._visits.remove(visit)

    def leave(self, session: str | None) -> None:
        """A visitor has closed the page: what is being computed for it ends at its next turn."""
        with self._changing:
            for visit in self._visits:
                visit.has_left |= visit.session == session

    def _wait(self, more: int) -> None:
        with self._changing:
            self._waiting += more

    def stop(self) -> None:
        """Let every request, also those to come, end with a word about it. Safe in a signal handler."""
        self._stopping = True


class Visit:
    """One request while it is being answered."""

    def __init__(self, turns: Turns, session: str | None) -> None:
        self._turns, self.session, self.has_left = turns, session, False

    def turn(self, compute: Callable[[], T]) -> T:
        """Compute, alone. Raises GoneError if nobody waits for the answer."""
        self._turns._wait(1)
        return self._turns._computing.submit(self._if_awaited, compute).result()

    def each(self, results: Iterable[T]) -> Iterator[T]:
        """The results of a lazy computation, each computed in a turn of its own."""
        iterator = iter(results)
        while (result := self.turn(lambda: next(iterator, _END))) is not _END:
            yield result  # type: ignore[misc]

    def _if_awaited(self, compute: Callable[[], T]) -> T:
        self._turns._wait(-1)
        if self._turns._stopping:
            raise GoneError("the server is being stopped; ask again when it is back")
        if self.has_left:
            raise GoneError("the page was closed")
        return compute()


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
        record = one_record(text, FILL_MASK, "fill-mask", allow_mask=True)
        if (masks := record.sequence.count("<mask>")) > MASKS:
            raise InputError(f"there are {masks:,} masks, and the page takes up to {MASKS}; use the commands")
        (answer,) = visit.each(fill_mask_records([record], self.engine, top_k=top_k))
        return answer

    def expected(self, visit: Visit, text: str, tell: Tell) -> tuple[Record, np.ndarray]:
        """The probabilities of A, C, G and U at each place, `(length, 4)`, each masked in turn; other masks stay."""
        record = one_record(text, LOGO, "fill-mask", allow_mask=True)
        return record, np.exp(self._masked_in_turn(visit, letters_of(record), tell))

    def fold(self, visit: Visit, text: str, decoder: str | None = None, thermodynamics: float | None = None) -> Folded:
        """The structure of one RNA, as `Decoding` has it: by the model's own decoder if none is named."""
        record = one_record(text, FOLD, "fold")
        decoding = Decoding(decoder, thermodynamics=thermodynamics)
        folded = fold_records([record], self.folding, decoding, window=FOLD)
        ((structure, probabilities),) = visit.each(folded)
        assert isinstance(probabilities, np.ndarray)  # it is not longer than the window
        return Folded(structure, probabilities)

    def embed(self, visit: Visit, text: str, upload: Path | None, tell: Tell) -> Embedded:
        """One vector for each sequence: the mean over its nucleotides."""
        records = many_records(text, upload)
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
            record = one_record(text, VARIANTS, "score")
            found = self._masked_in_turn(visit, record.sequence, tell)
        else:
            record = one_record(text, ONE_PASS, "score")
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
