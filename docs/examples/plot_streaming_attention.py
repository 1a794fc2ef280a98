"""
Attention over a stream that is gone
====================================

Keys and values pass by once. Afterwards queries come, and their attention is wanted over all of
them. What can be answered from 1 % of the memory that all keys and values would take?
"""

# %%
# A stream
# --------
# 40,000 keys around 60 centres that differ in weight and width, with values that depend on the
# key. Queries point towards some of the centres.

import matplotlib.pyplot as plt
import numpy as np

import levsketch as lv

rng = np.random.default_rng(0)
n, d, d_v = 40_000, 16, 8
centres = rng.standard_normal((60, d))
width = rng.uniform(0.1, 0.6, 60)
share = rng.dirichlet(np.full(60, 0.3))
which = rng.choice(60, n, p=share)
K = centres[which] + width[which, None] * rng.standard_normal((n, d))
V = np.tanh(K @ rng.standard_normal((d, d_v)) / 2) + 0.2 * rng.standard_normal((n, d_v))


def queries(m):
    """Return queries: near a multiple of a centre."""
    towards = centres[rng.integers(20, size=m)]
    return 2.0 * towards + rng.standard_normal((m, d))


Q, sample = queries(1000), queries(500)
exact = lv.attention(Q, K, V)

# %%
# Error against memory
# --------------------
# The sketch is told 500 other queries when the stream begins, or nothing. Beside it: as many keys
# drawn at random, and as many of the last keys, as a sliding window keeps them.


def error(Y):
    """Return the relative Frobenius error."""
    return np.linalg.norm(Y - exact) / np.linalg.norm(exact)


budgets = np.array([50, 100, 200, 400, 800])
curves = {"sketch, queries told": [], "sketch": [], "keys at random": [], "last keys": []}
for n_keys in budgets:
    sketch = lv.StreamingAttentionSketch(n_keys=n_keys)
    for first in range(0, n, 4000):  # a stream, in any batches
        part = slice(first, first + 4000)
        told = sample if first == 0 else None
        sketch.partial_fit(K[part], V[part], queries=told)
    curves["sketch, queries told"].append(error(sketch.transform(Q)))
    curves["sketch"].append(
        error(lv.StreamingAttentionSketch(n_keys=n_keys).fit(K, V).transform(Q))
    )
    some = rng.choice(n, n_keys, replace=False)
    curves["keys at random"].append(error(lv.attention(Q, K[some], V[some])))
    curves["last keys"].append(error(lv.attention(Q, K[-n_keys:], V[-n_keys:])))

figure, axis = plt.subplots(layout="constrained")
for name, curve in curves.items():
    axis.loglog(100 * budgets / n, curve, "o-", label=name)
axis.set_xlabel("memory, % of all keys and values")
axis.set_ylabel("relative error of the outputs")
axis.legend()

# %%
# What is certain
# ---------------
# ``error_bound`` holds for each single query, whatever the stream was. It is tight for queries
# whose logits differ little, and says no more than the box of the values where they differ much.
# ``probe_error_`` is measured along the stream, and an estimate.

scales = np.array([0.05, 0.1, 0.2, 0.4, 0.8, 1.6])
figure, axis = plt.subplots(layout="constrained")
for s in scales:
    true = np.linalg.norm(sketch.transform(s * Q) - lv.attention(s * Q, K, V), axis=1)
    bound = sketch.error_bound(s * Q)
    axis.loglog(true, bound, ".", ms=3, label=f"queries times {s:g}")
    assert (true <= bound).all()
axis.axline((1e-3, 1e-3), (1, 1), color="k", lw=0.8)
axis.set_xlabel("true error of a query")
axis.set_ylabel("certified bound")
axis.legend()
print(f"measured on probes: {sketch.probe_error_:.4f}")
print(f"on other queries: {error(sketch.transform(Q)):.4f}")
