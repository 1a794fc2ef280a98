"""The demo's picture: the leverage of every digit, and the digits that were selected."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from levsketch import LeverageKeySelector
from levsketch._typing import FloatArray, IntArray

from .exits import CANNOT_CREATE, UNAVAILABLE, CommandError
from .output import check_output, write_output

# Written into the file, so that the demo replaces its own pictures and no others.
_MARK = "levsketch demo"
_COLUMNS, _MAX_IMAGES = 8, 24


def require_matplotlib() -> None:
    """Refuse (code 69) to go on without matplotlib, and keep it from chatting about its cache."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it complains while imported
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise CommandError(
            UNAVAILABLE,
            "the demo needs matplotlib, which is not installed: pip install 'levsketch[cli]'",
        ) from None


def write_picture(
    path: str, selector: LeverageKeySelector, K: FloatArray, labels: IntArray
) -> None:
    """Draw and write the picture (code 73 if it cannot be written, or is somebody else's)."""
    check_output(path, overwrite=_is_ours(path))
    write_output(path, picture_bytes(selector, K, labels))


def picture_bytes(selector: LeverageKeySelector, K: FloatArray, labels: IntArray) -> bytes:
    """Return the PNG: the leverage profile above, the selected digits, best first, below."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from levsketch.plotting import LeverageDisplay

    best = np.argsort(-selector.scores_, kind="stable")[:_MAX_IMAGES]
    lines = max(1, -(-len(best) // _COLUMNS))
    low = 0.45 + 1.55 * lines
    layout = ConstrainedLayoutEngine(rect=(0.008, 0.008, 0.984, 0.984))
    figure = Figure(figsize=(9.6, 4.6 + low), dpi=110, layout=layout)
    parts: Any = figure.subfigures(2, 1, height_ratios=(4.6, low))
    above, below = parts
    title = f"Which of {len(K):,} digits can get {100 * selector.eps:g}% of some query's attention?"
    above.suptitle(title, fontsize=14, fontweight="bold", x=0.012, ha="left")
    LeverageDisplay.from_estimator(selector, K, ax=above.subplots())
    these = f"These {len(best)}" if len(best) > 1 else "This one"
    if len(best) < len(selector.scores_):
        these = f"{len(selector.scores_):,} of them; the first {len(best)}"
    below.suptitle(f"{these}, by leverage", fontsize=11, x=0.012, ha="left")
    grid = below.subplots(lines, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, best, strict=False):
        row = int(selector.indices_[i])
        _draw_digit(axes, K[row], f"row {row}, “{labels[row]}”", f"{selector.scores_[i]:.3f}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": _MARK})
    return buffer.getvalue()


def _draw_digit(axes: Any, pixels: FloatArray, name: str, score: str) -> None:
    axes.imshow(pixels.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_color("#c3cad4")
    axes.set_title(name, fontsize=9, pad=3)
    axes.set_xlabel(score, fontsize=9, color="#c8323c", labelpad=2)


def _is_ours(path: str) -> bool:
    """Tell whether a file is an earlier picture of the demo, which may be replaced."""
    target = Path(path)
    if not target.exists():
        return False
    try:
        with open(target, "rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise CommandError(CANNOT_CREATE, f"{path}: {error.strerror or error}") from error
    if not (start.startswith(b"\x89PNG") and _MARK.encode() in start):
        raise CommandError(
            CANNOT_CREATE, f"{path}: exists and is no picture of the demo; choose another with -o"
        )
    return True
