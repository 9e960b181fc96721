"""A sequence's numbers do not depend on its company: alone, packed, padded, in any order, in any backend."""

import importlib.util

import jaxtyping
import pytest
import torch

from rinalmo.errors import InputError
from rinalmo.model.config import PRESETS, ModelConfig
from rinalmo.model.kernels import attend, attend_with_weights, best_backend, candidates
from rinalmo.model.packing import Layout, pack
from rinalmo.model.rinalmo import ModelSpec, create

SEQUENCES = [
    "GGUC<mask>CUCUGG",
    "A",
    "UAGCUUAUCAGACUGAUGUUGA",
    "<mask><mask>",
    "ACGUNRYKMSWBDHV",
    "UAGCUUAUCAGACUGAUGUUGC",
]


def encoded(model, sequences):
    return [torch.from_numpy(model.alphabet.encode(s)) for s in sequences]


@torch.inference_mode()
def states(model, sequences):
    ids, layout = pack(encoded(model, sequences))
    return layout.split(model.encoder(ids, layout).last_hidden_state)


def test_alone_packed_and_in_any_order(nano):
    alone = [states(nano, [s])[0] for s in SEQUENCES]
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 5, 2, 5, 1, 1]):
        for i, found in zip(order, states(nano, [SEQUENCES[i] for i in order]), strict=True):
            torch.testing.assert_close(found, alone[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_padded(nano, side, golden):
    import rinalmo

    name = rinalmo.resolve("nano")
    model = rinalmo.RiNALMoForMaskedLM.from_pretrained(name)
    tokenizer = rinalmo.RnaTokenizer.from_pretrained(name, padding_side=side)
    batch = tokenizer(SEQUENCES, padding=True, return_tensors="pt")
    out = model(**batch, output_hidden_states=True)
    for row, sequence in enumerate(SEQUENCES):
        expected = states(nano, [sequence])[0]
        real = batch["attention_mask"][row].bool()
        torch.testing.assert_close(out.hidden_states[-1][row, real], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(out.logits[row, real], nano.lm_head(expected), atol=1e-4, rtol=0)
        assert not out.hidden_states[-1][row, ~real].any()


def test_token_dropout_is_per_sequence(nano):
    ids, layout = pack(encoded(nano, ["ACGU", "A<mask>GU"]))
    embedded = next(nano.encoder.states(ids, layout))
    plain = nano.encoder.embedding.weight[ids]
    torch.testing.assert_close(embedded[:6], plain[:6] * 0.88)
    scale = 0.88 / (1 - 1 / 6)
    torch.testing.assert_close(embedded[7], plain[7] * scale)
    assert not embedded[8].any()  # the mask


def test_all_masks_without_specials_stay_finite(nano):
    ids = torch.full((1022,), nano.alphabet.mask_id)
    for model in (nano, create(nano.spec).to(torch.bfloat16)):
        assert torch.isfinite(model.encoder(ids, Layout((1022,))).last_hidden_state).all()


@pytest.mark.parametrize("lengths", [(5,), (3, 3, 3), (4, 1, 4, 4, 2), (7, 0, 7)])
def test_backends_agree(lengths):
    torch.manual_seed(0)
    layout = Layout(lengths)
    q, k, v = torch.randn(3, layout.total, 2, 8)
    expected, weights = attend_with_weights(q, k, v, layout)
    torch.testing.assert_close(attend(q, k, v, layout), expected)
    torch.testing.assert_close(attend(q, k, v, layout, backend="eager"), expected)
    torch.testing.assert_close(attend(q, k, v, layout, backend="nested"), expected)
    for one, length in zip(weights, lengths, strict=True):
        assert one.shape == (2, length, length)
        torch.testing.assert_close(one.sum(-1), torch.ones(2, length))


@pytest.mark.parametrize("lengths", [(5,), (4, 1, 4, 4, 2), (7, 0, 7), (0, 3)])
def test_gradients_of_backends_agree(lengths):
    torch.manual_seed(0)
    layout = Layout(lengths)
    qkv = torch.randn(3, layout.total, 2, 8)
    gradients = {}
    for backend in ("eager", "sdpa", "nested"):
        leaf = qkv.clone().requires_grad_()
        attend(*leaf, layout, backend=backend).square().sum().backward()
        gradients[backend] = leaf.grad
    torch.testing.assert_close(gradients["sdpa"], gradients["eager"])
    torch.testing.assert_close(gradients["nested"], gradients["eager"])


def test_dropout_on_nested_tensors_keeps_the_mean():
    torch.manual_seed(0)
    layout = Layout((40, 60))
    q, k, v = torch.randn(3, layout.total, 2, 8)
    whole = attend(q, k, v, layout, backend="nested")
    dropped = torch.stack([attend(q, k, v, layout, dropout=0.3, backend="nested") for _ in range(200)])
    assert (dropped[0] - whole).abs().max() > 0.05
    torch.testing.assert_close(dropped.mean(dim=0), whole, atol=0.15, rtol=0)


def test_only_sequences_with_tokens_are_nested():
    assert attend(*torch.zeros(3, 0, 2, 8), Layout((0, 0)), backend="nested").shape == (0, 2, 8)


def test_what_may_serve_on_cuda():
    assert candidates(torch.float32, 64, dropout=False) == ["nested"]
    assert candidates(torch.float64, 64, dropout=False) == []
    assert candidates(torch.bfloat16, 4, dropout=False) == []  # kernels take heads of 8, 16, … dimensions
    half = candidates(torch.bfloat16, 64, dropout=False)
    has_varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None  # from torch 2.10 on
    assert half[-1 - has_varlen :] == ["varlen"] * has_varlen + ["nested"]
    assert candidates(torch.float16, 16, dropout=True) == [name for name in half if name != "varlen"]


def test_unknown_backend():
    q = torch.randn(3, 2, 8)
    # The type checker of the test run speaks before the function's own error can.
    with pytest.raises((InputError, jaxtyping.TypeCheckError), match="xformers"):
        attend(q, q, q, Layout((3,)), backend="xformers")


def test_cpu_uses_sdpa():
    assert best_backend(torch.device("cpu"), torch.bfloat16, 2) == "sdpa"


def test_layout():
    layout = Layout((2, 2, 0, 3))
    assert layout.total == 7
    assert layout.max_seqlen == 3
    assert [(r.start, r.count, r.length) for r in layout.groups] == [(0, 2, 2), (4, 1, 3)]
    assert layout.indices.tolist() == [0, 1, 0, 1, 0, 1, 2]
    assert layout.sequence_ids.tolist() == [0, 0, 1, 1, 3, 3, 3]
    assert layout.cu_seqlens.tolist() == [0, 2, 4, 4, 7]
    assert layout.nonempty_offsets.tolist() == [0, 2, 4, 7]
    assert layout.valid_lengths == (2, 2, 0, 3)
    assert not layout.has_padding
    padded = Layout((3, 3), valid_lengths=(1, 2))
    assert padded.has_padding
    assert [(g.count, g.length, g.valid_length) for g in padded.groups] == [(1, 3, 1), (1, 3, 2)]
    assert layout.select(torch.tensor([1, 0, 1, 1, 0, 0, 1], dtype=torch.bool)).lengths == (1, 2, 0, 1)


@pytest.mark.parametrize(
    ("name", "total", "trunk"),
    [
        ("nano", 7_508_824, 7_398_402),
        ("micro", 33_491_074, 33_248_652),
        ("mega", 148_056_972, 147_631_350),
        ("giga", 650_901_793, 649_231_371),
    ],
)
def test_published_parameter_counts(name, total, trunk):
    """With the official vocabulary of 22 tokens; the total includes the masked-LM head."""
    from rinalmo.model.rinalmo import RiNALMo
    from rinalmo.rna.alphabet import OFFICIAL_TOKENS, Alphabet

    spec = ModelSpec(ModelConfig.preset(name, vocab_size=22), Alphabet(OFFICIAL_TOKENS), {"lm_head": {}})
    with torch.device("meta"):
        model = RiNALMo(spec)
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.encoder.parameters()) == trunk == spec.config.encoder_parameters


@pytest.mark.parametrize("name", PRESETS)
def test_ffn_width_is_truncated(name):
    hidden = PRESETS[name]["hidden_size"]
    assert ModelConfig.preset(name).ffn_size == int(2 / 3 * 4 * hidden)


def test_giga_row_of_the_model_card():
    from rinalmo.weights.checkpoint import info

    row = info("giga")[0]
    assert (row.num_layers, row.hidden_size, row.num_heads, row.intermediate_size) == (33, 1280, 20, 5120)
    assert row.parameters == 650_878_731
    assert f"{row.flops / 1e9:.2f} {row.macs / 1e9:.2f} {row.max_tokens}" == "168.92 84.43 1022"


def test_same_seed_same_weights():
    spec = ModelSpec(ModelConfig(hidden_size=40, num_hidden_layers=1, num_attention_heads=2), heads={"lm_head": {}})
    before = torch.random.get_rng_state()
    first, second, other = create(spec, 1), create(spec, 1), create(spec, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.encoder.embedding.weight, other.encoder.embedding.weight)


def test_gradient_checkpointing_gives_the_same_gradients():
    spec = ModelSpec(ModelConfig(hidden_size=40, num_hidden_layers=2, num_attention_heads=2, hidden_dropout=0.0))
    grads = []
    for checkpointing in (False, True):
        model = create(spec).train()
        for block in model.encoder.blocks:
            block.attention.dropout = 0.0
        model.encoder.gradient_checkpointing = checkpointing
        ids, layout = pack([[1, 6, 7, 8, 2], [1, 9, 2]])
        model.encoder(ids, layout).last_hidden_state.square().sum().backward()
        grads.append(model.encoder.embedding.weight.grad)
    torch.testing.assert_close(*grads)


def test_rotary_tables_survive_bfloat16():
    """Angles come from positions in fp32, so far positions stay apart in bf16 too."""
    from rinalmo.model.kernels import rotate, rotation

    rope = rotation(torch.tensor([1000, 1001]), 32)
    x = torch.randn(1, 2, 32).expand(2, 2, 32)
    exact = rotate(x, rope)
    rough = rotate(x.to(torch.bfloat16), rope).float()
    assert (exact[0] - exact[1]).abs().max() > 0.1
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.02)
