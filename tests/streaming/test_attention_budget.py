"""Budgets: all that a model may hold fits, and what does not fit is done without."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from levsketch.streaming.attention_budget import split
from levsketch.streaming.key_value_moments import KeyValueMoments
from levsketch.streaming.landmarks import Landmarks

FLOATS = st.one_of(st.integers(1, 3000), st.integers(1, 10**7))
COLUMNS = st.integers(1, 96)


def most(budget, d, d_v):
    """Return how many numbers each model that is tried holds at most, frame and probes too."""
    row, fixed = d + d_v + 1, 2 * d + 3 * d_v + 1 + budget.probes * (d + d_v + 2)
    moments = KeyValueMoments.floats(d, d_v)
    found = [
        fixed + budget.certified * moments + Landmarks.floats(rows, order, d, d_v + 1)
        for order, rows in budget.rows.items()
    ]
    if budget.closure_keys >= 0:
        found.append(fixed + moments + budget.closure_keys * row)
    return found


@given(FLOATS, COLUMNS, COLUMNS)
@example(1, 96, 96)
@example(10**7, 1, 1)
def test_every_model_fits(floats, d, d_v):
    budget = split(floats, d, d_v)
    row = d + d_v + 1
    assert budget.floats == floats
    assert budget.probes == 0 or 4 <= budget.probes <= 64
    assert budget.probes * (row + 1) <= 0.1 * floats
    assert 0 <= budget.heavy_keys <= min(budget.rows.values()) / 10
    assert all(rows >= (order == 0) for order, rows in budget.rows.items())
    assert set(budget.rows) <= {0, 1}
    moments = KeyValueMoments.floats(d, d_v)
    assert budget.certified == (moments <= 0.2 * floats)
    assert budget.certified or budget.heavy_keys == 0
    for order, held in zip([*budget.rows, "closure"], most(budget, d, d_v), strict=False):
        # one landmark is held whatever the budget
        assert held <= floats or (order == 0 and budget.rows[0] == 1)


@given(FLOATS, COLUMNS, COLUMNS)
def test_nothing_that_would_fit_is_left_empty(floats, d, d_v):
    budget = split(floats, d, d_v)
    row = d + d_v + 1
    for held in most(budget, d, d_v):
        assert held > floats - row
    trend = Landmarks.floats(0, 1, d, d_v + 1)
    if 1 not in budget.rows:
        left = floats - (2 * d + 3 * d_v + 1) - budget.probes * (row + 1)
        assert trend + budget.certified * KeyValueMoments.floats(d, d_v) > left
    # a constant trend is tried where the linear one is dear
    assert (0 in budget.rows) == (1 not in budget.rows or trend > 0.25 * floats)


@pytest.mark.parametrize(("d", "d_v"), [(1, 1), (8, 2), (32, 32), (64, 64)])
def test_more_numbers_are_more_keys(d, d_v):
    budgets = [split(floats, d, d_v) for floats in range(1000, 200_000, 997)]
    for name in ("closure_keys", "probes"):
        sizes = [getattr(budget, name) for budget in budgets]
        assert (np.diff(sizes) >= -((d + d_v + 2) * 4 // (d + d_v + 1))).all(), name
    assert budgets[-1].certified
    assert list(budgets[-1].rows) == [1]


def test_what_256_keys_of_a_usual_head_are_worth():
    budget = split(256 * 128, 64, 64)
    assert budget.probes == 12
    # 321 numbers are frame and box, 12 * 130 probes, 65 * 65 the trend, 129 a landmark
    assert budget.rows == {1: (32768 - 321 - 1560 - 4225) // 129}
    assert budget.closure_keys == (32768 - 321 - 1560 - KeyValueMoments.floats(64, 64)) // 129
    assert not budget.certified
    assert budget.heavy_keys == 0
