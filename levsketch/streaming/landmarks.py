"""Keys and values of a stream by a fixed number of weighted landmarks and a linear trend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse

from levsketch._typing import BoolArray, FloatArray, IntArray
from levsketch.functions.softmax import softmax_sums

from .landmark_choice import KernelMatrix, chosen, emphasis, products, projected
from .query_law import QueryLaw, RemainderKernel

# Keys with ||x||^2 / 2 beyond this, or |t| beyond four times it, are too far out for the law: the
# norms of their functions, exp(t + ||x||^2), are those of queries that hardly exist, and dwarf all
# others. On 18 heads of a trained encoder, 8, 16 and 40 gave the same bytes, and 4 errors 1 %
# larger. With 40, errors were up to 40 times as large for keys with the tails of Student's t(3)
# (0.85 against 0.02), and 25 times for keys that grow tenfold along the stream.
_FAR, _TILTED = 8.0, 32.0
# Fresh rows make the law if they are this many for each column.
_FEWEST_ROWS = 4
# The law is made narrower by this factor at most, and twice at most: else keys whose weight is
# next to nothing would take the shape of all others from it.
_NARROWEST = 1e-6
# Exponents of inner products with keys that are not too far out are below this.
_LARGEST = 320.0


@dataclass(frozen=True, eq=False)
class Landmarks:
    """The c functions ``F(q) = sum_j exp(<q, k_j>) b_j`` of a stream, in fixed memory.

    With ``b_j = w_j [v_j, 1]`` they are the numerators and the normaliser of softmax attention.
    They are held as ``a + q A + sum_i exp(<q, x_i>) b_i`` with at most ``size`` landmarks x_i.
    While there is room, landmarks are the keys themselves, and F is exact. Else the functions of
    all keys held are projected, in the mean square under a law of queries, on the span of
    constants, linear functions and chosen landmarks: a kernel mean embedding.

    Attributes
    ----------
    queries : (mean, covariance) or None
        Of the queries that are expected, if anything is known of them.
    size : int
        Landmarks that are kept, at most.
    order : int
        1 for a linear trend, 0 for a constant.
    keys : (m, d) array
        Relative to a centre that does not change.
    weights : (m, c) array
    constant, slope : (c,) and (d, c) arrays
        The trend.

    Notes
    -----
    Landmarks are chosen by orthogonal matching pursuit, then moved once to the mean of the keys
    that are nearest to them where that explains more (a step of k-means). Cost of a compression
    of n keys: O(n^2 d + n size (size + c)). Everything is linear in F: streams are merged
    by adding them up.

    Examples
    --------
    >>> import numpy as np
    >>> keys = np.linspace(-1.0, 1.0, 1000)[:, None]
    >>> held = Landmarks.empty(None, 4, order=1, d=1, columns=1).add(keys, np.ones((1000, 1)))
    >>> shift, sums = held.compressed().sums(np.array([[1.0]]))
    >>> bool(abs(sums[0, 0] * np.exp(shift[0]) / np.exp(keys).sum() - 1) < 1e-3)
    True
    """

    queries: tuple[FloatArray, FloatArray] | None
    size: int
    order: int
    keys: FloatArray
    weights: FloatArray
    constant: FloatArray
    slope: FloatArray

    @classmethod
    def empty(
        cls,
        queries: tuple[FloatArray, FloatArray] | None,
        size: int,
        *,
        order: int,
        d: int,
        columns: int,
    ) -> Landmarks:
        """Return the zero functions."""
        none = np.zeros((0, d)), np.zeros((0, columns))
        return cls(queries, size, order, *none, np.zeros(columns), np.zeros((d, columns)))

    @staticmethod
    def floats(size: int, order: int, d: int, columns: int) -> int:
        """Return how many numbers landmarks and trend are."""
        return size * (d + columns) + columns * (1 + d * order)

    @property
    def has_trend(self) -> bool:
        """Whether there is a trend: something was projected."""
        return bool(self.constant.any() or self.slope.any())

    def add(self, keys: FloatArray, weights: FloatArray) -> Landmarks:
        """Return the functions with those of more keys added; `compressed` makes room again."""
        return replace(
            self,
            keys=np.concatenate([self.keys, keys]),
            weights=np.concatenate([self.weights, weights]),
        )

    def times(self, factor: float) -> Landmarks:
        """Return the functions times a number."""
        return replace(
            self,
            weights=self.weights * factor,
            constant=self.constant * factor,
            slope=self.slope * factor,
        )

    def merge(self, other: Landmarks, shift: FloatArray) -> Landmarks:
        """Return the sum of both, ``other`` having its centre at ``shift`` (d,) from this one.

        Its trend is relative to another centre, where it is no trend but that times
        ``exp(<q, shift>)``: that is projected like the keys. So is a trend of higher order.
        """
        both = self.add(other.keys + shift, other.weights)
        if not other.has_trend:
            return both.compressed()
        if shift.any() or self.order < other.order:
            return both._compressed(_MovedTrend(shift, other.constant, other.slope))
        constant, slope = self.constant + other.constant, self.slope + other.slope
        return replace(both, constant=constant, slope=slope).compressed()

    def compressed(self, fresh: int = 0) -> Landmarks:
        """Return the functions with at most ``size`` landmarks; unchanged if there are no more.

        The last ``fresh`` keys are rows of the stream as they came: if they are many, their
        covariance makes the law.
        """
        return self if len(self.keys) <= self.size else self._compressed(None, fresh)

    def sums(self, Q: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return t (m,) and S (m, c) with ``F(q_i) = exp(t_i) S_i`` for queries (m, d).

        S is not finite after an overflow: of a trend of large slope at a long query.
        """
        shift, sums = softmax_sums(Q, self.keys, self.weights)
        if not self.has_trend:
            return shift, sums
        top = np.maximum(shift, 0.0)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            sums = sums * np.exp(shift - top)[:, None]
            sums += (self.constant + Q @ self.slope) * np.exp(-top)[:, None]
        return top, sums

    # -- compression

    def _compressed(self, moved: _MovedTrend | None, fresh: int = 0) -> Landmarks:
        """Return the projection; ``moved`` is a trend about another centre to be taken in."""
        law, far = self._fitting_law(moved, fresh)
        weights, size = self.weights[~far], self.size - int(far.sum())
        keys, x, t = _within_reach(law, self.keys[~far])
        functions = weights * np.exp(t + np.sum(x * x, axis=1))[:, None]
        level = float(np.max(np.abs(functions), initial=0.0)) or 1.0
        functions /= level
        kernel = RemainderKernel(self.order)
        matrix = KernelMatrix(kernel, x)
        inner = matrix.times(functions)
        picked = chosen(matrix, inner * emphasis(len(inner))[:, None], size)
        best, places, s, u, found = -np.inf, keys[:0], x[:0], t[:0], functions[:0]
        for i, tried in enumerate(_places(x, keys, functions, picked)):
            at, along = law.coordinates(tried)
            # the first ones are keys
            wanted = products(kernel, at, x, functions) if i else inner[:, picked].T
            if moved is not None:
                wanted = wanted + _inner_with_trend(law, self.order, tried, moved) / level
            coefficients, explained = projected(kernel, at, wanted)
            if explained > best:
                best, places, s, u, found = explained, tried, at, along, coefficients
        new = found * (level * np.exp(-u - np.sum(s * s, axis=1)))[:, None]
        before, after = _hermite(x, t, weights), _hermite(s, u, new)
        trend = [a - b for a, b in zip(before, after, strict=True)]
        if moved is not None:
            trend = [a + b for a, b in zip(trend, _hermite_of_trend(law, moved), strict=True)]
        with np.errstate(over="ignore", invalid="ignore"):
            constant, slope = law.to_query_space(trend[0], trend[1] * self.order)
            constant, slope = self.constant + constant, self.slope + slope
        if not (np.isfinite(constant).all() and np.isfinite(slope).all()):
            # keys, values and weights that grew by 2**300 each have no trend in float64
            constant, slope = np.zeros_like(constant), np.zeros_like(slope)
        return replace(
            self,
            keys=np.concatenate([self.keys[far], places]),
            weights=np.concatenate([self.weights[far], new]),
            constant=constant,
            slope=slope,
        )

    def _fitting_law(self, moved: _MovedTrend | None, fresh: int = 0) -> tuple[QueryLaw, BoolArray]:
        """Return the law of queries for the keys held, and which keys are far out under it.

        The covariance is that of fresh rows, whose weights are weights. Those of landmarks may
        cancel and say nothing of a spread; where rows are few, the places of all keys do, each
        counted once: chosen to reach far, they make the law rather too narrow than too wide.

        Keys far out stay as they are, but at most half of the landmarks can be such: the spread
        of the law is reduced until no more are, nor the centre of a trend to be taken in.
        """
        if fresh >= _FEWEST_ROWS * self.keys.shape[1]:
            keys, mass = self.keys[-fresh:], np.abs(self.weights[-fresh:, -1])
        else:
            keys, mass = self.keys, np.ones(len(self.keys))
        share = mass / max(float(mass.sum()), 1e-300)
        covariance = (keys * share[:, None]).T @ keys
        law = QueryLaw.estimate((covariance + covariance.T) / 2.0, self.queries)
        most = self.size // 2
        for _ in range(2):
            reach = _reach(law, self.keys)
            limit = float(np.sort(reach)[-most - 1]) if len(reach) > most else 0.0
            if moved is not None:
                limit = max(limit, float(_reach(law, moved.shift[None])[0]))
            if limit <= 1.0:
                return law, reach > 1.0
            law = law.shrunk(max(1.0 / limit, _NARROWEST) * (1.0 - 1e-9))
        reach = _reach(law, self.keys)
        far = np.zeros(len(reach), np.bool_)
        far[np.lexsort((np.arange(len(reach)), -reach))[:most]] = True
        return law, far & (reach > 1.0)


class _MovedTrend(NamedTuple):
    """``(constant + q slope) exp(<q, shift>)``: a trend as it reads about another centre."""

    shift: FloatArray
    constant: FloatArray
    slope: FloatArray


def _reach(law: QueryLaw, keys: FloatArray) -> FloatArray:
    """Return how far out keys are under a law (n,): beyond 1, too far. Never NaN."""
    x, t = law.coordinates(keys)
    with np.errstate(over="ignore"):
        reach = np.maximum(np.sum(x * x, axis=1) / (2.0 * _FAR), np.abs(t) / _TILTED)
    return np.asarray(np.nan_to_num(reach, nan=np.inf, posinf=np.inf))


def _within_reach(law: QueryLaw, keys: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the keys and their coordinates x and t.

    Those that are too far out are moved towards the centre until they are not.
    """
    x, t = law.coordinates(keys)
    with np.errstate(over="ignore"):
        length = np.sqrt(np.sum(x * x, axis=1) / (2.0 * _FAR))
        stretch = np.maximum(np.maximum(length, np.abs(t) / _TILTED), 1.0)
    if (stretch == 1.0).all():
        return keys, x, t
    keys = keys / np.nan_to_num(stretch, nan=np.inf, posinf=np.inf)[:, None]
    return keys, *law.coordinates(keys)


def _places(
    x: FloatArray, keys: FloatArray, functions: FloatArray, picked: IntArray
) -> Iterator[FloatArray]:
    """Yield sets of landmarks to try: the keys ``picked``, and means of the keys around them."""
    if not len(picked):
        return
    yield keys[picked]
    distance = np.sum(x[picked] ** 2, axis=1) / 2.0 - x @ x[picked].T
    nearest = np.argmin(distance, axis=1)
    size = np.linalg.norm(functions * emphasis(functions.shape[1]), axis=1)
    number = np.arange(len(keys) + 1)
    for weight in (size, size * size):
        # one entry a key, in the row of its landmark
        shares = scipy.sparse.csc_array((weight, nearest, number), (len(picked), len(keys)))
        total = np.bincount(nearest, weight, len(picked))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            mean = (shares @ keys) / total[:, None]
        good = np.isfinite(mean).all(axis=1, keepdims=True)
        yield np.where(good, mean, keys[picked])


def _hermite(x: FloatArray, t: FloatArray, weights: FloatArray) -> list[FloatArray]:
    """Return the inner products of ``sum_j exp(<q, k_j>) b_j`` with 1 (c,) and with z (d, c)."""
    w = np.exp(t + np.sum(x * x, axis=1) / 2.0)[:, None] * weights
    return [np.sum(w, axis=0), x.T @ w]


def _hermite_of_trend(law: QueryLaw, moved: _MovedTrend) -> list[FloatArray]:
    """Return the same for a trend about another centre."""
    x, t = law.coordinates(moved.shift[None])
    w = float(np.exp(np.minimum(t[0] + x[0] @ x[0] / 2.0, _LARGEST)))
    value = w * (moved.constant + (law.mean + law.root @ x[0]) @ moved.slope)
    return [value, np.outer(x[0], value) + w * (law.root.T @ moved.slope)]


def _inner_with_trend(
    law: QueryLaw, order: int, places: FloatArray, moved: _MovedTrend
) -> FloatArray:
    """Return the inner products (k, c) of a trend about another centre with landmarks.

    With their functions over their norms, less what a trend of the order knows of them.
    """
    s, _ = law.coordinates(places)
    x, t = law.coordinates(moved.shift[None])
    half = np.sum(s * s, axis=1) / 2.0
    power = np.minimum(t[0] + x[0] @ x[0] / 2.0 + s @ x[0] - half, _LARGEST)
    values = moved.constant + (law.mean + (s + x[0]) @ law.root.T) @ moved.slope
    known = _hermite_of_trend(law, moved)
    less = known[0] + (s @ known[1] if order else 0.0)
    return np.asarray(np.exp(power)[:, None] * values - np.exp(-half)[:, None] * less)
