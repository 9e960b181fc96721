"""Examples in the docstrings of public names: every one runs, and every function has one."""

import doctest
import inspect

import pytest

import rinalmo

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
NAMES = [name for name in rinalmo.__all__ if name != "__version__"]


def examples(thing):
    return [case for case in doctest.DocTestFinder(exclude_empty=True, recurse=False).find(thing) if case.examples]


@pytest.mark.parametrize("name", [name for name in NAMES if inspect.isfunction(getattr(rinalmo, name))])
def test_every_public_function_says_how_it_is_called(name):
    function = getattr(rinalmo, name)
    text = inspect.getdoc(function)
    assert examples(function)
    parameters = [
        parameter for parameter in inspect.signature(function).parameters if parameter not in ("args", "kwargs")
    ]
    assert not parameters or "Args:" in text
    assert "Returns:" in text or "Yields:" in text or inspect.signature(function).return_annotation in (None, "None")


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = getattr(rinalmo, name)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    cases = examples(thing)
    if inspect.isclass(thing):
        cases += [case for method in vars(thing).values() if inspect.isfunction(method) for case in examples(method)]
    for case in cases:
        case.globs = {"rinalmo": rinalmo}
        runner.run(case)
    assert runner.failures == 0
