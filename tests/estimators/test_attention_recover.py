"""The output for queries that stream by, as a constant and a few entries for each column."""

import numpy as np
import pandas as pd
import pytest
from foreign import LIBRARIES
from sketching import SKETCHES, drawn, fit, quiet
from sketching import every_sketch as every

from levsketch import StreamingAttentionSketch

DATA = drawn(0, 1500)
M = 3000


def idle(m=M, busy=5, seed=1):
    """Return queries (m, d) that are zero, but for a few, and which these are."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(m, busy, replace=False))
    Q = np.zeros((m, 3))
    Q[rows] = rng.standard_normal((busy, 3))
    return Q, rows


def recovered(sketch, blocks, k=None):
    with quiet():
        return sketch.recover(blocks, k)


@every
def test_outputs_are_exact_where_all_but_few_queries_are_zero(new):
    sketch, (Q, rows) = fit(DATA, new), idle()
    with quiet():
        expected = sketch.transform(Q)
    found = recovered(sketch, np.array_split(Q, 7), 8)
    assert found.entries.shape == (M, 2)
    assert np.diff(found.entries.indptr).max() <= 16
    # rounding of sums over the rows of a cell
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-10)
    apart = np.abs(expected - expected[next(row for row in range(M) if row not in rows)])
    big = (apart > 1e-8).any(axis=1)
    assert set(np.flatnonzero(big)) <= set(np.unique(found.entries.indices))
    assert set(np.flatnonzero(big)) <= set(rows)
    assert found.sparse.all()
    assert found.explain().startswith("2 of 2 columns are sparse beside their constant")


def test_blocks_of_any_form_give_the_same():
    sketch, (Q, _) = fit(DATA), idle()
    expected = recovered(sketch, Q, 4)
    for blocks in (
        [Q],
        (Q[i : i + 700] for i in range(0, M, 700)),
        np.split(Q, [0, 5, 5, 2999]),
        [pd.DataFrame(Q[:10]), Q[10:].tolist()],
        pd.DataFrame(Q),
        *(convert(Q) for convert in LIBRARIES.values()),
        [convert(part) for convert in LIBRARIES.values() for part in np.array_split(Q, 3)][:3],
    ):
        found = recovered(sketch, blocks, 4)
        np.testing.assert_array_equal(found.toarray(), expected.toarray())
        np.testing.assert_array_equal(found.tail, expected.tail)


def test_queries_beyond_the_reach_of_polynomials_are_counted_once():
    sketch = fit(DATA, SKETCHES["moments"])
    blocks = np.array_split(1e3 * np.random.default_rng(5).standard_normal((M, 3)), 9)
    with pytest.warns(UserWarning, match=f"{M} of {M} queries .* degree 4 follows") as caught:
        sketch.recover(blocks)
    assert len(caught) == 1


def test_sparsity_is_the_entries_that_are_looked_for():
    (Q, rows), data = idle(busy=30), DATA
    few, many = (StreamingAttentionSketch(n_keys=24, sparsity=s).fit(*data[:2]) for s in (2, 40))
    found = recovered(few, Q)
    assert np.diff(found.entries.indptr).max() <= 4
    assert not found.sparse.all() or (found.tail > 0).any()
    np.testing.assert_array_equal(found.toarray(), recovered(many, Q, 2).toarray())
    found = recovered(many, Q)
    assert found.sparse.all()
    values = found.entries.toarray()
    assert set(np.flatnonzero(np.abs(values).max(axis=1) > 1e-10)) <= set(rows)


def test_what_is_lost_is_told_where_nothing_is_sparse():
    sketch = fit(DATA)
    Q = np.random.default_rng(2).standard_normal((M, 3))
    found, truth = recovered(sketch, np.array_split(Q, 3), 4), sketch.transform(Q)
    lost = np.linalg.norm(found.toarray() - truth, axis=0)
    np.testing.assert_allclose(found.tail, lost, rtol=0.25)
    np.testing.assert_allclose(found.norm, np.linalg.norm(truth - found.offset, axis=0), rtol=0.25)
    assert not found.sparse.any()
    text = found.explain()
    assert text.startswith("0 of 2 columns are sparse")
    assert "% (median) of what the constant misses" in text


def test_constants_are_those_of_idle_queries():
    sketch, (Q, _) = fit(DATA), idle(busy=1)
    found = recovered(sketch, Q)
    np.testing.assert_allclose(found.offset, sketch.transform(np.zeros((1, 3)))[0], atol=1e-12)
    # of the power of a query that no key answers, zero
    power = fit(DATA, SKETCHES["power"])
    assert not recovered(power, Q).offset.any()


def test_seeds_are_those_of_the_sketch_and_any_whole_number():
    (Q, _), tails = idle(busy=40), set()
    for seed in (0, 1, np.int64(2**62), 2**70):
        sketch = StreamingAttentionSketch(n_keys=24, random_state=seed).fit(*DATA[:2])
        tails.add(recovered(sketch, Q, 3).tail.tobytes())
    assert len(tails) > 1


def test_no_queries_have_no_entries():
    for blocks in ([], [np.zeros((0, 3))], iter(())):
        found = recovered(fit(DATA), blocks)
        assert found.entries.shape == (0, 2)
        assert found.entries.nnz == 0
        assert found.explain()


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", None])
def test_numbers_of_entries_that_are_none_are_refused(k):
    sketch = fit(DATA).set_params(sparsity=k)
    for call in (lambda: sketch.recover(DATA.Q, k), lambda: sketch.recover(DATA.Q)):
        with pytest.raises((TypeError, ValueError), match="must be"):
            call()


def test_blocks_that_are_no_queries_are_refused_and_named():
    sketch = fit(DATA)
    bad = DATA.Q.copy()
    bad[3, 1] = np.nan
    before = sketch.to_bytes()
    for blocks in (bad, [DATA.Q, bad], (X for X in (DATA.Q, bad))):
        with pytest.raises(ValueError, match="NaN at row 3, column 1"):
            sketch.recover(blocks)
    for blocks, match in (
        (DATA.Q[:, :2], "2 features"),
        (DATA.Q[0], "Expected 2D"),
        (3, "iterable"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            sketch.recover(blocks)
    assert sketch.to_bytes() == before
