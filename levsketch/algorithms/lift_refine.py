"""Exact sensitivities for even p from a stream's lifted factor alone, without its rows.

``F(q) = sum_l <q, k_l>^p = ||R phi(q)||^2`` is a convex polynomial, known exactly from R. So
``1 / sigma_j = min { F(q) : <q, k_j> = 1 }`` is a convex problem in d variables, whatever n.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg

from levsketch._typing import FloatArray, IntArray
from levsketch.functions.certificates import HoelderCertificate
from levsketch.linalg import MAX_ERROR, UNIT_ROUNDOFF, Whitening
from levsketch.sketches.symmetric import SymmetricPower
from levsketch.streaming.lp_selection import LpSelection

_STEPS = 100
_TOLERANCE = 1e-6
# A Newton step must gain this share of what its slope promises.
_ENOUGH = 1e-3


class LiftedForm(NamedTuple):
    """The polynomial F for queries in the scale of the lift, and what is proved beside it.

    ``R`` (D, D) is the factor of lifted rows; a query (d,) costs O(D^2). The certificate
    gives ``||q||_G <= F(q)^(1/p) embedding`` with G the weighted squares, and ``W`` (d, c)
    is the whitener of G, in the same scale.
    """

    lift: SymmetricPower
    R: FloatArray
    W: FloatArray
    embedding: float
    error: float

    @property
    def p(self) -> int:
        """Twice the degree of the lift."""
        return 2 * self.lift.degree

    def value(self, q: FloatArray) -> float:
        """Return F(q)."""
        return float(np.sum(np.square(self.R @ self.lift.apply(q[None])[0])))

    def derivatives(self, q: FloatArray) -> tuple[float, FloatArray, FloatArray, float]:
        """Return F(q), gradient (d,), Hessian (d, d), and a bound on the gradient's rounding.

        The bound is on ``||W^T (computed - true gradient)||``.
        """
        phi = self.lift.apply(q[None])[0]
        image = self.R @ phi
        J = self.lift.jacobian(q)
        RJ = self.R @ J
        lifted = self.R.T @ image
        hessian = 2.0 * (RJ.T @ RJ + self.lift.contracted_hessian(q, lifted))
        size = float(np.linalg.norm(self.R) * np.linalg.norm(phi))
        rounding = 8.0 * (len(phi) + len(q)) * UNIT_ROUNDOFF * size
        spread = float(np.linalg.norm(self.R) * np.linalg.norm(J @ self.W))
        value = float(image @ image)
        slack = 2.0 * (rounding * float(np.linalg.norm(RJ @ self.W)) + np.sqrt(value) * rounding)
        slack += 2.0 * spread * rounding
        return value, 2.0 * (J.T @ lifted), hessian, slack

    def interval(self, q: FloatArray, k: FloatArray) -> tuple[float, float]:
        """Return bounds on the sensitivity of k that the query q, ``<q, k> = 1``, proves.

        With gradient ``g = p F k + r``, where ``r^T q = 0``, convexity says that every q' with
        ``<q', k> = 1`` has ``F(q') >= F(q) + r^T q'``, and ``|r^T q'| <= ||W^T r|| ||q'||_G``.
        """
        value, gradient, _, slack = self.derivatives(q)
        # a factor that is off by a relative error in every norm moves the gradient, too
        off = 2.0 * self.error + self.error**2
        image = self.R @ self.lift.jacobian(q) @ self.W
        slack += 2.0 * off * float(np.linalg.norm(image)) * np.sqrt(value)
        slack += 2.0 * off * self.p * value * float(np.linalg.norm(self.W.T @ k))
        r = gradient - self.p * value * k
        r -= (r @ q) * k  # what rounding leaves of r^T q
        size = self.R.shape[0]
        hidden = 8.0 * (size + len(q)) * UNIT_ROUNDOFF * float(np.linalg.norm(self.R))
        hidden *= float(np.linalg.norm(self.lift.apply(q[None])[0]))
        root = np.sqrt(value)
        most = ((root + hidden) * (1.0 + self.error)) ** 2
        least = (max(root - hidden, 0.0) * (1.0 - self.error)) ** 2
        lost = (float(np.linalg.norm(self.W.T @ r)) + slack) * self.embedding
        below = least - lost * most ** (1.0 / self.p)
        upper = 1.0 / below if below > 1.0 else 1.0
        return min(1.0 / most, 1.0), upper


def lifted_form(found: LpSelection) -> LiftedForm | None:
    """Return the polynomial of a selection, None if it is not certified."""
    lifted, whitening = found.lifted, found.lift_whitening
    rule = found.weighted.certificate
    if (
        lifted is None
        or whitening is None
        or not (lifted.exact and whitening.certified and found.weighted.certified)
        or not isinstance(rule, HoelderCertificate)
        or not isinstance(lifted.lift, SymmetricPower)
    ):
        return None
    e = np.where(whitening.active, whitening.factor.exponents, 0)
    weighted: Whitening = found.whitening
    moved = np.where(weighted.active, lifted.exponents - weighted.factor.exponents, 0)
    if np.abs(e).max(initial=0) > 500 or np.abs(moved).max(initial=0) > 500:
        return None  # too far apart for plain arithmetic
    level = found.weighted.prefix_level
    return LiftedForm(
        lifted.lift,
        whitening.factor.R * np.ldexp(1.0, e),
        weighted.matrix * np.ldexp(1.0, moved)[:, None],
        level ** (0.5 - 0.5 / lifted.lift.degree) / (1.0 - min(weighted.error, MAX_ERROR)),
        whitening.error,
    )


def refine_by_lift(
    found: LpSelection, taken: IntArray, eps: float | None
) -> tuple[FloatArray, FloatArray] | None:
    """Return intervals (m, 2) for rows ``taken`` of the pool, and queries (m, d); or None.

    A row is done when its interval excludes eps (unless None) or is narrower than 1e-6 of
    its upper end.
    None if the lifted factor is not certified. O(D^2 d) a step and row.
    """
    form, lifted = lifted_form(found), found.lifted
    if form is None or lifted is None:
        return None
    e = np.where(lifted.exponents > -5000, lifted.exponents, 0)
    ends, queries = np.tile([0.0, 1.0], (len(taken), 1)), np.zeros((len(taken), len(e)))
    for i, row in enumerate(taken):
        k = np.ldexp(found.rows[row], -e)
        if k.any():
            ends[i], q = _minimised(form, k, eps)
            queries[i] = np.ldexp(q, -e)
        else:
            ends[i] = 0.0
    return ends, queries


def _minimised(form: LiftedForm, k: FloatArray, eps: float | None) -> tuple[FloatArray, FloatArray]:
    """Return the interval (2,) and the query of one key, by damped Newton steps."""
    q = form.W @ (form.W.T @ k)
    q /= q @ k
    low, high, best = 0.0, 1.0, q
    for _ in range(_STEPS):
        lower, upper = form.interval(q, k)
        if lower > low:
            low, best = lower, q
        high = min(high, upper)
        decided = eps is not None and (low >= eps or high < eps)
        if decided or high - low <= _TOLERANCE * high:
            break
        step = _newton_step(form, q, k)
        if step is None:
            break
        q = step
    return np.array([min(low, high), high]), best


def _newton_step(form: LiftedForm, q: FloatArray, k: FloatArray) -> FloatArray | None:
    """Return the next query with ``<q, k> = 1``; None if rounding allows no more progress."""
    value, gradient, hessian, _ = form.derivatives(q)
    basis = scipy.linalg.null_space(k[None])
    reduced = basis.T @ hessian @ basis
    slope = basis.T @ gradient
    shift = float(np.trace(reduced)) * 1e-14
    try:
        factor = scipy.linalg.cho_factor(reduced + shift * np.eye(len(reduced)))
        move: FloatArray = -basis @ scipy.linalg.cho_solve(factor, slope)
    except np.linalg.LinAlgError:
        return None
    promised = float(gradient @ move)
    length = 1.0
    while length > 1e-8:
        new = q + length * move
        new /= new @ k
        if form.value(new) < value + _ENOUGH * length * promised:
            return np.asarray(new)
        length /= 2.0
    return None
