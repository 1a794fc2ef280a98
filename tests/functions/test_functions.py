"""Score functions: every file meets the conditions that the proofs ask for."""

import json
from dataclasses import dataclass, fields
from typing import ClassVar

import mpmath
import numpy as np
import pytest
from oracles import U

import levsketch as lv
from levsketch.functions import REGISTRY, Huber, Power, ScoreFunction, Tukey, make_function
from levsketch.functions.certificates import CappedCertificate


def variants():
    """Return every registered function with each parameter at three sizes."""
    found = []
    for name in sorted(REGISTRY):
        kind = REGISTRY[name]
        found.append(kind())
        for field in fields(kind):
            found += [kind(**{field.name: field.default * x}) for x in (0.01, 0.3, 20.0)]
    return found


@pytest.mark.parametrize("f", variants(), ids=str)
def test_functions_are_even_and_never_decrease(f):
    x = np.concatenate([[0.0], np.geomspace(1e-320, 1e300, 5001), np.linspace(0, 30, 3001)])
    x.sort()
    values = f(x)
    np.testing.assert_array_equal(values, f(-x))
    assert (values >= 0).all()
    assert values[0] == 0
    assert values.dtype == np.float64
    # each value is off by a few units of roundoff
    assert (values[1:] >= values[:-1] * (1 - 16 * U)).all()
    assert f(x[None, :, None]).shape == (1, len(x), 1)
    assert np.all(f([3, -3]) == f(3.0))


CAPPED = [f for f in variants() if isinstance(f.certificate, CappedCertificate)]


@pytest.mark.parametrize("f", CAPPED, ids=str)
def test_functions_grow_as_slowly_as_their_certificate_assumes(f):
    for x in (np.geomspace(1e-140, 1e140, 20_001), np.geomspace(1e-4, 1e4, 20_001)):
        ratio = f(x) / x**2
        # f(y)/f(x) <= growth (y/x)^2 for all pairs x <= y: compare with the least ratio before
        least = np.minimum.accumulate(ratio)
        assert (ratio <= f.growth * least * (1 + 32 * U)).all()
        assert f.certificate.growth == f.growth


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0, 1.5, 2.0])
def test_powers_up_to_two_grow_no_faster_than_squares(p):
    x = np.geomspace(1e-100, 1e100, 4001)
    ratio = Power(p)(x) / x**2
    assert (ratio[1:] <= ratio[:-1] * (1 + 32 * U)).all()


@pytest.mark.parametrize("f", variants(), ids=str)
def test_homogeneous_functions_scale_with_their_argument(f):
    if f.homogeneous:
        x = np.geomspace(1e-3, 1e3, 101)
        np.testing.assert_allclose(f(8.0 * x), f(8.0) / f(1.0) * f(x), rtol=64 * U)


def huber(x, threshold):
    return x * x / 2 if x <= threshold else threshold * (x - threshold / 2)


def tukey(x, threshold):
    return 1 - (1 - (x / threshold) ** 2) ** 3 if x < threshold else mpmath.mpf(1)


EXACT = {
    "huber": (huber, [Huber(), Huber(0.1), Huber(1e5)]),
    "tukey": (tukey, [Tukey(), Tukey(0.1), Tukey(1e5)]),
    "power": (lambda x, p: x**p, [Power(p) for p in (0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 8.0)]),
}


@pytest.mark.parametrize("name", EXACT)
def test_values_are_right_near_zero_and_at_the_threshold(name):
    exact, functions = EXACT[name]
    steps = np.concatenate([2.0 ** -np.arange(1, 53), -(2.0 ** -np.arange(1, 54)), [0.0]])
    with mpmath.workdps(150):
        for f in functions:
            (parameter,) = f.spec()[1].values()
            x = np.concatenate([parameter * (1 + steps), 10.0 ** np.arange(-30, 12)])
            true = [exact(mpmath.mpf(float(a)), mpmath.mpf(parameter)) for a in x]
            # a product of up to eight rounded factors
            np.testing.assert_allclose(f(x), np.array(true, float), rtol=16 * U)


@pytest.mark.parametrize("f", variants(), ids=str)
def test_a_spec_is_json_and_names_its_function(f):
    spec = json.loads(json.dumps(f.spec()))
    assert make_function(spec) == f
    assert make_function(tuple(spec)) == f
    assert make_function(f) is f
    assert make_function(f.name) == type(f)()


@pytest.mark.parametrize("value", [0, 0.0, -1.0, np.inf, -np.inf, np.nan, "1", None, [1.0]])
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_parameters_must_be_positive_numbers(name, value):
    for field in fields(REGISTRY[name]):
        with pytest.raises(ValueError, match=f"{name}: {field.name} must be a positive number"):
            REGISTRY[name](**{field.name: value})


def test_unknown_functions_are_refused_by_name_and_by_type():
    with pytest.raises(ValueError, match=r"must be one of \[.*'huber'.*\], got 'hubert'"):
        make_function("hubert")
    for wrong in (3.0, None, ["huber"], ("huber", 1.0), [1, {}], np.square):
        with pytest.raises(TypeError, match="must be a name or a ScoreFunction"):
            make_function(wrong)


def test_a_new_function_needs_one_class_and_nothing_else():
    @dataclass(frozen=True)
    class Logarithm(ScoreFunction):
        name: ClassVar[str] = "logarithm of a test"
        scale: float = 1.0

        def values(self, x):
            return np.log1p(np.square(x / self.scale))

    try:
        f = make_function([Logarithm.name, {"scale": 2.0}])
        assert f == Logarithm(2.0)
        K = np.random.default_rng(0).standard_normal((2000, 2))
        K[7] *= 100
        for given in (f, Logarithm.name):
            bounds = lv.sensitivity_bounds(K, function=given)
            selector = lv.LpSensitivitySelector(eps=0.1, function=given).fit(K)
            assert bounds[7] == bounds.max()
            assert 7 in selector.indices_
    finally:
        REGISTRY.pop(Logarithm.name)
