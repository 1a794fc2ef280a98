"""LeverageDisplay: what is drawn is what the scores say."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

import levsketch as lv
from levsketch.plotting import LeverageDisplay
from levsketch.plotting.leverage import MAX_DOTS


@pytest.fixture(name="K")
def keys_with_outliers():
    keys = np.random.default_rng(0).standard_normal((400, 5))
    keys[[50, 300]] *= [[20.0], [30.0]]
    return keys


@pytest.fixture
def ax():
    return Figure().subplots()


def drawn(display):
    """Return the points of every labelled line, by label."""
    return {line.get_label(): line.get_xydata() for line in display.ax_.lines}


def legend(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_from_scores_draws_every_row_once(K, ax):
    scores = lv.leverage_scores(K)
    display = LeverageDisplay.from_scores(scores, 0.2, ax=ax)
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    lines = drawn(display)
    reach = np.flatnonzero(scores >= 0.2)
    np.testing.assert_array_equal(lines["2 selected rows"], np.column_stack([reach, scores[reach]]))
    others = np.flatnonzero(scores < 0.2)
    np.testing.assert_array_equal(
        lines["398 other rows"], np.column_stack([others, scores[others]])
    )
    np.testing.assert_array_equal(lines["eps = 0.2"][:, 1], [0.2, 0.2])
    assert legend(display) == ["398 other rows", "2 selected rows", "eps = 0.2"]
    assert (ax.get_xlabel(), ax.get_yscale()) == ("row", "linear")
    assert "leverage" in ax.get_ylabel()


@pytest.mark.parametrize("as_mask", [False, True])
def test_selected_rows_below_eps_are_told_apart(K, ax, as_mask):
    scores = lv.leverage_scores(K)
    chosen = np.array([3, 50, 300])
    if as_mask:
        chosen = np.isin(np.arange(len(K)), chosen)
    display = LeverageDisplay.from_scores(scores, 0.2, indices=chosen, ax=ax)
    lines = drawn(display)
    np.testing.assert_array_equal(lines["1 selected below eps"], [[3, scores[3]]])
    assert lines["2 selected rows"][:, 0].tolist() == [50, 300]


def test_from_estimator_with_the_rows(K, ax):
    selector = lv.LeverageKeySelector(eps=0.2).fit(K)
    display = LeverageDisplay.from_estimator(selector, K, ax=ax)
    lines = drawn(display)
    np.testing.assert_array_equal(
        lines["2 selected rows"], np.column_stack([selector.indices_, selector.scores_])
    )
    assert len(lines["398 other rows"]) == 398
    assert "eps = 0.2 (reached by at most 25)" in legend(display)


def test_from_estimator_alone_shows_what_it_knows(K, ax):
    selector = lv.LeverageKeySelector(eps=0.2).fit(K)
    display = LeverageDisplay.from_estimator(selector, ax=ax)
    assert "398 other rows, all below eps" in legend(display)
    assert "2 selected rows" in legend(display)


def test_a_budget_has_no_threshold(K, ax):
    selector = lv.LeverageKeySelector(n_keys=4).fit(K)
    display = LeverageDisplay.from_estimator(selector, K, ax=ax)
    assert legend(display) == ["396 other rows", "4 selected rows"]


def test_many_rows_become_a_band_that_hides_no_peak(ax):
    n = 3 * MAX_DOTS
    scores = np.random.default_rng(0).uniform(0.001, 0.002, n)
    scores[7000], scores[7001] = 0.05, 0.3
    display = LeverageDisplay.from_scores(scores, 0.2, ax=ax)
    (band,) = [c for c in ax.collections if "range" in str(c.get_label())]
    assert band.get_label() == f"{n - 1:,} other rows (range)"
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == 0.05
    assert heights.min() == scores.min()
    assert drawn(display)["1 selected row"].tolist() == [[7001, 0.3]]
    assert ax.get_yscale() == "log"


def test_a_logarithmic_axis_shows_zeros_at_its_floor(ax):
    scores = np.array([0.0, 1e-6, 2e-6, 0.5])
    display = LeverageDisplay.from_scores(scores, 0.1, ax=ax, yscale="log")
    others = drawn(display)["3 other rows"]
    assert others[0, 1] == ax.get_ylim()[0] > 0
    assert ax.get_ylim()[1] > 0.5


@pytest.mark.parametrize("scores", [np.zeros(3), np.ones(1)])
def test_extreme_scores_can_be_drawn(scores, ax):
    for yscale in ("auto", "linear", "log"):
        display = LeverageDisplay.from_scores(scores, 0.5, ax=ax, yscale=yscale)
        display.figure_.canvas.draw()
        low, high = ax.get_ylim()
        assert low < high


def test_settings_reach_the_picture(K, ax):
    display = LeverageDisplay.from_scores(
        lv.leverage_scores(K),
        0.2,
        ax=ax,
        legend=False,
        selected_kw={"color": "blue"},
        other_kw={"ms": 9},
    )
    assert ax.get_legend() is None
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["2 selected rows"].get_color() == "blue"
    assert lines["398 other rows"].get_markersize() == 9
    again = Figure().subplots()
    assert display.plot(ax=again).ax_ is again


def test_without_axes_a_pyplot_figure_is_made(K):
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    display = LeverageDisplay.from_scores(lv.leverage_scores(K), 0.2)
    try:
        assert plt.fignum_exists(display.figure_.number)
    finally:
        plt.close(display.figure_)


def test_wrong_arguments(K, ax):
    selector = lv.LeverageKeySelector().fit(K)
    with pytest.raises(ValueError, match="K has 399 rows, but the selector has seen 400"):
        LeverageDisplay.from_estimator(selector, K[:-1], ax=ax)
    with pytest.raises(ValueError, match=r"shape \(n,\)"):
        LeverageDisplay.from_scores(np.ones((2, 2)), 0.1, ax=ax)
    with pytest.raises(ValueError, match="yscale"):
        LeverageDisplay.from_scores(np.ones(2), 0.1, ax=ax, yscale="cubic")


def test_missing_matplotlib_is_one_sentence(K, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.delattr("matplotlib.pyplot", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'levsketch\[cli\]'") as caught:
        LeverageDisplay.from_scores(lv.leverage_scores(K), 0.2)
    assert "\n" not in str(caught.value)
