"""What was built, and what runs here."""

from __future__ import annotations

import importlib.metadata
import platform
import sys


def show_versions() -> None:
    """Print the versions of levsketch and its dependencies, the kernels in use and threads.

    Paste it into bug reports. ``LEVSKETCH_SIMD`` (baseline, avx2, avx512) forces a
    lower instruction set before import.
    """
    import levsketch._kernels.blocks as blocks
    from levsketch.backends.cpu import thread_count

    print(f"python: {sys.version.split()[0]} on {platform.platform()}")
    for name in ("levsketch", "numpy", "scipy", "scikit-learn", "array-api-compat", "torch"):
        try:
            print(f"{name}: {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: not installed")
    print(f"kernels: {blocks.tiles_name()}, {thread_count()} threads")
