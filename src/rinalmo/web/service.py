"""What the web app computes, without Gradio: limits of the input, turns of the visitors, and the models.

The command line has no such limits: an error for too much input names the command that takes it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rinalmo.engine.engine import Engine
from rinalmo.errors import CheckpointError, InputError, RinalmoError, SequenceError
from rinalmo.inference.embed import embed_records
from rinalmo.inference.fill_mask import NucleotideScorer, Prediction, columns, fill_mask_records
from rinalmo.inference.fold import Decoding, fold_records, folding_task
from rinalmo.inference.predict import predict_records
from rinalmo.io.files import read_chunks
from rinalmo.io.sequences import Record, make_record, parse_fasta
from rinalmo.rna.formats import structure_text
from rinalmo.rna.structure import PredictedStructure
from rinalmo.tasks.base import Task
from rinalmo.tasks.evaluate import task_of, with_options
from rinalmo.tasks.secondary_structure import SecondaryStructure

MAX_TEXT = 500_000
"""Characters of a pasted text, and bytes of an uploaded file, unpacked."""

MAX_REQUEST = 4_000_000
"""Bytes of any request; more is refused before it is read."""

FILL_MASK, LOGO, FOLD, VARIANTS, ONE_PASS = 1000, 200, 500, 200, 1000
"""Nucleotides of a masked RNA, its logo, a fold, and variants with masks or in one pass."""

MASKS = 20
SEQUENCES, EMBED, EMBED_TOGETHER = 500, 2000, 100_000
"""Sequences to embed, nucleotides of each, nucleotides together."""

METHODS = ("masked-marginals", "wild-type-marginals")
"""Of scoring variants; `pll` needs a pass for each nucleotide of each variant, too many for a web app."""

BATCH_TOKENS = 512
"""Of a turn: few, so that nobody waits long for another visitor's turn."""

_PASTED = "pasted text"
_KEPT_SECONDS = 3600
_END = object()

Progress = Callable[[int, int], Any]
"""Called with what is done and the total."""

T = TypeVar("T")


_POSITIONS = re.compile(r"^\s*\d+\s+|\s+\d+\s*$")


def _no_progress(done: int, total: int) -> None:
    """For the API, which has no progress bar."""


def one_record(text: str, longest: int, command: str, *, allow_mask: bool = False) -> Record:
    """The one RNA of a text: a sequence, or FASTA with one record. `command` is the one without limits.

    Raises InputError for everything else.
    """
    _check_text(text)
    text, _ = _without_numbers(text)
    if allow_mask:
        text = _with_masks(text)
    if text.lstrip().startswith(">"):
        records = list(_parse(text, allow_mask))
        if len(records) > 1:
            raise InputError(
                f"the {_PASTED} has {len(records):,} sequences, but only one is allowed here; use `rinalmo {command}`"
            )
        record = records[0]
    else:
        record = make_record(text, "RNA", allow_mask=allow_mask)
    _check_length(record, longest, command)
    return record


def many_records(text: str, upload: Path | None) -> list[Record]:
    """The sequences of FASTA, pasted or in an uploaded file (plain or compressed), or one pasted sequence per line.

    Raises InputError for anything else, or more than the web app takes.
    """
    if upload is not None and text.strip():
        raise InputError("there is both pasted text and an uploaded file; remove one of them")
    if upload is not None:
        source: Iterable[Record] = parse_fasta(_upload_chunks(upload), upload.name)
    else:
        _check_text(text)
        text, is_numbered = _without_numbers(text)
        if text.lstrip().startswith(">"):
            source = _parse(text)
        else:
            lines = [text] if is_numbered else [line for line in text.splitlines() if line.strip()]
            source = (make_record(line, str(number), number=number) for number, line in enumerate(lines, 1))
    records, total = [], 0
    for record in source:
        _check_length(record, EMBED, "embed")
        records.append(record)
        total += len(record.sequence)
        if len(records) > SEQUENCES or total > EMBED_TOGETHER:
            limit = f"{SEQUENCES:,} sequences and {EMBED_TOGETHER:,} nt together"
            raise InputError(f"the web app embeds up to {limit}, and these are more; use `rinalmo embed`")
    return records


def _with_masks(text: str) -> str:
    """Other ways to write a mask as `<mask>`: in any case, in brackets, as _, or as N where there is no other mask."""
    header, line, sequence = ("", "", text) if not text.lstrip().startswith(">") else text.partition("\n")
    sequence = re.sub(r"<mask>|\[mask\]|_", "<mask>", sequence, flags=re.IGNORECASE)
    if "<mask>" not in sequence:
        sequence = re.sub("N", "<mask>", sequence, flags=re.IGNORECASE)
    return header + line + sequence


def text_of_file(path: Path) -> str:
    """The text of a file, compressed or not; raises InputError if it is too large or no text."""
    try:
        return b"".join(_upload_chunks(path)).decode()
    except UnicodeDecodeError:
        raise InputError(f"{path.name} is not UTF-8 text; give a FASTA file") from None


def with_question_marks(record: Record) -> str:
    """The sequence with one character per nucleotide; `?` is a mask."""
    return record.sequence.replace("<mask>", "?")


def _without_numbers(text: str) -> tuple[str, bool]:
    """A sequence without the positions that GenBank and EMBL write before or after its lines, and whether it had any.

    Without the lines ORIGIN and // as well; header lines of FASTA stay as they are.
    """
    numbered, lines = False, []
    for line in text.splitlines():
        if not line.startswith(">"):
            plain = _POSITIONS.sub("", line)
            numbered, line = numbered or plain != line, plain
        if line.strip() not in ("ORIGIN", "//"):
            lines.append(line)
    return "\n".join(lines), numbered


def _check_text(text: str) -> None:
    if not text.strip():
        raise InputError("there is no sequence yet; paste an RNA")
    if len(text) > MAX_TEXT:
        raise InputError(
            f"the text has {len(text):,} characters, but the web app is limited to {MAX_TEXT:,}; use the command line"
        )


def _parse(text: str, allow_mask: bool = False) -> Iterator[Record]:
    return parse_fasta([text.encode("utf-8", "surrogatepass")], _PASTED, allow_mask=allow_mask)


def _check_length(record: Record, longest: int, command: str) -> None:
    if (length := len(with_question_marks(record))) > longest:
        remedy = f"but the limit is {longest:,}; shorten it, or use `rinalmo {command}`"
        raise SequenceError(f"has {length:,} nt, {remedy}", record=record.id[:60])


def _upload_chunks(path: Path) -> Iterator[bytes]:
    """An uploaded file, unpacked. Stops a small compressed file that unpacks to a very large one."""
    total = 0
    try:
        for chunk in read_chunks(path):
            total += len(chunk)
            if total > MAX_TEXT:
                raise InputError(
                    f"{path.name} has more than {MAX_TEXT:,} bytes, the limit of the web app; use the command line"
                )
            yield chunk
    except InputError as error:  # without the server's folders
        raise InputError(str(error).replace(str(path), path.name)) from None


class GoneError(RinalmoError):
    """The visitor has left, or the server stops: nothing more is computed for this request."""


class Turns:
    """One thread that computes for all visitors, batch by batch in turn, so that short requests need not wait long."""

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="turns")
        self.is_stopping = False
        self._lock = threading.Lock()
        self._visits: set[Visit] = set()

    @contextmanager
    def visit(self, session: str | None) -> Iterator[Visit]:
        """One request of a session, from its start to its end."""
        visit = Visit(self, session)
        with self._lock:
            self._visits.add(visit)
        try:
            yield visit
        finally:
            with self._lock:
                self._visits.remove(visit)

    def leave(self, session: str | None) -> None:
        """A visitor has closed the web app: what is being computed for it ends at its next turn."""
        with self._lock:
            for visit in self._visits:
                visit.has_left |= visit.session == session

    def stop(self) -> None:
        """End every request, also later ones, with a message. Safe in a signal handler."""
        self.is_stopping = True


class Visit:
    """One request while it is being answered."""

    def __init__(self, turns: Turns, session: str | None) -> None:
        self.turns, self.session, self.has_left = turns, session, False

    def turn(self, compute: Callable[[], T]) -> T:
        """Compute, alone. Raises GoneError if nobody waits for the answer."""
        return self.turns.executor.submit(self._compute, compute).result()

    def each(self, results: Iterable[T]) -> Iterator[T]:
        """The results of a lazy computation, each computed in a turn of its own."""
        iterator = iter(results)
        while (result := self.turn(lambda: next(iterator, _END))) is not _END:
            yield result  # type: ignore[misc]

    def _compute(self, compute: Callable[[], T]) -> T:
        if self.turns.is_stopping:
            raise GoneError("the server is shutting down; try again when it is back")
        if self.has_left:
            raise GoneError("the web app was closed")
        return compute()


@dataclass(frozen=True)
class FoldedRna:
    """A structure with its pair probabilities `(length, length)`."""

    structure: PredictedStructure
    probabilities: np.ndarray

    def summary(self) -> str:
        """Energy and confidence as a sentence."""
        structure, parts = self.structure, []
        if structure.energy is not None:
            parts.append(f"Free energy {structure.energy:.1f} kcal/mol")
        if structure.mfe is not None:
            parts.append(f"minimum free energy (RNAfold) {structure.mfe:.1f} kcal/mol")
        if structure.confidence is not None:
            parts.append(f"expected fraction of correct pairs {structure.confidence:.0%}")
        return "; ".join(parts) + "." if parts else "No pairs are predicted."

    def text(self, format: str) -> str:
        """The structure as text in a format such as "dbn" or "ct"."""
        return "".join(structure_text([self.structure], format))


class Service:
    """The models, loaded once for all visitors, and a folder for files to be downloaded.

    `folding` is an engine of a model for secondary structure.
    """

    def __init__(self, engine: Engine, folding: Engine, folder: Path) -> None:
        self.engine, self.folding, self.folder = engine, folding, folder
        self.decoder = folding_task(folding.spec).decoder
        self.turns = Turns()
        self.fills_masks = "lm_head" in engine.spec.heads
        self._task: Task | None = None
        with suppress(CheckpointError):  # it was fine-tuned for nothing
            task = task_of(engine.spec)
            if not isinstance(task, SecondaryStructure) and task.inputs is None:  # the page takes sequences alone
                self._task = with_options(task, engine.spec)
        self.predicts = None if self._task is None else self._task.name

    def fill_mask(self, visit: Visit, text: str, top_k: int = 5) -> tuple[Record, list[list[Prediction]]]:
        """The candidates at each mask, best first."""
        record = one_record(text, FILL_MASK, "fill-mask", allow_mask=True)
        if (masks := record.sequence.count("<mask>")) > MASKS:
            raise InputError(f"there are {masks:,} masks, but the web app is limited to {MASKS}; use the command line")
        (answer,) = visit.each(fill_mask_records([record], self.engine, top_k=top_k))
        return answer

    def masked_in_turn(self, visit: Visit, text: str, progress: Progress = _no_progress) -> tuple[Record, np.ndarray]:
        """Probabilities of A, C, G and U, `(length, 4)`, each position masked in turn; other masks stay."""
        record = one_record(text, LOGO, "fill-mask", allow_mask=True)
        return record, np.exp(self._log_probabilities(visit, with_question_marks(record), progress))

    def fold(
        self, visit: Visit, text: str, decoder: str | None = None, thermodynamics: float | None = None
    ) -> FoldedRna:
        """The structure of one RNA, with the options of `Decoding`; by default with the model's own decoder."""
        record = one_record(text, FOLD, "fold")
        decoding = Decoding(decoder, thermodynamics=thermodynamics)
        ((structure, probabilities),) = visit.each(fold_records([record], self.folding, decoding, window=FOLD))
        assert isinstance(probabilities, np.ndarray)  # it is not longer than the window
        return FoldedRna(structure, probabilities)

    def embed(
        self, visit: Visit, text: str, upload: Path | None = None, progress: Progress = _no_progress
    ) -> tuple[list[Record], np.ndarray]:
        """The sequences and one vector for each, `(sequences, hidden)`: the mean over its nucleotides."""
        records = many_records(text, upload)
        vectors = []
        for _, vector in visit.each(embed_records(records, self.engine)):
            vectors.append(vector)
            progress(len(vectors), len(records))
        return records, np.stack(vectors)

    def predict(
        self, visit: Visit, text: str, upload: Path | None = None, progress: Progress = _no_progress
    ) -> list[dict[str, Any]]:
        """The rows of a fine-tuned model's predictions."""
        assert self._task is not None
        records, rows = many_records(text, upload), []
        for count, predicted in enumerate(visit.each(predict_records(records, self.engine, self._task)), 1):
            rows.extend(predicted)
            progress(count, len(records))
        return rows

    def variants(
        self, visit: Visit, text: str, method: str, progress: Progress = _no_progress
    ) -> tuple[Record, np.ndarray]:
        """Scores of all single-nucleotide substitutions, `(length, 4)`, as `rinalmo.inference.variants.saturation`.

        NaN where the nucleotide is none of A, C, G and U.
        """
        if method not in METHODS:
            raise InputError(f"method {method!r} is not available here; use one of {', '.join(METHODS)}")
        if method == "masked-marginals":
            record = one_record(text, VARIANTS, "score")
            log_probabilities = self._log_probabilities(visit, record.sequence, progress)
        else:
            record = one_record(text, ONE_PASS, "score")
            log_probabilities = visit.turn(lambda: NucleotideScorer(self.engine).unmasked(record.sequence))
        own = columns(record.sequence)
        wild_type = log_probabilities[np.arange(len(own)), own][:, None]
        return record, np.where(own[:, None] >= 0, log_probabilities - wild_type, np.nan)

    def new_folder(self) -> Path:
        """An empty folder for the files of one answer. Folders older than an hour are removed."""
        for old in self.folder.iterdir():
            if time.time() - old.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self.folder))

    def _log_probabilities(self, visit: Visit, letters: str, progress: Progress) -> np.ndarray:
        """Log-probabilities `(length, 4)`, each position masked in turn; "?" is always masked."""
        masked = [n for n, letter in enumerate(letters) if letter == "?"]
        places: list[Sequence[int]] = [sorted({*masked, n}) for n in range(len(letters))]
        sequence = letters.replace("?", "N")
        rows = []
        answers = NucleotideScorer(self.engine).masked((sequence, each) for each in places)
        for n, answer in enumerate(visit.each(answers)):
            rows.append(answer[places[n].index(n)])
            progress(n + 1, len(letters))
        return np.stack(rows)
