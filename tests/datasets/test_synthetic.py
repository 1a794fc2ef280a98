"""Planted data: what their documentation promises is true, by long double arithmetic."""

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levsketch.datasets import make_ill_conditioned_keys, make_planted_attention


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([1e-6, 0.1, 3.0]))
def test_planted_bounds_hold(seed, n_relevant, noise):
    made = make_planted_attention(
        300, 12, n_relevant=n_relevant, n_active=min(3, n_relevant), noise=noise, random_state=seed
    )
    scores = np.array(oracles.leverage(made.K), float)
    others = np.delete(scores, made.relevant)
    assert (scores[made.relevant] >= made.relevant_bound * (1 - 1e-9)).all()
    assert (others <= made.irrelevant_bound * (1 + 1e-9)).all()
    assert (np.diff(made.relevant) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(made.K[made.relevant], axis=1), 1.0)
    assert np.linalg.norm(np.delete(made.K, made.relevant, axis=0), 2) == pytest.approx(noise)
    assert made.Q.shape == (100, 12)


@given(st.sampled_from([1.0, 1e3, 1e9, 1e13]), st.integers(2, 9), st.booleans())
def test_keys_have_the_condition_number_asked_for(kappa, d, rotate):
    made = make_ill_conditioned_keys(100, d, condition=kappa, rotate=rotate, random_state=0)
    singular = np.linalg.svd(made.K, compute_uv=False)
    assert singular[0] / singular[-1] == pytest.approx(kappa, rel=0.2)
    assert made.lone_row is None


@pytest.mark.parametrize("lone", [1.0, 1e-5, 1e-300])
def test_the_lone_key_is_alone(lone):
    made = make_ill_conditioned_keys(50, 4, lone=lone, rotate=False, random_state=1)
    scores = oracles.leverage(made.K)
    assert float(scores[made.lone_row]) == pytest.approx(1.0)
    assert made.K.shape == (50, 4)
    assert np.abs(made.K[made.lone_row]).sum() == lone


def test_the_same_seed_gives_the_same_data():
    for make in (make_planted_attention, make_ill_conditioned_keys):
        first, again, other = make(random_state=3), make(random_state=3), make(random_state=4)
        np.testing.assert_array_equal(first.K, again.K)
        assert not np.array_equal(first.K, other.K)


@pytest.mark.parametrize(
    ("make", "params", "word"),
    [
        (make_planted_attention, {"n_relevant": 0}, "n_relevant"),
        (make_planted_attention, {"n_relevant": 17}, "n_relevant"),
        (make_planted_attention, {"n_samples": 8}, "n_relevant"),
        (make_planted_attention, {"n_active": 9}, "n_active"),
        (make_planted_attention, {"noise": 0.0}, "noise"),
        (make_planted_attention, {"query_noise": -1.0}, "query_noise"),
        (make_ill_conditioned_keys, {"n_samples": 16}, "n_samples"),
        (make_ill_conditioned_keys, {"condition": 0.5}, "condition"),
        (make_ill_conditioned_keys, {"lone": 0.0}, "lone"),
        (make_ill_conditioned_keys, {"n_features": 1, "lone": 1.0}, "n_features"),
    ],
)
def test_impossible_requests_are_refused_by_name(make, params, word):
    with pytest.raises(ValueError, match=word):
        make(**params)
