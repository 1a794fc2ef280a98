"""Benchmarks: scripts that print what the documentation quotes, and the asv suite (bench_*.py).

asv imports this folder as a package, `python benchmarks/cpu_table.py` does not; with the folder
on the path both find the modules beside a script under the same name.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
