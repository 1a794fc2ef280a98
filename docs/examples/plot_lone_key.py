"""
A key that others lose
======================

One key of 2000 is alone in its direction, and tiny. Leverage does not care for size: some query
pays this key *all* of its attention, and its leverage score is exactly 1. Numerical recipes do
care. They take the direction for rounding noise, from some size on, and return 0.
"""

# %%
# Keys with a known answer
# ------------------------
# 1999 keys span 15 of 16 dimensions; the lone key has the given size and is orthogonal to all of
# them. A Hadamard rotation hides this from the columns. Entries are multiples of a power of two, so
# the rotation is exact in float64, and the true score is exactly 1 for every size below.

import warnings

import matplotlib.pyplot as plt
import numpy as np
import scipy.linalg

import levsketch as lv

LONE = 700
ROTATION = scipy.linalg.hadamard(16) / 4


def make_keys(size):
    """Return keys (2000, 16) of which row LONE has norm `size` and a direction of its own."""
    rng = np.random.default_rng(0)
    keys = np.zeros((2000, 16))
    keys[:, :15] = np.round(rng.standard_normal((2000, 15)) * 2**20) / 2**20
    keys[LONE] = 0.0
    keys[LONE, 15] = size
    return keys @ ROTATION


# %%
# At relative size 1e-12
# ----------------------
# (The nearest power of two, 2**-40.) Common ways to compute the leverage of this key:


def recipes(K):
    """Return the leverage of row LONE as common recipes compute it."""
    k, gram = K[LONE], K.T @ K
    try:
        by_inverse = k @ np.linalg.inv(gram) @ k
    except np.linalg.LinAlgError:  # "singular matrix"
        by_inverse = np.nan
    sketched = np.linalg.qr(K @ np.random.default_rng(1).standard_normal((16, 8)))[0]
    return {
        "inv of the Gram matrix": by_inverse,
        "pinv of the Gram matrix": k @ np.linalg.pinv(gram) @ k,
        "scipy.linalg.pinv of the keys": k @ scipy.linalg.pinv(K)[:, LONE],
        "Gaussian sketch to 8 columns": sketched[LONE] @ sketched[LONE],
    }


K = make_keys(2.0**-40)
for name, score in recipes(K).items():
    print(f"{name:30} {abs(score):.6f}")

selector = lv.LeverageKeySelector(eps=0.5).fit(K)
print(f"{'levsketch':30} {selector.scores_[0]:.6f}  (row {selector.indices_[0]})")
print(f"guard {selector.guard_[0]:.1e}, certified: {selector.certified_}")

# %%
# Its witness is a query that sees nothing else. The score is attained against all 2000 keys:

query = selector.witness_queries()
heavy = selector.heavy_scores(query)
print(f"heavy scores of the witness: row {heavy.indices[0]}, {heavy.data[0]:.6f}")
print(f"the other {len(K) - 1} keys together: {1 - selector.transform(query)[0, 0]:.6f}")

# %%
# At every size
# -------------
# Each curve falls from 1 to 0 where its recipe loses the key (or ends, where it calls the matrix
# singular); the sketch never had it. In the shaded range float64 can prove nothing, and levsketch
# says so: ``certified_`` is False, the computed score falls as well, but the key is still selected,
# because elimination modulo a prime knows that it raised the rank.

sizes = 2.0 ** -np.arange(0, 61, 2)
curves, selected, certified = [], [], []
for size in sizes:
    K = make_keys(size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lv.CertificationWarning)
        selector = lv.LeverageKeySelector(eps=0.5).fit(K)
        curves.append(recipes(K) | {"levsketch": selector.score_samples(K[[LONE]])[0]})
    selected.append(LONE in selector.indices_)
    certified.append(selector.certified_)
selected, certified = np.array(selected), np.array(certified)
print(f"selected at {selected.sum()} of {len(sizes)} sizes, certified at {certified.sum()}")

figure, (above, below) = plt.subplots(
    2, 1, figsize=(8.0, 5.4), height_ratios=(4, 1), sharex=True, layout="constrained"
)
labels = {  # where each curve is named, and in which color
    "inv of the Gram matrix": (2.0**-19, 1.08, "#b5651d"),
    "pinv of the Gram matrix": (2.0**-17.5, 0.35, "#c08a1e"),
    "scipy.linalg.pinv of the keys": (2.0**-33, 0.5, "#5b7fb5"),
    "Gaussian sketch to 8 columns": (2.0**-16, 0.03, "#7d838c"),
    "levsketch": (2.0**-41, 0.75, "#c8323c"),
}
for name, (x, y, color) in labels.items():
    width = 2.6 if name == "levsketch" else 1.6
    above.plot(sizes, [found[name] for found in curves], color=color, lw=width, zorder=2 + width)
    name = name.replace(" of the keys", "\nof the keys")
    above.text(x, y, name, color=color, ha="right", fontsize=9)
first_doubt = sizes[~certified].max() * 2
for axes in (above, below):
    axes.axvspan(first_doubt, sizes[-1], color="#eef0f3", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
above.set(xscale="log", ylim=(-0.08, 1.45), ylabel="computed leverage of the lone key")
above.axhline(1.0, color="#22262e", lw=0.8, ls=":", zorder=2)
above.annotate("truth", (sizes[0], 1.0), xytext=(0, 4), textcoords="offset points", fontsize=9)
above.annotate(
    "beyond float64:\nnothing is certified",
    (np.sqrt(first_doubt * sizes[-1]), 1.24),
    ha="center",
    fontsize=9,
)
above.invert_xaxis()
below.plot(sizes, selected, ls="", marker="o", ms=4.5, color="#c8323c")
below.set(
    ylim=(-0.5, 1.5),
    yticks=(0, 1),
    yticklabels=("lost", "selected"),
    xlabel="norm of the lone key (of a typical other key: 4)",
    ylabel="levsketch",
)
plt.show()
