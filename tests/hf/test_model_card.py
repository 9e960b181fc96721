"""Every snippet of the published model card, with `rinalmo` in place of `multimolecule`."""

import json

import pytest
import torch

import rinalmo
from rinalmo import (
    RiNALMoForContactPrediction,
    RiNALMoForSequencePrediction,
    RiNALMoForTokenPrediction,
    RiNALMoModel,
    RnaTokenizer,
)

TEXT = "UAGCUUAUCAGACUGAUGUUGA"


@pytest.fixture(scope="module")
def name():
    return str(rinalmo.resolve("nano"))


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "nano_expected.json").read_text())


def test_fill_mask(name, expected):
    import transformers

    unmasker = transformers.pipeline("fill-mask", model=name)
    for example in expected["fill_mask"].values():
        for candidate, reference in zip(unmasker(example["text"]), example["output"], strict=True):
            assert candidate["score"] == pytest.approx(reference["score"], abs=1e-4)
            assert candidate["sequence"] == reference["sequence"]
            assert (candidate["token"], candidate["token_str"]) == (reference["token"], reference["token_str"])


def test_fill_mask_without_a_mask(name):
    import transformers

    unmasker = transformers.pipeline("fill-mask", model=name)
    with pytest.raises(Exception, match="No mask_token"):
        unmasker("GGUC")


def test_features(name, expected):
    tokenizer = RnaTokenizer.from_pretrained(name)
    model = RiNALMoModel.from_pretrained(name)
    output = model(**tokenizer(TEXT, return_tensors="pt"))
    assert output.last_hidden_state.shape == (1, 24, 320)
    assert output.pooler_output.shape == (1, 320)
    reference = {key: torch.tensor(expected["features"][key]) for key in ("last_hidden_state_first_token", "mean")}
    nucleotides = output.last_hidden_state[0, 1:-1]
    torch.testing.assert_close(nucleotides[0], reference["last_hidden_state_first_token"], atol=1e-5, rtol=0)
    torch.testing.assert_close(nucleotides.mean(dim=0), reference["mean"], atol=1e-5, rtol=0)


def test_sequence_prediction(name):
    tokenizer = RnaTokenizer.from_pretrained(name)
    model = RiNALMoForSequencePrediction.from_pretrained(name)
    output = model(**tokenizer(TEXT, return_tensors="pt"), labels=torch.tensor([1]))
    assert output.logits.shape == (1, 1)
    expected = torch.nn.functional.softplus(-output.logits).mean()
    torch.testing.assert_close(output.loss, expected)


def test_token_prediction(name):
    tokenizer = RnaTokenizer.from_pretrained(name)
    model = RiNALMoForTokenPrediction.from_pretrained(name)
    labels = torch.randint(2, (len(TEXT),))
    output = model(**tokenizer(TEXT, return_tensors="pt"), labels=labels)
    assert output.logits.shape == (1, 22, 1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits[0, :, 0], labels.float())
    torch.testing.assert_close(output.loss, expected)


def test_contact_prediction(name):
    tokenizer = RnaTokenizer.from_pretrained(name)
    model = RiNALMoForContactPrediction.from_pretrained(name)
    labels = torch.randint(2, (len(TEXT), len(TEXT)))
    output = model(**tokenizer(TEXT, return_tensors="pt"), labels=labels)
    assert output.logits.shape == (1, 22, 22, 1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits[0, :, :, 0], labels.float())
    torch.testing.assert_close(output.loss, expected)


def test_card_scores_of_x_are_the_geometric_mean():
    """In the published weights X's rows are the means of A, C, G and U, so its probability is their geometric mean."""
    from rinalmo.rna.alphabet import OFFICIAL_TOKENS, STANDARD_TOKENS, Alphabet
    from rinalmo.weights.layouts import move_rows

    official, standard = Alphabet(OFFICIAL_TOKENS), Alphabet(STANDARD_TOKENS)
    torch.manual_seed(0)
    decoder, bias, state = torch.randn(22, 16), torch.randn(22), torch.randn(16)
    weight = move_rows("lm_head.decoder.weight", decoder, official, standard)
    logits = weight @ state + move_rows("lm_head.decoder.bias", bias, official, standard)
    log_p = logits.log_softmax(dim=-1)
    nucleotides = [STANDARD_TOKENS.index(letter) for letter in "ACGU"]
    torch.testing.assert_close(log_p[STANDARD_TOKENS.index("X")], log_p[nucleotides].mean())


@pytest.mark.parametrize(
    ("auto", "cls"),
    [
        ("AutoModel", "RiNALMoModel"),
        ("AutoModelForMaskedLM", "RiNALMoForMaskedLM"),
        ("AutoModelForPreTraining", "RiNALMoForPreTraining"),
        ("AutoModelForSequenceClassification", "RiNALMoForSequencePrediction"),
        ("AutoModelForTokenClassification", "RiNALMoForTokenPrediction"),
    ],
)
def test_auto_classes(name, auto, cls):
    import transformers

    model = getattr(transformers, auto).from_pretrained(name)
    assert type(model) is getattr(rinalmo, cls)


def test_auto_config_and_tokenizer(name):
    import transformers

    assert type(transformers.AutoConfig.from_pretrained(name)) is rinalmo.RiNALMoConfig
    assert type(transformers.AutoTokenizer.from_pretrained(name)) is rinalmo.RnaTokenizer
