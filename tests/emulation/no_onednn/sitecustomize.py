"""A Python whose torch has no oneDNN operators, like every torch on a Mac.

    PYTHONPATH=$PWD/tests/emulation/no_onednn pytest tests/model tests/engine tests/inference

Python imports this module at its start, in subprocesses too; forks inherit what it did. torch is changed when it is
first imported, and not imported here, so that what must run without it still does.
"""

import importlib.abc
import importlib.util
import sys


class _WithoutOperators:
    """A namespace that can only be asked what is supported, which torch itself does."""

    def __init__(self, namespace):
        self.namespace = namespace

    def __getattr__(self, name):
        if name.startswith("_is_"):
            return getattr(self.namespace, name)
        raise AttributeError(f"'_OpNamespace' object has no attribute {name!r}")


def _remove_onednn(torch):
    torch.backends.mkldnn.set_flags(False)
    torch._C._has_mkldnn = False
    for name in ("mkldnn", "onednn"):
        torch.ops.__dict__[name] = _WithoutOperators(getattr(torch.ops, name))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds torch once, with a loader that removes oneDNN after loading."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            _remove_onednn(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
