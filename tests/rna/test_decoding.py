"""Decoding in other processes gives what it gives in this one, in the same order."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.rna.constraints import Constraint
from rinalmo.rna.decoding import Decoder, decode, other_processes, pairs_above
from rinalmo.rna.thermodynamics import ensemble, need_vienna

OPTIONS = {"method": "nested", "threshold": 0.1, "canonical": True, "min_distance": 4}


def rnas(count=12):
    draw = np.random.default_rng(0)
    for number in range(count):
        length = int(draw.integers(1, 60)) if number % 5 else 200
        sequence = "".join(draw.choice(list("ACGU"), length))
        half = np.triu(draw.random((length, length), dtype=np.float32) ** 4, 1)
        yield sequence, half + half.T, None


def decodings(items, options):
    """As `fold_records` asks for them."""
    for sequence, probabilities, constraint in items:
        pairs = pairs_above(probabilities, 0.0 if constraint else options["threshold"])
        yield probabilities, partial(decode, pairs, sequence, constraint=constraint, **options)


@pytest.fixture(scope="module")
def beside():
    with Decoder(2) as decoder:
        yield decoder


@pytest.mark.parametrize("method", ["nested", "greedy"])
def test_other_processes_decode_the_same(beside, method):
    options = {**OPTIONS, "method": method}
    found = list(beside.map(decodings(rnas(), options)))
    assert [pairs for _, pairs in found] == [decode(p, sequence, **options) for sequence, p, _ in rnas()]
    assert any(pairs for _, pairs in found)
    for (probabilities, _), (_, given, _) in zip(found, rnas(), strict=True):
        np.testing.assert_array_equal(probabilities, given)


def test_thermodynamics_too(beside):
    try:
        need_vienna()
    except MissingExtraError:
        pytest.skip("ViennaRNA is not installed")
    given = [(sequence, partial(ensemble, sequence)) for sequence, _, _ in rnas(4)]
    for sequence, there in beside.map([*given, ("windows", None)]):
        if there is None:
            assert sequence == "windows"
        else:
            np.testing.assert_array_equal(there.matrix(), ensemble(sequence).matrix())


@pytest.mark.parametrize("method", ["nested", "greedy"])
def test_constraints_too(beside, method):
    options = {**OPTIONS, "method": method}
    given = [
        (sequence, p, Constraint("." * 9 + "|" + "." * (len(sequence) - 10)))
        for sequence, p, _ in rnas(6)
        if len(sequence) > 20
    ]
    found = [pairs for _, pairs in beside.map(decodings(given, options))]
    assert found == [decode(p, sequence, constraint=constraint, **options) for sequence, p, constraint in given]
    assert all(any(9 in pair for pair in pairs) for pairs in found)


def test_only_a_few_are_read_ahead(beside):
    read = 0

    def counted():
        nonlocal read
        for rna in rnas(40):
            read += 1
            yield rna

    decoded = beside.map(decodings(counted(), OPTIONS))
    next(decoded)
    assert read <= 9
    decoded.close()


def test_processes_that_die_are_replaced_by_this_one():
    with Decoder(1) as decoder:
        found = decoder.map(decodings(rnas(), OPTIONS))
        first = next(found)
        for process in decoder._started:
            process.end()
        with pytest.warns(UserWarning, match="decoding continues in this process"):
            rest = list(found)
    assert [pairs for _, pairs in (first, *rest)] == [decode(p, sequence, **OPTIONS) for sequence, p, _ in rnas()]


def test_a_little_work_starts_no_process():
    expected = [decode(p, sequence, **OPTIONS) for sequence, p, _ in rnas(4)]
    with Decoder(2, patience=60) as decoder:
        assert [pairs for _, pairs in decoder.map(decodings(rnas(4), OPTIONS))] == expected
        assert decoder._started == []
    with Decoder(2, patience=1e-9) as decoder:
        assert [pairs for _, pairs in decoder.map(decodings(rnas(4), OPTIONS))] == expected
        assert decoder._started


def test_an_error_is_raised_here(beside):
    with pytest.raises(InputError, match="nonsense"):
        list(beside.map(decodings(rnas(), {**OPTIONS, "method": "nonsense"})))
    assert next(beside.map(decodings(rnas(), OPTIONS)))[1] == decode(*reversed(next(rnas())[:2]), **OPTIONS)


def test_a_script_without_a_guard(tmp_path):
    """Other ways of starting processes would run the script once more in each of them."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == ["once", "[(0,", "9)]"]


_SCRIPT = """
import numpy as np
from functools import partial
from rinalmo.rna.decoding import Decoder, decode
print("once")
square = np.zeros((10, 10), np.float32)
square[0, 9] = square[9, 0] = 0.9
with Decoder(2) as decoder:
    for _, pairs in decoder.map([(1, partial(decode, square, "GAAAAAAAAC", "nested", threshold=0.5))]):
        print(pairs)
"""


def test_a_cpu_decodes_in_this_process():
    assert Decoder().processes == 0
    assert 1 <= other_processes() <= 16


def test_processes_beside_do_not_import_torch():
    code = "import sys, rinalmo.rna.decoding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0
