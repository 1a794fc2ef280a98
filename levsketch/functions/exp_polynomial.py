"""The polynomial nearest to exp, in relative error, on an interval around zero."""

from __future__ import annotations

import functools
import itertools
import math
from decimal import Context, Decimal, localcontext

import numpy as np

from levsketch._typing import FloatArray, IntArray

# Halfwidths are rounded up to one of these, by 2.2 % at most: few polynomials serve all
# queries. Below 2**-60 even the constant 1 is right to float64; from 64 on, no polynomial of a
# degree that moments could have comes near exp, whose values differ by e**128.
HALFWIDTHS = 2.0 ** (np.arange(-60 * 32, 6 * 32 + 1) / 32)
# The moment tensors of higher degrees have no digits left (streaming/lp_policy.py).
_HIGHEST_DEGREE = 20
# Critical points are enclosed within halfwidth * 10**-30 on either side.
_ENCLOSURE = Decimal("1e-30")
# Exchanges of reference points; 21 are the most that were seen (degree 20, halfwidth 55).
_EXCHANGES = 100
# Steps of the root finder; it converges cubically.
_ROOT_STEPS = 200


def exp_polynomial(degree: int, halfwidth: float) -> tuple[FloatArray, float]:
    """Return the polynomial with the least relative error from exp, and a bound on that.

    Parameters
    ----------
    degree : int
        Even, 0 to 20: an odd polynomial is negative far out, and so may be a normaliser.
    halfwidth : float >= 0
        The interval is ``|x| <= halfwidth``. It is rounded up to a power of
        ``2**(1/32)``, and to 2**-60 at least, so that results can be kept.

    Returns
    -------
    coefficients : (degree + 1,) float64 array
        Of ``p(x) = sum_i coefficients[i] x^i``; read-only.
    error : float
        Certified: ``|p(x) - e^x| <= error e^x`` on the interval, for p with these
        coefficients exactly. Below 1, it proves p > 0 there; from 1 on, p is useless.
        Infinite for halfwidths above 64.

    Raises
    ------
    ValueError
        If the degree is odd or out of range, or the halfwidth negative or NaN.

    Notes
    -----
    For an interval [low, high] take its halfwidth and its midpoint m: ``e^m p(x - m)`` has the
    same relative error. In a softmax e^m cancels.

    Remez's algorithm in decimal arithmetic. The relative error ``e(x) = p(x) e^-x - 1`` has
    the derivative ``(p' - p) e^-x``, so its extrema are the ends and the roots of ``p' - p``;
    all of these are enclosed between changes of sign, which makes the bound a proof. The
    best p has all of them real, and ``|e|`` alike in them and in the ends: degree + 2
    points of alternating sign, as Chebyshev's theorem asks (the functions ``x^i e^-x`` are a
    Haar system). Beyond the ends, where e has no critical point, it rises on the left
    and falls to -1 on the right: with an error below 1, p is positive on the whole line.
    Rounding the coefficients to float64 adds what it adds at ``x = -halfwidth`` at worst. 1 to
    40 ms for a new interval up to degree 8, 10 us for a known one.

    The error at degree 2 and halfwidth 2 is .27; that of the Taylor polynomial is 6.4.

    Examples
    --------
    >>> from levsketch.functions.exp_polynomial import exp_polynomial
    >>> coefficients, error = exp_polynomial(2, 2.0)
    >>> coefficients.round(3).tolist(), round(error, 3)
    ([1.269, 1.305, 0.378], 0.27)
    """
    _check_degree(degree)
    halfwidth = float(halfwidth)
    if not halfwidth >= 0.0:
        raise ValueError(f"halfwidth must be at least 0, got {halfwidth!r}.")
    coefficients, error = _on_grid(degree, int(_places(np.array([halfwidth]))[0]))
    return coefficients, error if halfwidth <= HALFWIDTHS[-1] else math.inf


def exp_polynomials(degree: int, halfwidths: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return what ``exp_polynomial`` does for each of ``halfwidths`` (m,).

    Returns
    -------
    coefficients : (m, degree + 1) float64 array
    errors : (m,) float64 array

    Raises
    ------
    ValueError
        If the degree is odd or out of range, or a halfwidth negative or NaN, naming the first.
    """
    _check_degree(degree)
    bad = np.flatnonzero(~(halfwidths >= 0.0))
    if len(bad):
        raise ValueError(
            f"halfwidths must be at least 0, got {halfwidths[bad[0]]!r} at row {bad[0]}."
        )
    places, which = np.unique(_places(halfwidths), return_inverse=True)
    found = [_on_grid(degree, int(place)) for place in places]
    coefficients = np.array([p for p, _ in found]).reshape(len(found), degree + 1)[which]
    errors = np.array([error for _, error in found])[which]
    return coefficients, np.where(halfwidths <= HALFWIDTHS[-1], errors, np.inf)


def _check_degree(degree: int) -> None:
    if degree % 2 or not 0 <= degree <= _HIGHEST_DEGREE:
        raise ValueError(f"degree must be even, from 0 to {_HIGHEST_DEGREE}, got {degree!r}.")


def _places(halfwidths: FloatArray) -> IntArray:
    """Return the place of the least of HALFWIDTHS that is as large, else of the last."""
    return np.asarray(np.minimum(np.searchsorted(HALFWIDTHS, halfwidths), len(HALFWIDTHS) - 1))


@functools.lru_cache(maxsize=4096)
def _on_grid(degree: int, place: int) -> tuple[FloatArray, float]:
    """Return coefficients and certified error for the halfwidth at a place of the table."""
    halfwidth = Decimal(float(HALFWIDTHS[place]))
    with localcontext(Context(prec=_digits(degree, halfwidth), Emin=-(10**6), Emax=10**6)):
        exact, error = _best(degree, halfwidth)
        rounded = np.array([float(a) for a in exact])
        # e^-x |x|^i is largest at x = -halfwidth, for each i at once
        moved = [abs(Decimal(float(b)) - a) for a, b in zip(exact, rounded, strict=True)]
        error += _value(moved, halfwidth) * halfwidth.exp()
        bound = float(error * (1 + _ENCLOSURE))
    rounded.flags.writeable = False
    return rounded, math.nextafter(bound, math.inf)


def _digits(degree: int, halfwidth: Decimal) -> int:
    """Return a precision at which 50 digits are left after all cancellation.

    p - e^x cancels to about ``halfwidth**(degree + 1)``, and p at the low end to e^-halfwidth.
    """
    lost = (degree + 1) * max(1.0, -math.log10(halfwidth)) + float(halfwidth)
    return 50 + int(lost) + 2 * degree


def _best(degree: int, halfwidth: Decimal) -> tuple[list[Decimal], Decimal]:
    """Return the coefficients of the best polynomial and the certified error of these."""
    angles = [math.pi * i / (degree + 1) for i in range(degree + 2)]
    points = [-halfwidth, *(Decimal(-math.cos(a)) * halfwidth for a in angles[1:-1]), halfwidth]
    for _ in range(_EXCHANGES):
        p, level = _alternating(points)
        points = [-halfwidth, *_critical_points(p, points[1:-1]), halfwidth]
        heights = [abs(_value(p, x) * (-x).exp() - 1) for x in points]
        # what is left of the best error is quadratic in this
        if max(heights) <= abs(level) * (1 + Decimal("1e-12")):
            break
    return p, max(heights) + _slack(p, points[1:-1], halfwidth)


def _alternating(points: list[Decimal]) -> tuple[list[Decimal], Decimal]:
    """Return p and E with ``p(x_i) e^-x_i - 1 = (-1)^i E`` in the degree + 2 points x_i."""
    waves = [x.exp() for x in points]
    signed = [(-1) ** i * wave for i, wave in enumerate(waves)]
    # the last divided difference of p is zero; that of the signed values does not cancel
    level = -_divided(points, waves)[-1] / _divided(points, signed)[-1]
    values = [wave + level * s for wave, s in zip(waves, signed, strict=True)]
    newton = _divided(points[:-1], values[:-1])
    p = [newton[-1]]
    for x, a in zip(reversed(points[:-2]), reversed(newton[:-1]), strict=True):
        p = [a - x * p[0], *(low - x * high for low, high in itertools.pairwise(p)), p[-1]]
    return p, level


def _divided(points: list[Decimal], values: list[Decimal]) -> list[Decimal]:
    """Return the divided differences of values over the first 1, 2, ... points."""
    column, out = list(values), [values[0]]
    for width in range(1, len(points)):
        column = [
            (column[i + 1] - column[i]) / (points[i + width] - points[i])
            for i in range(len(points) - width)
        ]
        out.append(column[0])
    return out


def _critical_points(p: list[Decimal], starts: list[Decimal]) -> list[Decimal]:
    """Return the roots of ``p' - p``, ascending, by the iteration of Ehrlich and Aberth.

    They are real and simple: the error changes its sign between the degree + 2 points where it
    alternates, and has a critical point between any two of its degree + 1 zeros.
    """
    q = _slope(p)
    derivative = [i * a for i, a in enumerate(q)][1:]
    roots = list(starts)
    for _ in range(_ROOT_STEPS):
        largest = Decimal(0)
        for i, x in enumerate(roots):
            value = _value(q, x)
            if not value:
                continue
            others = sum((1 / (x - y) for j, y in enumerate(roots) if j != i), Decimal(0))
            step = 1 / (_value(derivative, x) / value - others)
            roots[i] = x - step
            largest = max(largest, abs(step))
        if largest <= _ENCLOSURE / 100 * max(map(abs, roots), default=Decimal(1)):
            break
    return sorted(roots)


def _slack(p: list[Decimal], roots: list[Decimal], halfwidth: Decimal) -> Decimal:
    """Return by how much |e| may exceed its values in the roots found; infinite if unproved.

    ``p' - p`` has no more roots than its degree: as many disjoint changes of sign
    enclose all of them. Within an enclosure |e| changes by its width times |e'| at most.
    """
    q, width = _slope(p), _ENCLOSURE * halfwidth
    ends = [end for x in roots for end in (x - width, x + width)]
    proved = ends == sorted(ends) and all(
        _value(q, a) * _value(q, b) < 0 for a, b in zip(ends[::2], ends[1::2], strict=True)
    )
    if not proved:
        return Decimal("inf")
    return 2 * width * _value([abs(a) for a in q], halfwidth) * halfwidth.exp()


def _slope(p: list[Decimal]) -> list[Decimal]:
    """Return the coefficients of ``p' - p``."""
    return [(i + 1) * b - a for i, (a, b) in enumerate(zip(p, [*p[1:], Decimal(0)], strict=True))]


def _value(p: list[Decimal], x: Decimal) -> Decimal:
    """Return p(x)."""
    return functools.reduce(lambda value, a: value * x + a, reversed(p), Decimal(0))
