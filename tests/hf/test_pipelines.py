"""The transformers pipeline `rna-secondary-structure`."""

import numpy as np
import pytest
import torch
from transformers import pipeline

import rinalmo
from rinalmo.errors import CheckpointError, InputError

TASK = "rna-secondary-structure"
SEQUENCES = ["GGGGGAAAACCCCC", "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"]


@pytest.fixture(scope="module")
def folding():
    return pipeline(TASK, model=str(rinalmo.resolve("nano-fold")), device="cpu")


def test_structures_are_those_of_the_fold_command(folding):
    """Thermodynamics included, which only the command and the pipeline use by default."""
    from rinalmo.inference.fold import MODELS_OWN

    expected = rinalmo.fold(SEQUENCES, decoding=MODELS_OWN)
    answers = folding(SEQUENCES, batch_size=2)
    assert [answer["sequence"] for answer in answers] == SEQUENCES
    assert [answer["dot_bracket"] for answer in answers] == [structure.dot_bracket for structure in expected]
    assert answers[0]["pairs"] == [(n, 13 - n) for n in range(5)]
    probabilities = answers[0]["probabilities"]
    np.testing.assert_allclose(probabilities, probabilities.T)
    assert probabilities[0, 13] > 0.5 > probabilities[0, 12]
    one = folding(SEQUENCES[0])
    assert one["dot_bracket"] == answers[0]["dot_bracket"]
    np.testing.assert_allclose(one["probabilities"], probabilities, atol=1e-5)
    assert [answer["dot_bracket"] for answer in folding(iter(SEQUENCES))] == [a["dot_bracket"] for a in answers]


def test_options_are_those_of_decoding(folding):
    alone = folding(SEQUENCES[0], thermodynamics=0.0)["probabilities"]
    assert not np.allclose(alone, folding(SEQUENCES[0])["probabilities"], atol=1e-3)
    strict = pipeline(TASK, model=str(rinalmo.resolve("nano-fold")), device="cpu", threshold=1.0)
    assert strict(SEQUENCES[0])["pairs"] == []
    with pytest.raises(InputError, match="no option window_size; there are method, threshold"):
        folding(SEQUENCES[0], window_size=3)


def test_a_model_in_memory_folds_with_its_current_weights():
    torch.manual_seed(0)
    model = rinalmo.RiNALMoForSecondaryStructurePrediction.from_pretrained("nano")
    folding, tokenizer = pipeline(TASK, model=model, device="cpu"), rinalmo.RnaTokenizer()
    for _ in range(2):
        logits = model(**tokenizer(SEQUENCES[0], return_tensors="pt")).logits[0, :, :, 0]
        expected = logits.sigmoid().fill_diagonal_(0).detach().numpy()
        np.testing.assert_allclose(folding(SEQUENCES[0])["probabilities"], expected, atol=1e-5)
        with torch.no_grad():
            model.structure_head.prediction.bias += 1


def test_what_does_not_fold_is_refused(folding):
    with pytest.raises(CheckpointError, match=r"nano: the model is not fine-tuned"):
        pipeline(TASK, model=str(rinalmo.resolve("nano")))
    with pytest.raises(InputError, match="a RiNALMoForMaskedLM cannot fold"):
        pipeline(TASK, model=rinalmo.RiNALMoForMaskedLM.from_pretrained("nano"))
    with pytest.raises(InputError, match="no sequences given"):
        folding([])
    with pytest.raises(rinalmo.SequenceError, match="position 3"):
        folding("GG1G")
