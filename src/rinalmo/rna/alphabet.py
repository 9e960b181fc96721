"""Tokens and their ids: the only place that knows them.

One RNA character is one token. Several vocabularies exist, because the published weights were written by
different programs and at different times; a checkpoint's own `vocab.txt` decides which one is meant.

The surprise: RiNALMo was trained on DNA letters. Its official vocabulary has `T` and no `U`, all later ones have
`U` and no `T`, so `T` and `U` are one nucleotide here, and each folds into the one that the vocabulary has.

IUPAC codes: Cornish-Bowden 1985 (doi:10.1093/nar/13.9.3021); `I` is inosine, `X` an unknown residue.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rinalmo.errors import InputError, SequenceError

NUCLEOTIDES = "ACGU"
SPECIAL_TOKENS = ("<pad>", "<cls>", "<eos>", "<unk>", "<mask>", "<null>")
STANDARD_TOKENS = (*SPECIAL_TOKENS, *"ACGUNRYSWKMBDHVIX|.*-?")
CARD_TOKENS = (*SPECIAL_TOKENS, *"ACGUNRYSWKMBDHV.X*-I")
OFFICIAL_TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>", *"ACGTIRYKMSWBDHVN-")

_LETTERS = {
    "standard": STANDARD_TOKENS[len(SPECIAL_TOKENS) :],
    "card": CARD_TOKENS[len(SPECIAL_TOKENS) :],
    "iupac": tuple("ACGUNRYSWKMBDHV."),
    "streamline": tuple("ACGUN"),
    "nucleobase": tuple("ACGU"),
}
_CODON = 3
_REQUIRED = SPECIAL_TOKENS[:5]  # <null> is unknown to the official vocabulary

Ids = NDArray[np.int64]


def tokens_for(alphabet: str | Sequence[str] = "standard", nmers: int = 1, codon: bool = False) -> tuple[str, ...]:
    """The tokens of a vocabulary, in the order of their ids.

    `alphabet` is `standard`, `card`, `iupac`, `streamline`, `nucleobase`, `official`, or a list of letters. With
    `nmers` above 1 the tokens are all words of that many letters, in the alphabet's order; `codon` means words of
    three. Raises `InputError` for an unknown name, and for k-mers of the official vocabulary, which has none.
    """
    length = word_length(nmers, codon)
    if alphabet == "official" and length == 1:
        return OFFICIAL_TOKENS
    if isinstance(alphabet, str) and alphabet not in _LETTERS:
        named = f"{alphabet!r} with words of {length} letters" if length > 1 else repr(alphabet)
        raise InputError(f"no alphabet {named}; choose one of {', '.join(_LETTERS)}")
    letters = _LETTERS[alphabet] if isinstance(alphabet, str) else alphabet
    return SPECIAL_TOKENS + tuple("".join(word) for word in product(letters, repeat=length))


def word_length(nmers: int, codon: bool) -> int:
    """Letters per token: `nmers`, or three for codons. Raises `InputError` if the two disagree."""
    if nmers < 1:
        raise InputError(f"nmers is {nmers}; a token has at least one letter")
    if codon and nmers not in (1, _CODON):
        raise InputError(f"nmers is {nmers}, but a codon has {_CODON} letters; leave one of the two options out")
    return _CODON if codon else nmers


@dataclass(frozen=True)
class Alphabet:
    """A vocabulary and the rules that turn characters into its ids.

    `tokens[i]` is the token with id `i`. With `do_upper_case` lower-case letters read as upper-case ones; with
    `replace_t_with_u` the one of T and U that the vocabulary lacks reads as the other.
    """

    tokens: tuple[str, ...] = STANDARD_TOKENS
    do_upper_case: bool = True
    replace_t_with_u: bool = True

    def __post_init__(self) -> None:
        missing = [token for token in _REQUIRED if token not in self.tokens]
        if missing:
            raise InputError(f"the vocabulary lacks {' '.join(missing)}; every RiNALMo vocabulary has {_REQUIRED}")
        if len(set(self.tokens)) < len(self.tokens):
            twice = next(token for token in self.tokens if self.tokens.count(token) > 1)
            raise InputError(f"the vocabulary has the token {twice!r} twice; each id needs its own token")
        odd = [token for token in self.tokens if not (token and token.isascii())]
        if odd:
            raise InputError(f"the vocabulary has the token {odd[0]!r}; tokens are one or more ASCII characters")

    @classmethod
    def from_vocab_file(
        cls, path: str | Path, *, do_upper_case: bool = True, replace_t_with_u: bool = True
    ) -> "Alphabet":
        """Read a `vocab.txt`: one token a line, the first has id 0. Raises `InputError` if it is not a vocabulary."""
        tokens = tuple(Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n"))
        try:
            return cls(tokens, do_upper_case=do_upper_case, replace_t_with_u=replace_t_with_u)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        """Without what is computed on first use: the pickle, and with it the hash of `datasets`, stays the same."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def index(self) -> dict[str, int]:
        """Token → id."""
        return {token: i for i, token in enumerate(self.tokens)}

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def pad_id(self) -> int:
        return self.index["<pad>"]

    @property
    def cls_id(self) -> int:
        return self.index["<cls>"]

    @property
    def eos_id(self) -> int:
        return self.index["<eos>"]

    @property
    def unk_id(self) -> int:
        return self.index["<unk>"]

    @property
    def mask_id(self) -> int:
        return self.index["<mask>"]

    @property
    def null_id(self) -> int | None:
        """None in the official vocabulary, which has no such token."""
        return self.index.get("<null>")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return tuple(token for token in SPECIAL_TOKENS if token in self.index)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The tokens that are not special."""
        return tuple(token for token in self.tokens if token not in SPECIAL_TOKENS)

    @property
    def nucleotide_ids(self) -> tuple[int, int, int, int]:
        """Ids of A, C, G and U (T where the vocabulary has no U)."""
        last = "U" if "U" in self.index else "T"
        try:
            a, c, g, u = (self.index[letter] for letter in ("A", "C", "G", last))
        except KeyError as error:
            raise InputError(f"the vocabulary has no token {error} for a single nucleotide") from None
        return a, c, g, u

    @cached_property
    def folding(self) -> dict[int, int]:
        """The case and T/U rules as a table for `str.translate`; ASCII only, so a character stays one character."""
        letters = set("".join(self.words))
        rna = "TU" if "U" in letters else "UT"
        fold = str.maketrans(*rna) if self.replace_t_with_u and rna[1] in letters else {}
        if self.do_upper_case:
            fold |= {
                ord(low): fold.get(ord(up), ord(up)) for low, up in zip(ascii_lowercase, ascii_uppercase, strict=True)
            }
        return fold

    @cached_property
    def table(self) -> Ids:
        """Byte → id, shape (256,). Whatever is no token, and every byte above 127, is `<unk>`."""
        if not any(len(word) == 1 for word in self.words):
            raise InputError("the tokens are words of several letters; read them with RnaTokenizer(nmers=...)")
        return self._by_byte({word: self.index[word] for word in self.words if len(word) == 1}, self.unk_id)

    @cached_property
    def _known(self) -> NDArray[np.bool_]:
        """Byte → whether the letter is part of any token, shape (256,)."""
        return self._by_byte(dict.fromkeys("".join(self.words), 1), 0).astype(bool)

    def _by_byte(self, values: dict[str, int], default: int) -> Ids:
        table = np.full(256, default, dtype=np.int64)
        for byte in range(128):
            table[byte] = values.get(chr(byte).translate(self.folding), default)
        table.flags.writeable = False
        return table

    def encode(self, sequence: str | bytes, *, special: bool = True, strict: bool = False) -> Ids:
        """Ids of one sequence, shape (tokens,); `<cls>` and `<eos>` around it if `special`.

        `<mask>` and the other special tokens are recognised in the text, in lower case only. Any other character
        that is no token becomes one `<unk>`, or with `strict` raises `SequenceError`. Bytes are read as Latin-1.
        """
        text = sequence.decode("latin-1") if isinstance(sequence, bytes) else sequence
        return self.encode_batch([text], special=special, strict=strict)[0]

    def encode_batch(self, sequences: Sequence[str], *, special: bool = True, strict: bool = False) -> tuple[Ids, Ids]:
        """Ids of many sequences laid end to end, shape (tokens,), and the number of tokens of each, shape (n,).

        Same rules as `encode`. The work is done on one byte array for the whole batch.
        """
        # A line break before and after each sequence holds the place of <cls> and <eos>. It is known by its
        # position alone, so a line break inside a sequence is an ordinary unknown character.
        text = "\n" + "\n\n".join(sequences) + "\n" if sequences else ""
        lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences)) + 2
        ends = np.cumsum(lengths)
        codes = _byte_codes(text)
        ids, keep = self.table[codes], np.ones(len(codes), dtype=bool)
        found = self._read_special_tokens(codes, ids, keep) if "<" in text else np.empty(0, dtype=np.int64)
        borders = np.concatenate([ends - lengths, ends - 1])
        if strict:
            unknown = ~self._known[codes] & keep
            unknown[found] = unknown[borders] = False
            _refuse_unknown(text, unknown, ends - lengths)
        ids[borders[: len(ends)]], ids[borders[len(ends) :]] = self.cls_id, self.eos_id
        keep[borders] = special
        return (ids, lengths) if keep.all() else (ids[keep], np.add.reduceat(keep, ends - lengths, dtype=np.int64))

    def check(self, sequence: str) -> None:
        """Raise `SequenceError` at the first character that is part of no token."""
        text = "\n" + sequence
        codes = _byte_codes(text)
        unknown = ~self._known[codes]
        ids, keep = np.empty(len(codes), dtype=np.int64), np.ones(len(codes), dtype=bool)
        unknown[self._read_special_tokens(codes, ids, keep)] = unknown[0] = False
        _refuse_unknown(text, unknown & keep, np.zeros(1, dtype=np.int64))

    def _read_special_tokens(self, codes: NDArray[np.uint8], ids: Ids, keep: NDArray[np.bool_]) -> Ids:
        """Write the id of each special token at its `<`, mark the rest of it as not kept, and return where they are."""
        found = []
        opening = np.flatnonzero(codes == ord("<"))
        for token in self.special_tokens:
            starts = opening[opening <= len(codes) - len(token)]
            letters = starts[:, None] + np.arange(len(token))
            hit = (codes[letters] == np.frombuffer(token.encode(), dtype=np.uint8)).all(axis=1)
            ids[starts[hit]] = self.index[token]
            keep[letters[hit, 1:]] = False
            found.append(starts[hit])
        return np.concatenate(found)

    def decode(self, ids: ArrayLike) -> str:
        """The tokens of `ids`, one after the other without spaces. Raises `InputError` for an id out of range."""
        values = np.asarray(ids, dtype=np.int64).reshape(-1)
        wrong = values[(values < 0) | (values >= self.size)]
        if len(wrong):
            raise InputError(f"no token has the id {wrong[0]}; the ids of this vocabulary are 0 to {self.size - 1}")
        return "".join(self.tokens[i] for i in values.tolist())


def vocabulary_map(source: Alphabet, target: Alphabet) -> Ids:
    """For each token of `target` the id of the same token in `source`, or -1; shape (target.size,).

    T stands for U, and U for T, where the source has only the other one.
    """
    other = {"T": "U", "U": "T"}
    return np.array(
        [source.index.get(token, source.index.get(other.get(token, ""), -1)) for token in target.tokens],
        dtype=np.int64,
    )


def _byte_codes(text: str) -> NDArray[np.uint8]:
    """One byte per character: its ASCII code, or 255 for all others, which no table knows."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return np.where(points < 128, points, 255).astype(np.uint8)


def _refuse_unknown(text: str, unknown: NDArray[np.bool_], starts: Ids) -> None:
    """Raise at the first unknown character; `starts` has the border before each sequence of `text`."""
    if not unknown.any():
        return
    first = int(unknown.argmax())
    record = int(np.searchsorted(starts, first, side="right"))
    raise SequenceError(
        f"the vocabulary has no letter {text[first]!r}; write N for an unknown nucleotide, or remove it",
        record=str(record) if len(starts) > 1 else None,
        position=first - int(starts[record - 1]),
    )
