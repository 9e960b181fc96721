"""The tokenizer for `transformers`, on top of `rinalmo.rna.alphabet`.

The base class handles one character at a time, in Python lists. For a plain batch of strings `Alphabet.encode_batch`
makes one array of ids, from which the padded tensors are cut. Everything else (pairs, words, k-mers, added or
overflowing tokens, …) goes through the base class, with the same results.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy

from rinalmo.errors import InputError
from rinalmo.rna.alphabet import Alphabet, Ids, tokens_for, word_length
from rinalmo.weights.catalog import find, resolve

_NAMED_TOKENS = {
    "bos_token": "<cls>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
    "sep_token": "<eos>",
    "pad_token": "<pad>",
    "cls_token": "<cls>",
    "mask_token": "<mask>",
}
_PLAIN_OPTIONS = {
    "add_special_tokens",
    "padding_strategy",
    "truncation_strategy",
    "max_length",
    "stride",  # matters for overflowing tokens alone
    "pad_to_multiple_of",
    "padding_side",
    "return_tensors",
    "return_attention_mask",
    "return_special_tokens_mask",
    "verbose",
}


class RnaTokenizer(PreTrainedTokenizer):
    """One token per nucleotide, with `<cls>` before and `<eos>` after; a pair is `<cls> a <eos> b <eos>`.

    `alphabet` names a vocabulary of `rinalmo.rna.alphabet.tokens_for` or lists its letters; a saved tokenizer's
    `vocab.txt` takes precedence. The default is `standard`, or `streamline` if tokens have several nucleotides:
    overlapping k-mers of `nmers` nucleotides, or non-overlapping triplets with `codon`, for which the length must be a
    multiple of three. With `strict`, a character that is not in the vocabulary raises `SequenceError` instead of
    becoming `<unk>`.

    `tokenizer.alphabet` is the `Alphabet` itself.

    Examples:
        >>> from rinalmo import RnaTokenizer
        >>> RnaTokenizer()("ACGT<mask>")["input_ids"]
        [1, 6, 7, 8, 9, 4, 2]
    """

    vocab_files_names = {"vocab_file": "vocab.txt"}  # noqa: RUF012  the base class declares it like this
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        alphabet: str | Sequence[str] | None = None,
        nmers: int = 1,
        codon: bool = False,
        replace_T_with_U: bool = True,  # noqa: N803  saved tokenizers spell it so
        do_upper_case: bool = True,
        strict: bool = False,
        vocab_file: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        self.nmers = word_length(nmers, codon)
        self.codon = codon
        self.replace_T_with_U = replace_T_with_U
        self.do_upper_case = do_upper_case
        self.strict = strict
        rules = {"do_upper_case": do_upper_case, "replace_t_with_u": replace_T_with_U}
        if vocab_file is None:
            default = "standard" if self.nmers == 1 else "streamline"
            self.alphabet = Alphabet(tokens_for(default if alphabet is None else alphabet, self.nmers, codon), **rules)
        else:
            self.alphabet = Alphabet.from_vocab_file(vocab_file, **rules)
            if alphabet is not None and self.alphabet.tokens != tokens_for(alphabet, self.nmers, codon):
                raise InputError(
                    f"{vocab_file} does not contain the alphabet {alphabet!r}; leave out the option to use the file"
                )
            if not any(len(word) == self.nmers for word in self.alphabet.words):
                raise InputError(f"{vocab_file} has no token of {self.nmers} nucleotides; leave out nmers and codon")
        if "<null>" in self.alphabet.index and "additional_special_tokens" not in kwargs:
            kwargs.setdefault("extra_special_tokens", ["<null>"])
        options = {name: getattr(self, name) for name in ("nmers", "codon", "replace_T_with_U", "do_upper_case")}
        super().__init__(special_tokens_pattern="cls_sep", strict=strict, **options, **_NAMED_TOKENS | kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in the base class; a name from `rinalmo models` is also accepted.

        The authors' files have no vocabulary; the standard one is used.
        """
        name = str(pretrained_model_name_or_path)
        if "/" not in name and not Path(name).exists() and find(name):
            path = resolve(name)
            if path.is_file():
                return cls(*args, **kwargs)
            pretrained_model_name_or_path = path
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Called by `from_pretrained` alone: the place to refuse a directory without `vocab.txt`.

        How the files were found is left out, so that loading and saving gives the same files again.
        """
        if kwargs.get("vocab_file") is None:
            raise InputError(f"{kwargs.get('name_or_path')} has no vocab.txt, so the ids of its tokens are unknown")
        return {name: value for name, value in kwargs.items() if name not in ("is_local", "local_files_only")}

    @property
    def vocab_size(self) -> int:
        """Number of tokens without those added by `add_tokens`."""
        return self.alphabet.size

    def get_vocab(self) -> dict[str, int]:
        return self.alphabet.index | self._added_tokens_encoder

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write `vocab.txt`, one token per line, and return its path."""
        path = Path(save_directory, f"{filename_prefix}-vocab.txt" if filename_prefix else "vocab.txt")
        path.write_text("\n".join(self.alphabet.tokens), encoding="utf-8", newline="\n")
        return (str(path),)

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """Called with the whole text, before it is cut at special tokens: the place to count positions."""
        if self.strict:
            self.alphabet.check(text)
        return text, kwargs

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        text = text.translate(self.alphabet.folding)
        if self.codon and len(text) % 3:
            raise InputError(f"{len(text)} nucleotides are not a whole number of codons; give a multiple of three")
        step = 3 if self.codon else 1
        return [text[i : i + self.nmers] for i in range(0, len(text) - self.nmers + 1, step)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.alphabet.index.get(token, self.alphabet.unk_id)

    def _convert_id_to_token(self, index: int) -> str:
        return self.alphabet.tokens[index] if 0 <= index < self.alphabet.size else "<unk>"

    def clean_up_tokenization(self, text: str) -> str:
        """Nothing: `.` and `?` are tokens here, not punctuation, whatever a saved configuration asks for."""
        return text

    def _encode_plus(  # type: ignore[override]  # the base class's options are passed on by name
        self, text: Any, text_pair: Any = None, **options: Any
    ) -> BatchEncoding:
        if isinstance(text, (list, tuple)) and not text:
            raise InputError("the list of sequences is empty; give at least one sequence")
        if options.get("return_offsets_mapping"):
            raise InputError(
                "RnaTokenizer has no offsets, as no tokenizer in Python: after CLS, token i is character i"
            )
        if text_pair is None and self._reads_bytes(text, options):
            encoded = self._encode_plain(text, **options)
            if encoded is not None:
                return encoded
        return super()._encode_plus(text, text_pair, **options)

    def _reads_bytes(self, text: Any, options: dict[str, Any]) -> bool:
        """Whether the byte table gives the base class's answer for this input, these options and this tokenizer."""
        return (
            (type(text) is str or (isinstance(text, (list, tuple)) and set(map(type, text)) == {str}))
            and not any(value for name, value in options.items() if name not in _PLAIN_OPTIONS)
            and options.get("return_tensors") in (None, "pt", "np")
            and options.get("padding_side") in (None, "left", "right")
            and self.nmers == 1
            and not options.get("split_special_tokens", self.split_special_tokens)
            and self._is_unchanged()
        )

    def _is_unchanged(self) -> bool:
        """Whether the special tokens are those of the alphabet and none was added."""
        added = self._added_tokens_decoder.values()
        return (
            {token.content for token in added} == set(self.alphabet.special_tokens)
            and not any(token.lstrip or token.rstrip or token.single_word for token in added)
            and self.special_tokens_map == _NAMED_TOKENS
            and set(self.model_input_names) <= {"input_ids", "attention_mask"}
        )

    def _encode_plain(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        verbose: bool = True,
        **_: Any,
    ) -> BatchEncoding | None:
        """The encoding, or None where the base class raises or gives an unusual shape."""
        batch = [text] if isinstance(text, str) else text
        ids, lengths = self.alphabet.encode_batch(batch, special=add_special_tokens, strict=self.strict)
        truncates = truncation_strategy in (TruncationStrategy.LONGEST_FIRST, TruncationStrategy.ONLY_FIRST)
        if truncates and max_length:
            ids, lengths = _truncate(ids, lengths, max_length, int(add_special_tokens), self.truncation_side)
        longest = int(lengths.max())
        width = _padded_width(lengths, padding_strategy, max_length, pad_to_multiple_of)
        if longest == 0 or (width is None and return_tensors) or (width is not None and width < longest):
            return None
        self._eventual_warn_about_too_long_sequence([0] * longest, max_length, verbose)
        # For each output the values of all tokens end to end, and the padding value.
        columns = {"input_ids": (ids, self.alphabet.pad_id)}
        ends = np.cumsum(lengths)
        if return_special_tokens_mask:
            mask = np.zeros_like(ids)
            if add_special_tokens:
                mask[ends - lengths] = mask[ends - 1] = 1
            columns["special_tokens_mask"] = mask, 1
        if return_attention_mask or (return_attention_mask is None and "attention_mask" in self.model_input_names):
            columns["attention_mask"] = np.ones_like(ids), 0
        rows: dict[str, Any] = {}
        if width is None:
            bounds = list(zip((ends - lengths).tolist(), ends.tolist(), strict=True))
            for name, (values, _pad) in columns.items():
                flat = values.tolist()
                rows[name] = [flat[start:end] for start, end in bounds]
        else:
            positions, is_right = np.arange(width), (padding_side or self.padding_side) == "right"
            is_token = positions < lengths[:, None] if is_right else positions >= width - lengths[:, None]
            for name, (values, pad) in columns.items():
                if values.size == is_token.size:
                    padded = values.reshape(is_token.shape)
                else:
                    padded = np.full(is_token.shape, pad, dtype=np.int64)
                    padded[is_token] = values
                rows[name] = torch.from_numpy(padded) if return_tensors == "pt" else padded
                if return_tensors is None:
                    rows[name] = padded.tolist()
        if isinstance(text, str) and not return_tensors:
            rows = {name: values[0] for name, values in rows.items()}
        return BatchEncoding(rows)


def _truncate(ids: Ids, lengths: Ids, limit: int, border: int, side: str) -> tuple[Ids, Ids]:
    """Cut each sequence to `limit` tokens, leaving the `border` special tokens at either end."""
    kept = np.minimum(lengths, max(limit, 2 * border))
    if (kept == lengths).all():
        return ids, lengths
    position = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    first = kept - border if side == "right" else np.full_like(kept, border)
    dropped = (position >= np.repeat(first, lengths)) & (position < np.repeat(first + lengths - kept, lengths))
    return ids[~dropped], kept


def _padded_width(lengths: Ids, padding: PaddingStrategy, limit: int | None, multiple: int | None) -> int | None:
    """The number of columns, or None where rows stay of different lengths."""
    longest = int(lengths.max())
    if padding == PaddingStrategy.DO_NOT_PAD:
        return longest if lengths.min() == longest else None
    width = longest if padding == PaddingStrategy.LONGEST or limit is None else limit
    return -(-width // multiple) * multiple if multiple else width
