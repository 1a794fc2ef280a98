"""Every example in a docstring gives what it shows."""

import doctest
import importlib
import pkgutil

import pytest

import levsketch

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(levsketch.__path__, "levsketch.")
    if "_kernels" not in module.name and not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:eps=.* promises at most:UserWarning")
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(
    "name",
    [
        "LeverageKeySelector",
        "StreamingAttentionSketch",
        "attention",
        "heavy_attention",
        "leverage_scores",
        "load",
        "sketched_attention",
        "universal_set",
    ],
)
def test_public_names_have_examples(name):
    found = doctest.DocTestFinder().find(getattr(levsketch, name), name, globs={})
    assert any(test.examples for test in found)
