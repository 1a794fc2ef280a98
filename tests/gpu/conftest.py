"""Tests on a GPU: `pytest -m gpu`; skipped, with the reason, where there is none."""

import pytest

from levsketch.backends.device import check_device


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def cp():
    """Return CuPy, if it can compute here."""
    try:
        check_device()
    except (ImportError, RuntimeError) as error:
        pytest.skip(str(error))
    import cupy

    return cupy
