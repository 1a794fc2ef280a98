"""Plans: the smallest sizes with a proved promise, and memory that is what is allocated."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levsketch.algorithms.attention_plan import plan_attention
from levsketch.functions.exp_polynomial import exp_polynomial
from levsketch.sketches.countsketch import CountSketch
from levsketch.sketches.inner_product import GaussianSketch

ASKED = {
    "n": 10_000,
    "d": 6,
    "d_v": 4,
    "eps1": 0.5,
    "eps2": 0.1,
    "delta": 0.01,
    "logit_range": 1.0,
    "sparsity": 10,
}


def plan(**changes):
    asked = {**ASKED, **changes}
    return plan_attention(asked.pop("n"), asked.pop("d"), asked.pop("d_v"), **asked)


@given(
    st.integers(1, 2**62),
    st.integers(1, 200),
    st.floats(1e-3, 1.0),
    st.floats(1e-4, 1.0),
    st.floats(1e-12, 0.99),
    st.floats(1e-9, 3.0),
    st.booleans(),
)
def test_sizes_keep_the_promise_and_smaller_ones_would_not(n, d, eps1, eps2, delta, r, aligned):
    found = plan(
        n=n, d=d, eps1=eps1, eps2=eps2, delta=delta, logit_range=r, sparsity=1, aligned=aligned
    )
    allowed = eps2 / (2 + eps1) / (1 if aligned else 2)
    assert found.degree % 2 == 0
    assert found.polynomial_error / (1 - found.polynomial_error) <= allowed * (1 + 1e-12)
    if found.degree > 2:
        lower = exp_polynomial(found.degree - 2, r)[1]
        assert lower >= 1 or lower / (1 - lower) >= allowed * (1 - 1e-12)
    assert found.features == math.comb(d + found.degree, d)
    # (1 + 10 eps) tail^2 is at most ((1 + eps1) tail)^2
    eps = 8 / found.width
    assert 1 + 10 * eps <= (1 + eps1) ** 2 * (1 + 1e-12)
    failure = delta if aligned else delta / 2
    sketch = CountSketch.for_recovery(1, (2 * eps1 + eps1**2) / 10, n, failure, 0)
    assert (sketch.depth, sketch.width) == (found.depth, found.width)
    if aligned:
        assert found.psi_size == 0
        return
    rho = math.exp(2 * r) * (1 + found.polynomial_error) / (1 - found.polynomial_error)
    spread = math.sqrt(min((math.sqrt(rho) + 1 / math.sqrt(rho)) ** 2 / 4, n))
    for size, enough in ((found.psi_size, True), (found.psi_size - 1, False)):
        if size:
            error = GaussianSketch(size, 0).error_bound(failure) * spread
            assert error <= allowed * (1 + 1e-9) if enough else error >= allowed * (1 - 1e-9)


@pytest.mark.parametrize("reach", [0.3, 1.0, 2.5])
def test_outputs_move_no_more_than_the_polynomial_may_move_them(reach):
    """The adversary puts values and logits where they hurt most."""
    found = plan(logit_range=reach, eps2=0.3)
    coefficients, error = exp_polynomial(found.degree, reach)
    s = np.linspace(-reach, reach, 2001)
    ratio = np.polynomial.polynomial.polyval(s, coefficients) * np.exp(-s)
    assert np.abs(ratio - 1).max() <= error
    high, low = ratio.max(), ratio.min()
    worst = 0.0
    for w in np.linspace(0.01, 0.99, 99):
        # weights w and 1 - w on values 1 and -1
        moved = (w * high - (1 - w) * low) / (w * high + (1 - w) * low)
        worst = max(worst, abs(moved - (2 * w - 1)))
    allowed = 0.3 / 2.5
    assert worst <= error / (1 - error) * (1 + 1e-9) <= allowed
    assert worst >= 0.9 * error


@pytest.mark.parametrize("aligned", [True, False])
def test_memory_is_what_is_allocated(aligned):
    found = plan(aligned=aligned, n=500)
    sketch = found.output_sketch(seed=3)
    assert sketch.recovery.seed == 3
    assert sketch.nbytes == 8 * found.output_floats
    assert found.floats == found.key_floats + found.output_floats
    assert found.nbytes == 8 * found.floats
    assert found.exact_floats == 500 * 10
    assert found.ratio == found.floats / 5000
    t, m = found.features, found.psi_size
    assert found.key_floats == (t * 5 if aligned else m * (t + 4) + t)


def test_more_is_asked_for_more():
    base = plan()
    for name, values in {
        "n": (10**5, 10**9),
        "eps1": (0.25, 0.1),
        "eps2": (1e-2, 1e-4),
        "delta": (1e-3, 1e-9),
        "logit_range": (2.0, 3.0),
        "sparsity": (20, 1000),
        "d": (7, 20),
        "d_v": (5, 64),
    }.items():
        sizes = [base.floats, *(plan(**{name: value}).floats for value in values)]
        assert sizes == sorted(sizes), name
        assert sizes[0] < sizes[-1], name


def test_with_a_mean_square_error_only_the_depth_grows_with_the_rows():
    sizes = [plan(n=10**i, aligned=False) for i in range(4, 16)]
    for name in ("degree", "width", "psi_size"):
        assert len({getattr(found, name) for found in sizes}) == 1
    ratios = [found.ratio for found in sizes]
    assert ratios == sorted(ratios, reverse=True)


def test_the_table_says_what_it_takes_and_whether_that_is_less():
    large = str(plan(n=10**9))
    assert "in all" in large
    assert "less memory than keeping" in large
    assert "join" not in large
    assert f"{plan(n=10**9).floats:,}" in large
    small = str(plan(aligned=False))
    assert "no less memory than keeping" in small
    assert "rows of Psi between keys and values" in small
    assert max(map(len, (large + "\n" + small).splitlines())) <= 80
    huge = plan(n=2**62, d=500, eps2=1e-9, logit_range=2.0, sparsity=10**9, aligned=False)
    assert "EB" in str(huge)


@pytest.mark.parametrize("name", ["n", "d", "d_v", "sparsity"])
def test_counts_are_checked_by_name(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        plan(**{name: 0})
    with pytest.raises(TypeError, match=f"{name} must be a whole number"):
        plan(**{name: 2.5})


@pytest.mark.parametrize("name", ["eps1", "eps2", "delta", "logit_range"])
def test_numbers_are_checked_by_name(name):
    for wrong in (0.0, -1.0, 65.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"{name} must be in \(0, "):
            plan(**{name: wrong})


def test_impossible_plans_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="sparsity must be at most n = 10000, got 10001"):
        plan(sparsity=10_001)
    with pytest.raises(ValueError, match="delta must be below 1"):
        plan(delta=1.0)
    with pytest.raises(ValueError, match=r"logit_range=20 .* degree 20 is within .* larger eps2"):
        plan(logit_range=20.0)
