"""The vocabularies to the id, and the byte table against a reading one character at a time."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rinalmo.errors import InputError, SequenceError
from rinalmo.rna.alphabet import (
    CARD_TOKENS,
    OFFICIAL_TOKENS,
    SPECIAL_TOKENS,
    STANDARD_TOKENS,
    Alphabet,
    tokens_for,
    vocabulary_map,
)

STANDARD = Alphabet()
OFFICIAL = Alphabet(OFFICIAL_TOKENS)

pieces = st.sampled_from(
    [*"ACGUTNacgutnXI.*-?|RZz1<> \n\t\x00\x01\xff", "é", "😀", *SPECIAL_TOKENS, "<MASK>", "<ma", "sk>"]
)
sequences = st.lists(pieces, max_size=12).map("".join)


def read_slowly(alphabet: Alphabet, text: str) -> list[int]:
    ids = []
    while text:
        token = next((special for special in alphabet.special_tokens if text.startswith(special)), text[0])
        letter = token.upper().replace("T", "U") if len(token) == 1 and token.isascii() else token
        ids.append(alphabet.index.get(letter, alphabet.unk_id))
        text = text[len(token) :]
    return ids


def test_ids_of_the_three_vocabularies() -> None:
    assert "".join(STANDARD_TOKENS[6:]) == "ACGUNRYSWKMBDHVIX|.*-?"
    assert "".join(CARD_TOKENS[6:]) == "ACGUNRYSWKMBDHV.X*-I"
    assert [len(STANDARD_TOKENS), len(CARD_TOKENS), len(OFFICIAL_TOKENS)] == [28, 26, 22]
    assert STANDARD_TOKENS[:6] == CARD_TOKENS[:6] == ("<pad>", "<cls>", "<eos>", "<unk>", "<mask>", "<null>")
    assert " ".join(OFFICIAL_TOKENS) == "<cls> <pad> <eos> <unk> <mask> A C G T I R Y K M S W B D H V N -"


def test_named_ids() -> None:
    a = STANDARD
    assert [a.pad_id, a.cls_id, a.eos_id, a.unk_id, a.mask_id, a.null_id] == [0, 1, 2, 3, 4, 5]
    o = OFFICIAL
    assert [o.pad_id, o.cls_id, o.eos_id, o.unk_id, o.mask_id, o.null_id] == [1, 0, 2, 3, 4, None]
    assert STANDARD.nucleotide_ids == (6, 7, 8, 9)
    assert OFFICIAL.nucleotide_ids == (5, 6, 7, 8)
    assert (STANDARD.size, OFFICIAL.size) == (28, 22)


@pytest.mark.parametrize(
    ("alphabet", "letters"),
    [("iupac", "ACGUNRYSWKMBDHV."), ("streamline", "ACGUN"), ("nucleobase", "ACGU"), (["A", "G"], "AG")],
)
def test_other_alphabets(alphabet: str | list[str], letters: str) -> None:
    assert tokens_for(alphabet) == (*SPECIAL_TOKENS, *letters)


def test_words_count_in_base_five() -> None:
    tokens = tokens_for("streamline", nmers=3)
    assert len(tokens) == 131
    for word, digits in {"AAA": 0, "ACG": 7, "CGU": 38, "NNN": 124}.items():
        assert tokens.index(word) == 6 + digits
    assert tokens_for("streamline", codon=True) == tokens
    assert tokens_for("nucleobase", nmers=2)[-2:] == ("UG", "UU")


def test_unknown_names_and_clashing_options_raise() -> None:
    with pytest.raises(InputError, match=r"'dna'.*standard"):
        tokens_for("dna")
    with pytest.raises(InputError, match="words of 2"):
        tokens_for("official", nmers=2)
    with pytest.raises(InputError, match="codon has 3"):
        tokens_for("streamline", nmers=2, codon=True)
    with pytest.raises(InputError, match="nmers is 0"):
        tokens_for("streamline", nmers=0)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [1, 2]),
        ("ACGU", [1, 6, 7, 8, 9, 2]),
        ("acgtTU", [1, 6, 7, 8, 9, 9, 9, 2]),
        ("A<mask>C", [1, 6, 4, 7, 2]),
        ("a<MASK>c", [1, 6, 3, 16, 6, 13, 15, 3, 7, 2]),
        ("<mask", [1, 3, 16, 6, 13, 15, 2]),
        ("A<cls>G<eos><pad><unk><null>", [1, 6, 1, 8, 2, 0, 3, 5, 2]),
        ("A <mask> C\n", [1, 6, 3, 4, 3, 7, 3, 2]),
        ("AZ1é😀", [1, 6, 3, 3, 3, 3, 2]),
        ("\x00A\x01\x7f", [1, 3, 6, 3, 3, 2]),
        ("ß\ufb01\u0131\u212a", [1, 3, 3, 3, 3, 2]),  # upper() would make letters of these
        ("\ud800A", [1, 3, 6, 2]),
    ],
)
def test_encode(text: str, ids: list[int]) -> None:
    assert STANDARD.encode(text).tolist() == ids
    assert STANDARD.encode(text, special=False).tolist() == ids[1:-1]
    assert STANDARD.encode(text).dtype == np.int64


def test_bytes_are_read_one_by_one() -> None:
    assert STANDARD.encode(b"AC\xc3\xa9<mask>").tolist() == [1, 6, 7, 3, 3, 4, 2]


def test_options() -> None:
    assert Alphabet(do_upper_case=False).encode("aATt").tolist() == [1, 3, 6, 9, 3, 2]
    assert Alphabet(replace_t_with_u=False).encode("UTut").tolist() == [1, 9, 3, 9, 3, 2]


def test_u_reads_as_t_where_the_vocabulary_has_t() -> None:
    assert OFFICIAL.encode("ACGTtUu").tolist() == [0, 5, 6, 7, 8, 8, 8, 8, 2]
    assert Alphabet(OFFICIAL_TOKENS, replace_t_with_u=False).encode("TU").tolist() == [0, 8, 3, 2]
    assert OFFICIAL.encode("X<null>").tolist() == [0, 3, 3, 20, 8, 3, 3, 3, 2]


@given(st.lists(sequences, min_size=1, max_size=6))
def test_batch_is_every_sequence_read_slowly(batch: list[str]) -> None:
    expected = [[1, *read_slowly(STANDARD, text), 2] for text in batch]
    ids, lengths = STANDARD.encode_batch(batch)
    assert ids.tolist() == list(chain(*expected))
    assert lengths.tolist() == [len(row) for row in expected]
    bare, bare_lengths = STANDARD.encode_batch(batch, special=False)
    assert bare.tolist() == list(chain(*(row[1:-1] for row in expected)))
    assert bare_lengths.tolist() == [len(row) - 2 for row in expected]


def test_a_special_token_never_spans_two_sequences() -> None:
    ids, lengths = STANDARD.encode_batch(["A<ma", "sk>", "<mask>C"])
    assert ids.tolist() == [1, 6, 3, 16, 6, 2, 1, 13, 15, 3, 2, 1, 4, 7, 2]
    assert lengths.tolist() == [6, 5, 4]


def test_empty_batch() -> None:
    ids, lengths = STANDARD.encode_batch([])
    assert (ids.shape, lengths.shape) == ((0,), (0,))


@pytest.mark.parametrize(
    ("text", "letter", "position"),
    [("ACZ", "Z", 3), ("<mask>AC G", " ", 9), ("é", "é", 1), ("AC<mask\n", "<", 3), ("ACGU\n", "\\n", 5)],
)
def test_strict_names_character_and_position(text: str, letter: str, position: int) -> None:
    for read in (lambda: STANDARD.encode(text, strict=True), lambda: STANDARD.check(text)):
        with pytest.raises(SequenceError) as caught:
            read()
        assert caught.value.position == position
        assert f"'{letter}'" in str(caught.value)


def test_strict_names_the_record_of_a_batch() -> None:
    with pytest.raises(SequenceError, match=r"record 3, position 2: .*'!'") as caught:
        STANDARD.encode_batch(["ACG", "", "A!G"], strict=True)
    assert (caught.value.record, caught.value.position) == ("3", 2)


def test_strict_accepts_every_letter_and_special_token() -> None:
    text = "".join(STANDARD_TOKENS) + "acgtT"
    assert STANDARD.encode(text, strict=True).tolist() == [1, *range(28), 6, 7, 8, 9, 9, 2]


def test_strict_knows_the_letters_of_words() -> None:
    words = Alphabet(tokens_for("streamline", nmers=3))
    words.check("acgt<mask>NNN")
    with pytest.raises(SequenceError, match=r"position 4: .*'R'"):
        words.check("ACGR")


def test_words_have_no_byte_table() -> None:
    with pytest.raises(InputError, match="nmers"):
        Alphabet(tokens_for("streamline", nmers=3)).encode("ACG")
    with pytest.raises(InputError, match="'A'"):
        _ = Alphabet(tokens_for("streamline", nmers=3)).nucleotide_ids


def test_table_cannot_be_overwritten() -> None:
    with pytest.raises(ValueError, match="read-only"):
        STANDARD.table[65] = 0


def test_decode() -> None:
    assert STANDARD.decode(STANDARD.encode("AC<mask>gt", special=False)) == "AC<mask>GU"
    assert STANDARD.decode([]) == ""
    for wrong in (-1, 28):
        with pytest.raises(InputError, match=f"id {wrong}"):
            STANDARD.decode([6, wrong])


@given(st.lists(st.integers(0, 27), max_size=30))
def test_decode_then_encode_gives_the_ids_back(ids: list[int]) -> None:
    assert STANDARD.encode(STANDARD.decode(ids), special=False).tolist() == ids


def test_vocabulary_map_from_the_official_weights() -> None:
    source = vocabulary_map(OFFICIAL, STANDARD)
    named = {token: int(i) for token, i in zip(STANDARD_TOKENS, source, strict=True)}
    assert (named["<cls>"], named["<pad>"], named["A"], named["U"], named["N"], named["-"]) == (0, 1, 5, 8, 20, 21)
    assert {token for token, i in named.items() if i == -1} == {"<null>", "X", "|", ".", "*", "?"}


def test_vocabulary_map_back_is_the_inverse() -> None:
    there, back = vocabulary_map(OFFICIAL, STANDARD), vocabulary_map(STANDARD, OFFICIAL)
    assert there[back].tolist() == list(range(22))


def test_vocabulary_map_between_the_two_generations() -> None:
    back = vocabulary_map(STANDARD, Alphabet(CARD_TOKENS))
    assert back[20:].tolist() == [20, 24, 22, 25, 26, 21]


def test_vocabulary_map_prefers_the_same_letter() -> None:
    both = Alphabet((*SPECIAL_TOKENS, *"ACGTU"))
    assert vocabulary_map(both, both).tolist() == list(range(11))


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_vocab_file(tmp_path: Path, end: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(("\r\n" if end == "\r\n" else "\n").join(CARD_TOKENS).encode() + end.encode())
    assert Alphabet.from_vocab_file(path).tokens == CARD_TOKENS
    assert Alphabet.from_vocab_file(path, do_upper_case=False).encode("a").tolist() == [1, 3, 2]


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (("A", "C"), "lacks <pad> <cls>"),
        ((*SPECIAL_TOKENS, "A", "A"), "'A' twice"),
        ((*SPECIAL_TOKENS, "A", "", "C"), "token ''"),
        ((*SPECIAL_TOKENS, "é"), "token 'é'"),
    ],
)
def test_damaged_vocab_file_is_named(tmp_path: Path, tokens: tuple[str, ...], says: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(tokens), encoding="utf-8")
    with pytest.raises(InputError, match=f"vocab.txt: .*{says}"):
        Alphabet.from_vocab_file(path)
