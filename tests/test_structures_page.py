"""The examples of docs/structures.md give what the page says."""

import doctest
from pathlib import Path


def test_examples():
    page = Path(__file__).parents[1] / "docs" / "structures.md"
    results = doctest.testfile(str(page), module_relative=False)
    assert results.attempted > 20
    assert results.failed == 0
