"""LeverageKeySelector: the keys that can matter to some query, from one pass."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import scipy.sparse
from sklearn.utils._param_validation import Interval, StrOptions

from levsketch._checks import check_finite, not_reduced_text, warn_caller
from levsketch._typing import ArrayLike, Rows
from levsketch.algorithms.heavy import attention_scores, heavy_entries, query_step, witnesses
from levsketch.algorithms.leverage import score_rows
from levsketch.backends import backend_for
from levsketch.backends.cpu import serial_blas
from levsketch.backends.interchange import like, result_dtype, stored_rows
from levsketch.backends.stored import StoredRows
from levsketch.streaming import keys_io
from levsketch.streaming.factor import with_intercept
from levsketch.streaming.keys import KeyStream, Policy

from ._key_selector import KeySelector


class LeverageKeySelector(KeySelector):
    """Select the keys that some query can give an attention score >= eps.

    For the scores ``A_j(q) = <q, k_j>^2 / sum_l <q, k_l>^2`` the largest value over
    all queries is the leverage score of key j. The keys with a leverage score
    >= eps are therefore a universal set: they hold every score >= eps of every
    query. There are at most d / eps of them, and one pass finds them exactly.

    ``fit`` learns the keys; ``transform`` maps queries to their scores against
    the selected ones.

    Parameters
    ----------
    eps : float in (0, 1], default=0.05
        Threshold on the scores.
    n_keys : int, optional
        A budget instead of a threshold: select the ``n_keys`` keys with the largest
        scores; ``certified_`` tells whether the stream proves them to be the largest.
    min_keys : int, default=1
        Top the set up with the best keys when fewer reach eps, so that ``transform``
        is not empty (``scores_`` shows which those are).
    intercept : bool, default=False
        Use affine leverage, of the rows ``[1, k_j]``: invariant to shifting all keys,
        as softmax is. Queries of ``transform`` have no intercept (b = 0).
    ridge : float >= 0, default=0
        Added to the normaliser as ``ridge * ||q||^2`` (units of a key squared), in
        the scores and in ``transform`` alike.
    decay, window, order :
        Reserved; this version accepts 1.0, None and "exact" only.

    Attributes
    ----------
    indices_ : (m,) int64 array
        Row numbers of the selected keys in the stream, ascending.
    keys_ : (m, d) array
        The selected keys, in the real dtype of the input (bfloat16: float32).
    scores_ : (m,) float64 array
        Their leverage scores against all rows seen.
    guard_ : (m,) float64 array
        Bounds on how far the true scores may lie above ``scores_``.
    certified_ : bool
        Whether float64 proves that no key is missing (with ``n_keys``: that the
        selected keys are the top ones).
    unselected_bound_ : float
        No key outside the set can have a score above this: the set is universal
        for every larger eps.
    condition_number_ : float
        Of the keys after scaling columns to unit norm, up to a factor sqrt(d).
    method_ : {"gram", "qr", "gram+qr"}
        What the blocks of rows left behind: Gram matrices where their rounding is
        proved harmless, R factors otherwise.
    n_samples_seen_ : int
        Number of rows seen.
    n_features_in_ : int
        Number of columns d.
    nbytes_ : int
        Bytes of the state.

    See Also
    --------
    leverage_scores : The scores of all rows, in two passes.
    universal_set : The set alone, for stacks of problems.

    Notes
    -----
    Time O(n d^2): 2 n d^2 flops where Gram matrices are certified. Memory
    O(d^2 + d (d / eps + block)) for any n (one d x d matrix for each binary digit of the
    number of blocks): a row is dropped for good once its score
    in a prefix is below eps, which is exact because scores never rise when rows are
    appended. float16 and bfloat16 keys are read as they are, two bytes a number. Any
    batching of the rows, and any number of threads, leave the same bytes of state. A key
    is kept when its computed score is within the error bound of eps: none is missed, at the
    price of rare extra ones.

    Keys and queries may be scipy.sparse (CSR; other formats are converted to it). They are made
    dense a block at a time, if at all: where Gram matrices are certified a key with k nonzeros
    costs O(k^2 + k d). Scores and bytes of state may differ in their rounding from those of the
    same keys as an array, the certificates hold for both.

    References
    ----------
    .. [1] Kannan, Bhattacharyya, Kacham, Woodruff, "LevAttention: Time, Space, and
       Streaming Efficient Algorithm for Heavy Attentions", ICLR 2025,
       arXiv 2410.05462.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch import LeverageKeySelector
    >>> K = np.ones((1000, 2))
    >>> K[700] = [1.0, -1.0]
    >>> selector = LeverageKeySelector(eps=0.05)
    >>> for block in np.split(K, 10):
    ...     selector = selector.partial_fit(block)
    >>> selector.indices_
    array([700])
    >>> selector.scores_.round(3)
    array([1.])
    >>> selector.transform([[1.0, 0.0]])  # this query spreads over all keys
    array([[0.001]])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "eps": [Interval(Real, 0, 1, closed="right")],
        "n_keys": [Interval(Integral, 1, None, closed="left"), None],
        "min_keys": [Interval(Integral, 0, None, closed="left")],
        "intercept": ["boolean"],
        "ridge": [Interval(Real, 0, None, closed="left")],
        "decay": [Interval(Real, 0, 1, closed="right")],
        "window": [Interval(Integral, 1, None, closed="left"), None],
        "order": [StrOptions({"exact", "causal"})],
    }

    def __init__(
        self,
        eps: float = 0.05,
        *,
        n_keys: int | None = None,
        min_keys: int = 1,
        intercept: bool = False,
        ridge: float = 0.0,
        decay: float = 1.0,
        window: int | None = None,
        order: str = "exact",
    ) -> None:
        self.eps = eps
        self.n_keys = n_keys
        self.min_keys = min_keys
        self.intercept = intercept
        self.ridge = ridge
        self.decay = decay
        self.window = window
        self.order = order

    # -- what was selected

    @property
    def method_(self) -> str:
        """Which way the blocks of rows went: "gram", "qr" or "gram+qr"."""
        stream = self._fitted_stream()
        by_qr = bool(stream.factor.factors) or len(stream.pending) > 0
        return "+".join(["gram"] * bool(stream.factor.grams) + ["qr"] * by_qr)

    def witness_queries(self) -> Any:
        """Return, for each selected key, the query for which it attains its score.

        Returns
        -------
        (m, d) float64 array
            Rows ``G^+ k_j``, so that ``<q_j, k_j>`` is the score (multiplied by a power of
            two where they would overflow: scores do not depend on length);
            (m, d + 1) with ``intercept=True``, the weight of the intercept last.
        """
        found = self._selected()
        queries = witnesses(found.whitening, found.rows[self._selected().selected])
        return self._out(np.roll(queries, -1, axis=1) if self.intercept else queries)

    # -- queries

    def transform(self, X: ArrayLike) -> Any:
        """Return the attention scores of queries against the selected keys, exactly.

        Parameters
        ----------
        X : array (n_queries, d), or scipy.sparse
            Queries.

        Returns
        -------
        (n_queries, m) array
            ``<q, k_j>^2 / (sum_l <q, k_l>^2 + ridge ||q||^2)``, the sum over all keys
            seen; in the library of ``X``, float32 if X has at most 32 bits. The zero
            query, and queries orthogonal to all keys, give zeros.

        Notes
        -----
        O(d (d + m)) a query, independent of the number of keys seen.
        """
        Q, dtype = self._queries(X)
        found, mask = self._selected(), self._selected().selected
        keys, upper = found.rows[mask], found.upper[mask]
        step = query_step(Q, len(keys)) if isinstance(Q, StoredRows) else max(1, len(Q))
        out = np.empty((len(Q), len(keys)), dtype)
        for i in range(0, len(Q), step):
            with serial_blas():
                out[i : i + step] = attention_scores(
                    found.whitening, found.space, keys, upper, Q[i : i + step]
                )[0]
        return like(out, X)

    def heavy_scores(self, X: ArrayLike) -> scipy.sparse.csr_array:
        """Return exactly the attention scores >= eps of queries, over all keys seen.

        Parameters
        ----------
        X : array (n_queries, d), or scipy.sparse
            Queries.

        Returns
        -------
        scipy.sparse.csr_array (n_queries, n_samples_seen_)
            Every entry >= eps, whatever ``n_keys`` and ``min_keys``, and no other but
            those that are below eps by less than their rounding error.
        """
        Q, dtype = self._queries(X)
        return heavy_entries(
            self._selected(), Q, self._stream.policy.eps, self._stream.n_seen, dtype
        )

    def score_samples(self, X: ArrayLike) -> Any:
        """Return the leverage of the rows of ``X`` against the rows seen.

        Parameters
        ----------
        X : array (n, d), or scipy.sparse

        Returns
        -------
        (n,) array
            ``x^T (K^T K + ridge I)^+ x``: for a row that was seen, its score; infinite
            for a row outside the row space of the keys, which is decided exactly.
            In the library of ``X``, float32 if X has at most 32 bits.
        """
        stream, found = self._fitted_stream(), self._selected()
        rows = self._taken(self, X, reset=False)
        check_finite(rows)
        out, intercept = np.empty(len(rows), result_dtype(rows.dtype)), stream.policy.intercept
        with serial_blas():
            score_rows(backend_for(rows), found.whitening, rows, intercept, out)
        step = stream.block_rows
        for i in range(0, len(rows) if found.space.rank < stream.d else 0, step):
            part = with_intercept(rows[i : i + step], intercept)
            out[i : i + step][found.space.outside(part)] = np.inf
        return like(out, X)

    # -- inside

    _takes_sparse = True

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags: those of every key selector, and sparse input."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _announce(self, stream: KeyStream, *, fresh: bool) -> None:
        if fresh and self.n_keys is None and stream.d / self.eps >= stream.n_seen:
            warn_caller(not_reduced_text(stream.d, self.eps, stream.n_seen))
        super()._announce(stream, fresh=fresh)

    def _policy(self) -> Policy:
        for name, only in (("decay", 1.0), ("window", None), ("order", "exact")):
            if getattr(self, name) != only:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not available in this version; "
                    f"only {name}={only!r} is."
                )
        return Policy(
            eps=float(self.eps),
            n_keys=None if self.n_keys is None else int(self.n_keys),
            min_keys=int(self.min_keys),
            intercept=bool(self.intercept),
            ridge=float(self.ridge),
        )

    def _taken(self, target: Any, X: ArrayLike, *, reset: bool, min_rows: int = 0) -> Any:
        rows = stored_rows(X)
        if rows is None or rows.ndim != 2:
            return super()._taken(target, X, reset=reset, min_rows=min_rows)
        # scikit-learn looks at zeros of that shape, which take the memory of one
        zeros = np.broadcast_to(np.float32(0.0), rows.shape)
        self._validated(target, zeros, reset=reset, min_rows=min_rows)
        return rows

    def _empty_stream(self, policy: Policy, X: Rows) -> KeyStream:
        return KeyStream.empty(policy, X.shape[1])

    def _updated(self, stream: KeyStream, X: Rows) -> KeyStream:
        return stream.update(backend_for(X), X)

    def _merged(self, mine: KeyStream, other: KeyStream) -> KeyStream:
        return mine.merge(backend_for(None), other)

    def _stream_arrays(self, stream: KeyStream) -> tuple[dict[str, Any], dict[str, Any]]:
        return keys_io.to_arrays(stream)

    @classmethod
    def _stream_from(cls, meta: Any, arrays: Any) -> KeyStream:
        return keys_io.from_arrays(meta, arrays)
