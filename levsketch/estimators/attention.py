"""StreamingAttentionSketch: softmax attention over a stream, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, RegressorMixin, TransformerMixin
from sklearn.utils._param_validation import Interval, StrOptions

from levsketch._typing import ArrayLike
from levsketch.algorithms.recovery import Recovery, recover_columns
from levsketch.backends.interchange import like
from levsketch.sketches.countsketch import CountSketch
from levsketch.streaming.attention import probe_error
from levsketch.streaming.output_sketch import OutputSketch
from levsketch.streaming.polynomial import PolynomialStream

from ._attention_base import AttentionEstimator, engine_of, kept_rows
from ._attention_input import Batch

# Recovery for outputs of up to this many rows; hash rows grow with its logarithm.
_MOST_QUERIES = 2**40


class StreamingAttentionSketch(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    RegressorMixin,  # type: ignore[misc]
    AttentionEstimator,
):
    """Answer softmax attention over all keys and values seen, from a fixed number of floats.

    ``fit`` reads keys K and values V once. ``transform`` maps queries to
    ``sum_j exp(s <q, k_j>) v_j / sum_j exp(s <q, k_j>)``, approximately, with a certified bound
    on the error of each. While the budget holds all rows the answer is exact.

    Parameters
    ----------
    n_keys : int, default=256
        The budget: as many numbers as ``n_keys`` keys and values have, ``n_keys (d + d_v)``.
    scale : "sqrt_d" or float in (0, 1e100], default="sqrt_d"
        The factor s of the logits; ``1 / sqrt(d)`` by default.
    residual : {"auto", "embedding", "closure", "polynomial"}, default="auto"
        How keys that are not kept are remembered (Notes). "auto" tries all that fit on the
        first eight blocks and keeps the one with the smallest error on probe queries.
    function : "softmax" or even int, default="softmax"
        With a number p: attention with f(x) = x^p in place of exp, *exact* for any
        number of rows, from ``C(d + p - 1, p) (d_v + 1)`` moments.
    degree : even int >= 2, default=2
        Degree of the polynomial features, if ``sketch`` is given.
    sketch : {None, "exact", "ams", "gaussian", "countsketch"}, default=None
        The regime of arXiv 2311.14652: polynomial features of exp. "exact" sums features times
        values, which arrive together. The others sketch both over the rows, so that keys
        and values may come in streams of their own (`partial_fit_keys`, `partial_fit_values`).
    sketch_size : int, default=1024
        Rows of that sketch.
    sparsity : int, default=32
        Entries that `recover` looks for in each column, unless told.
    decay : float in (0, 1], default=1
        A row counts ``decay**age``, with the age in rows.
    max_memory : int or str, optional
        A budget in bytes ("1MB") in place of ``n_keys``; with ``sketch`` or a power, the
        most that moments may take (1 GiB by default).
    random_state : int, default=0
        Seed of the probes and of the sketches.

    Attributes
    ----------
    residual_ : {"exact", "embedding", "closure", "polynomial", "moments", "sketched moments"}
        What answers queries now.
    indices_ : (m,) int64 array
        Row numbers of the keys that are kept as they are.
    probe_error_ : float
        Relative Frobenius error on probe queries, whose exact outputs are kept along the
        stream: measured, an estimate, no bound. nan if there are none.
    n_samples_seen_, n_features_in_, n_outputs_ : int
        Rows seen, columns d of keys and d_v of values.
    nbytes_ : int
        Bytes of the state, with the rows that do not fill a block yet.

    See Also
    --------
    attention : The exact output, all keys at hand.
    LeverageKeySelector : The keys that can matter.

    Notes
    -----
    *Embedding.* With queries of a normal law, the functions ``q -> exp(<q, k>)`` of all keys
    are projected, in the mean square weighted by the inverse normaliser, on the span of a few
    landmarks and of linear functions: a kernel mean embedding, compressed after each block by
    orthogonal matching pursuit. The law is that of ``queries``, if they are given to `fit`; it
    matters (without them, errors on heads of a trained encoder were about twice as large).
    *Closure.* The keys of largest leverage are kept, and the others answer as if keys and
    values were jointly normal. *Polynomial.* The same keys, and for the others exp is the
    parabola that suits the logits of the query, by moments of second degree, ``(d + 1)(d + 2) /
    2 (d_v + 1)`` numbers. All are compared, with a dozen other methods, in the guide.

    The budget is for all that answers queries, is needed to go on, or measures the error,
    except sample queries (``d^2 + 65 d``) and the last rows that do not fill a block of
    ``max(512, n_keys)``; for eight blocks, "auto" holds up to four models. Any batching of the
    rows gives the same bytes; merging is a sum, and approximate like all else.

    References
    ----------
    .. [1] Addanki, Li, Song, Yang, "One Pass Streaming Algorithm for Super Long Token
       Attention Approximation in Sublinear Space", arXiv 2311.14652.
    .. [2] Kannan, Bhattacharyya, Kacham, Woodruff, "LevAttention", ICLR 2025,
       arXiv 2410.05462.

    Examples
    --------
    >>> import numpy as np
    >>> import levsketch as lv
    >>> rng = np.random.default_rng(0)
    >>> K, Q = rng.normal(size=(20000, 8)), rng.normal(size=(5, 8))
    >>> V = np.tanh(K)
    >>> sketch = lv.StreamingAttentionSketch(n_keys=100)
    >>> for keys, values in zip(np.split(K, 10), np.split(V, 10)):
    ...     sketch = sketch.partial_fit(keys, values)
    >>> error = sketch.transform(Q) - lv.attention(Q, K, V)
    >>> bool(np.abs(error).max() < 0.1)
    True
    >>> bool((np.linalg.norm(error, axis=1) <= sketch.error_bound(Q)).all())
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_keys": [Interval(Integral, 1, None, closed="left")],
        "scale": [StrOptions({"sqrt_d"}), Interval(Real, 0, None, closed="neither")],
        "residual": [StrOptions({"auto", "embedding", "closure", "polynomial"})],
        "function": [StrOptions({"softmax"}), Interval(Real, 2, None, closed="left")],
        "degree": [Interval(Integral, 2, None, closed="left")],
        "sketch": [StrOptions({"exact", "ams", "gaussian", "countsketch"}), None],
        "sketch_size": [Interval(Integral, 1, None, closed="left")],
        "sparsity": [Interval(Integral, 1, None, closed="left")],
        "decay": [Interval(Real, 0, 1, closed="right")],
        "max_memory": [Interval(Integral, 1, None, closed="left"), str, None],
        "random_state": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        n_keys: int = 256,
        *,
        scale: str | float = "sqrt_d",
        residual: str = "auto",
        function: str | float = "softmax",
        degree: int = 2,
        sketch: str | None = None,
        sketch_size: int = 1024,
        sparsity: int = 32,
        decay: float = 1.0,
        max_memory: int | str | None = None,
        random_state: int = 0,
    ) -> None:
        self.n_keys = n_keys
        self.scale = scale
        self.residual = residual
        self.function = function
        self.degree = degree
        self.sketch = sketch
        self.sketch_size = sketch_size
        self.sparsity = sparsity
        self.decay = decay
        self.max_memory = max_memory
        self.random_state = random_state

    # -- fitting

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        queries: ArrayLike | None = None,
    ) -> Self:
        """Learn keys and values, forgetting earlier ones.

        Parameters
        ----------
        X : array (n, d)
            Keys.
        y : array (n, d_v) or (n,)
            Values.
        sample_weight : array (n,) or float, optional
            Weights >= 0: a row of weight w counts like w copies of it, of one age.
        queries : array (m, d), optional
            Sample queries: the sketch is then made for their law, and probes are among
            them. They need not be the queries that are asked later, nor many.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For NaN or infinity (with row and column), shapes that do not match, weights that are
            negative or all zero, and parameters out of range. Nothing has changed then.
        """
        return self._absorb(Batch(X, y, sample_weight, queries), fresh=True)

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        queries: ArrayLike | None = None,
    ) -> Self:
        """Learn more keys and values; any batches of the same rows give the same bytes of state.

        Parameters are those of `fit`; ``queries`` only with the first rows.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As `fit`, but for weights that are all zero. No row of the batch is then absorbed.
        LevsketchStateError
            If a parameter changed since the stream began, if queries come late, or if two
            threads are at it.
        OverflowError
            If entries grew by 2**300 since the first block.
        """
        return self._absorb(Batch(X, y, sample_weight, queries), fresh=False)

    def partial_fit_keys(self, X: ArrayLike) -> Self:
        """Learn more keys, ahead of their values: only where both are sketched.

        Parameters
        ----------
        X : array (n, d)

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If ``sketch`` is None or "exact", and as `fit`.
        LevsketchStateError
            Before the first row with its value (`partial_fit`).
        """
        return self._absorb(Batch(X, part="keys"), fresh=False)

    def partial_fit_values(self, y: ArrayLike) -> Self:
        """Learn more values, ahead of their keys: as `partial_fit_keys`.

        Parameters
        ----------
        y : array (n, d_v) or (n,)

        Returns
        -------
        self
        """
        return self._absorb(Batch(None, y, part="values"), fresh=False)

    # -- answers

    def transform(self, X: ArrayLike) -> Any:
        """Return the approximate attention output of each query.

        Parameters
        ----------
        X : array (m, d)
            Queries.

        Returns
        -------
        (m, d_v) array
            In the library of ``X``, float32 if X has at most 32 bits. Inside the box of the
            values, whatever the query, but for rounding.
        """
        return self._answered(X)

    def predict(self, X: ArrayLike) -> Any:
        """Return what `transform` returns, always as an array; (m,) if the values were (n,)."""
        found = self._answered(X)
        return found[:, 0] if self._flat else found

    def covered_mass(self, X: ArrayLike) -> Any:
        """Return, for each query, how much of its attention is surely on keys that are kept.

        Parameters
        ----------
        X : array (m, d)
            Queries.

        Returns
        -------
        (m,) float64 array
            Certified lower bounds in [0, 1]: the part of the softmax mass that is answered
            exactly. 0 where the budget leaves no room for the moments that certify it.
        """
        stream = self._fitted_stream()
        Q, _ = self._queries(stream, X)
        return like(engine_of(stream).covered_mass(stream, Q), X)

    def error_bound(self, X: ArrayLike) -> Any:
        """Return a certified upper bound on ``||output - exact output||_2`` of each query.

        Parameters
        ----------
        X : array (m, d)
            Queries.

        Returns
        -------
        (m,) float64 array
            In units of the values. Never below the error of `transform` in float64; it may be
            far above (`probe_error_` is measured instead). At worst, the distance to the
            farthest corner of the box of the values.
        """
        stream = self._fitted_stream()
        Q, _ = self._queries(stream, X)
        return like(engine_of(stream).error_bound(stream, Q), X)

    def recover(self, Q_blocks: Iterable[ArrayLike] | ArrayLike, k: int | None = None) -> Recovery:
        """Return the n x d_v output as a constant for each column and its largest entries.

        For outputs too large to store: queries stream by once, and their outputs are added to
        a linear sketch, from which each column is recovered as a k-sparse one beside
        a constant. That pays where most queries attend to nothing in particular.

        Parameters
        ----------
        Q_blocks : array (m, d), or an iterable of such
            Queries, in blocks; a generator will do.
        k : int, optional
            Entries that are looked for in each column; ``sparsity`` by default.

        Returns
        -------
        Recovery
            ``entries`` (scipy.sparse.csc_array, at most 2k a column), ``offset``, the estimates
            ``tail`` of what is lost and ``norm`` of what the constant alone loses; ``explain()``
            says in a sentence whether it paid.
        """
        stream = self._fitted_stream()
        k = self.sparsity if k is None else k
        shape = CountSketch.for_recovery(k, 0.125, _MOST_QUERIES, 0.01, seed=0)
        sketch = OutputSketch.make(
            stream.n_outputs, depth=shape.depth, width=shape.width, seed=int(self.random_state)
        )
        for outputs in self._output_blocks(stream, Q_blocks):
            sketch = sketch.update(outputs)
        idle, _ = self._outputs(stream, np.zeros((1, stream.n_features)))
        return recover_columns(sketch, k, [idle[0]])

    # -- what is remembered

    @property
    def residual_(self) -> str:
        """What answers queries: all rows, or the model of those that are not kept."""
        stream = self._fitted_stream()
        if isinstance(stream, PolynomialStream):
            if stream.policy.softmax and stream.memory.frame is None:
                return "exact"
            return "moments" if stream.policy.aligned else "sketched moments"
        model = stream.best
        return "exact" if model is None or model.answers_exactly else model.kind

    @property
    def indices_(self) -> Any:
        """Row numbers of the keys that are kept as they are, ascending."""
        return self._out(kept_rows(self._fitted_stream()))

    @property
    def probe_error_(self) -> float:
        """Relative Frobenius error on the probe queries, over all whole blocks."""
        stream = self._fitted_stream()
        if isinstance(stream, PolynomialStream):
            return float("nan")
        return 0.0 if stream.best is None else probe_error(stream.best, stream.probes)

    @property
    def n_outputs_(self) -> int:
        """Number of columns of the values."""
        return int(self._fitted_stream().n_outputs)

    @property
    def _n_features_out(self) -> int:
        return self.n_outputs_

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags: several outputs, float32 and float64 kept."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.target_tags.multi_output = True
        tags.regressor_tags.poor_score = True
        return tags
