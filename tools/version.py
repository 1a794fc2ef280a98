#!/usr/bin/env python3
"""Print the version of the package: the one line of pyproject.toml that sets it."""

import pathlib
import re

text = (pathlib.Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
print(re.search(r'^version = "(.+)"$', text, re.MULTILINE).group(1))
