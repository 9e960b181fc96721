"""Heads and losses: the same numbers as the straightforward form, in a fraction of its memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef

from rinalmo.errors import InputError
from rinalmo.model import heads
from rinalmo.model.heads import (
    POOLINGS,
    ContactHead,
    HeadConfig,
    MaskedLMHead,
    StructureHead,
    infer_problem_type,
    label_loss,
    structure_loss,
)
from rinalmo.model.packing import Layout


@torch.no_grad()
def test_split_projection_equals_the_concatenated_one():
    torch.manual_seed(0)
    head, x = StructureHead(12, channels=4), torch.randn(7, 12)
    left, right = x[:, None].expand(7, 7, 12), x[None].expand(7, 7, 12)
    pairs = head.projection(torch.cat((left, right), dim=-1)).permute(2, 0, 1)[None]
    for block in head.blocks:
        pairs = block(pairs)
    upper = head.prediction(pairs)[0, 0].triu(1)
    torch.testing.assert_close(head(x)[..., 0], upper + upper.T)


@pytest.mark.parametrize("num_blocks", [0, 1, 2, 3])
@pytest.mark.parametrize(("length", "block"), [(1, 1), (2, 1), (3, 10**6), (23, 1), (23, 4 * 23 * 5), (40, 4 * 40 * 8)])
def test_structure_by_rows_equals_the_plain_network(num_blocks, length, block, monkeypatch):
    """Inference works through the map in blocks of rows: of one row, of several with a shorter last one, of all."""
    monkeypatch.setattr(heads, "BLOCK", block)
    torch.manual_seed(0)
    head, x = StructureHead(12, channels=4, num_blocks=num_blocks, num_labels=2), 2 + torch.randn(length, 12)
    expected = head(x)
    assert expected.requires_grad
    for _ in range(2):  # the second time shows that nothing was overwritten
        with torch.inference_mode():
            torch.testing.assert_close(head(x), expected.detach(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_structure_head_in_bfloat16(monkeypatch):
    monkeypatch.setattr(heads, "BLOCK", 8 * 30 * 4)
    torch.manual_seed(0)
    head, x = StructureHead(12, channels=8), torch.randn(30, 12)
    expected = head(x)
    found = head.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_structure_head_holds_one_and_a_half_maps(monkeypatch):
    """The plain network holds four, and more while gradients are recorded."""
    length, channels = 300, 16
    head, x = StructureHead(12, channels=channels), torch.randn(length, 12)
    sizes: dict[StorageWeakRef, int] = {}  # of what is alive
    most = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal most, sizes
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                sizes[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            sizes = {storage: size for storage, size in sizes.items() if not storage.expired()}
            most = max(most, sum(sizes.values()))
            return out

    monkeypatch.setattr(heads, "BLOCK", 4 * channels * length)
    with torch.inference_mode(), Watch():
        head(x)
    assert 1.5 * 4 * channels * length**2 < most < 1.7 * 4 * channels * length**2


@pytest.mark.parametrize("length", [1, 2])
def test_structure_of_the_shortest(length):
    for training in (False, True):
        logits = StructureHead(12, channels=4).train(training)(torch.randn(length, 12))
        assert logits.shape == (length, length, 1)
        assert torch.isfinite(logits).all()


@torch.no_grad()
@pytest.mark.parametrize("transform", [None, "linear", "nonlinear"])
def test_contact_head_equals_the_pairwise_product(transform):
    torch.manual_seed(0)
    head, x = ContactHead(6, HeadConfig(num_labels=2, transform=transform)).eval(), torch.randn(5, 6)
    product = x[:, None] * x[None]
    expected = head.decoder(head.transform(product) if transform else product)
    torch.testing.assert_close(head(x), expected)


def test_contact_head_builds_no_pairwise_hidden_states():
    """1000 nucleotides at giga's width would take 5 GB as a product."""
    head, x = ContactHead(1280, HeadConfig()), torch.randn(1000, 1280)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with torch.no_grad(), Watch():
        head(x)
    assert largest <= 1281 * 1280  # unit vectors and zero, for the decoder


def test_lm_head_computes_in_fp32(nano):
    head = MaskedLMHead(nano.config)
    head.load_state_dict(nano.lm_head.state_dict())
    x = torch.randn(3, nano.config.hidden_size).to(torch.bfloat16)
    expected = head(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(x), expected)
    assert head.to(torch.bfloat16)(x).dtype == torch.float32


def test_unknown_head_options():
    for options in ({"transform": "cubic"}, {"act": "softplus"}, {"transform_act": "x"}):
        with pytest.raises(InputError, match="unknown"):
            HeadConfig(**options)


def test_problem_type_is_inferred_without_the_ignored():
    assert infer_problem_type(torch.tensor([0.5]), 1) == "regression"
    assert infer_problem_type(torch.tensor([1, -100]), 1) == "binary"
    assert infer_problem_type(torch.tensor([[0, 1, -100]]), 3) == "multilabel"
    assert infer_problem_type(torch.tensor([[0, 0, 0]]), 3) == "multilabel"
    assert infer_problem_type(torch.tensor([0, 1, 2]), 3) == "multiclass"
    assert infer_problem_type(torch.tensor([0, 1]), 3) == "multiclass"


def test_ignored_entries_do_not_count():
    logits = torch.randn(3, 2)
    nan = torch.tensor([[1.0, float("nan")], [0.0, 2.0], [float("nan"), 1.0]])
    keep = ~nan.isnan()
    torch.testing.assert_close(label_loss(logits, nan, "regression"), F.mse_loss(logits[keep], nan[keep]))
    classes = torch.tensor([1, -100, 0])
    expected = F.cross_entropy(logits[[0, 2]], classes[[0, 2]])
    torch.testing.assert_close(label_loss(logits, classes, "multiclass"), expected)
    labels = torch.tensor([[1], [-100], [0]])
    expected = F.binary_cross_entropy_with_logits(logits[[0, 2], :1], labels[[0, 2]].float())
    torch.testing.assert_close(label_loss(logits[:, :1], labels, "binary"), expected)
    full = torch.tensor([[1, 0], [0, 0], [1, 1]])
    torch.testing.assert_close(label_loss(logits, full, "multilabel"), F.multilabel_soft_margin_loss(logits, full))


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_targets_beyond_zero_and_one(kind):
    with pytest.raises(InputError, match="must be 0 or 1"):
        label_loss(torch.zeros(2, 1), torch.tensor([[0], [7]]), kind)


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass", "multilabel"])
def test_nothing_left_gives_zero_and_a_gradient(kind):
    logits = torch.randn(2, 1 if kind == "binary" else 3, requires_grad=True)
    empty = float("nan") if kind == "regression" else -100
    labels = torch.full((2,) if kind == "multiclass" else tuple(logits.shape), empty)
    loss = label_loss(logits, labels, kind)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_structure_loss_regions():
    torch.manual_seed(0)
    logits, pairs = torch.randn(4, 4), torch.randint(2, (4, 4))
    losses = F.binary_cross_entropy_with_logits(logits, pairs.float(), reduction="none")
    torch.testing.assert_close(structure_loss(logits, pairs, "full"), losses.mean())
    upper = torch.ones(4, 4, dtype=torch.bool).triu(1)
    torch.testing.assert_close(structure_loss(logits, pairs), losses[upper].mean())


@pytest.mark.parametrize(
    ("kind", "labels"),
    [("multiclass", torch.zeros(3)), ("binary", torch.zeros(2, 2)), ("multilabel", torch.zeros(2))],
)
def test_mismatched_labels_name_both_shapes(kind, labels):
    with pytest.raises(InputError, match=r"labels of shape \(.*\) do not fit logits of shape \(2, 3\)"):
        label_loss(torch.zeros(2, 3), labels, kind)


def test_pooling():
    x, layout = torch.randn(9, 12), Layout((4, 2, 3))
    parts = x.split([4, 2, 3])
    torch.testing.assert_close(POOLINGS["cls"](x, layout), torch.stack([part[0] for part in parts]))
    torch.testing.assert_close(POOLINGS["mean"](x, layout), torch.stack([part.mean(0) for part in parts]))
    for pool in POOLINGS.values():
        with pytest.raises(InputError, match="sequence 2 of the batch has no token"):
            pool(x, Layout((4, 0, 5)))
