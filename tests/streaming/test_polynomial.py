"""Streams of moments: the same bytes in any batches, sums of all rows, mergeable, refusing."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import WIDE, U
from strategies import cuts

from levsketch import LevsketchStateError
from levsketch.backends.cpu import CpuBackend
from levsketch.streaming import serialize
from levsketch.streaming.polynomial import PolynomialPolicy, PolynomialStream, moment_floats
from levsketch.streaming.polynomial_io import to_arrays
from levsketch.streaming.polynomial_memory import inside

BACKEND = CpuBackend()
PSI = ["ams", "gaussian", "countsketch"]
RNG = np.random.default_rng(0)
Q = RNG.standard_normal((6, 3)) / 3


def asked(function="softmax", degree=2, sketch="exact", size=0, decay=1.0, floats=10**6, seed=0):
    return PolynomialPolicy(function, degree, sketch, size, decay, "sqrt_d", floats, seed)


POLICIES = {
    "softmax": asked(),
    "degree 4": asked(degree=4),
    "sketched": asked(degree=4, floats=60),
    "decay": asked(decay=0.99),
    "fast decay": asked(decay=0.05),
    "power": asked(4.0, 4),
    "decaying power": asked(2.0, 2, decay=0.9),
    **{name: asked(sketch=name, size=24) for name in PSI},
    "both": asked(degree=4, sketch="ams", size=9, floats=250),
}
ALIGNED = ["softmax", "degree 4", "decay", "fast decay", "power", "decaying power"]


def rows_of(n, seed=0, weighted=True, d=3, d_v=2):
    rng = np.random.default_rng(seed)
    K, V = rng.standard_normal((n, d)) + 1, rng.standard_normal((n, d_v)) * [1, 100] + [0, 1e4]
    w = np.where(rng.random(n) < 0.2, 0.0, rng.random(n)) if weighted else np.ones(n)
    return np.column_stack([K, V, w])


def empty(name, **options):
    return PolynomialStream.empty(POLICIES[name], 3, 2, **options)


def bytes_of(stream):
    return serialize.pack("x", *to_arrays(stream))


@functools.cache
def whole(name, n):
    return bytes_of(empty(name).update(BACKEND, rows_of(n, weighted=POLICIES[name].aligned)))


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=12)
@given(data=st.data())
def test_any_batching_gives_the_same_bytes(name, data):
    n = data.draw(st.sampled_from([1, 511, 512, 1500]))
    X = rows_of(n, weighted=POLICIES[name].aligned)
    state = empty(name)
    for a, b in itertools.pairwise([0, *data.draw(cuts(n)), n]):
        state = state.update(BACKEND, X[a:b])
    assert bytes_of(state) == whole(name, n)
    assert state.n_seen == state.n_values == n


@pytest.mark.parametrize("name", [*PSI, "both"])
@settings(max_examples=12)
@given(data=st.data())
def test_keys_and_values_may_come_apart_in_any_order(name, data):
    n = data.draw(st.sampled_from([1, 512, 1500]))
    X = rows_of(n, weighted=False)
    sides = {"K": [X[a:b, :3] for a, b in itertools.pairwise([0, *data.draw(cuts(n)), n])]}
    sides["V"] = [X[a:b, 3:5] for a, b in itertools.pairwise([0, *data.draw(cuts(n)), n])]
    order = data.draw(st.permutations(["K"] * len(sides["K"]) + ["V"] * len(sides["V"])))
    state = empty(name)
    for side in order:
        part = sides[side].pop(0)
        state = state.update_keys(part) if side == "K" else state.update_values(part)
    assert bytes_of(state) == whole(name, n)


def test_answers_wait_until_keys_and_values_are_of_the_same_rows():
    X = rows_of(600, weighted=False)
    state = empty("ams").update_keys(X[:, :3]).update_values(X[:599, 3:5])
    with pytest.raises(LevsketchStateError, match="600 keys and 599 values have come"):
        _ = state.answering
    assert state.update_values(X[599:, 3:5]).answering.moments.n_rows == 512
    with pytest.raises(ValueError, match="no rows have been seen"):
        _ = empty("ams").answering


# -- what is summed


def brute(state, X, ages):
    """Return sums of powers over rows in the frame and of their sizes, in long double."""
    wide, view = np.longdouble, state.answering
    X, ages = X[X[:, -1] > 0], ages[X[:, -1] > 0]
    center = view.moments.center
    _, values, weights = inside(view.frame, X)
    weights = weights.astype(wide) * wide(state.policy.decay) ** ages
    summed = np.column_stack([values, np.ones(len(X))]) * weights[:, None]
    # moments may have been moved from another frame: digits of its values are lost
    largest = np.abs(X[:, 3:5]).max(axis=0) + np.abs(state.memory.high)
    size = np.ldexp(largest, view.frame.spread_power - view.frame.value_power)
    sizes = np.column_stack([np.abs(values) + size, np.ones(len(X))]) * weights[:, None]
    x = (X[:, :3].astype(wide) - center) @ Q.T.astype(wide)
    far = (np.abs(X[:, :3].astype(wide)) + np.abs(center)) @ np.abs(Q.T.astype(wide))
    degrees = view.moments.degrees
    return (
        np.stack([np.einsum("nm,nc->mc", x**r, summed) for r in degrees], axis=1),
        np.stack([np.einsum("nm,nc->mc", far**r, sizes) for r in degrees], axis=1),
    )


def check_sums(state, X, ages):
    """Compare the moments that answer with brute force over the rows that are in them."""
    true, size = brute(state, X, ages)
    error = np.abs(state.answering.moments.contract(Q) - true)
    bound = state.answering.moments.rounding(Q)
    assert (error <= bound + (8 * U + 2000 * WIDE) * size).all()
    assert (error <= 2000 * U * size).all()


def ages_of(n):
    return np.arange(n - 1, -1, -1)


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("n", [512, 1100])
def test_moments_are_sums_over_absorbed_rows(name, n):
    X, state = rows_of(n), empty(name)
    state = state.update(BACKEND, X)
    waiting = 0 if "power" in name else len(state.pending)
    # what waits makes the moments older, by log_age
    check_sums(state, X[: n - waiting], ages_of(n - waiting))
    assert state.answering.log_age == pytest.approx(np.log(state.policy.decay) * waiting)
    assert len(state.answering.keys) == (X[n - waiting :, -1] > 0).sum()


@pytest.mark.parametrize("name", ALIGNED)
@settings(max_examples=15)
@given(data=st.data())
@example(data=None)
def test_merged_moments_are_those_of_all_rows(name, data):
    sizes = [0, 300, 512, 700]
    lengths, order = sizes * 1, [0, 1, 2]
    if data is not None:
        lengths = data.draw(st.lists(st.sampled_from(sizes), min_size=2, max_size=5))
        order = data.draw(st.permutations(range(len(lengths) - 1)))
    blocks = [rows_of(n, seed=i) for i, n in enumerate(lengths)]
    for i, block in enumerate(blocks):  # frames of their own
        block[:, :3] = block[:, :3] * 4.0**i - i
        block[:, 3:5] += 10.0 ** (2 * i)
        block[:, -1] *= 8.0**i
    parts = [(empty(name).update(BACKEND, block), block) for block in blocks]
    for place in order:
        at = min(place, len(parts) - 2)
        (a, X), (b, Y) = parts[at : at + 2]
        before = bytes_of(a) if a.n_seen else b""
        parts[at : at + 2] = [(a.merge(BACKEND, b), np.concatenate([X, Y]))]
        assert before == (bytes_of(a) if a.n_seen else b"")
        if len(parts) == 1:
            break
    (state, X), n = parts[0], sum(lengths)
    assert state.n_seen == n
    if not n or state.answering.moments is None:
        return
    waiting = 0 if "power" in name else len(state.pending)
    check_sums(state, X[: n - waiting], ages_of(n - waiting))
    if state.policy.softmax:
        assert state.memory.reach.count == (X[: n - waiting, -1] > 0).sum()


@pytest.mark.parametrize("name", PSI)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_parts_that_are_not_aligned_merge_in_any_order(name, order):
    X = rows_of(2000, weighted=False)
    center = X[:, :3].mean(axis=0)
    ends = [0, 700, 900, 2000]
    parts = [
        (empty(name, center=center, first_row=a).update(BACKEND, X[a:b]), a, b)
        for a, b in itertools.pairwise(ends)
    ]
    true = empty(name, center=center).update(BACKEND, X)
    state, start, stop = parts[order[0]]
    for i in order[1:]:
        part, a, b = parts[i]
        if b != start and a != stop:
            with pytest.raises(ValueError, match="do not follow one another"):
                state.merge(BACKEND, part)
            return
        state, start, stop = state.merge(BACKEND, part), min(start, a), max(stop, b)
    assert state.n_seen == state.n_values == 2000
    assert not len(state.pending)
    found, whole_ = state.memory.moments, true._flushed().memory.moments
    for a, b in ((found.features, whole_.features), (found.values, whole_.values)):
        np.testing.assert_allclose(a, b, rtol=0, atol=4000 * U * np.abs(b).max())
    # and it goes on as one would
    more = rows_of(100, seed=1, weighted=False)
    assert state.update(BACKEND, more).answering.moments.n_rows == 2000


def test_keys_and_values_may_be_summed_on_two_machines():
    X = rows_of(1300, weighted=False)
    keys, values = empty("ams").update_keys(X[:, :3]), empty("ams").update_values(X[:, 3:5])
    together = empty("ams").update(BACKEND, X)
    for state in (keys.merge(BACKEND, values), values.merge(BACKEND, keys)):
        found = state.answering.moments.contract(Q)
        true = together._flushed().answering.moments.contract(Q)
        size = np.abs(true).max(axis=(0, 1))
        # both frames are those of the same box
        assert (np.abs(found - true) <= 1e4 * U * size).all()
        ahead = state.update_values(X[:100, 3:5]).update_keys(X[:100, :3])
        assert ahead.answering.moments.n_rows == 1300
    # blocks of the two sides that do not begin in the same row
    ragged = (
        empty("ams")
        .update(BACKEND, X[:100])
        .merge(BACKEND, empty("ams", center=X[:100, :3].mean(axis=0), first_row=100))
    )
    assert ragged.n_seen == 100
    part = empty("ams", center=np.ones(3)).update(BACKEND, X[:100])
    late = empty("ams", center=np.ones(3), first_row=100).update_keys(X[100:200, :3])
    ragged = part.merge(BACKEND, late).update_values(X[100:200, 3:5])
    assert len(ragged.pending) != len(ragged.late)
    assert ragged.answering.moments.n_rows == 200


def test_sketches_with_centers_of_their_own_do_not_merge():
    X = rows_of(600, weighted=False)
    for name in ("ams", "sketched"):
        one = empty(name).update(BACKEND, X)
        other = empty(name, first_row=600).update(BACKEND, X + 1.0 * (np.arange(6) < 5))
        before = bytes_of(one), bytes_of(other)
        with pytest.raises(ValueError, match="center differs"):
            one.merge(BACKEND, other)
        assert (bytes_of(one), bytes_of(other)) == before
    # few rows have no center yet: they take that of the others
    one = empty("sketched").update(BACKEND, X[:100])
    other = empty("sketched").update(BACKEND, X + 1.0 * (np.arange(6) < 5))
    for both in (one.merge(BACKEND, other), other.merge(BACKEND, one)):
        assert (both.memory.moments.center == other.memory.moments.center).all()
        assert both._flushed().answering.moments.n_rows == 700
    fixed = [empty("sketched", center=np.ones(3)).update(BACKEND, X + i) for i in range(2)]
    assert fixed[0].merge(BACKEND, fixed[1]).answering.moments.n_rows > 1000
    for one, other in ((empty("power"), empty("softmax")), (empty("ams"), empty("gaussian"))):
        with pytest.raises(ValueError, match="policy must agree to merge"):
            one.merge(BACKEND, other)


def test_merging_with_nothing_changes_nothing():
    for name in POLICIES:
        some = empty(name).update(BACKEND, rows_of(600, weighted=False))
        assert empty(name).merge(BACKEND, some) is some
        assert some.merge(BACKEND, empty(name)) is some


# -- weights and decay


@pytest.mark.parametrize("name", ALIGNED)
def test_rows_of_weight_zero_are_not_there_but_make_others_older(name):
    X = rows_of(1200, weighted=False)
    X[rows_of(1200)[:, -1] == 0, -1] = 0.0
    state = empty(name).update(BACKEND, X)
    wild = X.copy()
    wild[X[:, -1] == 0, :5] = 1e300
    assert empty(name).update(BACKEND, wild).answering.moments.contract(Q).tobytes() == (
        state.answering.moments.contract(Q).tobytes()
    )
    waiting = len(state.pending) if state.policy.softmax else 0
    check_sums(state, X[: 1200 - waiting], ages_of(1200 - waiting))


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("n", [3, 512, 1030])
def test_without_weights_there_is_nothing_to_average(name, n):
    X = rows_of(n)
    X[:, -1] = 0.0
    state = empty(name).update(BACKEND, X)
    with pytest.raises(ValueError, match="all rows seen have sample_weight 0"):
        _ = state.answering
    later = state.update(BACKEND, rows_of(600, seed=1))
    assert later.answering.moments is not None
    for both in (state.merge(BACKEND, later), later.merge(BACKEND, state)):
        assert both.n_seen == 2 * n + 600
        assert both.answering.low.tolist() == later.answering.low.tolist()


@pytest.mark.parametrize("n", [100, 700])
@pytest.mark.parametrize(
    ("name", "column", "value", "text"),
    [
        ("softmax", 0, 1e300, "keys grew by a factor"),
        ("power", 3, -1e300, "values grew by a factor"),
        ("decay", 5, 1e300, "sample_weight (grew|fell) by a factor"),
        ("softmax", 5, 1e-300, "sample_weight fell by a factor"),
        ("ams", 1, 1e300, "keys grew by a factor"),
    ],
)
def test_rows_out_of_range_are_refused_before_they_wait(n, name, column, value, text):
    state = empty(name).update(BACKEND, rows_of(n, weighted=POLICIES[name].aligned))
    before, odd = bytes_of(state), rows_of(1, weighted=False)
    odd[0, column] = value
    if n > 512 or column == 5:
        with pytest.raises(OverflowError, match=text):
            state.update(BACKEND, odd)
    else:  # the frame will be that of the whole first block
        assert state.update(BACKEND, odd).n_seen == n + 1
    assert bytes_of(state) == before
    assert state.update(BACKEND, rows_of(600, weighted=False)).n_seen == n + 600


def test_keys_may_differ_by_what_float64_holds():
    X = rows_of(512, weighted=False)
    X[:, 0] = np.where(np.arange(512) < 5, -1.7e308, 1.7e308)
    state = empty("softmax").update(BACKEND, X[:5])
    with pytest.raises(OverflowError, match="keys differ by more than the range"):
        state.update(BACKEND, X[5:200])
    # powers take keys of any size: their scale moves
    X[:, 0], X[:, 1] = 1e-300, 1e300
    empty("power").update(BACKEND, X).update(BACKEND, X[:, [1, 0, *range(2, 6)]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("n", [5, 700])
def test_nan_is_refused_with_its_place(bad, n):
    X = rows_of(n, weighted=False)
    X[n - 1, 4] = bad
    with pytest.raises(ValueError, match=f"at row {n - 1}, column 4"):
        empty("softmax").update(BACKEND, X)
    with pytest.raises(ValueError, match=f"V contains .* at row {n - 1}, column 1"):
        empty("ams").update_values(X[:, 3:5])


def test_sides_are_checked():
    X = rows_of(20)
    with pytest.raises(ValueError, match=r"sample_weight must be 1 .* at row \d+"):
        empty("ams").update(BACKEND, X)
    with pytest.raises(ValueError, match="keys and values arrive together"):
        empty("softmax").update_keys(X[:, :3])
    with pytest.raises(ValueError, match=r"V must have shape \(n, 2\), got \(20, 3\)"):
        empty("ams").update_values(X[:, :3])
    with pytest.raises(ValueError, match=r"K must have shape \(n, 3\), got \(20, 2\)"):
        empty("ams").update_keys(X[:, :2])


# -- what is asked


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"degree": 3}, "degree must be an even number"),
        ({"degree": 22}, "degree must be an even number"),
        ({"function": 3.0, "degree": 3}, "function must be an even number"),
        ({"function": 4.0, "degree": 2}, "function must be an even number"),
        ({"sketch": "ams"}, "sketch must be one of"),
        ({"sketch": "nothing", "size": 3}, "sketch must be one of"),
        ({"sketch": "ams", "size": 3, "decay": 0.5}, "cannot go with decay=0.5"),
        ({"sketch": "ams", "size": 3, "function": 2.0}, "cannot go with function=2.0"),
        ({"decay": 0.0}, "decay must be in"),
        ({"seed": -1}, "seed and floats"),
    ],
)
def test_impossible_policies_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        PolynomialStream.empty(asked(**change), 3, 2)
    with pytest.raises(TypeError, match="wrong type"):
        PolynomialStream.empty(asked(**change | {"floats": 1e6}), 3, 2)


def test_what_does_not_fit_is_refused_before_it_is_allocated():
    need = moment_floats(10**6, 64, 4, lowest=4)
    with pytest.raises(ValueError, match=f"take {8 * need} bytes, more than max_memory=8000"):
        PolynomialStream.empty(asked(4.0, 4, floats=1000), 10**6, 64)
    with pytest.raises(
        ValueError, match=r"max_memory=8000; sketched, they take \d+ bytes at least"
    ):
        PolynomialStream.empty(asked(degree=4, floats=1000), 10**6, 64)
    need = moment_floats(64, 64, 2, sketch_size=10**9)
    with pytest.raises(ValueError, match=f"take {8 * need} bytes"):
        PolynomialStream.empty(asked(sketch="ams", size=10**9), 64, 64)


@pytest.mark.parametrize("sketch", ["exact", "ams"])
@pytest.mark.parametrize("floats", [10**6, 20_000, 9_000, 5_000])
def test_tensors_take_what_they_may(sketch, floats):
    size = 0 if sketch == "exact" else 7
    policy = asked(degree=4, sketch=sketch, size=size, floats=floats)
    X = np.column_stack([RNG.standard_normal((512, 10)), RNG.random((512, 4)), np.ones(512)])
    state = PolynomialStream.empty(policy, 10, 4).update(BACKEND, X)
    need = moment_floats(10, 4, 4, sketch_size=size)
    held = state.memory.moments.size
    assert held <= floats
    assert held == need if need <= floats else held >= 0.85 * floats
    assert state.nbytes >= 8 * held
    assert moment_floats(10, 4, 4, lowest=4) == 715 * 5
