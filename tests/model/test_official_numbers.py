"""The authors' implementation, run with random weights: every number within 1e-5."""

import numpy as np
import pytest
import torch

from rinalmo.model.packing import Layout, pack, pack_padded
from rinalmo.weights.checkpoint import load

TOLERANCE = 1e-5
OFFICIAL_PAD, OFFICIAL_MASK = 1, 4


@pytest.fixture(scope="module")
def expected(golden):
    return np.load(golden / "official" / "official_tiny.npz")


def official(golden, kind):
    return load(golden / "official" / f"official_tiny_{kind}.pt")


def our_ids(model, official_ids):
    """Official ids as ours, by token; T is U."""
    from rinalmo.rna.alphabet import OFFICIAL_TOKENS

    index = {token: i for i, token in enumerate(model.alphabet.tokens)}
    return [index[OFFICIAL_TOKENS[i].replace("T", "U")] for i in official_ids]


def packed(model, rows):
    return pack([our_ids(model, row[row != OFFICIAL_PAD]) for row in rows])


@pytest.mark.parametrize(("tokens", "prefix"), [("tokens", "plain"), ("tokens_masked", "masked")])
def test_representation_and_logits(golden, expected, tokens, prefix):
    model = official(golden, "pretrained")
    rows = expected[tokens]
    ids, layout = packed(model, rows)
    with torch.inference_mode():
        states = model.encoder(ids, layout).last_hidden_state
        logits = model.lm_head(states)
    real = rows != OFFICIAL_PAD
    np.testing.assert_allclose(states, expected[f"{prefix}_representation"][real], atol=TOLERANCE, rtol=0)
    from rinalmo.rna.alphabet import OFFICIAL_TOKENS

    columns = our_ids(model, range(len(OFFICIAL_TOKENS)))
    np.testing.assert_allclose(logits[:, columns], expected[f"{prefix}_logits"][real], atol=TOLERANCE, rtol=0)


def test_tokens_of_the_sequences(golden, expected):
    model = official(golden, "pretrained")
    for sequence, row in zip(expected["sequences"], expected["tokens"], strict=True):
        np.testing.assert_array_equal(model.alphabet.encode(str(sequence)), our_ids(model, row[row != OFFICIAL_PAD]))


def test_attentions(golden, expected):
    model = official(golden, "pretrained")
    ids, layout = packed(model, expected["tokens"][:1])
    with torch.inference_mode():
        out = model.encoder(ids, layout, output_attentions=True)
    for block, layer in enumerate(out.attentions):
        np.testing.assert_allclose(layer[0], expected["attentions_first"][0, block], atol=TOLERANCE, rtol=0)


def test_structure_head(golden, expected):
    model = official(golden, "ss_ft")
    assert model.spec.threshold == 0.13
    for n in range(3):
        ids, layout = packed(model, expected["tokens"][n : n + 1])
        with torch.inference_mode():
            states = model.encoder(ids, layout).last_hidden_state[1:-1]
            logits = model.structure_head(states)[..., 0]
        np.testing.assert_allclose(logits, expected[f"ss_logits_{n}"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("length", "key"), [(102, "mrl_output_padded102"), (0, "mrl_output_alone")])
def test_ribosome_load_head(golden, expected, length, key):
    model = official(golden, "mrl_ft")
    sequences = [torch.from_numpy(model.alphabet.encode(str(s))) for s in expected["mrl_sequences"]]
    ids, layout = pack_padded(sequences, length, model.alphabet.pad_id)
    with torch.inference_mode():
        states = model.encoder(ids, layout).last_hidden_state
        standardised = model.ribosome_load_head(states, layout, standardized=True)
        scaled = model.ribosome_load_head(states, layout)
    np.testing.assert_allclose(standardised, expected[key], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(scaled, expected[key] * 1.5 + 6.5, atol=TOLERANCE, rtol=0)  # the file's scaler


@pytest.mark.parametrize(
    ("kind", "head", "key"),
    [("splice_ft", "splice_site_head", "splice_logits"), ("ncrna_ft", "ncrna_family_head", "ncrna_logits")],
)
def test_classification_heads(golden, expected, kind, head, key):
    model = official(golden, kind)
    ids, layout = packed(model, expected["tokens"])
    with torch.inference_mode():
        logits = model.head(head)(model.encoder(ids, layout).last_hidden_state, layout)
    np.testing.assert_allclose(logits, expected[key], atol=TOLERANCE, rtol=0)


def test_dropout_stands_where_the_official_model_has_it(golden, expected):
    """On attention probabilities and after both sublayers; nowhere else, and only in training."""
    model = official(golden, "pretrained").requires_grad_(True)
    ids, layout = packed(model, expected["tokens"][:1])
    plain = model.encoder(ids, layout).last_hidden_state
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert len(dropouts) == model.config.num_hidden_layers
    model.train()
    assert not torch.equal(model.encoder(ids, layout).last_hidden_state, plain)
    for dropout in dropouts:
        dropout.p = 0.0
    assert not torch.equal(model.encoder(ids, layout).last_hidden_state, plain)  # the attention's is left
    for block in model.encoder.blocks:
        block.attention.dropout = 0.0
    torch.testing.assert_close(model.encoder(ids, layout).last_hidden_state, plain)


def test_empty_batch(golden):
    model = official(golden, "pretrained")
    ids, layout = pack([])
    assert layout == Layout(())
    assert model.encoder(ids, layout).last_hidden_state.shape == (0, 80)
