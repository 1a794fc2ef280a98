"""LpSensitivitySelector: the keys that can matter to some query, for f = |x|^p and beyond."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import scipy.sparse
from sklearn.utils._param_validation import Interval, StrOptions

from levsketch._checks import (
    UNSOUND_TEXT,
    CertificationWarning,
    LevsketchStateError,
    check_finite,
    check_memory_size,
    most_keys,
    not_reduced_text,
    warn_caller,
)
from levsketch._typing import ArrayLike, Rows
from levsketch.algorithms.heavy import sparse_entries
from levsketch.algorithms.inputs import warn_uncertified
from levsketch.algorithms.lp_scores import lp_scores
from levsketch.algorithms.lp_streams import decided, refined_stream, witnesses
from levsketch.backends import backend_for
from levsketch.backends.cpu import serial_blas
from levsketch.backends.interchange import like, result_dtype, rounded_up
from levsketch.functions import ScoreFunction, make_function
from levsketch.streaming import lp_keys_io
from levsketch.streaming.lp_keys import LpStream
from levsketch.streaming.lp_policy import LpPolicy

from ._key_selector import KeySelector


class LpSensitivitySelector(KeySelector):
    """Select the keys that some query can give a score >= eps, for ``f(x) = |x|^p``.

    The largest value of ``A_j(q) = f(<q, k_j>) / sum_l f(<q, k_l>)`` over all queries is the
    sensitivity of key j. Every key whose sensitivity may reach eps is selected, by
    certified upper bounds: the set holds every score >= eps of every query. For
    p <= 2 it has about d / eps keys at most, for p > 2 about d^(p/2) / eps. With
    ``refine=True`` the bounds that cannot decide are replaced by exact sensitivities.

    ``fit`` learns the keys; ``transform`` maps queries to their scores against the selected
    ones.

    Parameters
    ----------
    p : float > 0, default=4.0
        Exponent of ``f(x) = |x|^p``.
    eps : float in (0, 1], default=0.05
        Threshold on the scores.
    function : ScoreFunction or its name, optional
        Another f of at most quadratic growth ("huber", "tukey", or your own: see the how-to
        page); ``p`` is then not used.
    bound : {"auto", "weights"}, default="auto"
        Which certificates rule keys out: all there are, or only those of the weighted d x d
        factor, without the lift.
    refine : bool, default=False
        Decide the keys whose bounds do not, by convex optimisation: the set is then exactly
        the universal one (p >= 1). For even p with a lift from the state alone, at the first
        look after any ``partial_fit`` or ``merge``. For other p from all keys, in ``fit``; after
        more rows the set is the certified one again, and upper bounds found still count.
    delta : float in (0, 1], default=0.1
        Relative accuracy of normalisers that are estimated (``normaliser_ == "sample"``).
    failure_probability : float in (0, 1), default=0.01
        Chance, for any one query, that the estimate is off by more than ``delta``; with
        ``normaliser="tensorsketch"`` that its stated bound fails.
    normaliser : {"auto", "lift", "sample", "tensorsketch"} or None, default="auto"
        How ``sum_l f(<q, k_l>)`` is known after the keys are gone. "lift": exactly, from a
        factor of lifted keys with D = C(d + p/2 - 1, p/2) columns (even p). "sample": within
        1 +- delta, from an importance sample of the keys. "tensorsketch": from a factor of
        sketched lifted keys (even p), with an additive error. None: not at all, when only
        the set is wanted. "auto" lifts for even p where D <= 1000, and samples elsewhere.
    sketch_size : int, default=1024
        Columns of a TensorSketch.
    max_memory : str or int, default="1GiB"
        What the kept keys, or the factor of lifted keys, may take: a number of bytes or a
        size such as "500MB". More is refused, with an estimate, before it is allocated.
    n_keys : int, optional
        A budget instead of a threshold: the ``n_keys`` keys with the largest bounds.
        ``certified_`` is then True only if known sensitivities prove these to be the top.
    min_keys : int, default=1
        Top the set up with the best keys when fewer may reach eps.
    random_state : int, default=0
        Seed of the importance sample and of the TensorSketch. A number, because streams and
        merges must agree on it.

    Attributes
    ----------
    indices_, keys_ : (m,) int64 and (m, d) arrays
        Row numbers of the selected keys in the stream, ascending, and the keys, in the real
        dtype of the input (bfloat16: float32).
    sensitivity_bounds_ : (m,) float64 array
        Certified upper bounds on their sensitivities.
    sensitivity_intervals_ : (m, 2) float64 array
        Certified intervals; the lower end is 0 where nothing was refined.
    scores_, guard_ : (m,) float64 arrays
        What is known best (attained values, else upper bounds), and the bounds above it.
    certified_ : bool
        Whether no key is missing, provably.
    exact_ : bool
        Whether the set is exactly the universal one: every key in it is known to reach eps.
    unselected_bound_ : float
        No key outside the set has a sensitivity above this.
    normaliser_ : {"lift", "sample", "tensorsketch", "none"}
        How normalisers are known.
    sample_size_ : int
        Rows in the importance sample, 0 if there is none.
    condition_number_ : float
        Of the weighted keys after scaling columns to unit norm, up to a factor sqrt(d).
    n_samples_seen_, n_features_in_, nbytes_ : int
        Rows seen, columns, bytes of the state.

    See Also
    --------
    LeverageKeySelector : p = 2, exact throughout, with an intercept and a ridge.
    sensitivity_bounds, sensitivities : Bounds, and exact values, of chosen rows.

    Notes
    -----
    Rows enter a d x d factor with weights that are fixed when they arrive (Lewis weights
    against the rows before them). Bounds proved for some of the rows hold for ever, because
    a sensitivity never rises when rows are appended; a row is dropped once one is below eps.
    Raw Lewis weights with p > 2 may rise, and are never used. Time: about one leverage pass,
    2 n d^2 flops, and n D^2 more with a lift. Memory O(d^2 + D^2 + d (m + s)) for m keys
    that may reach eps and a sample of s = O(d^max(1, p/2) / delta^2) rows, whatever n. Any
    batching gives the same bytes; merging in another order may give another superset of
    the same universal set. The promise ``1 +- delta`` is for independent random numbers:
    equal rows at equal places of two merged streams share theirs, and err together.

    References
    ----------
    .. [1] Kannan, Bhattacharyya, Kacham, Woodruff, "LevAttention", ICLR 2025,
       arXiv 2410.05462.
    .. [2] Cohen, Peng, "lp row sampling by Lewis weights", STOC 2015.
    .. [3] Woodruff, Yasuda, "Online Lewis weight sampling", 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch import LpSensitivitySelector
    >>> rng = np.random.default_rng(0)
    >>> K = rng.standard_normal((5000, 4))
    >>> K[700] *= 8
    >>> selector = LpSensitivitySelector(p=4, eps=0.1)
    >>> for block in np.split(K, 10):
    ...     selector = selector.partial_fit(block)
    >>> selector.indices_
    array([700])
    >>> selector.normaliser_
    'lift'
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "p": [Interval(Real, 0, None, closed="neither")],
        "eps": [Interval(Real, 0, 1, closed="right")],
        "function": [str, ScoreFunction, list, tuple, None],
        "bound": [StrOptions({"auto", "weights"})],
        "refine": ["boolean"],
        "delta": [Interval(Real, 0, 1, closed="right")],
        "failure_probability": [Interval(Real, 0, 1, closed="neither")],
        "normaliser": [StrOptions({"auto", "lift", "sample", "tensorsketch"}), None],
        "sketch_size": [Interval(Integral, 1, None, closed="left")],
        "max_memory": [Interval(Integral, 1, None, closed="left"), str],
        "n_keys": [Interval(Integral, 1, None, closed="left"), None],
        "min_keys": [Interval(Integral, 0, None, closed="left")],
        "random_state": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        p: float = 4.0,
        eps: float = 0.05,
        *,
        function: ScoreFunction | str | None = None,
        bound: str = "auto",
        refine: bool = False,
        delta: float = 0.1,
        failure_probability: float = 0.01,
        normaliser: str | None = "auto",
        sketch_size: int = 1024,
        max_memory: str | int = "1GiB",
        n_keys: int | None = None,
        min_keys: int = 1,
        random_state: int = 0,
    ) -> None:
        self.p = p
        self.eps = eps
        self.function = function
        self.bound = bound
        self.refine = refine
        self.delta = delta
        self.failure_probability = failure_probability
        self.normaliser = normaliser
        self.sketch_size = sketch_size
        self.max_memory = max_memory
        self.n_keys = n_keys
        self.min_keys = min_keys
        self.random_state = random_state

    # -- what was selected

    @property
    def sensitivity_bounds_(self) -> Any:
        """Certified upper bounds (m,) on the sensitivities of the selected keys."""
        return self._out(self._chosen("upper"))

    @property
    def sensitivity_intervals_(self) -> Any:
        """Certified intervals (m, 2) of these sensitivities; from 0 where not refined."""
        return self._out(np.stack([self._chosen("lower"), self._chosen("upper")], axis=1))

    @property
    def exact_(self) -> bool:
        """Whether every selected key is known to reach eps, and no key is missing."""
        return self.certified_ and bool((self._chosen("lower") >= self._stream.policy.eps).all())

    @property
    def normaliser_(self) -> str:
        """How normalisers are known: "lift", "sample", "tensorsketch" or "none"."""
        return str(self._fitted_stream().normaliser)

    @property
    def sample_size_(self) -> int:
        """Number of rows in the importance sample."""
        return int((self._selected().sample > 0).sum())

    def witness_queries(self) -> Any:
        """Return, for each selected key, a query that gives it much of its sensitivity.

        Returns
        -------
        (m, d) float64 array
            Where the key was refined, the query that attains the lower end of its
            interval up to rounding; else the best for the weighted squares.
        """
        found = self._selected()
        return self._out(witnesses(decided(self._stream), found))

    # -- queries

    def transform(self, X: ArrayLike) -> Any:
        """Return the attention scores of queries against the selected keys.

        Parameters
        ----------
        X : array (n_queries, d)
            Queries.

        Returns
        -------
        (n_queries, m) array
            ``f(<q, k_j>) / sum_l f(<q, k_l>)``, the sum over all keys seen: exact to rounding
            if ``normaliser_`` is "lift" (a warning counts the queries for which that is too
            much), within ``1 +- delta`` but for a chance of ``failure_probability`` a query
            if "sample". In the library of ``X``, float32 if X has at most 32 bits. Zeros for
            the zero query, and for queries orthogonal to all keys.

        Raises
        ------
        LevsketchStateError
            With ``normaliser=None``.

        Notes
        -----
        O(d m + D^2) a query for a lift of D columns, O(d (m + s)) for a sample of s rows.
        """
        Q, dtype = self._queries(X)
        found = self._answering()
        with serial_blas():
            scores, _ = lp_scores(found, self._stream.policy.score_function, found.selected, Q)
        return like(scores.astype(dtype, copy=False), X)

    def heavy_scores(self, X: ArrayLike) -> scipy.sparse.csr_array:
        """Return every attention score >= eps of queries, over all keys seen.

        Parameters
        ----------
        X : array (n_queries, d)
            Queries.

        Returns
        -------
        scipy.sparse.csr_array (n_queries, n_samples_seen_)
            With an exact normaliser: every entry >= eps, and no other but those below it by
            less than their rounding. With an estimated one: every entry whose estimate is
            at least ``eps / (1 + delta)``, which misses none but with the chance
            ``failure_probability`` a query.
        """
        Q, dtype = self._queries(X)
        found, policy = self._answering(), self._stream.policy
        eps = policy.eps
        if self.normaliser_ == "sample":
            eps /= 1.0 + policy.delta
        return sparse_entries(
            lambda part: lp_scores(found, policy.score_function, found.universal, part),
            found.index[found.universal],
            Q,
            eps,
            (len(Q), self._stream.n_seen),
            dtype,
        )

    def score_samples(self, X: ArrayLike) -> Any:
        """Return bounds on ``sup_q f(<q, x>) / sum_l f(<q, k_l>)`` for the rows of ``X``.

        Parameters
        ----------
        X : array (n, d)

        Returns
        -------
        (n,) array
            Certified upper bounds by the weighted factor: at least the sensitivity of a row
            that was seen; for a new row, u means a sensitivity of at most u / (1 + u) once
            it is added. Infinite for a row outside the row space of the keys, which is
            decided exactly. In the library of ``X``, float32 if X has at most 32 bits.
        """
        found = self._selected()
        rows = self._validated(self, X, reset=False)
        check_finite(rows)
        backend = backend_for(rows)
        with serial_blas():
            bounds = found.weighted.sums_of(backend, backend.rows(rows))
        return like(rounded_up(bounds, result_dtype(rows.dtype)), X)

    # -- inside

    def _answering(self) -> Any:
        if self.normaliser_ == "none":
            raise LevsketchStateError(
                "normaliser=None keeps nothing from which scores could be computed; "
                "fit with another normaliser."
            )
        return self._selected()

    @staticmethod
    def _checked_selection(stream: LpStream) -> Any:
        """Return the selection of a stream; on the first look, warn if it is not proved."""
        known = "selection" in stream.__dict__
        found = stream.selection
        if not known and not found.whitening.certified:
            warn_uncertified(found.whitening)
        elif not known and not (found.weighted.certified and found.pool.sound):
            warn_caller(UNSOUND_TEXT, CertificationWarning)
        return found

    def _selected(self) -> Any:
        stream = self._fitted_stream()
        self._checked_selection(stream)
        return decided(stream).selection

    def _announce(self, stream: LpStream, *, fresh: bool) -> None:
        d, p = stream.d, self.p if self.function is None else 2.0
        if fresh and self.n_keys is None and most_keys(d, self.eps, p) >= stream.n_seen:
            warn_caller(not_reduced_text(d, self.eps, stream.n_seen, p))
        super()._announce(stream, fresh=fresh)

    def _policy(self) -> LpPolicy:
        spec = None if self.function is None else make_function(self.function).spec()
        policy = LpPolicy(
            p=float(self.p),
            eps=float(self.eps),
            function=spec,
            bound=str(self.bound),
            refine=bool(self.refine),
            delta=float(self.delta),
            failure_probability=float(self.failure_probability),
            normaliser=self.normaliser,
            sketch_size=int(self.sketch_size),
            max_memory=check_memory_size("max_memory", self.max_memory),
            n_keys=None if self.n_keys is None else int(self.n_keys),
            min_keys=int(self.min_keys),
            random_state=int(self.random_state),
        )
        policy.check()
        return policy

    def _empty_stream(self, policy: LpPolicy, X: Rows) -> LpStream:
        return LpStream.empty(policy, X.shape[1])

    def _updated(self, stream: LpStream, X: Rows) -> LpStream:
        return stream.update(backend_for(X), X)

    def _finished(self, stream: LpStream, X: Rows) -> LpStream:
        return refined_stream(backend_for(X), stream, X) if self.refine else stream

    def _merged(self, mine: LpStream, other: LpStream) -> LpStream:
        return mine.merge(backend_for(None), other)

    def _stream_arrays(self, stream: LpStream) -> tuple[dict[str, Any], dict[str, Any]]:
        return lp_keys_io.to_arrays(stream)

    @classmethod
    def _stream_from(cls, meta: Any, arrays: Any) -> LpStream:
        return lp_keys_io.from_arrays(meta, arrays)
