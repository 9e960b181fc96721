"""Contacts from attention: the maps, the regression on them, and `rinalmo fold --zero-shot`."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import rinalmo
from rinalmo.engine.engine import Engine
from rinalmo.inference import contacts
from rinalmo.inference.fold import Decoding, fold_records
from rinalmo.io.sequences import Record, encode
from rinalmo.model.packing import pack
from rinalmo.tasks.base import Columns
from rinalmo.tasks.secondary_structure import SecondaryStructure

SEQUENCES = ["GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGG", "GGGGGAAAACCCCC", "ACAUGAGGAUCACCCAUGU"]


def test_maps_are_the_corrected_attention_of_the_encoder():
    model = rinalmo.load("nano").eval()
    ids = [torch.from_numpy(encode(Record("", "", sequence), model.alphabet)) for sequence in SEQUENCES]
    with torch.inference_mode():
        packed, layout = pack(ids, "cpu")
        attentions = model.encoder(packed, layout, output_attentions=True).attentions
        maps = list(contacts.attention_maps(model, packed, layout))
    assert len(maps) == model.config.num_hidden_layers
    for block, parts in zip(attentions, maps, strict=True):
        for weights, part, sequence in zip(block, parts, SEQUENCES, strict=True):
            inner = weights[:, 1:-1, 1:-1].numpy()
            both = inner + inner.swapaxes(1, 2)
            expected = both - np.einsum("hi,hj->hij", both.sum(2), both.sum(1)) / both.sum((1, 2))[:, None, None]
            assert part.shape == (model.config.num_attention_heads, len(sequence), len(sequence))
            np.testing.assert_allclose(part.numpy(), expected, atol=1e-5)


def test_the_regression_is_scikit_learns():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 6))
    y = (x @ [2, -1, 0, 0, 0.5, 0] + generator.logistic(size=400) > 1).astype(float)
    coefficients, intercept = contacts._logistic(torch.tensor(x), torch.tensor(y))
    expected = LogisticRegression(C=1 / contacts._PENALTY, tol=1e-10, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(coefficients.numpy(), expected.coef_[0], atol=1e-5)
    assert intercept == pytest.approx(expected.intercept_[0], abs=1e-5)


def test_a_head_that_knows_pairs_is_found(monkeypatch):
    """One head is replaced by the true pairs and noise: it gets nearly all of the weight."""
    model = rinalmo.load("nano").eval()
    known = iter(SecondaryStructure.read(contacts.KNOWN, Columns()))
    generator = torch.Generator().manual_seed(0)

    def maps(model, ids, layout):
        structure = next(known)
        length = len(structure.sequence)
        for block in range(model.config.num_hidden_layers):
            noise = torch.randn(model.config.num_attention_heads, length, length, generator=generator)
            if block == 2:
                for i, j in structure.target:
                    noise[3, i, j] += 5
            yield [noise]

    monkeypatch.setattr(contacts, "attention_maps", maps)
    coefficients = contacts.fit_regression(model).coefficients
    assert coefficients.argmax() == 2 * model.config.num_attention_heads + 3
    assert coefficients.max() > 5 * coefficients.flatten().sort().values[-2]


def test_probabilities_do_not_depend_on_the_batch():
    records = [Record(str(number), "", sequence) for number, sequence in enumerate(SEQUENCES)]
    zero_shot = Decoding(zero_shot=True)
    together = list(fold_records(records, Engine("nano", "fp32"), zero_shot))
    alone = [next(fold_records([record], Engine("nano", "fp32", batch_tokens=1), zero_shot)) for record in records]
    for (structure, matrix), (expected, own) in zip(together, alone, strict=True):
        assert structure.pairs == expected.pairs
        np.testing.assert_allclose(matrix, own, atol=1e-3)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-4)
        assert 0 < matrix.max() < 1


def test_a_model_without_a_head_folds_only_without_one():
    with pytest.raises(rinalmo.CheckpointError, match="not fine-tuned"):
        rinalmo.fold("GGGGGAAAACCCCC", "nano")
    (structure,) = rinalmo.fold("GGGGGAAAACCCCC", "nano", Decoding(zero_shot=True))
    assert structure.sequence == "GGGGGAAAACCCCC"


def test_long_rnas_are_folded_in_windows():
    with pytest.warns(UserWarning, match="windows of 64"):
        (structure,) = rinalmo.fold(SEQUENCES[0] * 3, "nano", Decoding(zero_shot=True), window=64)
    assert len(structure.sequence) == 3 * len(SEQUENCES[0])
