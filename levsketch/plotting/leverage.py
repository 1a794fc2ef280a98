"""LeverageDisplay: the leverage of every row, and which rows a threshold selects."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from levsketch._typing import ArrayLike, BoolArray, FloatArray, IntArray

# Up to this many rows every one is a dot; beyond, dots hide one another and a band is drawn.
MAX_DOTS = 5000
# Columns of the band: about one for each pixel of a wide picture.
_BINS = 800
# A logarithmic axis if a typical score is this far below eps (or below the largest score).
_LOG_RATIO = 50.0

_GREY, _BAND, _RED, _INK = "#7d8899", "#c3cad4", "#c8323c", "#22262e"


# Full names, as those of users are made before they meet: "ms" would clash with "markersize".
_DOT: dict[str, Any] = {
    "linestyle": "",
    "marker": ".",
    "markersize": 3.5,
    "markeredgewidth": 0,
    "color": _GREY,
    "alpha": 0.75,
    "zorder": 2,
}
_MARK: dict[str, Any] = {
    "linestyle": "",
    "marker": "o",
    "markersize": 5.5,
    "markeredgecolor": "white",
    "markeredgewidth": 0.6,
    "color": _RED,
    "zorder": 4,
}
_HOLLOW = {"markeredgecolor": _RED, "markerfacecolor": "white", "markeredgewidth": 1.2}


class LeverageDisplay:
    """Picture of a leverage profile: score against row number, threshold, selected rows.

    Make one with ``from_estimator`` or ``from_scores``, which draw at once; ``plot``
    draws again, with other settings or on other axes.

    Parameters
    ----------
    scores : (n,) array or None
        Leverage of every row; None if only those of the selected rows are known.
    eps : float or None
        Threshold, drawn as a line; None draws none.
    indices : (m,) int array
        Row numbers of the selected rows.
    selected_scores : (m,) array
        Their scores.
    n_rows : int
        Number of rows of the stream.
    bound : float, optional
        Largest number of rows that can reach eps, for the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes of the last drawing.
    figure_ : matplotlib Figure
        Figure of the last drawing.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("agg")
    >>> from levsketch import datasets, leverage_scores
    >>> from levsketch.plotting import LeverageDisplay
    >>> K = datasets.make_planted_attention(random_state=0).K
    >>> display = LeverageDisplay.from_scores(leverage_scores(K), eps=0.5)
    >>> display.ax_.get_xlabel()
    'row'
    """

    def __init__(
        self,
        *,
        scores: ArrayLike | None,
        eps: float | None,
        indices: ArrayLike,
        selected_scores: ArrayLike,
        n_rows: int,
        bound: float | None = None,
    ) -> None:
        self.scores = scores
        self.eps = eps
        self.indices = indices
        self.selected_scores = selected_scores
        self.n_rows = n_rows
        self.bound = bound

    @classmethod
    def from_estimator(
        cls, selector: Any, K: ArrayLike | None = None, *, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Return the picture of a fitted ``LeverageKeySelector``, drawn.

        Parameters
        ----------
        selector : LeverageKeySelector
            Fitted.
        K : array (n_samples_seen_, d), optional
            The rows that it has seen, in order, to draw the rows that were not
            selected, too: the selector forgets those.
        ax : matplotlib Axes, optional
        **kwargs
            Passed on to ``plot``.

        Returns
        -------
        LeverageDisplay

        Raises
        ------
        ValueError
            If ``K`` does not have ``n_samples_seen_`` rows.
        """
        n, scores = selector.n_samples_seen_, None
        if K is not None:
            scores = np.asarray(selector.score_samples(K), dtype=np.float64)
            if len(scores) != n:
                raise ValueError(
                    f"K has {len(scores)} rows, but the selector has seen {n}; "
                    "row numbers would not match."
                )
        # a budget of n_keys knows no threshold
        eps = None if selector.n_keys is not None else float(selector.eps)
        columns = selector.n_features_in_ + int(selector.intercept)
        display = cls(
            scores=scores,
            eps=eps,
            indices=np.asarray(selector.indices_),
            selected_scores=np.asarray(selector.scores_),
            n_rows=n,
            bound=None if eps is None else columns / eps,
        )
        return display.plot(ax=ax, **kwargs)

    @classmethod
    def from_scores(
        cls,
        scores: ArrayLike,
        eps: float,
        *,
        indices: ArrayLike | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Return the picture of leverage scores, drawn.

        Parameters
        ----------
        scores : array (n,)
            From ``leverage_scores``.
        eps : float
            Threshold.
        indices : array, optional
            Numbers (m,) of the selected rows, or a mask (n,); by default those with a
            score >= eps.
        ax : matplotlib Axes, optional
        **kwargs
            Passed on to ``plot``.

        Returns
        -------
        LeverageDisplay

        Raises
        ------
        ValueError
            If ``scores`` is not one-dimensional, or empty.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(f"scores must have shape (n,) with n >= 1, got {values.shape}.")
        chosen = np.asarray(values >= eps if indices is None else indices)
        if chosen.dtype == np.bool_:
            chosen = np.flatnonzero(chosen)
        display = cls(
            scores=values,
            eps=float(eps),
            indices=chosen,
            selected_scores=values[chosen],
            n_rows=len(values),
        )
        return display.plot(ax=ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        yscale: str = "auto",
        legend: bool = True,
        selected_kw: dict[str, Any] | None = None,
        other_kw: dict[str, Any] | None = None,
    ) -> Self:
        """Draw, and return self.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            By default those of a new pyplot figure.
        yscale : {"auto", "linear", "log"}, default="auto"
            "auto" is logarithmic if most scores would lie on the floor otherwise.
        legend : bool, default=True
        selected_kw, other_kw : dict, optional
            Properties of the dots of selected and of other rows, as for ``Axes.plot``.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if yscale not in ("auto", "linear", "log"):
            raise ValueError(f"yscale must be 'auto', 'linear' or 'log', got {yscale!r}.")
        if ax is None:
            ax = _new_axes()
        scale = self._scale() if yscale == "auto" else yscale
        floor = self._floor() if scale == "log" else 0.0
        ax.set_yscale(scale)
        self._draw_others(ax, floor, _full_names(other_kw))
        self._draw_selected(ax, floor, _full_names(selected_kw))
        if self.eps is not None:
            label = f"eps = {self.eps:g}"
            if self.bound is not None:
                label += f" (reached by at most {self.bound:,.0f})"
            ax.axhline(self.eps, color=_INK, lw=1.2, ls=(0, (5, 3)), zorder=2.5, label=label)
        self._dress(ax, floor, legend)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    # -- inside

    def _others(self) -> BoolArray:
        mask = np.ones(self.n_rows, np.bool_)
        mask[np.asarray(self.indices)] = False
        return mask

    def _scale(self) -> str:
        """Return "log" if a typical score could not be told from zero on a linear axis."""
        if self.scores is None:
            return "linear"
        top = self.eps if self.eps is not None else float(np.max(self.scores))
        typical = float(np.median(self.scores))
        return "log" if 0 < typical < top / _LOG_RATIO else "linear"

    def _floor(self) -> float:
        """Return where a logarithmic axis ends: below nearly all rows, above outliers and zeros."""
        known = np.asarray(self.selected_scores if self.scores is None else self.scores)
        positive = known[known > 0]
        low = float(np.quantile(positive, 0.001)) / 2 if len(positive) else 1e-3
        return min(low, (self.eps or 1.0) / 2)

    def _draw_others(self, ax: Any, floor: float, kwargs: dict[str, Any]) -> None:
        """Draw the rows that were not selected: dots, or a band if they are many."""
        mask = self._others()
        rows = np.flatnonzero(mask)
        if not len(rows):
            return
        if self.scores is None:
            if self.eps is not None:  # where they must be is all that is known
                label = f"{len(rows):,} other rows, all below eps"
                ax.axhspan(0.0, self.eps, color=_BAND, alpha=0.45, lw=0, zorder=1.5, label=label)
            return
        values = np.maximum(np.asarray(self.scores)[mask], floor)
        label = f"{len(rows):,} other rows"
        if len(rows) <= MAX_DOTS:
            ax.plot(rows, values, **{**_DOT, "label": label, **kwargs})
            return
        centre, low, middle, high = _band(rows, values, self.n_rows)
        ax.fill_between(
            centre, low, high, step="mid", color=_BAND, lw=0, zorder=1.5, label=f"{label} (range)"
        )
        style = {"color": _GREY, "linewidth": 1.0, "label": "their median"}
        ax.plot(centre, middle, **style)

    def _draw_selected(self, ax: Any, floor: float, kwargs: dict[str, Any]) -> None:
        """Draw the selected rows on stems, hollow where they were taken without reaching eps."""
        rows = np.asarray(self.indices)
        values = np.maximum(np.asarray(self.selected_scores), floor)
        if not len(rows):
            return
        # the guard of a score is far below what can be seen here
        reach = (
            np.ones(len(rows), np.bool_) if self.eps is None else values >= self.eps * (1 - 1e-6)
        )
        if self.eps is not None:
            stems = {"color": _RED, "lw": 0.8, "alpha": 0.45, "zorder": 3}
            ax.vlines(rows[reach], self.eps, values[reach], **stems)
        noun = "row" if reach.sum() == 1 else "rows"
        if reach.any():
            style = {**_MARK, "label": f"{reach.sum():,} selected {noun}", **kwargs}
            ax.plot(rows[reach], values[reach], **style)
        if not reach.all():
            style = {
                **_MARK,
                **_HOLLOW,
                "label": f"{(~reach).sum():,} selected below eps",
                **kwargs,
            }
            ax.plot(rows[~reach], values[~reach], **style)

    def _dress(self, ax: Any, floor: float, legend: bool) -> None:
        """Set labels, limits and legend."""
        ax.set_xlabel("row")
        ax.set_ylabel("leverage: largest share of attention")
        pad = max(0.5, 0.01 * self.n_rows)
        ax.set_xlim(-pad, self.n_rows - 1 + pad)
        known = [
            np.max(a, initial=0.0) for a in (self.selected_scores, self.scores) if a is not None
        ]
        top = max(float(np.max(known)), self.eps or 0.0, floor)
        if floor > 0:
            ax.set_ylim(floor, 1.5 * top)
        else:
            ax.set_ylim(-0.012 * top, 1.06 * top if top > 0 else 1.0)
        if self.n_rows >= 10_000:
            ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        ax.grid(axis="y", color="#e6e9ee", lw=0.7, zorder=0)
        ax.set_axisbelow(True)
        if legend:
            # above the axes: inside, it would hide some row, wherever it stood
            ax.legend(
                loc="lower left",
                bbox_to_anchor=(0.0, 1.0),
                borderaxespad=0.3,
                ncols=3,
                frameon=False,
                fontsize=9,
                handletextpad=0.6,
                columnspacing=1.6,
            )


def _new_axes() -> Any:
    """Return the axes of a new figure; matplotlib is imported only now."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "LeverageDisplay needs matplotlib, which is not installed: pip install 'levsketch[cli]'"
        ) from error
    return plt.subplots(figsize=(8.0, 4.0), layout="constrained")[1]


def _full_names(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Return properties of a line with their abbreviations written out."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    names: dict[str, Any] = normalize_kwargs(kwargs or {}, Line2D)
    return names


def _band(
    rows: IntArray, values: FloatArray, n: int
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return centre, smallest, median and largest value of rows in bins of equal width."""
    edges = np.searchsorted(rows, np.linspace(0, n, _BINS + 1))
    starts = np.unique(edges[:-1][np.diff(edges) > 0])
    stops = np.append(starts[1:], len(rows))
    parts = [values[a:b] for a, b in zip(starts, stops, strict=True)]
    centre = [rows[a:b].mean() for a, b in zip(starts, stops, strict=True)]
    low, middle, high = (np.array([f(p) for p in parts]) for f in (np.min, np.median, np.max))
    return np.array(centre), low, middle, high
