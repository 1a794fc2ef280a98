"""Errors and warnings in one voice: the name, the value, the place."""

import decimal
import fractions
import math
import warnings

import numpy as np
import pytest

from levsketch import show_versions
from levsketch._checks import (
    check_finite,
    check_memory_size,
    check_p,
    check_real,
    check_row_count,
    warn_caller,
)


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.int64(1), fractions.Fraction(1, 2)])
def test_real_numbers_of_any_type_pass_as_floats(value):
    found = check_real("x", value, low=0.0, high=1.0)
    assert type(found) is float
    assert found == float(value)


@pytest.mark.parametrize("value", ["1", None, True, 1j, [1], decimal.Decimal(1), np.ones(1)])
def test_other_objects_are_refused_by_type(value):
    with pytest.raises(TypeError, match=f"x must be a real number, got {type(value).__name__}"):
        check_real("x", value)


def test_intervals_are_named_with_their_ends():
    with pytest.raises(ValueError, match=r"eps must be in \(0, 1\], got 0"):
        check_real("eps", 0, low=0.0, high=1.0, open_low=True)
    with pytest.raises(ValueError, match=r"ridge must be in \[0, inf\), got -1"):
        check_real("ridge", -1.0, low=0.0)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="got"):
            check_real("x", value)
    assert check_real("x", 0.0, low=0.0) == 0.0
    assert check_real("x", 1.0, high=1.0) == 1.0


def test_exponents_are_positive_numbers():
    assert [check_p(p) for p in (2, 0.5, np.float32(4))] == [2.0, 0.5, 4.0]
    for p in (0, -1.0, np.nan, np.inf, "2", None, True, 1j):
        with pytest.raises((ValueError, TypeError), match=r"p must be .* got"):
            check_p(p)


def test_sizes_of_memory_are_read_as_people_write_them():
    for text, size in (("1GiB", 2**30), ("1.5 kB", 1500), ("7", 7), ("2 MiB", 2**21), (12, 12)):
        assert check_memory_size("max_memory", text) == size
    for text in ("", "much", "-1GB", "1 XB", 0, -5, "0", None, np.nan):
        with pytest.raises((ValueError, TypeError), match="max_memory must be"):
            check_memory_size("max_memory", text)


def test_row_counts_end_with_int64():
    check_row_count(2**63 - 2, 1)
    with pytest.raises(OverflowError, match=str(2**63)):
        check_row_count(2**63 - 2, 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_first_value_that_is_not_finite_is_named(dtype):
    X = np.zeros((4, 3), dtype)
    check_finite(X)
    check_finite(X[:0])
    X[2, 1], X[3, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"Input Q contains NaN at row 102, column 1;"):
        check_finite(X, name="Q", offset=100)
    X[1, 2] = -np.inf
    with pytest.raises(ValueError, match=r"infinity \(inf\) at row 1, column 2;"):
        check_finite(X)


def test_warnings_point_at_the_line_outside_the_package():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_caller("text")
    assert caught[0].filename == __file__


def test_versions_are_shown(capsys):
    show_versions()
    text = capsys.readouterr().out
    for word in ("python:", "levsketch:", "numpy:", "kernels:", "threads"):
        assert word in text
