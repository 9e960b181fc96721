"""The Python functions behind the commands."""

import numpy as np
import pytest
import torch

import rinalmo
from rinalmo.engine.engine import Engine, map_packed
from rinalmo.errors import CheckpointError, InputError, SequenceError
from rinalmo.io.sequences import Record
from rinalmo.model.packing import chunked, token_batches
from rinalmo.model.rinalmo import ModelSpec, create

CARD = "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU"


def test_fill_mask_equals_the_hugging_face_pipeline():
    import transformers

    text = "GGUC<mask>CUC<mask>GG"
    pipeline = transformers.pipeline("fill-mask", model=str(rinalmo.resolve("nano")))
    for mask, reference in zip(rinalmo.fill_mask(text)[0], pipeline(text), strict=True):
        assert [c.token for c in mask] == [c["token"] for c in reference]
        np.testing.assert_allclose([c.score for c in mask], [c["score"] for c in reference], atol=1e-5)


def test_fill_mask_of_several(nano):
    found = rinalmo.fill_mask([CARD, "A<mask>", "<mask>G<mask>"], nano, top_k=2)
    assert [len(masks) for masks in found] == [1, 1, 2]
    assert found[2][0][0].sequence.endswith("G<mask>")
    assert [mask[0].position for mask in found[2]] == [1, 3]
    alone = rinalmo.fill_mask(CARD, nano, top_k=2)[0]
    assert [c.sequence for c in found[0][0]] == [c.sequence for c in alone[0]]
    np.testing.assert_allclose([c.score for c in found[0][0]], [c.score for c in alone[0]], atol=1e-5)


def test_top_k_is_no_more_than_the_vocabulary(nano):
    candidates = rinalmo.fill_mask(CARD, nano, top_k=1000)[0][0]
    assert len(candidates) == 28
    assert sum(c.score for c in candidates) == pytest.approx(1, abs=1e-5)


def test_embed_shapes_and_order(nano):
    sequences = ["ACGU", "A", "GGGGGGGG", "ACGU"]
    pooled = rinalmo.embed(sequences, nano)
    assert pooled.shape == (4, 320)
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled[0], pooled[3], atol=1e-6)
    assert rinalmo.embed(sequences, nano, layers=[0, 3, -1]).shape == (4, 3, 320)
    tokens = rinalmo.embed(sequences, nano, pooling="none")
    assert [t.shape for t in tokens] == [(4, 320), (1, 320), (8, 320), (4, 320)]
    np.testing.assert_allclose(tokens[2].mean(axis=0), pooled[2], atol=1e-5)
    for n, sequence in enumerate(sequences):
        np.testing.assert_allclose(rinalmo.embed(sequence, nano)[0], pooled[n], atol=1e-5)


def test_embedding_of_a_letter_beyond_acgu(nano):
    assert np.isfinite(rinalmo.embed(["acgtNRYKMSWBDHVX"], nano)).all()


@pytest.mark.parametrize("bad", ["AC-GU", "ACJ", "ACÜ", "MKVLE", "AC<mask>", "A\0C"])
def test_unknown_characters_are_named(nano, bad):
    with pytest.raises(SequenceError, match=r"record 2.*position"):
        rinalmo.embed(["ACGU", bad], nano)


def test_sequences_are_read_as_fasta_is(nano):
    """White space, case and T are folded; a file's name is told from a sequence."""
    np.testing.assert_allclose(rinalmo.embed("ac gt\nACGT", nano), rinalmo.embed("ACGUACGU", nano), atol=1e-6)
    with pytest.raises(InputError, match="is a mapping"):
        rinalmo.embed({"a": "ACGU"}, nano)
    with pytest.raises(InputError, match=r"give Path\("):
        rinalmo.embed(str(rinalmo.resolve("nano") / "config.json"), nano)
    with pytest.raises(SequenceError, match="'<'"):
        rinalmo.fill_mask("AC<mask><pad>GU", nano)


def test_the_callers_model_stays_as_it_is(nano):
    model = rinalmo.load("nano").train()
    first = rinalmo.embed(["ACGUACGU"], model)
    assert model.training
    np.testing.assert_array_equal(first, rinalmo.embed(["ACGUACGU"], model))  # no dropout
    with pytest.raises(InputError, match="is not a model"):
        rinalmo.embed(["ACGU"], torch.nn.Linear(2, 2))


def test_nothing_given(nano):
    with pytest.raises(InputError, match="no sequences"):
        rinalmo.embed([], nano)
    with pytest.raises(InputError, match="sequence 1 is a int"):
        rinalmo.embed([5], nano)
    with pytest.raises(InputError, match="sequences is a NoneType"):
        rinalmo.embed(None, nano)
    with pytest.raises(InputError, match="pooling"):
        rinalmo.embed(["A"], nano, pooling="max")


@pytest.mark.parametrize("layers", [3, [1.5], ["1"], None])
def test_layers_that_are_no_numbers(nano, layers):
    with pytest.raises(InputError, match="give a list of whole numbers"):
        rinalmo.embed("A", nano, layers=layers)


def test_numbers_that_are_not_whole(nano):
    with pytest.raises(InputError, match=r"top_k is 2\.5; give a whole number from 1 on"):
        rinalmo.fill_mask("<mask>", nano, top_k=2.5)
    for options in ({"threads": 0}, {"threads": 1.5}, {"batch_tokens": 0}):
        with pytest.raises(InputError, match="give a whole number from 1 on"):
            Engine(nano, **options)


def test_empty_sequence_has_no_mean(nano):
    with pytest.raises(SequenceError, match=r"record 2.*empty"):
        rinalmo.embed(["A", ""], nano)
    with pytest.raises(SequenceError, match=r"record x.*empty"):
        rinalmo.embed([Record("x", "", "")], nano)


def test_model_without_the_head():
    spec = ModelSpec(rinalmo.ModelConfig(hidden_size=40, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(CheckpointError, match="no lm_head"):
        rinalmo.fill_mask("<mask>", create(spec))


def test_batches_keep_to_the_budget_and_lose_nothing():
    lengths = [3, 50, 7, 7, 1, 20, 4]
    sequences = [np.full(n, 6) for n in lengths]
    for budget in (1, 7, 20, 1000):
        order = sorted(range(7), key=lambda i: lengths[i])
        batches = list(token_batches(list(map(len, sequences)), budget, order))
        assert [i for batch in batches for i in batch] == order
        assert all(batch for batch in batches)
        assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= budget for batch in batches)
        tokens = {"batch_tokens": lambda budget=budget: budget}
        results = map_packed(lambda ids, layout: list(layout.lengths), sequences, **tokens)
        assert list(results) == lengths


def test_windows_are_bounded():
    read = 0

    def stream():
        nonlocal read
        for _ in range(100):
            read += 1
            yield np.zeros(10)

    first = next(chunked(stream(), len, 48, 4096))
    assert (len(first), read) == (5, 5)


def test_results_come_before_the_input_ends():
    read = 0

    def stream():
        nonlocal read
        for _ in range(1000):
            read += 1
            yield np.full(10, 6)

    next(map_packed(lambda ids, layout: list(layout.lengths), stream(), batch_tokens=lambda: 20))
    assert read < 50


@pytest.mark.slow
def test_memory_of_a_long_sequence_is_linear(nano):
    """Attention weights of 20,000 nt would take 8 GB in one layer; no tensor may come near."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        rinalmo.embed("ACGU" * 1000, nano)
    assert largest <= 4002 * 2 * nano.config.ffn_size
