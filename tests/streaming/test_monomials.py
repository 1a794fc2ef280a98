"""Monomials: those of SymmetricPower, in its order, in any grouping; and shifted polynomials."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levsketch.sketches.symmetric import SymmetricPower
from levsketch.streaming import monomials
from levsketch.streaming.monomials import (
    monomial_count,
    monomial_exponents,
    monomial_groups,
    multinomials,
    translated,
)

SHAPES = [(1, 1), (1, 6), (2, 1), (2, 2), (2, 7), (3, 2), (3, 3), (5, 2), (5, 4), (9, 2), (4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_counts_coefficients_and_exponents_are_those_of_the_symmetric_power(shape):
    d, degree = shape
    lift = SymmetricPower(d, degree)
    assert monomial_count(d, degree) == lift.size
    counts = [len(set(itertools.permutations(row))) for row in lift.variables.tolist()]
    np.testing.assert_array_equal(multinomials(d, degree), counts)
    e = np.random.default_rng(0).integers(-2000, 2000, d)
    np.testing.assert_array_equal(monomial_exponents(e, degree), lift.column_exponents(e))


@pytest.mark.parametrize("degrees", [[1], [2], [1, 2], [3], [1, 4], [2, 3, 5], []])
@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("group", [1, 5, 512])
def test_groups_are_all_monomials_of_all_degrees_each_once(degrees, d, group, monkeypatch):
    monkeypatch.setattr(monomials, "_GROUP", group)
    K = np.random.default_rng(1).integers(-3, 4, (6, d)).astype(float)
    found = {r: np.full((monomial_count(d, r), 6), np.nan) for r in degrees}
    for degree, places, values in monomial_groups(np.ascontiguousarray(K.T), degrees):
        assert np.isnan(found[degree][places]).all()
        found[degree][places] = values
    for degree in degrees:
        true = np.prod(K[:, SymmetricPower(d, degree).variables], axis=2).T
        np.testing.assert_array_equal(found[degree], true)


def moments(K, v, g):
    """Return exact moments of integer keys and values up to degree g."""
    out = [v.sum(axis=0, keepdims=True)]
    for r in range(1, g + 1):
        out.append(np.prod(K[:, SymmetricPower(K.shape[1], r).variables], axis=2).T @ v)
    return out


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 6))
def test_translated_moments_of_whole_numbers_are_exactly_those_of_translated_keys(seed, d, g):
    rng = np.random.default_rng(seed)
    K = rng.integers(-3, 4, (5, d)).astype(float)
    v = rng.integers(-3, 4, (5, 2)).astype(float)
    shift = rng.integers(-2, 3, d).astype(float)
    for found, true in zip(
        translated(moments(K, v, g), shift), moments(K + shift, v, g), strict=True
    ):
        np.testing.assert_array_equal(found, true)


def test_coefficients_of_high_degrees_are_right_to_rounding():
    # 20! / (5!)^4 is beyond 2**53 only in the steps of its computation
    found = multinomials(4, 20)
    variables = SymmetricPower(4, 20).variables
    place = np.flatnonzero((variables == np.repeat(np.arange(4), 5)).all(axis=1))[0]
    true = Fraction(1)
    for left in (20, 15, 10):
        true *= comb(left, 5)
    assert found[place] == pytest.approx(float(true), rel=1e-14)
    assert found.sum() == pytest.approx(4.0**20, rel=1e-14)
