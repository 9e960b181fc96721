"""multimolecule's implementation, run with random weights: every number within 1e-5, from its own folders."""

import json

import numpy as np
import pytest
import torch

import rinalmo

TOLERANCE = 1e-5
CLASSES = {
    "sequence": "RiNALMoForSequencePrediction",
    "token": "RiNALMoForTokenPrediction",
    "contact": "RiNALMoForContactPrediction",
}
HEADS = [
    (f"{head}-{kind}", cls)
    for head, cls in CLASSES.items()
    for kind in ("regression", "binary", "multiclass", "multilabel")
]


def close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def port(golden):
    return golden / "multimolecule"


@pytest.fixture(scope="module")
def base(port):
    return np.load(port / "base" / "expected.npz")


@torch.inference_mode()
def test_base_model(port, base):
    model = rinalmo.RiNALMoModel.from_pretrained(port / "base")
    ids, mask = torch.from_numpy(base["input_ids"]), torch.from_numpy(base["attention_mask"])
    out = model(ids, attention_mask=mask, output_hidden_states=True)
    real = base["attention_mask"].astype(bool)
    close(out.last_hidden_state[real], base["last_hidden_state"][real])
    close(out.pooler_output, base["pooler_output"])
    assert len(out.hidden_states) == 3
    for n, states in enumerate(out.hidden_states):
        close(states[real], base[f"hidden_{n}"][real])
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)


@torch.inference_mode()
def test_masked_input(port, base):
    model = rinalmo.RiNALMoModel.from_pretrained(port / "base")
    out = model(torch.from_numpy(base["masked_input_ids"]), attention_mask=torch.from_numpy(base["attention_mask"]))
    real = base["attention_mask"].astype(bool)
    close(out.last_hidden_state[real], base["masked_last_hidden_state"][real])


@torch.inference_mode()
def test_attentions(port, base):
    model = rinalmo.RiNALMoModel.from_pretrained(port / "base")
    mask = torch.from_numpy(base["attention_mask"])[:1]
    length = int(mask.sum())
    out = model(torch.from_numpy(base["input_ids"])[:1, :length], output_attentions=True)
    assert len(out.attentions) == 2
    for n, weights in enumerate(out.attentions):
        close(weights, base[f"attention_first_{n}"])


@torch.inference_mode()
@pytest.mark.parametrize("cls", ["RiNALMoForMaskedLM", "RiNALMoForPreTraining"])
def test_masked_lm(port, base, cls):
    expected = np.load(port / "masked-lm" / "expected.npz")
    model = getattr(rinalmo, cls).from_pretrained(port / "masked-lm")
    ids = torch.from_numpy(expected["masked_input_ids"])
    labels = torch.from_numpy(expected["labels"])
    out = model(ids, attention_mask=torch.from_numpy(base["attention_mask"]), labels=labels)
    real = base["attention_mask"].astype(bool)
    close(out.logits[real], expected["logits"][real])
    close(out.loss, expected["loss"])


@torch.inference_mode()
@pytest.mark.parametrize(("name", "cls"), HEADS)
def test_heads_and_losses(port, base, name, cls):
    expected = np.load(port / name / "expected.npz")
    model = getattr(rinalmo, cls).from_pretrained(port / name)
    ids = torch.from_numpy(expected["input_ids"])
    labels = torch.from_numpy(expected["labels"]) if "labels" in expected else None
    out = model(ids, attention_mask=(ids != 0).long(), labels=labels)
    close(out.logits, expected["logits"])
    if labels is not None:
        close(out.loss, expected["loss"])


@pytest.mark.parametrize("n", [0, 1, 2])
def test_secondary_structure(port, n):
    expected = np.load(port / "secondary-structure" / "expected.npz")
    sequence = json.loads((port / "info.json").read_text())["sequences"][n]
    cls = rinalmo.RiNALMoForSecondaryStructurePrediction
    # The port infers regression from float labels and averages over the full square.
    model = cls.from_pretrained(port / "secondary-structure", loss_region="full", problem_type="regression")
    tokenizer = rinalmo.RnaTokenizer.from_pretrained(port / "secondary-structure")
    inputs = tokenizer(sequence, return_tensors="pt")
    labels = torch.from_numpy(expected[f"labels_{n}"])
    for wanted in (True, False):  # with gradients the plain encoder computes, without them the fast one
        with torch.set_grad_enabled(wanted):
            out = model(**inputs, labels=labels)
        # The instance norms enlarge fp32 rounding, which differs between processors: 1e-5 of the logits' size too.
        np.testing.assert_allclose(out.logits.detach(), expected[f"logits_{n}"], atol=1e-5, rtol=1e-5)
        close(out.loss.detach(), expected[f"loss_full_{n}"])


def test_fill_mask_pipeline(port):
    """The pipeline's own output format, its token ids and its spacing; scores within 1e-4 of the port's."""
    from transformers import pipeline

    expected = json.loads((port / "info.json").read_text())["fill_mask"]
    fill = pipeline("fill-mask", model=str(port / "masked-lm"))
    assert type(fill.model).__module__ == "rinalmo.hf.modeling"
    for text, answers in expected.items():
        nested = answers if isinstance(answers[0], list) else [answers]
        found = fill(text)
        found = found if isinstance(found[0], list) else [found]
        for mask, mask_expected in zip(found, nested, strict=True):
            for candidate, reference in zip(mask, mask_expected, strict=True):
                assert candidate.pop("score") == pytest.approx(reference["score"], abs=1e-4)
                assert candidate == {key: value for key, value in reference.items() if key != "score"}
