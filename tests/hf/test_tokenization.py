"""`RnaTokenizer` against golden ids, and its byte-table path against the path of the base class."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedTokenizer,
    tokenization_utils_base,
)

from rinalmo.errors import InputError, SequenceError
from rinalmo.hf.tokenization import RnaTokenizer
from rinalmo.rna.alphabet import CARD_TOKENS, SPECIAL_TOKENS, STANDARD_TOKENS

GOLDEN = Path(__file__).parents[1] / "golden" / "multimolecule"
INFO = json.loads((GOLDEN / "info.json").read_text())
EXPECTED = np.load(GOLDEN / "base" / "expected.npz")


class BaseClassTokenizer(RnaTokenizer):
    """The same tokenizer without the byte table."""

    def _reads_bytes(self, text: Any, options: dict[str, Any]) -> bool:
        return False


@pytest.fixture(scope="module")
def tokenizer() -> RnaTokenizer:
    return RnaTokenizer()


@pytest.mark.parametrize(("texts", "ids"), [("sequences", "input_ids"), ("masked", "masked_input_ids")])
@pytest.mark.parametrize("make", [RnaTokenizer, BaseClassTokenizer])
def test_golden_ids(make: type[RnaTokenizer], texts: str, ids: str) -> None:
    batch = make.from_pretrained(GOLDEN / "base")(INFO[texts], padding=True, return_tensors="np")
    np.testing.assert_array_equal(batch["input_ids"], EXPECTED[ids])
    np.testing.assert_array_equal(batch["attention_mask"], EXPECTED["attention_mask"])


@pytest.mark.parametrize("directory", sorted(path.parent.name for path in GOLDEN.glob("*/vocab.txt")))
def test_every_golden_directory_is_read(directory: str) -> None:
    read = RnaTokenizer.from_pretrained(GOLDEN / directory)
    assert read.alphabet.tokens == STANDARD_TOKENS
    assert read("acgt<mask>")["input_ids"] == [1, 6, 7, 8, 9, 4, 2]


def test_special_tokens(tokenizer: RnaTokenizer) -> None:
    assert (tokenizer.bos_token, tokenizer.sep_token) == ("<cls>", "<eos>")
    assert [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    assert [tokenizer.unk_token_id, tokenizer.mask_token_id] == [3, 4]
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4, 5]
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)
    assert tokenizer.get_special_tokens_mask([1, 6, 3, 4, 2], already_has_special_tokens=True) == [1, 0, 1, 1, 1]


def test_sizes_and_names(tokenizer: RnaTokenizer) -> None:
    assert (len(tokenizer), tokenizer.vocab_size) == (28, 28)
    assert tokenizer.get_vocab() == {token: i for i, token in enumerate(STANDARD_TOKENS)}
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert tokenizer.model_max_length > 10**20
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("right", "right")
    assert (tokenizer.num_special_tokens_to_add(), tokenizer.num_special_tokens_to_add(pair=True)) == (2, 3)


@pytest.mark.parametrize(
    ("options", "text", "ids"),
    [
        ({}, "acguTt", [6, 7, 8, 9, 9, 9]),
        ({"alphabet": "iupac"}, "ACGUN.X-", [6, 7, 8, 9, 10, 21, 3, 3]),
        ({"alphabet": "streamline"}, "acgtnr", [6, 7, 8, 9, 10, 3]),
        ({"alphabet": "nucleobase"}, "ACGTN", [6, 7, 8, 9, 3]),
        ({"alphabet": "card"}, "ACGTTTacg.X*-I", [6, 7, 8, 9, 9, 9, 6, 7, 8, 21, 22, 23, 24, 25]),
        ({"alphabet": ["A", "G"]}, "ACGU", [6, 3, 7, 3]),
        ({"replace_T_with_U": False}, "ACGTTT", [6, 7, 8, 3, 3, 3]),
        ({"do_upper_case": False}, "acguACGT", [3, 3, 3, 3, 6, 7, 8, 9]),
        ({"nmers": 2}, "ACGUACGUN", [7, 13, 19, 21, 7, 13, 19, 25]),
        ({"nmers": 3}, "acgu", [13, 44]),
        ({"nmers": 3}, "AC", []),
        ({"nmers": 3}, "AC<mask>GUA", [4, 71]),
        ({"nmers": 3}, "ACGNNNXXX", [13, 45, 80, 130, 3, 3, 3]),
        ({"nmers": 3}, "AC GUA", [3, 3, 3, 71]),
        ({"nmers": 2, "alphabet": "nucleobase"}, "ACGUACGUN", [7, 12, 17, 18, 7, 12, 17, 3]),
        ({"nmers": 2, "replace_T_with_U": False}, "ACGTTT", [7, 13, 3, 3, 3]),
        ({"codon": True}, "ACGTTT", [13, 99]),
        ({"codon": True}, "ACG<mask>GUA", [13, 4, 71]),
        ({"codon": True, "nmers": 3}, "ACGNNNXXX", [13, 130, 3]),
    ],
)
def test_options_survive_saving(options: dict[str, Any], text: str, ids: list[int], tmp_path: Path) -> None:
    tokenizer = RnaTokenizer(**options)
    assert tokenizer(text)["input_ids"] == [1, *ids, 2]
    tokenizer.save_pretrained(tmp_path)
    read = RnaTokenizer.from_pretrained(tmp_path)
    assert read(text)["input_ids"] == [1, *ids, 2]
    assert read.get_vocab() == tokenizer.get_vocab()


def test_saved_files_come_back_unchanged(tmp_path: Path) -> None:
    RnaTokenizer(do_upper_case=False, strict=True).save_pretrained(tmp_path / "a")
    RnaTokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for name in ("vocab.txt", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saved_files_are_those_of_the_port(tmp_path: Path) -> None:
    RnaTokenizer().save_pretrained(tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == (GOLDEN / "base" / "vocab.txt").read_bytes()
    ours = json.loads((tmp_path / "tokenizer_config.json").read_text())
    theirs = json.loads((GOLDEN / "base" / "tokenizer_config.json").read_text())
    assert ours == theirs | {"do_upper_case": True, "strict": False}


def test_directory_of_the_card(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(CARD_TOKENS))
    config = {"additional_special_tokens": ["<null>"], "clean_up_tokenization_spaces": True, "nmers": 1}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    read = RnaTokenizer.from_pretrained(tmp_path)
    assert len(read) == 26
    assert read("A.I<mask>")["input_ids"] == [1, 6, 21, 25, 4, 2]
    assert read.decode([1, 6, 21, 25, 5, 2], skip_special_tokens=True) == "A . I"


def test_official_vocabulary(tmp_path: Path) -> None:
    tokenizer = RnaTokenizer(alphabet="official")
    assert len(tokenizer) == 22
    batch = tokenizer(["acgu", "T"], padding=True)
    assert batch["input_ids"] == [[0, 5, 6, 7, 8, 2], [0, 8, 2, 1, 1, 1]]
    tokenizer.save_pretrained(tmp_path)
    assert RnaTokenizer.from_pretrained(tmp_path)("acgu")["input_ids"] == [0, 5, 6, 7, 8, 2]


def test_directory_without_vocabulary_raises(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no vocab\.txt"):
        RnaTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("options", [{"nmers": 3}, {"codon": True}, {"alphabet": "iupac"}])
def test_options_that_contradict_the_vocabulary_raise(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"vocab\.txt"):
        RnaTokenizer.from_pretrained(GOLDEN / "base", **options)


@pytest.mark.parametrize("text", ["A", "ACGU", "AC<mask>GUA"])
def test_broken_codons_raise(text: str) -> None:
    with pytest.raises(ValueError, match="multiple of three"):
        RnaTokenizer(codon=True)(text)
    with pytest.raises(ValueError, match="a codon has 3"):
        RnaTokenizer(codon=True, nmers=2)


@pytest.mark.parametrize("empty", [[], ()])
def test_empty_list_raises(tokenizer: RnaTokenizer, empty: Any) -> None:
    with pytest.raises(ValueError, match="empty"):
        tokenizer(empty, padding=True, return_tensors="pt")


@pytest.mark.parametrize("make", [RnaTokenizer, BaseClassTokenizer])
def test_strict(make: type[RnaTokenizer]) -> None:
    tokenizer = make(strict=True)
    assert tokenizer("ac<mask>gT<unk>")["input_ids"] == [1, 6, 7, 4, 8, 9, 3, 2]
    for give in (lambda: tokenizer("AC<mask>Z"), lambda: tokenizer(["A", "AC<mask>Z"])):
        with pytest.raises(SequenceError, match="'Z'") as caught:
            give()
        assert caught.value.position == 9


def test_strict_holds_for_pairs_words_and_nmers(tmp_path: Path) -> None:
    RnaTokenizer(strict=True).save_pretrained(tmp_path)
    tokenizer = RnaTokenizer.from_pretrained(tmp_path)
    with pytest.raises(SequenceError, match="position 2"):
        tokenizer("ACG", "A!")
    with pytest.raises(SequenceError, match="position 1"):
        tokenizer(["AC", "?", "!"], is_split_into_words=True)
    with pytest.raises(SequenceError, match="position 11"):
        RnaTokenizer(strict=True, nmers=3)("AC<mask>GTZ")


def test_tokenize(tokenizer: RnaTokenizer) -> None:
    assert tokenizer.tokenize("a<mask>tZ <") == ["A", "<mask>", "U", "Z", " ", "<"]
    assert RnaTokenizer(nmers=3).tokenize("ACGUA") == ["ACG", "CGU", "GUA"]


def test_decode(tokenizer: RnaTokenizer) -> None:
    ids = tokenizer("gg<mask>.?Z<null>t")["input_ids"]
    assert tokenizer.decode(ids) == "<cls> G G <mask> . ? <unk> <null> U <eos>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "G G . ? U"
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=True, skip_special_tokens=True) == "G G . ? U"
    assert tokenizer.decode(6) == "A"
    assert tokenizer.decode(torch.tensor([6, 7])) == "A C"
    assert tokenizer.decode([]) == ""


def test_batch_decode(tokenizer: RnaTokenizer) -> None:
    batch = tokenizer(["ACG", "U"], padding=True, return_tensors="pt")
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["A C G", "U"]
    assert tokenizer.batch_decode(batch["input_ids"])[1] == "<cls> U <eos> <pad> <pad>"


def test_convert(tokenizer: RnaTokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids(["A", "a", "T", "<mask>"]) == [6, 3, 3, 4]
    assert tokenizer.convert_tokens_to_ids("?") == 27
    assert tokenizer.convert_ids_to_tokens([0, 6, 27, 28, -1]) == ["<pad>", "A", "?", "<unk>", "<unk>"]
    assert tokenizer.convert_ids_to_tokens(9) == "U"
    assert tokenizer.convert_tokens_to_string(["A", "C"]) == "A C"


def test_pairs(tokenizer: RnaTokenizer) -> None:
    assert tokenizer("AC", "GU")["input_ids"] == [1, 6, 7, 2, 8, 9, 2]
    batch = tokenizer(["AC", "A"], ["GU", "G"], padding=True)
    assert batch["input_ids"] == [[1, 6, 7, 2, 8, 9, 2], [1, 6, 2, 8, 2, 0, 0]]
    assert batch["attention_mask"] == [[1] * 7, [1] * 5 + [0] * 2]
    assert tokenizer([("AC", "GU")])["input_ids"] == [[1, 6, 7, 2, 8, 9, 2]]
    masked = tokenizer("AC", "GU", return_special_tokens_mask=True, return_token_type_ids=True)
    assert masked["special_tokens_mask"] == [1, 0, 0, 1, 0, 0, 1]
    assert masked["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert tokenizer("ACGUA", "GUC", truncation=True, max_length=7)["input_ids"] == [1, 6, 7, 2, 8, 9, 2]


def test_words(tokenizer: RnaTokenizer) -> None:
    assert tokenizer(["AC", "GU"], is_split_into_words=True)["input_ids"] == [1, 6, 7, 8, 9, 2]
    batch = tokenizer([["AC", "GU"], ["A"]], is_split_into_words=True)
    assert batch["input_ids"] == [[1, 6, 7, 8, 9, 2], [1, 6, 2]]


def test_truncation(tokenizer: RnaTokenizer) -> None:
    assert tokenizer("ACGU", truncation=True, max_length=4)["input_ids"] == [1, 6, 7, 2]
    assert tokenizer("ACGU", max_length=4)["input_ids"] == [1, 6, 7, 2]
    assert tokenizer("ACGU", truncation=True, max_length=1)["input_ids"] == [1, 2]
    assert tokenizer("A<mask>GU", truncation=True, max_length=3, add_special_tokens=False)["input_ids"] == [6, 4, 8]
    left = RnaTokenizer(truncation_side="left")
    assert left(["ACGU", "AC"], truncation=True, max_length=4)["input_ids"] == [[1, 8, 9, 2], [1, 6, 7, 2]]
    limited = RnaTokenizer(model_max_length=3)
    assert limited("ACGU", truncation=True)["input_ids"] == [1, 6, 2]


def test_overflowing_tokens(tokenizer: RnaTokenizer) -> None:
    cut = tokenizer("ACGUA", truncation=True, max_length=4, stride=1, return_overflowing_tokens=True)
    assert (cut["input_ids"], cut["overflowing_tokens"]) == ([1, 6, 7, 2], [7, 8, 9, 6])


def test_padding(tokenizer: RnaTokenizer) -> None:
    batch = tokenizer(["ACGU", "A"], padding=True, pad_to_multiple_of=4, return_tensors="np")
    assert batch["input_ids"].tolist() == [[1, 6, 7, 8, 9, 2, 0, 0], [1, 6, 2, 0, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0] * 2, [1] * 3 + [0] * 5]
    wide = tokenizer("A", padding="max_length", max_length=5, return_special_tokens_mask=True)
    assert (wide["input_ids"], wide["special_tokens_mask"]) == ([1, 6, 2, 0, 0], [1, 0, 1, 1, 1])
    left = RnaTokenizer(padding_side="left")(["ACG", "A"], padding=True)
    assert left["input_ids"] == [[1, 6, 7, 8, 2], [0, 0, 1, 6, 2]]
    assert left["attention_mask"] == [[1] * 5, [0, 0, 1, 1, 1]]


def test_contradicting_widths_raise(tokenizer: RnaTokenizer) -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        tokenizer(["ACGU"], truncation=True, padding=True, max_length=6, pad_to_multiple_of=4)
    with pytest.raises(ValueError, match="Unable to create tensor"):
        tokenizer(["ACGU", "A"], return_tensors="pt")
    with pytest.raises(ValueError, match="Unable to create tensor"):
        tokenizer(["ACGU", "A"], padding="max_length", max_length=4, return_tensors="pt")


def test_tensors_are_int64(tokenizer: RnaTokenizer) -> None:
    torch_batch = tokenizer("ACGU", return_tensors="pt")
    assert torch_batch["input_ids"].shape == (1, 6)
    assert torch_batch["input_ids"].dtype == torch_batch["attention_mask"].dtype == torch.int64
    numpy_batch = tokenizer(["ACGU"], return_tensors="np")
    assert numpy_batch["input_ids"].dtype == numpy_batch["attention_mask"].dtype == np.int64
    assert torch_batch.to("cpu")["input_ids"][0, 0] == 1
    assert tokenizer.encode("AC") == [1, 6, 7, 2]
    assert tokenizer.encode("AC", return_tensors="pt").tolist() == [[1, 6, 7, 2]]


def test_tensors_are_our_own_memory(tokenizer: RnaTokenizer) -> None:
    tokenizer("ACGU", return_tensors="pt")["input_ids"].fill_(0)
    assert tokenizer("ACGU")["input_ids"] == [1, 6, 7, 8, 9, 2]


def test_target_text_becomes_labels(tokenizer: RnaTokenizer) -> None:
    assert tokenizer("AC", text_target="GU")["labels"] == [1, 8, 9, 2]


pieces = st.sampled_from([*"ACGUTNacgtXI.-?|zZ1<> \n\x00", "é", "😀", *SPECIAL_TOKENS, "<MASK>", "<ma", "sk>"])
sequences = st.lists(pieces, max_size=10).map("".join)
options = st.fixed_dictionaries(
    {
        "padding": st.sampled_from([False, True, "longest", "max_length"]),
        "truncation": st.sampled_from([None, False, True, "only_first", "only_second", "longest_first"]),
        "max_length": st.sampled_from([None, 0, 1, 2, 4, 8]),
        "pad_to_multiple_of": st.sampled_from([None, 1, 4]),
        "padding_side": st.sampled_from([None, "left", "right"]),
        "return_tensors": st.sampled_from([None, "pt", "np"]),
        "return_attention_mask": st.sampled_from([None, True, False]),
        "return_special_tokens_mask": st.booleans(),
        "add_special_tokens": st.booleans(),
        "split_special_tokens": st.booleans(),
        "return_length": st.booleans(),
        "return_token_type_ids": st.sampled_from([None, True]),
    }
)
makers = st.sampled_from([{}, {"padding_side": "left", "truncation_side": "left"}, {"model_max_length": 5}])


def plain(values: Any) -> Any:
    """Nested lists, also where numpy has an array of rows that differ in length."""
    values = values.tolist() if hasattr(values, "tolist") else values
    return [plain(value) for value in values] if isinstance(values, list) else values


def outcome(tokenizer: RnaTokenizer, text: str | list[str], call: dict[str, Any]) -> Any:
    try:
        encoded = tokenizer(text, **call)
    except ValueError as error:
        return str(error)
    return {name: (type(v), str(getattr(v, "dtype", "")), plain(v)) for name, v in encoded.items()}


@pytest.mark.filterwarnings("ignore:`max_length` is ignored:UserWarning")
@settings(max_examples=300, deadline=None)
@given(makers, st.one_of(sequences, st.lists(sequences, min_size=1, max_size=4)), options)
def test_byte_table_gives_the_answers_of_the_base_class(
    make: dict[str, Any], text: str | list[str], call: dict[str, Any]
) -> None:
    assert outcome(RnaTokenizer(**make), text, call) == outcome(BaseClassTokenizer(**make), text, call)


@pytest.mark.parametrize("text", ["AC<mask>", ["AC<mask>", "A"]])
@pytest.mark.parametrize(
    "call",
    [
        {"padding": True, "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 8, "truncation": True, "return_tensors": "np"},
        {"padding": False, "return_special_tokens_mask": True, "add_special_tokens": False},
        {"padding": "longest", "pad_to_multiple_of": 8, "return_attention_mask": False},
    ],
)
def test_a_plain_batch_does_not_meet_the_base_class(
    text: str | list[str], call: dict[str, Any], tokenizer: RnaTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the base class was asked")

    monkeypatch.setattr(PreTrainedTokenizer, "_encode_plus", refuse)
    assert tokenizer(text, **call)["input_ids"] is not None


def test_added_tokens_are_read_and_saved(tmp_path: Path) -> None:
    tokenizer = RnaTokenizer()
    assert tokenizer.add_tokens(["<m6A>"]) == 1
    assert len(tokenizer) == 29
    assert tokenizer(["A<m6A>C"])["input_ids"] == [[1, 6, 28, 7, 2]]
    tokenizer.save_pretrained(tmp_path)
    assert RnaTokenizer.from_pretrained(tmp_path)("A<m6A>C")["input_ids"] == [1, 6, 28, 7, 2]


def test_changed_special_tokens_are_used() -> None:
    tokenizer = RnaTokenizer(sep_token="<null>")
    assert tokenizer(["AC"])["input_ids"] == [[1, 6, 7, 5]]


def test_long_sequences_are_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", messages.append)
    tokenizer = RnaTokenizer(model_max_length=4)
    for batch in (["AC"], ["ACGU", "A"], ["ACGUA"]):
        tokenizer(batch)
    assert len(messages) == 1
    assert "(6 > 4)" in messages[0]


def test_pad_for_collators(tokenizer: RnaTokenizer) -> None:
    features = [tokenizer("ACGU"), tokenizer("A")]
    batch = tokenizer.pad(features, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[1, 6, 7, 8, 9, 2], [1, 6, 2, 0, 0, 0]]
    assert batch["attention_mask"].sum().item() == 9
    collated = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)([tokenizer("ACGU"), tokenizer("A")])
    assert collated["input_ids"].shape == (2, 8)


def test_language_modeling_collator_never_masks_special_tokens(tokenizer: RnaTokenizer) -> None:
    collator = DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=1.0, mask_replace_prob=1, random_replace_prob=0
    )
    batch = collator([tokenizer("ACGU"), tokenizer("A")])
    assert batch["input_ids"].tolist() == [[1, 4, 4, 4, 4, 2], [1, 4, 2, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, 8, 9, -100], [-100, 6, -100, -100, -100, -100]]


def test_offsets_are_refused(tokenizer: RnaTokenizer) -> None:
    """transformers leaves them out in silence where a tokenizer is not a fast one."""
    with pytest.raises(InputError, match="after CLS, token i is character i"):
        tokenizer("ACGU", return_offsets_mapping=True)


def test_pickle(tokenizer: RnaTokenizer) -> None:
    tokenizer("ACGU")
    assert pickle.loads(pickle.dumps(tokenizer))(["ACGU"])["input_ids"] == [[1, 6, 7, 8, 9, 2]]
