"""Devices: which one is chosen, what is said of one that is not there, and what a full memory costs."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import rinalmo
from rinalmo.engine.devices import (
    choose_device,
    choose_precision,
    default_batch_tokens,
    native_precision,
    system_report,
)
from rinalmo.errors import InputError

SEQUENCES = ["GGGAAAUCCC", "ACGU" * 20, "GGGAAAUCCCA", "U" * 33, "GCGCUUCGGCGC"]
FOLDING = "nano-fold"

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
no_mps = pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")


@no_cuda
@no_mps
@pytest.mark.parametrize("given", [None, "auto", "cpu", torch.device("cpu")])
def test_auto_is_the_cpu_where_there_is_nothing_else(given):
    assert choose_device(given) == torch.device("cpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param("cuda", "device 'cuda': .*cpu or auto", marks=no_cuda),
        ("cuda:99", "device 'cuda:99'"),
        pytest.param("mps", "device 'mps': .*use cpu", marks=no_mps),
        ("tpu", "device 'tpu' is unknown; use auto, cpu, cuda, cuda:N or mps"),
        ("cuda:x", "device 'cuda:x' is unknown"),
        ("meta", "device 'meta' is unknown"),
    ],
)
def test_a_device_that_is_not_there_is_one_clear_error(given, message):
    with pytest.raises(InputError, match=message):
        choose_device(given)
    with pytest.raises(InputError, match=message):
        rinalmo.Engine("nano", device=given)


def test_precision_of_each_kind_of_device():
    cpu, mps = torch.device("cpu"), torch.device("mps")
    assert choose_precision("auto", cpu) == native_precision(cpu)
    assert native_precision(mps) == "fp32"
    assert choose_precision("fp16", mps) == "fp16"
    with pytest.raises(InputError, match="precision 'fp16' is for GPUs"):
        choose_precision("fp16", cpu)
    with pytest.raises(InputError, match="precision 'int8' is for CPUs"):
        choose_precision("int8", mps)
    with pytest.raises(InputError, match="precision 'fp8' is unknown"):
        choose_precision("fp8", cpu)


def test_batches_of_a_cpu_are_small():
    assert default_batch_tokens(torch.device("cpu")) == rinalmo.Engine("nano", device="cpu").batch_tokens == 4096


@pytest.mark.parametrize(
    "call",
    [
        lambda device: rinalmo.embed("GGGAAAUCCC", device=device),
        lambda device: rinalmo.fill_mask("GG<mask>AUCC", device=device),
        lambda device: rinalmo.score("GGGAAAUCCC", ["G1A"], device=device),
        lambda device: rinalmo.fold("GGGGAAAUCCCC", device=device),
        lambda device: rinalmo.predict("GGGGAAAUCCCC", FOLDING, device=device),
    ],
    ids=["embed", "fill_mask", "score", "fold", "predict"],
)
def test_every_function_takes_a_device(call):
    assert len(call("cpu")) == 1
    with pytest.raises(InputError, match="device 'cuda:99'"):
        call("cuda:99")


def test_an_engine_keeps_its_device():
    engine = rinalmo.Engine("nano", "fp32", device="cpu")
    assert rinalmo.embed("ACGU", engine, device="cpu").shape == (1, 320)
    with pytest.raises(InputError, match="device 'cuda:99'"):
        rinalmo.embed("ACGU", engine, device="cuda:99")


def full_above(tokens):
    """A device whose memory holds batches of so many tokens: what a GPU does, without one."""

    def compute(ids, layout):
        if layout.total > tokens:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {layout.total} tokens")
        return [int(part.sum()) for part in layout.split(ids)]

    return compute


def test_a_full_memory_halves_the_batches_and_says_so_once(nano, caplog):
    engine = rinalmo.Engine(nano, "fp32", batch_tokens=1000)
    chooser = np.random.default_rng(0)
    ids = [chooser.integers(6, 10, size) for size in chooser.integers(1, 60, 300)]
    totals = []

    def compute(ids, layout):
        totals.append(layout.total)
        return full_above(130)(ids, layout)

    results = list(engine.map(compute, ids))
    assert results == [int(each.sum()) for each in ids]
    assert totals[0] > 500
    assert max(totals[-5:]) <= 130
    assert engine.batch_tokens == 1000  # what was asked for: an interrupted run is recognised by it
    warnings = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert len(warnings) == 1
    assert "--batch-tokens" in warnings[0]


def test_a_sequence_that_never_fits_is_one_clear_error(nano):
    engine = rinalmo.Engine(nano, "fp32")
    with pytest.raises(InputError, match=r"a sequence of 200 tokens does not fit into the memory of cpu"):
        list(engine.map(full_above(130), [np.full(200, 6)]))


@pytest.mark.parametrize(
    "message", ["MPS backend out of memory (MPS allocated: …)", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling …"]
)
def test_other_words_for_a_full_memory(nano, message):
    def compute(ids, layout):
        if layout.total > 130:
            raise RuntimeError(message)
        return list(layout.lengths)

    assert list(rinalmo.Engine(nano, "fp32").map(compute, [np.full(20, 6)] * 50)) == [20] * 50


def test_other_errors_of_a_batch_are_not_taken_for_a_full_memory(nano):
    def compute(ids, layout):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(rinalmo.Engine(nano, "fp32").map(compute, [np.full(20, 6)]))


def test_threads_of_an_engine_are_its_own(nano):
    before = torch.get_num_threads()
    engine = rinalmo.Engine(nano, "fp32", threads=before + 1)
    seen = []

    def compute(ids, layout):
        seen.append(torch.get_num_threads())
        return [None for _ in layout.lengths]

    list(engine.map(compute, [np.full(20, 6)]))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_each_thread_of_an_engine_computes_a_batch(nano):
    """Three batches with one thread each, side by side; the caller's own threads keep their number."""
    before = torch.get_num_threads()
    engine, together = rinalmo.Engine(nano, "fp32", threads=3, batch_tokens=20), threading.Barrier(3, timeout=20)
    seen = []

    def compute(ids, layout):
        together.wait()  # breaks unless three batches are being computed
        seen.append(torch.get_num_threads())
        engine.hidden_states(ids, layout, [1])
        seen.append(torch.get_num_threads())
        return [None for _ in layout.lengths]

    assert list(engine.map(compute, [np.full(20, 6)] * 6)) == [None] * 6
    assert seen == [1] * 12
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before


def test_results_do_not_depend_on_the_number_of_threads(nano):
    sequences = [sequence * n for sequence in SEQUENCES for n in (1, 3, 7, 20)]
    one, two, five = (
        rinalmo.embed(sequences, rinalmo.Engine(nano, "fp32", threads=n, batch_tokens=200)) for n in (1, 2, 5)
    )
    np.testing.assert_allclose(two, one, atol=1e-5)
    np.testing.assert_allclose(five, one, atol=1e-5)


def test_the_model_of_an_engine_is_whole(nano, tmp_path):
    """Packed or not, it embeds, saves and makes other engines."""
    engine = rinalmo.Engine("nano", "fp32")
    expected = rinalmo.embed(SEQUENCES, nano)
    model = engine.model
    assert not any(parameter.is_meta for parameter in model.parameters())
    saved = rinalmo.save(model, tmp_path / "model")
    for given in (engine, model, saved, rinalmo.Engine(model, "fp32"), copy.deepcopy(engine)):
        np.testing.assert_allclose(rinalmo.embed(SEQUENCES, given), expected, atol=1e-5)
    np.testing.assert_allclose(rinalmo.embed(SEQUENCES, pickle.loads(pickle.dumps(engine))), expected, atol=1e-5)


def test_the_model_of_an_engine_whose_file_has_changed_is_refused(nano, tmp_path):
    folder = rinalmo.save(nano, tmp_path / "model")
    engine = rinalmo.Engine(folder, "fp32")
    other = copy.deepcopy(nano)
    other.encoder.final_norm.bias.data.add_(1)
    rinalmo.save(other, folder, overwrite=True)
    if any(p.is_meta for p in engine.head_model.parameters()):  # packed; elsewhere the weights are in memory
        with pytest.raises(InputError, match="has changed since it was loaded; create a new Engine"):
            _ = engine.model


def test_a_second_call_loads_nothing_and_a_changed_file_is_loaded(nano, tmp_path):
    from rinalmo.engine.engine import CACHED_ENGINES, as_engine

    rinalmo.clear_engine_cache()
    folder = rinalmo.save(nano, tmp_path / "model")
    first = as_engine(folder)
    assert as_engine(folder) is first
    assert as_engine(str(folder), "cpu") is first or torch.cuda.is_available() or torch.backends.mps.is_available()
    assert as_engine(folder, precision="fp32", batch_tokens=100) is as_engine(folder, batch_tokens=100) is not first
    before = rinalmo.embed("GGGAAAUCCC", folder)
    other = copy.deepcopy(nano)
    other.encoder.final_norm.bias.data.add_(1)
    rinalmo.save(other, folder, overwrite=True)
    assert as_engine(folder) is not first
    np.testing.assert_allclose(rinalmo.embed("GGGAAAUCCC", folder), before + 1, atol=1e-5)
    kept = as_engine(folder)
    for number in range(CACHED_ENGINES):
        as_engine(rinalmo.save(nano, tmp_path / f"other{number}"))
    assert as_engine(folder) is not kept
    latest = as_engine(folder)
    rinalmo.clear_engine_cache()
    assert as_engine(folder) is not latest


def test_a_model_in_memory_is_not_cached(nano):
    """Its weights may change without a trace."""
    from rinalmo.engine.engine import as_engine

    assert as_engine(nano) is not as_engine(nano)


def test_the_report_of_the_system_reports_what_is_wrong(monkeypatch):
    monkeypatch.setenv("RINALMO_CPU", "foo")
    report = system_report()
    assert ("rinalmo", rinalmo.__version__) in report
    assert any("RINALMO_CPU is 'foo'" in value for _, value in report)


def test_the_report_of_the_system_names_what_auto_takes():
    report = dict(system_report())
    assert report["rinalmo"] == rinalmo.__version__
    assert torch.__version__ in report["torch"]
    assert report["auto takes"].startswith(str(choose_device().type))
    assert native_precision(choose_device()) in report["auto takes"]
