"""Settings for a block of code: where host arrays are computed with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

from levsketch._checks import check_choice

from .device import check_device

_BACKENDS = ("auto", "cpu", "cuda")
_asked: ContextVar[str | None] = ContextVar("levsketch_backend", default=None)


def backend_asked() -> str:
    """Return the backend that is asked for here: "auto", "cpu" or "cuda"."""
    held = _asked.get()
    if held is not None:
        return held
    return check_choice("LEVSKETCH_BACKEND", os.environ.get("LEVSKETCH_BACKEND", "auto"), _BACKENDS)


@contextlib.contextmanager
def config_context(*, backend: str = "auto") -> Iterator[None]:
    """Return a context in which passes over rows run on the named backend.

    Parameters
    ----------
    backend : {"auto", "cpu", "cuda"}
        "auto": on the device on which an array is. "cuda": rows in host memory are moved to the
        current GPU, a run of blocks at a time, in `leverage_scores`, `universal_set` and
        `LeverageKeySelector`. "cpu": rows on a GPU are moved to the host likewise. Results
        are where the input is.

    Raises
    ------
    ValueError
        For any other name.
    ImportError
        For "cuda" without CuPy.
    RuntimeError
        For "cuda" without a GPU.

    Notes
    -----
    Holds for this thread, or task, alone. The environment variable LEVSKETCH_BACKEND says what
    holds outside of any context.

    Examples
    --------
    >>> import levsketch as lv
    >>> with lv.config_context(backend="cpu"):
    ...     lv.leverage_scores([[1.0], [2.0]])
    array([0.2, 0.8])
    """
    if check_choice("backend", backend, _BACKENDS) == "cuda":
        check_device()
    token = _asked.set(backend)
    try:
        yield
    finally:
        _asked.reset(token)
