"""What one-pass attention will take, and what it will promise, before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from levsketch._checks import check_count, check_real
from levsketch.functions.exp_polynomial import exp_polynomial
from levsketch.sketches.countsketch import CountSketch
from levsketch.sketches.inner_product import GaussianSketch
from levsketch.streaming.output_sketch import TAIL_DEPTH, TAIL_WIDTH, OutputSketch

# What `exp_polynomial` has; degree 0 would give each query the mean of the values.
_DEGREES = range(2, 21, 2)
_WIDEST = 64.0
_FLOAT_BYTES = 8
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


@dataclass(frozen=True)
class AttentionPlan:
    """Sizes of a one-pass attention sketch that keeps a promise, and its memory.

    The promise, for each column y of the attention output and with probability at least
    1 - delta over the seeds, if all logits are within ``logit_range``::

        ||recovered - y|| <= (1 + eps1) tail_k + eps2 sqrt(n) B

    with tail_k the distance of y from the nearest column that is constant but for k
    entries, for a constant that is fixed beforehand (`recover_columns` chooses among several;
    that its choice is no worse is measured, not proved), and B the largest ``|v - c|`` of that
    column of the values, for any number c if keys and values are aligned, else for c = 0.

    Attributes
    ----------
    n, d, d_v : int
        Rows of queries and keys, columns of keys and of values.
    eps1, eps2, delta, logit_range : float
    sparsity : int
        k of the promise.
    aligned : bool
        Whether each key arrives with its value.
    degree : int
        Degree g of the polynomial that stands for exp, even: then it is positive.
    polynomial_error : float
        Largest relative error of it on ``|s| <= logit_range``.
    features : int
        Monomials up to degree g of d variables, ``t = C(d + g, g)``.
    depth, width : int
        Of the CountSketch of the output (m1 = depth * width numbers a column).
    psi_size : int
        Rows m2 of the inner-product sketch that joins keys with values; 0 when aligned.
    """

    n: int
    d: int
    d_v: int
    eps1: float
    eps2: float
    delta: float
    logit_range: float
    sparsity: int
    aligned: bool
    degree: int
    polynomial_error: float
    features: int
    depth: int
    width: int
    psi_size: int

    @property
    def key_floats(self) -> int:
        """Numbers that keys and values take.

        Aligned: for each feature its sum over the keys, with the values and with 1. Else, both
        projected by Psi, and the sums of the features.
        """
        if self.aligned:
            return self.features * (self.d_v + 1)
        return self.psi_size * (self.features + self.d_v) + self.features

    @property
    def output_floats(self) -> int:
        """Numbers that the sketch of the output takes: both tables and the sums of columns."""
        return (self.depth * self.width + TAIL_DEPTH * TAIL_WIDTH + 1) * self.d_v

    @property
    def floats(self) -> int:
        """Numbers in all."""
        return self.key_floats + self.output_floats

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers in all; rows that wait for their block come on top."""
        return _FLOAT_BYTES * self.floats

    @property
    def exact_floats(self) -> int:
        """Numbers that exact attention keeps: all keys and values, ``n (d + d_v)``."""
        return self.n * (self.d + self.d_v)

    @property
    def ratio(self) -> float:
        """Memory of the sketch over that of exact attention."""
        return self.floats / self.exact_floats

    def output_sketch(self, seed: int, first_row: int = 0) -> OutputSketch:
        """Return the empty sketch of the output that was planned."""
        return OutputSketch.make(
            self.d_v, depth=self.depth, width=self.width, seed=seed, first_row=first_row
        )

    def __str__(self) -> str:
        lines = [
            f"one-pass attention of n = {self.n:,} rows, d = {self.d}, d_v = {self.d_v}",
            f"promise  error of a column <= (1 + {self.eps1:g}) tail_{self.sparsity} + "
            f"{self.eps2:g} sqrt(n) max|v|",
            f"         with probability {1 - self.delta:g}, while |logits| <= {self.logit_range:g}",
            f"exp      degree {self.degree}, relative error {self.polynomial_error:.1e}, "
            f"{self.features:,} features",
            f"output   {self.depth} hash rows of {self.width:,} buckets",
        ]
        if not self.aligned:
            lines.append(f"join     {self.psi_size:,} rows of Psi between keys and values")
        rows = (
            ("keys and values", self.key_floats),
            ("output", self.output_floats),
            ("in all", self.floats),
            ("exact, n (d + d_v)", self.exact_floats),
        )
        lines.append(f"{'':<20}{'numbers':>24}{'memory':>10}")
        lines += [
            f"{name:<20}{count:>24,}{_size(_FLOAT_BYTES * count):>10}" for name, count in rows
        ]
        verdict = "less" if self.ratio < 1 else "no less"
        lines.append(f"{self.ratio:.3g} of exact: {verdict} memory than keeping keys and values")
        return "\n".join(lines)


def plan_attention(
    n: int,
    d: int,
    d_v: int,
    *,
    eps1: float,
    eps2: float,
    delta: float,
    logit_range: float,
    sparsity: int,
    aligned: bool = True,
) -> AttentionPlan:
    """Return the smallest sizes for which the promise of `AttentionPlan` is proved.

    Parameters
    ----------
    n, d, d_v : int
        Rows, columns of queries and keys, columns of values.
    eps1 : float in (0, 1]
        Relative error beside the best sparse column.
    eps2 : float in (0, 1]
        Error besides, as the root of the mean square over the rows of a column, in
        units of the largest value. The theorem of arXiv 2311.14652 has an absolute error of a
        column: divide it by ``sqrt(n)``.
    delta : float in (0, 1)
        Probability that the promise fails, for a column.
    logit_range : float in (0, 64]
        Largest ``|<q, k>|`` that is allowed for.
    sparsity : int
        Entries k by which columns are thought to differ from a constant.
    aligned : bool
        Whether each key arrives with its value.

    Raises
    ------
    ValueError
        For values outside these ranges, sparsity above n, and logits and errors for which
        no polynomial of degree up to 20 suffices.

    Notes
    -----
    Let y~ be the output that the sketch of the output sees.

    *Recovery.* `CountSketch.for_recovery` with ``10 eps = (1 + eps1)^2 - 1`` gives
    ``||recovered - y~|| <= (1 + eps1) tail_k(y~)``, and tail_k(y~) <= tail_k(y) + ||y~ - y||. So
    ||y~ - y|| enters 2 + eps1 times, and may be ``h sqrt(n) B`` with h = eps2 / (2 + eps1).

    *Polynomial.* With exp(s) (1 + e) for exp(s), |e| <= E, an output sum_l w_l v_l moves by
    ``sum_l w_l e_l (v_l - y) / (1 + sum_l w_l e_l)``, at most E B / (1 - E) in size, since
    the mean of |v - y| is at most its standard deviation, and that at most B. The degree is the
    smallest even one with E / (1 - E) <= h, or h / 2 if not aligned, E from `exp_polynomial`.

    *Psi.* If not aligned, an entry is <Psi a, Psi v> with weights a >= 0 of sum 1 whose
    ratios are at most ``rho = exp(2 logit_range) (1 + E) / (1 - E)``. By the inequality of
    Polya and Szego, ``n ||a||^2 <= kappa = (rho + 1 / rho + 2) / 4``, or n if that is less. So
    the error of a column is at most ``c sqrt(kappa n) B``, with c the
    `GaussianSketch.error_bound` for half of delta, and m2 is the smallest size with ``c
    sqrt(kappa) <= h / 2``. Below kappa = n it does not depend on n; for an absolute error of a
    column it is proportional to n.

    References
    ----------
    "One Pass Streaming Algorithm for Super Long Token Attention Approximation in Sublinear
    Space", arXiv 2311.14652.

    Examples
    --------
    >>> from levsketch.algorithms.attention_plan import plan_attention
    >>> plan = plan_attention(
    ...     10**7, 16, 64, eps1=0.5, eps2=0.05, delta=0.01, logit_range=1.0, sparsity=20
    ... )
    >>> print(plan)
    one-pass attention of n = 10,000,000 rows, d = 16, d_v = 64
    promise  error of a column <= (1 + 0.5) tail_20 + 0.05 sqrt(n) max|v|
             with probability 0.99, while |logits| <= 1
    exp      degree 4, relative error 5.0e-04, 4,845 features
    output   49 hash rows of 1,280 buckets
                                         numbers    memory
    keys and values                      314,925   2.52 MB
    output                             4,309,056   34.5 MB
    in all                             4,623,981     37 MB
    exact, n (d + d_v)               800,000,000    6.4 GB
    0.00578 of exact: less memory than keeping keys and values
    """
    n, d, d_v = check_count("n", n), check_count("d", d), check_count("d_v", d_v)
    k = check_count("sparsity", sparsity)
    if k > n:
        raise ValueError(f"sparsity must be at most n = {n}, got {sparsity!r}.")
    eps1 = check_real("eps1", eps1, low=0.0, high=1.0, open_low=True)
    eps2 = check_real("eps2", eps2, low=0.0, high=1.0, open_low=True)
    delta = check_real("delta", delta, low=0.0, high=1.0, open_low=True)
    if delta == 1.0:
        raise ValueError("delta must be below 1, got 1: a promise that may always fail is none.")
    reach = check_real("logit_range", logit_range, low=0.0, high=_WIDEST, open_low=True)
    share = eps2 / (2.0 + eps1) / (1.0 if aligned else 2.0)
    degree, error = _degree(reach, share / (1.0 + share))
    failure = delta if aligned else delta / 2.0
    sketch = CountSketch.for_recovery(k, (2.0 * eps1 + eps1**2) / 10.0, n, failure, seed=0)
    psi_size = 0 if aligned else _psi_size(n, reach, error, share, failure)
    return AttentionPlan(
        n, d, d_v, eps1, eps2, delta, reach, k, bool(aligned), degree, error,
        math.comb(d + degree, degree), sketch.depth, sketch.width, psi_size,
    )  # fmt: skip


def _degree(reach: float, allowed: float) -> tuple[int, float]:
    """Return the smallest even degree whose error is at most ``allowed``, and that error."""
    error = math.inf
    for degree in _DEGREES:
        error = exp_polynomial(degree, reach)[1]
        if error <= allowed:
            return degree, error
    raise ValueError(
        f"logit_range={reach:g} with this eps2 needs a polynomial within {allowed:.2g} of exp, "
        f"relatively; degree {_DEGREES[-1]} is within {error:.2g}, and moments of higher degrees "
        "have no digits left. Allow a larger eps2 or smaller logits."
    )


def _psi_size(n: int, reach: float, error: float, share: float, failure: float) -> int:
    """Return how many rows of Psi keep the error of a column within ``share sqrt(n) B``."""
    rho = math.exp(2.0 * reach) * (1.0 + error) / (1.0 - error)
    allowed = share / math.sqrt(min((rho + 1.0 / rho + 2.0) / 4.0, n))

    low, high = 1, math.ceil(2.0 / (failure * allowed**2))  # enough by Markov's inequality
    while low < high:
        middle = (low + high) // 2
        if GaussianSketch(middle, seed=0).error_bound(failure) <= allowed:
            high = middle
        else:
            low = middle + 1
    return low


def _size(count: int) -> str:
    """Return a number of bytes as people read it."""
    power = 0
    while count >= 1000 ** (power + 1) and power < len(_UNITS) - 1:
        power += 1
    return f"{count / 1000**power:.3g} {_UNITS[power]}"
