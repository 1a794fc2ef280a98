"""Streams for any f: in any batches the same bytes, and at no moment a key that is missing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lp_streams import (
    ASKED,
    CERTAIN,
    CPU,
    DOUBTFUL,
    FEW,
    OTHERS,
    POWERS,
    blocks_of_different_laws,
    check,
    function_of,
    policy,
    saved,
    split,
    stream,
)
from oracles import U
from strategies import (
    cuts,
    gaussian,
    growing,
    heavy_tails,
    ill_conditioned,
    lone_axis,
    low_rank,
    make,
)

from levsketch import LpSensitivitySelector
from levsketch.algorithms.sensitivity import sensitivities
from levsketch.streaming import lp_keys
from levsketch.streaming.lp_keys import LpStream


@pytest.fixture
def small_blocks(monkeypatch):
    """Make blocks of 32 rows: a few hundred rows then see many settlings."""
    monkeypatch.setattr(lp_keys, "block_size", lambda d: 32)


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("kind", CERTAIN + DOUBTFUL)
def test_at_no_moment_is_a_key_missing(small_blocks, kind, asked):
    f, made = function_of(asked), make(kind, 1, 230, 3)
    if not f.homogeneous and np.abs(made.K.astype(float)).max() > 1e150:
        return  # no query brings such keys to the scale of f
    # 60 orders of magnitude and weights of the sixth power: conditions of 1e13, the limit of what
    # is certified, where the rounding of one BLAS or another decides
    doubtful = kind in DOUBTFUL or (kind is heavy_tails and asked == {"p": 8.0})
    state, done = LpStream.empty(policy(eps=0.05, **asked), made.K.shape[1]), 0
    for place in (1, 33, 100, len(made.K)):
        place = min(place, len(made.K))
        state = state.update(CPU, made.K[done:place])
        done = place
        check(state, made.basis[:place], f, doubtful)


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("m", [1, 2, 3, 10])
def test_equal_keys_are_kept_at_one_over_their_number(asked, m):
    # every query gives each of them exactly that
    K = np.repeat([[1.0, 3.0]], m, axis=0)
    for batches in ([K], [K[:1], K[1:]]):
        found = stream(batches, eps=(1 - 4 * U) / m, **asked).selection
        assert found.universal.sum() == m
    shards = [stream([row[None]], eps=(1 - 4 * U) / m, **asked) for row in K]
    for shard in shards[1:]:
        shards[0] = shards[0].merge(CPU, shard)
    assert shards[0].selection.universal.sum() == m


@pytest.mark.parametrize("asked", [a for a in POWERS if a["p"] >= 1], ids=str)
def test_bounds_of_long_streams_hold_against_exact_sensitivities(asked):
    rng = np.random.default_rng(0)
    K = rng.standard_normal((5000, 3))
    K[[3, 1500, 4200]] *= 8
    K[2500:] *= 3
    found = stream([K[:1700], K[1700:]], eps=0.05, **asked).selection
    rows = found.index[np.argsort(-found.upper)[:8]]
    low = sensitivities(K, asked["p"], indices=rows, tol=1e-3)[:, 0]
    upper = dict(zip(found.index.tolist(), found.upper, strict=True))
    assert all(upper[j] >= x for j, x in zip(rows.tolist(), low, strict=True))
    assert found.certified


@pytest.mark.parametrize("asked", FEW, ids=str)
@pytest.mark.parametrize("kappa", [1e3, 1e9, 1e13, 1e14])
def test_no_key_is_missed_up_to_condition_1e14(small_blocks, asked, kappa):
    rng = np.random.default_rng(1)
    K = ill_conditioned(rng, 300, 3, kappa)
    K[rng.integers(0, 300, 4)] *= 20
    check(stream([K[:100], K[100:]], **asked), K, function_of(asked), kappa > 1e12)


@pytest.mark.parametrize("asked", FEW, ids=str)
@pytest.mark.parametrize("size", [1e-12, 1e-100, 1e-300])
@pytest.mark.parametrize("row", [0, 40, 299])
def test_a_lone_key_is_certified_at_any_size(small_blocks, asked, size, row):
    K = np.random.default_rng(2).standard_normal((300, 3))
    K[:, 2] = 0
    K[row] = [0, 0, size]
    found = stream([K[:150], K[150:]], eps=0.9, min_keys=0, **asked).selection
    assert found.certified
    assert found.index[found.universal].tolist() == [row]


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
def test_narrow_types_leave_the_state_of_their_double_copy(asked, dtype):
    K = (4 * np.random.default_rng(3).standard_normal((2500, 2))).astype(dtype)
    narrow, double = stream([K], **asked), stream([K.astype(np.float64)], **asked)
    assert narrow.dtype == np.dtype(dtype).name
    assert saved(narrow)[1] == saved(double)[1]


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("d", [1, 5])
def test_streams_of_one_row_and_of_one_column(small_blocks, asked, d):
    K = np.random.default_rng(4).standard_normal((3 if d > 1 else 200, d))
    state = stream(list(K[:, None]), **asked)
    check(state, K if d == 1 else np.eye(3), function_of(asked))
    if d == 5:
        assert state.selection.universal.all()


# -- any batches, the same bytes


@pytest.mark.parametrize("asked", ASKED, ids=str)
@settings(max_examples=4)
@given(st.data(), st.sampled_from([gaussian, heavy_tails, lone_axis, low_rank, growing]))
def test_random_batches_leave_the_bytes_of_one(asked, data, kind):
    K = make(kind, data.draw(st.integers(0, 99)), 4500, 3).K
    places = data.draw(cuts(len(K)))
    assert saved(stream(split(K, places), **asked)) == saved(stream([K], **asked))


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("normaliser", ["auto", "sample", None])
def test_long_streams_leave_the_same_bytes_in_batches_of_any_size(asked, normaliser):
    # 24 blocks: several are absorbed at once where a batch holds them
    K = make(blocks_of_different_laws, 0, 24 * 1024 + 100, 3).K
    whole = saved(stream([K], normaliser=normaliser, **asked))
    for step in (1024, 5000):
        assert (
            saved(stream(split(K, range(step, len(K), step)), normaliser=normaliser, **asked))
            == whole
        )
    one_row_batches = [*range(1, 40), *range(20_000, 20_020)]
    assert saved(stream(split(K, one_row_batches), normaliser=normaliser, **asked)) == whole


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_crowd_of_heavy_rows_is_pruned_at_the_same_row_in_any_batches(small_blocks, asked):
    # 16 blocks that all look heavy to the bounds of the 32 before them
    rng = np.random.default_rng(5)
    K = np.concatenate([rng.standard_normal((33 * 32, 3)), 1e3 * rng.standard_normal((20 * 32, 3))])
    whole = saved(stream([K], eps=0.01, **asked))
    assert saved(stream(split(K, range(32, len(K), 32)), eps=0.01, **asked)) == whole


# -- memory and use


@pytest.mark.parametrize("asked", [POWERS[1], POWERS[7], POWERS[6], OTHERS[0]], ids=str)
def test_memory_stays_flat_along_stationary_streams(asked):
    rng = np.random.default_rng(12)
    state = LpStream.empty(policy(eps=0.05, **asked), 2)
    sizes = []
    for _ in range(20):
        state = state.update(CPU, rng.standard_normal((15_360, 2)))
        sizes.append(state.nbytes)
    assert state.n_seen == 307_200
    # a block that waits, and a binary counter that has one level more
    assert max(sizes[10:]) <= 1.5 * max(sizes[2:10]) + 8 * 1024 * 2
    assert state.selection.certified
    assert len(state.selection.pool) < 4000


@pytest.mark.parametrize("asked", FEW, ids=str)
@pytest.mark.parametrize("jump", [1e8, 1e170])
def test_rows_that_grow_once_are_soon_told_apart_again(asked, jump):
    # squares of the first block underflow beside the others, or the other way round
    rng = np.random.default_rng(13)
    K = rng.standard_normal((40_000, 2))
    K[1024:] *= jump
    found = stream([K], eps=0.05, **asked).selection
    assert found.certified
    assert found.universal.sum() < 1000


@pytest.mark.parametrize("asked", FEW, ids=str)
def test_nan_and_infinity_are_refused_by_place(asked):
    for value, kind in ((np.nan, "NaN"), (np.inf, "infinity")):
        for row in (3, 1023, 1024, 2600, 5000):
            K = np.random.default_rng(14).standard_normal((5001, 2))
            K[row, 1] = value
            with pytest.raises(ValueError, match=f"{kind}.* at row {row}, column 1"):
                stream([K], **asked)


@pytest.mark.parametrize("asked", FEW, ids=str)
@pytest.mark.parametrize("size", [1e-306, 1e307])
def test_rows_at_the_ends_of_the_range_are_like_others(small_blocks, asked, size):
    K = np.random.default_rng(15).uniform(-9, 9, (300, 2))
    plain = stream([K], normaliser=None, **asked).selection
    if function_of(asked).homogeneous:
        found = stream([K * size], normaliser=None, **asked).selection
        assert found.certified
        np.testing.assert_array_equal(found.index[found.universal], plain.index[plain.universal])
        np.testing.assert_allclose(found.upper, plain.upper, rtol=1e-6)


@pytest.mark.parametrize("asked", [POWERS[0], POWERS[3], POWERS[7], OTHERS[1]], ids=str)
def test_narrow_scores_of_new_rows_are_rounded_up(asked):
    K = np.random.default_rng(16).standard_normal((3000, 2))
    selector = LpSensitivitySelector(eps=0.1, **asked).fit(K)
    wide, narrow = (selector.score_samples(K.astype(t)) for t in (np.float64, np.float32))
    exact = selector.score_samples(K.astype(np.float32).astype(np.float64))
    assert narrow.dtype == np.float32
    assert (narrow >= exact).all()
    assert (wide >= 0).all()
