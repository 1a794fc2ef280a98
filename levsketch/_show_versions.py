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
    from levsketch.backends.device import gpu_names

    print(f"python: {sys.version.split()[0]} on {platform.platform()}")
    names = ("levsketch", "numpy", "scipy", "scikit-learn", "array-api-compat", "torch")
    for name in (*names, "cupy-cuda13x", "cupy-cuda12x"):
        try:
            print(f"{name}: {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if not name.startswith("cupy-"):
                print(f"{name}: not installed")
    print(f"gpu: {', '.join(gpu_names()) or 'none that CuPy can use'}")
    print(f"kernels: {blocks.tiles_name()}, {thread_count()} threads")
