# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings of the layers run, and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

from selfattn import layers

MODULES = [module.name for module in pkgutil.iter_modules(layers.__path__, "selfattn.layers.")]


def test_there_are_examples():
    modules = [importlib.import_module(name) for name in MODULES]
    assert sum(len(test.examples) for m in modules for test in doctest.DocTestFinder().find(m)) >= 10


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
