"""Tests see the installed package, never this folder (``python -m pytest`` would put it first)."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]
