"""Sphinx configuration of the documentation; every warning is an error (CONTRIBUTING.md)."""

from __future__ import annotations

import re
from typing import Any

from numpydoc.docscrape_sphinx import SphinxDocString

import levsketch

project = "levsketch"
author = "The levsketch developers"
project_copyright = "2026, The levsketch developers"
version = release = levsketch.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
# the fragments named here are included by the theory pages; examples/ is what the gallery is
# made of
exclude_patterns = [
    "_build",
    "examples",
    "calibration.rst",
    "lp_measured.rst",
    "attention_measured.rst",
]
templates_path = ["_templates"]
root_doc = "index"
default_role = "py:obj"
highlight_language = "python"

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

# examples in docstrings and pages run with `sphinx-build -b doctest`; one namespace a page
doctest_test_doctest_blocks = "default"

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "doc_module": ("levsketch",),
    "backreferences_dir": "generated/backreferences",
    "write_computation_times": False,
}

html_theme = "pydata_sphinx_theme"
html_title = f"levsketch {release}"
html_static_path = ["_static"]
html_css_files = ["levsketch.css"]
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {name: [] for name in ("index", "install", "tutorial", "theory", "theory_lp")}
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}


_process_param = SphinxDocString._process_param


def attribute_of_class(self: Any, param: str, desc: list[str], fake_autosummary: bool) -> Any:
    """Let what a class says of an attribute win over the first line of the property."""
    return _process_param(self, param, desc, fake_autosummary and not desc)


SphinxDocString._process_param = attribute_of_class

# what must not be touched: literals, roles and code
_LITERAL = re.compile(r"(``.*?``|:\w+:`[^`]*`|`[^`]*`)")


def plain_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape bars and trailing underscores: docstrings say |U| and n_samples_seen_ and mean that.

    Runs after numpydoc, in place; leaves code and literals alone.
    """
    in_code = False
    for i, line in enumerate(lines):
        in_code = line.strip() != "" and (in_code or line.lstrip().startswith(">>>"))
        if in_code or line.lstrip().startswith(".. "):
            continue
        parts = _LITERAL.split(line)
        parts[::2] = [re.sub(r"\||(?<=\w)_(?!\w)", r"\\\g<0>", text) for text in parts[::2]]
        lines[i] = "".join(parts)


def skip_inherited(
    app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out what scikit-learn and Exception define, and attributes that the class lists."""
    if what != "class":
        return None
    if isinstance(obj, property):
        return True
    module = getattr(getattr(obj, "__func__", obj), "__module__", None) or ""
    return None if module.startswith("levsketch") else True


def setup(app: Any) -> None:
    """Register the hooks above."""
    app.connect("autodoc-skip-member", skip_inherited)
    app.connect("autodoc-process-docstring", plain_text, priority=900)
