"""The fast encoder against the plain one: fp32 to rounding, bf16 and int8 to their own precision, in any company."""

import copy
import pickle
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import rinalmo
from rinalmo.engine import cpu_encoder
from rinalmo.engine.cpu_encoder import ChannelsFirst, FastEncoder, TokensFirst, make_plan
from rinalmo.engine.devices import is_native, packs_weights
from rinalmo.engine.engine import Engine
from rinalmo.errors import InputError
from rinalmo.model.config import ModelConfig
from rinalmo.model.packing import Layout, pack, pack_padded
from rinalmo.model.rinalmo import ModelSpec, create
from rinalmo.weights.adapters import LowRank, with_adapter

pytestmark = pytest.mark.skipif(not packs_weights("fp32"), reason="RINALMO_CPU=plain")

# Largest distance of a token's state from the plain fp32 one, both at unit norm.
# The mean distance in bf16 is 7e-3, that of torch.bfloat16 in the plain encoder as well.
TOLERANCE = {"fp32": 1e-5, "bf16": 4e-2, "int8": 6e-2}
BF16, INT8 = (
    pytest.param(name, marks=pytest.mark.skipif(not is_native(name), reason=f"this processor has no {name}"))
    for name in ("bf16", "int8")
)
PRECISIONS = ["fp32", BF16, INT8]
BF16_BY_NAME = pytest.param("bf16", 0.02, marks=pytest.mark.precision("bf16"))


@pytest.fixture(params=[ChannelsFirst, TokensFirst], autouse=True)
def attention(request, monkeypatch):
    """Both forms of attention, whichever this processor would take."""
    monkeypatch.setattr(cpu_encoder, "best_attention", request.param)


def batch(lengths, seed=0, masks=True):
    chooser = random.Random(seed)
    letters = (6, 7, 8, 9, 4) if masks else (6, 7, 8, 9)
    return [[1, *chooser.choices(letters, k=length), 2] for length in lengths]


def distance(a, b):
    return float((F.normalize(a, dim=-1) - F.normalize(b, dim=-1)).norm(dim=-1).max())


@torch.inference_mode()
def plain(model, sequences, layers):
    ids, layout = pack(sequences)
    out = model.encoder(ids, layout, output_hidden_states=True)
    return [out.hidden_states[layer] for layer in layers]


def fast(model, precision, sequences, layers):
    ids, layout = pack(sequences)
    return FastEncoder(model.encoder, precision)(ids, layout, layers)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lengths", [(1,), (30, 5, 5, 200, 1, 77), (500, 499, 3), (1500,)])
def test_states_of_every_layer(nano, precision, lengths):
    sequences, layers = batch(lengths), [0, 3, 6]
    for found, expected in zip(fast(nano, precision, sequences, layers), plain(nano, sequences, layers), strict=True):
        assert found.dtype == torch.float32
        assert distance(found, expected) < TOLERANCE[precision]


@pytest.mark.parametrize("name", ["nano", "micro"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_published_shapes(name, precision):
    config = ModelConfig.preset(name, num_hidden_layers=2)
    model = create(ModelSpec(config)).eval()
    sequences = batch((40, 100, 64))
    assert distance(fast(model, precision, sequences, [2])[0], plain(model, sequences, [2])[0]) < TOLERANCE[precision]


def test_official_numbers(golden):
    """The reference's own numbers through the fast encoder: heads of 4 dimensions, masks, IUPAC letters."""
    expected = np.load(golden / "official" / "official_tiny.npz")
    model = rinalmo.load(golden / "official" / "official_tiny_pretrained.pt")
    index = {token: i for i, token in enumerate(model.alphabet.tokens)}
    from rinalmo.rna.alphabet import OFFICIAL_TOKENS

    rows = [[index[OFFICIAL_TOKENS[i].replace("T", "U")] for i in row if i != 1] for row in expected["tokens_masked"]]
    found = fast(model, "fp32", rows, [model.config.num_hidden_layers])[0]
    real = expected["tokens_masked"] != 1
    np.testing.assert_allclose(found, expected["masked_representation"][real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("beta", [-1.5, 0.0, 0.3, 4.0])
def test_any_slope_of_the_swish(beta):
    model = create(ModelSpec(ModelConfig(hidden_size=40, num_hidden_layers=2, num_attention_heads=5))).eval()
    for block in model.encoder.blocks:
        block.ffn.beta.data.fill_(beta)
    sequences = batch((9, 20))
    torch.testing.assert_close(
        fast(model, "fp32", sequences, [2])[0], plain(model, sequences, [2])[0], atol=1e-4, rtol=1e-4
    )


def adapter_of(model, names, rank, seed):
    """Changes of these matrices in every block, about as large as those of training."""
    draw, changes = torch.Generator().manual_seed(seed), []
    for block in model.encoder.blocks:
        own = {}
        for name in names:
            out, into = block.get_submodule(name).weight.shape
            a, b = (torch.randn(shape, generator=draw) for shape in ((rank, into), (out, rank)))
            own[f"{name}.weight"] = LowRank(a / 20, b / 20, 2.0)
        changes.append(own)
    return changes


@pytest.mark.parametrize("precision", PRECISIONS)
def test_adapters_over_one_copy_of_the_weights(nano, precision):
    """Each gives the states of its merged model, in any order, and the base's stay as they are."""
    model, sequences, layers = copy.deepcopy(nano), batch((30, 5, 5, 200, 1, 77)), [0, 3, 6]
    for block in model.encoder.blocks:
        block.ffn.beta.data.fill_(0.7)
    matrices = ("attention.qkv", "attention.output", "ffn.gate_up", "ffn.down")
    adapters = [adapter_of(model, matrices, 4, 0), adapter_of(model, matrices[:1], 3, 1)]
    base, ids_layout = FastEncoder(model.encoder, precision), pack(sequences)
    before = base(*ids_layout, layers)
    found = [base.with_adapter(adapter)(*ids_layout, layers) for adapter in adapters]
    for adapter, states in zip(adapters, found, strict=True):
        merged = copy.deepcopy(model)
        for block, own in zip(merged.encoder.blocks, adapter, strict=True):
            for name, change in own.items():
                weight = block.get_parameter(name)
                weight.data = change.merged(weight)
        for ours, expected in zip(states, plain(merged, sequences, layers), strict=True):
            assert distance(ours, expected) < TOLERANCE[precision]
        beside = with_adapter(model.encoder, adapter)  # as on a GPU, or without packed weights
        states = beside(*ids_layout, output_hidden_states=True).hidden_states
        assert distance(states[6], plain(merged, sequences, [6])[0]) < 1e-5
        assert all(map(torch.equal, beside.state_dict().values(), model.encoder.state_dict().values()))
        assert distance(plain(model, sequences, [6])[0], plain(merged, sequences, [6])[0]) > 0.1
    again = [base.with_adapter(adapter)(*ids_layout, layers) for adapter in reversed(adapters)]
    for first, second in zip([before, *found], [base(*ids_layout, layers), *reversed(again)], strict=True):
        assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("precision", ["fp32", BF16])
def test_scores_too_large_without_subtracting_the_maximum(precision):
    """Attention without subtracting the maximum overflows here; the layer is computed the careful way."""
    model = create(ModelSpec(ModelConfig(hidden_size=40, num_hidden_layers=1, num_attention_heads=5))).eval()
    weight = model.encoder.blocks[0].attention.qkv.weight.data
    weight[:80] = torch.eye(40).repeat(2, 1) * 20
    sequences = batch((9, 20, 20, 3))
    found, expected = fast(model, precision, sequences, [1])[0], plain(model, sequences, [1])[0]
    assert torch.isfinite(found).all()
    assert distance(found, expected) < (1e-4 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("length", [60, 300])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_attends_to_padding(nano, precision, length):
    ids, layout = pack_padded(batch((20, 58, 41)), length, pad_id=0)
    with torch.inference_mode():
        expected = nano.encoder(ids, layout).last_hidden_state
    found = FastEncoder(nano.encoder, precision)(ids, layout, [6])[0]
    own = torch.cat([x[:valid] for x, valid in zip(layout.split(found), layout.valid_lengths, strict=True)])
    wanted = torch.cat([x[:valid] for x, valid in zip(layout.split(expected), layout.valid_lengths, strict=True)])
    assert distance(own, wanted) < TOLERANCE[precision]


def test_batches_have_few_shapes():
    """oneDNN keeps a kernel of 0.6 MB for each shape."""
    draw, groups, totals, tokens, padded = random.Random(0), set(), set(), 0, 0
    for _ in range(150):
        layout = Layout(tuple(draw.choices(range(20, 500), k=draw.randint(8, 24))))
        plan = make_plan(layout, cpu_encoder.best_attention(20, 16, torch.bfloat16))
        groups |= {(group.count, group.length) for group in plan.groups if group.length < 256}
        totals.add(plan.total)
        tokens, padded = tokens + layout.total, padded + plan.total
        assert sorted([*plan.index.tolist(), *plan.pad_positions.tolist()]) == list(range(plan.end))
    assert len(groups) <= 60
    assert len(totals) <= 90
    assert padded < 1.04 * tokens


@pytest.mark.parametrize("precision", ["fp32", BF16])
def test_states_do_not_depend_on_the_rest_of_the_batch(nano, precision):
    tolerance = {"fp32": 1e-5, "bf16": 2e-2}[precision]
    sequences = batch((30, 5, 5, 200, 1, 77, 78, 79))
    encoder = FastEncoder(nano.encoder, precision)
    alone = [encoder(*pack([s]), [6])[0] for s in sequences]
    for order in (range(8), (7, 0, 6, 1, 5, 2, 4, 3)):
        ids, layout = pack([sequences[i] for i in order])
        for i, found in zip(order, layout.split(encoder(ids, layout, [6])[0]), strict=True):
            assert distance(found, alone[i]) < tolerance


def test_precisions_of_the_engine(nano):
    assert Engine(nano).precision in ("bf16", "fp32")
    with pytest.raises(InputError, match="precision 'fp8' is unknown"):
        Engine(nano, "fp8")
    with pytest.raises(InputError, match="batch_tokens"):
        Engine(nano, batch_tokens=0)


@pytest.mark.skipif(is_native("int8"), reason="this processor has int8")
def test_int8_is_refused_where_it_is_slow(nano):
    with pytest.raises(
        InputError, match=r"precision 'int8' (needs an x86 processor with AVX-512 VNNI|exceeds the limit)"
    ):
        Engine(nano, "int8")


@pytest.mark.parametrize(("precision", "tolerance"), [BF16_BY_NAME, pytest.param("int8", 0.05, marks=INT8.marks)])
def test_candidates_for_a_mask_in_every_precision(nano, precision, tolerance):
    """bf16 is also computed where the processor has none, slowly."""
    text = "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU"
    exact = {c.token: c.score for c in rinalmo.fill_mask(text, Engine(nano, "fp32"))[0][0]}
    for candidate in rinalmo.fill_mask(text, Engine(nano, precision))[0][0]:
        assert candidate.score == pytest.approx(exact.get(candidate.token, 0.0), abs=tolerance)


def test_empty_batch(nano):
    ids, layout = pack([])
    assert FastEncoder(nano.encoder, "fp32")(ids, layout, [6])[0].shape == (0, 320)


def test_a_named_model_is_kept_once(nano):
    """Loaded by the engine, a model's matrices are packed as they are read, and not kept beside."""
    engine = Engine("nano", "fp32")
    blocks = engine.head_model.encoder.blocks
    assert all(parameter.is_meta == (parameter.dim() > 1) for parameter in blocks.parameters())
    given = Engine(nano, "fp32")
    assert engine.fingerprint == given.fingerprint
    assert np.array_equal(rinalmo.embed(["GGUCUCUCUGG"], engine), rinalmo.embed(["GGUCUCUCUGG"], given))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_file_does_not_stay_in_memory(nano, tmp_path, precision):
    """A view of one weight of a block would keep all pages of the file that were read."""
    file = rinalmo.save(nano, tmp_path / "model") / "model.safetensors"
    engine = Engine(file.parent, precision)
    assert engine.precision == precision
    mappings = Path("/proc/self/smaps").read_text().split(str(file))[1:]
    resident = sum(int(re.search(r"Rss: +(\d+) kB", mapping)[1]) for mapping in mappings)
    assert 1024 * resident < 0.1 * file.stat().st_size


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))])
@pytest.mark.parametrize("given", ["name", "model"])
def test_a_copy_computes_the_same(nano, given, copied):
    engine = Engine("nano" if given == "name" else nano, "fp32", batch_tokens=100)
    twin = copied(engine)
    assert (twin.precision, twin.batch_tokens) == ("fp32", 100)
    assert np.array_equal(rinalmo.embed(["GGUCUCUCUGG"], twin), rinalmo.embed(["GGUCUCUCUGG"], engine))


@pytest.mark.parametrize("plain", [False, True])
def test_autocast_around_changes_nothing(nano, plain, monkeypatch):
    if plain:
        monkeypatch.setenv("RINALMO_CPU", "plain")
    engine = Engine(nano, "fp32")

    def computed():
        ids, layout = pack([[1, 6, 7, 2]])
        return (
            rinalmo.embed("ACGU", engine),
            rinalmo.fill_mask("AC<mask>U", engine),
            rinalmo.score("ACGU", ["A1C"], engine),
            engine.hidden_states(ids, layout, [6])[0].numpy(),
        )

    expected = computed()
    with torch.autocast("cpu", torch.bfloat16):
        found = computed()
    assert np.array_equal(found[0], expected[0])
    assert found[1:3] == expected[1:3]
    assert np.array_equal(found[3], expected[3])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 3e-3), (torch.float64, 1e-5)], ids=str
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_models_of_other_types(nano, precision, dtype, tolerance):
    other = copy.deepcopy(nano).to(dtype)
    given = torch.tensor(rinalmo.embed(["GGUCUCUCUGG"], Engine(nano, "fp32")))
    found = torch.tensor(rinalmo.embed(["GGUCUCUCUGG"], Engine(other, precision)))
    assert distance(found, given) < max(tolerance, TOLERANCE[precision])


def test_heads_of_an_engine(nano):
    engine = Engine(nano)
    assert engine.head("lm_head") is nano.head("lm_head")
    with pytest.raises(rinalmo.RinalmoError, match="partners"):
        engine.head("partners")
