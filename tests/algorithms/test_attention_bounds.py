"""Certified softmax: no key set, query or estimate violates a bound, and none is idle."""

from types import SimpleNamespace

import adversary
import numpy as np
import pytest
from adversary import truth
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import U

from levsketch.algorithms.attention_bounds import (
    box_error,
    covered_mass,
    covered_mass_of_model,
    error_bound,
    error_bound_of_model,
    exact_part,
    jensen_floor,
    normaliser_bounds,
)
from levsketch.streaming.attention_model import Exact
from levsketch.streaming.key_value_moments import KeyValueMoments


def nothing(K, V):
    return KeyValueMoments.empty(K.shape[1], V.shape[1])


def streamed(rows, decay):
    """Return moments of the rows that are not kept, block by block, and their weights then."""
    w, moments = rows.w.copy(), nothing(rows.K, rows.V)
    for part in np.split(np.arange(len(w)), rows.cuts):
        if len(part):
            w[: part[0]] *= decay
            moments = moments.times(decay)
            part = part[~rows.kept[part]]
            moments = moments.add(rows.K[part], rows.V[part], w[part])
    return moments, w


def merged(rows):
    """Return moments of the rows that are not kept, each block about a centre of its own."""
    rng, moments = np.random.default_rng(rows.seed), nothing(rows.K, rows.V)
    for part in np.split(np.arange(len(rows.w)), rows.cuts):
        part = part[~rows.kept[part]]
        centre = rng.choice([0.0, 1.0, 100.0]) * rng.standard_normal(rows.K.shape[1])
        centre *= np.abs(rows.K).max()
        about = rows.K[part] - centre
        rows.K[part] = about + centre  # the rounding of these is the caller's, once
        moments = moments.merge(
            nothing(rows.K, rows.V).add(about, rows.V[part], rows.w[part]), centre
        )
    return moments, rows.w


@given(adversary.rows(m=700), st.sampled_from([1.0, 0.7, None]))
@example(adversary.make(adversary.one_outlier, 243, 54, 3, 700), None)
def test_no_bound_is_ever_violated(rows, decay):
    moments, w = merged(rows) if decay is None else streamed(rows, decay)
    K, V, Q, kept = rows.K, rows.V, rows.Q, rows.kept
    rest, whole = truth(Q, K[~kept], V[~kept], w[~kept]), truth(Q, K, V, w)
    some = truth(Q, K[kept], V[kept], w[kept])
    with np.errstate(all="raise", under="ignore"):
        lower, upper = normaliser_bounds(moments, Q)
        exact = exact_part(Q, K[kept], V[kept], w[kept])
        covered = covered_mass(exact.log_normaliser, upper, exact.log_error)
        guesses = [exact.mean_value, moments.closure(Q)[1]]
        floor = jensen_floor(moments, Q)
    assert not np.isnan([lower, upper, floor, covered]).any()
    assert (lower <= rest.log_normaliser + rest.hidden).all()
    assert (floor <= rest.log_normaliser + rest.hidden).all()
    assert (upper >= rest.log_normaliser - rest.hidden).all()
    known = whole.hidden < 0.1
    mass = np.exp(some.log_normaliser - whole.log_normaliser)
    assert (covered <= mass * (1 + 3 * whole.hidden) + whole.hidden)[known].all()
    assert ((covered >= 0) & (covered <= 1)).all()
    size = np.abs(V).max() or 1.0
    guesses += [whole.outputs.astype(float), V[np.arange(len(Q)) % len(V)], guesses[1] + 1e3 * size]
    for guess in guesses:
        with np.errstate(all="raise", under="ignore"):
            bound = error_bound(Q, guess, exact, moments)
        assert np.isfinite(bound).all()
        error = np.sqrt(np.square(guess - whole.outputs).sum(axis=1))
        assert (error <= bound * (1 + 2 * U) + 4 * size * (whole.hidden + U))[known].all()


def two_points(high, share, value):
    """Return rows of mean zero on two points, to which the query one gives logits."""
    low = -high * share / (1.0 - share)
    return np.array([[low], [high]]), np.array([[0.0], [value]]), np.array([1.0 - share, share])


@pytest.mark.parametrize("high", [0.1, 2.0, 30.0, 1000.0, -0.5, -20.0])
def test_bounds_of_two_keys_are_their_sums(high):
    K, V, w = two_points(high, 0.01, 3.0)
    moments = nothing(K, V).add(K, V, w)
    Q = np.array([[1.0], [-1.0], [0.5]])
    exact = truth(Q, K, V, w).log_normaliser.astype(float)
    lower, upper = normaliser_bounds(moments, Q)
    np.testing.assert_allclose(upper, exact, atol=1e-11 * (1 + abs(high)))
    np.testing.assert_allclose(lower, exact, atol=1e-11 * (1 + abs(high)))


def test_a_single_key_is_certain():
    K, V, Q = (
        np.array([[1.0, -2.0]]),
        np.array([[5.0, 7.0]]),
        np.random.default_rng(0).normal(size=(9, 2)),
    )
    moments, kept = nothing(K, V).add(K, V), exact_part(Q, K, V)
    for bound in normaliser_bounds(moments, Q):
        np.testing.assert_allclose(bound, Q @ K[0], atol=1e-12)
    assert error_bound(Q, np.tile(V, (9, 1)), kept, moments).max() < 1e-12
    assert error_bound(Q, np.tile(V, (9, 1)), kept, nothing(K, V)).max() < 1e-12
    assert (covered_mass(kept.log_normaliser, normaliser_bounds(moments, Q)[1]) > 0.5 - 1e-12).all()


def gaussian(size, n=2000, d=8, m=200):
    rng = np.random.default_rng(1)
    K, V = rng.standard_normal((n, d)), rng.standard_normal((n, 3))
    return K, V, rng.standard_normal((m, d)) * (size / np.sqrt(d))


def test_errors_are_of_second_order_in_small_logits():
    found = []
    for size in (1e-2, 1e-3):
        K, V, Q = gaussian(size)
        moments, none = nothing(K, V).add(K, V), exact_part(Q, K[:0], V[:0])
        found.append(np.median(error_bound(Q, moments.closure(Q)[1], none, moments)))
    assert found[1] < found[0] / 90
    assert found[0] < 4e-4


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_the_exact_part_may_be_off_by_is_allowed_for(sign):
    K, V, Q = gaussian(1e-3, n=100)
    V[:50] += 10.0
    moments, kept = nothing(K, V).add(K[50:], V[50:]), exact_part(Q, K[:50], V[:50])
    output = truth(Q, K, V, np.ones(100)).outputs.astype(float)
    off = kept._replace(
        log_normaliser=kept.log_normaliser + 0.3 * sign, log_error=kept.log_error + 0.3
    )
    share = 1.0 / (1.0 + np.exp(off.log_normaliser - moments.closure(Q)[0]))[:, None]
    guess = (1.0 - share) * kept.mean_value + share * moments.closure(Q)[1]
    error = row_length(guess - output)
    assert (error_bound(Q, guess, kept, moments) >= error).all()
    assert (error_bound(Q, guess, off, moments) >= error).all()
    assert np.median(error_bound(Q, guess, off, moments) / error) < 1.5
    off = kept._replace(mean_value=kept.mean_value + sign, value_error=kept.value_error + 3**0.5)
    guess = 0.5 * off.mean_value + 0.5 * moments.closure(Q)[1]
    assert (error_bound(Q, guess, off, moments) >= row_length(guess - output)).all()


def test_large_logits_degrade_to_the_box():
    K, V, Q = gaussian(1.0)
    moments, kept = nothing(K, V).add(K[50:], V[50:]), exact_part(Q, K[:50], V[:50])
    for size in (10.0, 1e3, 1e9, 1e100, 1e250):
        part = exact_part(size * Q, K[:50], V[:50])
        bound = error_bound(size * Q, kept.mean_value, part, moments)
        far = box_error(kept.mean_value, V.min(axis=0), V.max(axis=0))
        assert (
            bound <= far + row_length(part.mean_value - kept.mean_value) + part.value_error
        ).all()
        assert (
            covered_mass(part.log_normaliser, normaliser_bounds(moments, size * Q)[1]) >= 0
        ).all()


def row_length(X):
    return np.linalg.norm(X, axis=1)


def test_a_key_that_towers_over_the_rest_makes_the_answer_certain():
    K, V, Q = gaussian(1.0)
    K[0], Q = 12.0 * np.eye(8)[0], np.tile(3.0 * np.eye(8)[0], (2, 1)) * [[1.0], [0.9]]
    moments, kept = nothing(K, V).add(K[1:], V[1:]), exact_part(Q, K[:1], V[:1])
    assert (covered_mass(kept.log_normaliser, normaliser_bounds(moments, Q)[1]) > 0.999).all()
    assert error_bound(Q, kept.mean_value, kept, moments).max() < 0.01


def test_bounds_do_not_depend_on_the_queries_beside_them():
    K, V, Q = gaussian(2.0, m=40)
    moments, kept = nothing(K, V).add(K[9:], V[9:]), exact_part(Q, K[:9], V[:9])
    guess = kept.mean_value
    whole = error_bound(Q, guess, kept, moments)
    halves = [
        error_bound(Q[i], guess[i], exact_part(Q[i], K[:9], V[:9]), moments)
        for i in (slice(0, 20), slice(20, 40))
    ]
    np.testing.assert_allclose(np.concatenate(halves), whole, rtol=1e-12)


def test_without_a_rest_all_mass_is_covered_and_only_rounding_is_left():
    K, V, Q = gaussian(1.0)
    kept, none = exact_part(Q, K, V), nothing(K, V)
    lower, upper = normaliser_bounds(none, Q)
    assert (lower == -np.inf).all()
    assert (jensen_floor(none, Q) == -np.inf).all()
    np.testing.assert_array_equal(covered_mass(kept.log_normaliser, upper), 1.0)
    assert error_bound(Q, kept.mean_value, kept, none).max() < 1e-10
    off = np.array([3.0, 0.0, 4.0])
    np.testing.assert_allclose(error_bound(Q, kept.mean_value + off, kept, none), 5.0, atol=1e-10)


@pytest.mark.parametrize(
    ("log_exact", "log_upper", "expected"),
    [
        (-np.inf, 0.0, 0.0),
        (-np.inf, -np.inf, 1.0),
        (0.0, -np.inf, 1.0),
        (0.0, np.inf, 0.0),
        (0.0, 0.0, 0.5),
        (1e5, 1e5, 0.5),
        (-1e300, 1e300, 0.0),
        (1e300, -1e300, 1.0),
        (800.0, 0.0, 1.0),
        (0.0, 800.0, 0.0),
        (np.nan, 0.0, 0.0),
    ],
)
def test_covered_mass_at_the_ends(log_exact, log_upper, expected):
    with np.errstate(all="raise"):
        found = covered_mass(np.array([log_exact]), np.array([log_upper]))
    assert 0.0 <= found[0] <= 1.0
    assert found[0] == pytest.approx(expected, abs=1e-9)
    assert found[0] <= expected


def test_the_error_of_the_exact_part_lowers_the_mass():
    found = covered_mass(np.zeros(2), np.zeros(2), np.array([0.0, 1.0]))
    np.testing.assert_allclose(found, [0.5, 1 / (1 + np.e)], atol=1e-14)


@given(adversary.rows(m=100))
def test_sums_over_kept_keys_are_as_far_off_as_they_say(rows):
    K, V, w, Q = rows.K, rows.V, rows.w, rows.Q
    with np.errstate(all="raise", under="ignore"):
        found = exact_part(Q, K, V, w)
    exact = truth(Q, K, V, w)
    off = np.abs(found.log_normaliser - exact.log_normaliser)
    assert (off <= found.log_error + exact.hidden).all()
    off = np.sqrt(np.square(found.mean_value - exact.outputs).sum(axis=1))
    assert (off <= found.value_error + 4 * np.abs(V).max() * exact.hidden).all()


def test_kept_keys_without_weight_do_not_count():
    K, V, Q = gaussian(1.0, n=20)
    K[3] *= 1e4
    w = np.where(np.arange(20) == 3, 0.0, 1.0)
    found, expected = exact_part(Q, K, V, w), exact_part(Q, np.delete(K, 3, 0), np.delete(V, 3, 0))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    none = exact_part(Q, K[:2], V[:2], np.zeros(2))
    assert (none.log_normaliser == -np.inf).all()
    assert not none.mean_value.any()


def test_the_farthest_corner_of_a_box():
    low, high = np.array([-1.0, 0.0]), np.array([3.0, 4.0])
    found = box_error(np.array([[0.0, 0.0], [1.0, 2.0], [9.0, 2.0]]), low, high)
    np.testing.assert_allclose(found, [5.0, np.sqrt(8.0), np.sqrt(104.0)], rtol=1e-13)
    assert (found >= [5.0, np.sqrt(8.0), np.sqrt(104.0)]).all()


def test_bounds_of_a_model_are_those_of_its_parts():
    K, V, Q = gaussian(0.5)
    w = np.ones(50)
    w[7] = 0.0
    exact = Exact(K[:50], V[:50], w, np.arange(50))
    moments, guess = nothing(K, V).add(K[50:], V[50:]), V[: len(Q)]
    sums, part = exact.sums(Q), exact_part(Q, K[:50], V[:50], w)
    box = V[50:].min(axis=0), V[50:].max(axis=0)
    model = SimpleNamespace(mass=1950.0, moments=moments, low=box[0], high=box[1])
    found = error_bound_of_model(Q, guess, exact, *sums, model)
    np.testing.assert_allclose(found, error_bound(Q, guess, part, moments), rtol=1e-12)
    upper = normaliser_bounds(moments, Q).upper
    expected = covered_mass(part.log_normaliser, upper, part.log_error)
    np.testing.assert_array_equal(covered_mass_of_model(Q, exact, *sums, model), expected)
    model.moments = None
    assert not covered_mass_of_model(Q, exact, *sums, model).any()
    assert (covered_mass_of_model(Q, exact, *sums, None) == 1.0).all()
    alone = error_bound(Q, guess, part, nothing(K, V))
    found = error_bound_of_model(Q, guess, exact, *sums, model)
    np.testing.assert_allclose(found, np.maximum(box_error(guess, *box), alone), rtol=1e-12)
    found = error_bound_of_model(Q, guess, exact, *sums, None)
    np.testing.assert_allclose(found, alone, rtol=1e-12)


def test_arguments_are_not_written_to():
    K, V, Q = gaussian(1.0, n=100, m=5)
    moments, kept = nothing(K, V).add(K[9:], V[9:]), exact_part(Q, K[:9], V[:9])
    guess = kept.mean_value.copy()
    before = [np.copy(x) for x in (K, V, Q, guess, *kept)]
    error_bound(Q, guess, kept, moments)
    covered_mass(kept.log_normaliser, kept.log_normaliser, kept.log_error)
    for x, y in zip((K, V, Q, guess, *kept), before, strict=True):
        np.testing.assert_array_equal(x, y)
