"""Tokens and their ids.

One RNA character is one token. There are several vocabularies, because the published weights were written by
different programs at different times; the `vocab.txt` of a checkpoint decides between them.

RiNALMo was trained on DNA letters: its official vocabulary has `T` and no `U`, all later ones have `U` and no `T`. So
`T` and `U` are one nucleotide here, and the vocabulary decides which of the two it is written as.

IUPAC codes: Cornish-Bowden 1985 (doi:10.1093/nar/13.9.3021); `I` is inosine, `X` an unknown residue.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
_REQUIRED = SPECIAL_TOKENS[:5]  # the official vocabulary has no <null>

Ids = NDArray[np.int64]


def tokens_for(alphabet: str | Sequence[str] = "standard", nmers: int = 1, codon: bool = False) -> tuple[str, ...]:
    """The tokens of a vocabulary, in the order of their ids: the special tokens and all words of `nmers` letters.

    `alphabet` is a list of letters, or the name of one: `standard`, `card`, `iupac`, `streamline`, `nucleobase`, or
    `official`, which has no words of several letters.
    """
    length = word_length(nmers, codon)
    if alphabet == "official" and length == 1:
        return OFFICIAL_TOKENS
    if isinstance(alphabet, str) and alphabet not in _LETTERS:
        named = f"{alphabet!r} with words of {length} letters" if length > 1 else repr(alphabet)
        raise InputError(f"unknown alphabet {named}; choose one of {', '.join(_LETTERS)}")
    letters = _LETTERS[alphabet] if isinstance(alphabet, str) else alphabet
    return SPECIAL_TOKENS + tuple(map("".join, product(letters, repeat=length)))


def word_length(nmers: int, codon: bool) -> int:
    """Letters per token: `nmers`, or three for codons. Raises `InputError` if the two disagree."""
    if nmers < 1:
        raise InputError(f"nmers is {nmers}; it must be at least 1")
    if codon and nmers not in (1, _CODON):
        raise InputError(f"nmers is {nmers}, but a codon has {_CODON} nucleotides; leave out one of the two options")
    return _CODON if codon else nmers


@dataclass(frozen=True)
class Alphabet:
    """A vocabulary and the rules that turn characters into its ids.

    Args:
        tokens: The tokens in the order of their ids.
        do_upper_case: Read lower-case letters as upper-case ones.
        replace_t_with_u: Read T as U, or U as T, if the vocabulary has only the latter.

    Attributes:
        index: Token → id.
        size: Number of tokens.
        words: The tokens that are not special.
        special_tokens: The special tokens that the vocabulary has.
        pad_id: Id of `<pad>`.
        cls_id: Id of `<cls>`.
        eos_id: Id of `<eos>`.
        unk_id: Id of `<unk>`.
        mask_id: Id of `<mask>`.
        null_id: Id of `<null>`; None in the official vocabulary, which has no such token.
        folding: The rules on case and on T and U, as a table for `str.translate`. ASCII only, so that a character stays
            one character.

    Raises:
        InputError: A special token is missing, a token occurs twice or is not ASCII.

    Examples:
        >>> import rinalmo
        >>> alphabet = rinalmo.Alphabet()
        >>> alphabet.encode("acgt<mask>").tolist()
        [1, 6, 7, 8, 9, 4, 2]
        >>> alphabet.decode([6, 7, 8, 9])
        'ACGU'
    """

    tokens: tuple[str, ...] = STANDARD_TOKENS
    do_upper_case: bool = True
    replace_t_with_u: bool = True
    index: dict[str, int] = field(init=False, repr=False, compare=False)
    size: int = field(init=False, repr=False, compare=False)
    words: tuple[str, ...] = field(init=False, repr=False, compare=False)
    special_tokens: tuple[str, ...] = field(init=False, repr=False, compare=False)
    pad_id: int = field(init=False, repr=False, compare=False)
    cls_id: int = field(init=False, repr=False, compare=False)
    eos_id: int = field(init=False, repr=False, compare=False)
    unk_id: int = field(init=False, repr=False, compare=False)
    mask_id: int = field(init=False, repr=False, compare=False)
    null_id: int | None = field(init=False, repr=False, compare=False)
    folding: dict[int, int] = field(init=False, repr=False, compare=False)
    _table: Ids = field(init=False, repr=False, compare=False)
    _is_letter: NDArray[np.bool_] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index: dict[str, int] = {}
        for id, token in enumerate(self.tokens):
            if token in index:
                raise InputError(f"the vocabulary has the token {token!r} twice; each id needs its own token")
            if not (token and token.isascii()):
                raise InputError(f"the vocabulary has the token {token!r}; tokens are one or more ASCII characters")
            index[token] = id
        if not index.keys() >= set(_REQUIRED):
            missing = " ".join(token for token in _REQUIRED if token not in index)
            raise InputError(f"the vocabulary lacks {missing}; every RiNALMo vocabulary has {_REQUIRED}")

        special = tuple(filter(index.__contains__, SPECIAL_TOKENS))
        words = tuple(sorted(index.keys() - set(special), key=index.__getitem__))
        letters = set("".join(words))
        rna = "TU" if "U" in letters else "UT"
        folding = str.maketrans(*rna) if self.replace_t_with_u and rna[1] in letters else {}
        if self.do_upper_case:
            for low, up in zip(ascii_lowercase, ascii_uppercase, strict=True):
                folding[ord(low)] = folding.get(ord(up), ord(up))

        table, is_letter = np.full(256, index["<unk>"], dtype=np.int64), np.zeros(256, dtype=bool)
        for byte in range(128):
            character = chr(byte).translate(folding)
            table[byte] = index.get(character, index["<unk>"])
            is_letter[byte] = character in letters
        table.flags.writeable = False
        self.__dict__.update(index=index, size=len(index), words=words, special_tokens=special, folding=folding)
        self.__dict__.update(_table=table, _is_letter=is_letter)
        for token in SPECIAL_TOKENS:
            self.__dict__[f"{token[1:-1]}_id"] = index.get(token)

    @classmethod
    def from_vocab_file(
        cls, path: str | Path, *, do_upper_case: bool = True, replace_t_with_u: bool = True
    ) -> "Alphabet":
        """Read a `vocab.txt`: one token per line, from id 0. Raises `InputError` if it is not a vocabulary."""
        tokens = tuple(Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n"))
        try:
            return cls(tokens, do_upper_case=do_upper_case, replace_t_with_u=replace_t_with_u)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled without the tables, so that the hash by which `datasets` identifies a function stays the same.
        return type(self), (self.tokens, self.do_upper_case, self.replace_t_with_u)

    @property
    def nucleotide_ids(self) -> tuple[int, int, int, int]:
        """Ids of A, C, G and U (T where the vocabulary has no U)."""
        index = self.index
        try:
            return index["A"], index["C"], index["G"], index["U" if "U" in index else "T"]
        except KeyError as error:
            raise InputError(f"the vocabulary has no token {error} for a single nucleotide") from None

    @property
    def table(self) -> Ids:
        """Byte → id, shape (256,). Characters that are no token, and bytes above 127, are `<unk>`."""
        if 1 not in map(len, self.words):
            raise InputError("the tokens have several nucleotides; read them with RnaTokenizer(nmers=...)")
        return self._table

    def encode(self, sequence: str | bytes, *, special: bool = True, strict: bool = False) -> Ids:
        """The ids of a sequence.

        Args:
            sequence: `<mask>` and the other special tokens are recognized in it, in lower case only. Bytes are read as
                Latin-1.
            special: Put `<cls>` before and `<eos>` after it.
            strict: Raise an error for a character that is not a token; otherwise it becomes `<unk>`.

        Returns:
            The ids, shape `(tokens,)`.

        Raises:
            SequenceError: A character is no token, and `strict`.
            InputError: The tokens are k-mers.
        """
        text = sequence.decode("latin-1") if isinstance(sequence, bytes) else sequence
        return self._encode([text], special, strict)[0]

    def encode_batch(self, sequences: Sequence[str], *, special: bool = True, strict: bool = False) -> tuple[Ids, Ids]:
        """The concatenated ids of many sequences, by the rules of `encode`.

        Returns:
            The ids, shape `(tokens,)`, and the number of tokens of each sequence, shape `(n,)`.
        """
        return self._encode(sequences, special, strict)

    def check(self, sequence: str) -> None:
        """Raise `SequenceError` at the first character that is part of no token."""
        self._encode([sequence], special=False, strict=True, allow_words=True)

    def _encode(
        self, sequences: Sequence[str], special: bool, strict: bool, allow_words: bool = False
    ) -> tuple[Ids, Ids]:
        table = self._table if allow_words or 1 in map(len, self.words) else self.table  # which raises
        # A line break before and after each sequence holds the place of <cls> and <eos>. It is known by its
        # position alone, so a line break inside a sequence is an ordinary unknown character.
        text = "\n" + "\n\n".join(sequences) + "\n" if sequences else ""
        lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences)) + 2
        ends = np.cumsum(lengths)
        if text.isascii():  # one byte per character
            codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
        else:  # 255 for all that are not ASCII
            points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
            codes = np.where(points < 128, points, 255).astype(np.uint8)
        ids, keep = table[codes], np.ones(len(codes), dtype=bool)
        special_places = self._read_special_tokens(codes, ids, keep) if "<" in text else np.empty(0, dtype=np.int64)
        borders = np.concatenate([ends - lengths, ends - 1])
        if strict:
            unknown = ~self._is_letter[codes] & keep
            unknown[special_places] = unknown[borders] = False
            if unknown.any():
                first = int(unknown.argmax())
                record = int(np.searchsorted(ends, first, side="right"))
                raise SequenceError(
                    f"the vocabulary has no letter {text[first]!r}; write N for an unknown nucleotide, or remove it",
                    record=str(record + 1) if len(sequences) > 1 else None,
                    position=first - int(ends[record] - lengths[record]),
                )
        ids[borders[: len(ends)]], ids[borders[len(ends) :]] = self.cls_id, self.eos_id
        keep[borders] = special
        return (ids, lengths) if keep.all() else (ids[keep], np.add.reduceat(keep, ends - lengths, dtype=np.int64))

    def _read_special_tokens(self, codes: NDArray[np.uint8], ids: Ids, keep: NDArray[np.bool_]) -> Ids:
        """Write the id of each special token at its `<`, unset `keep` for its other characters; return where it is."""
        places = []
        opening = np.flatnonzero(codes == ord("<"))
        for token in self.special_tokens:
            starts = opening[opening <= len(codes) - len(token)]
            letters = starts[:, None] + np.arange(len(token))
            hit = (codes[letters] == np.frombuffer(token.encode(), dtype=np.uint8)).all(axis=1)
            ids[starts[hit]] = self.index[token]
            keep[letters[hit, 1:]] = False
            places.append(starts[hit])
        return np.concatenate(places)

    def decode(self, ids: ArrayLike) -> str:
        """The tokens of `ids`, joined without spaces. Raises `InputError` for an id out of range."""
        values = np.asarray(ids, dtype=np.int64).reshape(-1)
        wrong = values[(values < 0) | (values >= self.size)]
        if len(wrong):
            raise InputError(f"no token has the id {wrong[0]}; the ids of this vocabulary are 0 to {self.size - 1}")
        return "".join(self.tokens[i] for i in values.tolist())


def vocabulary_map(source: Alphabet, target: Alphabet) -> Ids:
    """For each token of `target` the id of the same token in `source`, or -1; shape (target.size,).

    Where `source` has only one of T and U, it is the same token as the other.
    """
    other = {"T": "U", "U": "T"}
    return np.array(
        [source.index.get(token, source.index.get(other.get(token, ""), -1)) for token in target.tokens],
        dtype=np.int64,
    )


def kmer_frequencies(ids: np.ndarray, alphabet: Alphabet, longest: int) -> np.ndarray:
    """The frequency of each word of 1 to `longest` nucleotides among the words of its length.

    Args:
        ids: Token ids of a sequence.
        alphabet: The tokens that they stand for.
        longest: Nucleotides of the longest words.

    Returns:
        fp32 `(4 + 16 + … + 4 ** longest,)`; words with another letter than A, C, G and U are left out.
    """
    parts = []
    for size in range(1, longest + 1):
        _, words = kmers(ids, alphabet, size)
        parts.append(np.bincount(words, minlength=4**size) / max(1, len(words)))
    return np.concatenate(parts).astype(np.float32)


def kmers(ids: np.ndarray, alphabet: Alphabet, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the words of `size` nucleotides A, C, G and U begin among token ids, and the number of each word."""
    if len(ids) < size:
        return np.empty(0, int), np.empty(0, int)
    codes = np.full(alphabet.size, -1)
    codes[list(alphabet.nucleotide_ids)] = range(4)
    words = np.lib.stride_tricks.sliding_window_view(codes[ids], size)
    starts = np.flatnonzero((words >= 0).all(axis=1))
    return starts, words[starts] @ 4 ** np.arange(size - 1, -1, -1)


def kmer_count(longest: int) -> int:
    """The number of words of 1 to `longest` nucleotides."""
    return (4 ** (longest + 1) - 4) // 3
