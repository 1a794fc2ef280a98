"""
Digits that are like no other
=============================

Each of the 1797 images of scikit-learn's digits is a row of 64 pixels. A linear probe q sees the
image k as ``<q, k>``, and pays it the share ``<q, k>^2 / sum <q, k_l>^2`` of its attention. Which
images can take a fifth of some probe's attention, out of 1797? The universal set answers for all
probes at once.
"""

# %%
# The leverage profile
# --------------------
# The score of a row is the largest share that any probe can give it. Three of the 64 pixels are
# blank in every image, so the scores add up to the exact rank, 61, and at most 61 / 0.2 = 305 rows
# can reach 0.2 (the legend counts all 64 columns). Sixteen do.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import levsketch as lv
from levsketch.plotting import LeverageDisplay

X, label = load_digits(return_X_y=True)
selector = lv.LeverageKeySelector(eps=0.2).fit(X)
scores = lv.leverage_scores(X)
print(f"sum of all scores: {scores.sum():.6f}")
print(f"selected: {len(selector.indices_)} of {len(X)} rows, certified: {selector.certified_}")

LeverageDisplay.from_estimator(selector, X, yscale="log")
plt.show()

# %%
# The images, and the reason for each
# -----------------------------------
# Below every selected image is its witness: the probe that pays it the score in the title. Ink in
# red pixels raises the product with the probe, ink in blue ones lowers it. Each image owes its
# place to pixels at the left or right edge that hardly any other image reaches. The one with score
# 1 is the only image with ink in the lower left corner: it is independent of all others, and its
# witness sees nothing else.

witness = selector.witness_queries()
order = np.argsort(-selector.scores_)
figure, axes = plt.subplots(4, 8, figsize=(9.0, 5.6), layout="constrained")
for i, j in enumerate(order):
    row = selector.indices_[j]
    image, probe = axes[2 * (i // 8), i % 8], axes[2 * (i // 8) + 1, i % 8]
    image.imshow(X[row].reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
    image.set_title(f"row {row}: a {label[row]}\nscore {selector.scores_[j]:.2f}", fontsize=8)
    largest = np.abs(witness[j]).max()
    probe.imshow(-witness[j].reshape(8, 8), cmap="RdBu", vmin=-largest, vmax=largest)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("image")
axes[1, 0].set_ylabel("witness")
axes[2, 0].set_ylabel("image")
axes[3, 0].set_ylabel("witness")
plt.show()

# %%
# Checked by brute force
# ----------------------
# Every witness against all 1797 images: the share that its image gets is the score. And a hundred
# thousand random probes find nothing outside the set that gets as much as the bound allows.

products = (witness @ X.T) ** 2
share = products / products.sum(axis=1, keepdims=True)
attained = share[np.arange(len(witness)), selector.indices_]
print("witnesses attain the scores:", np.allclose(attained, selector.scores_))

outside = np.setdiff1d(np.arange(len(X)), selector.indices_)
largest = 0.0
for seed in range(10):
    probes = np.random.default_rng(seed).standard_normal((10_000, 64))
    products = (probes @ X.T) ** 2
    largest = max(largest, float((products[:, outside].max(axis=1) / products.sum(axis=1)).max()))
print(f"largest share outside the set: {largest:.3f}, proved: {selector.unselected_bound_:.3f}")
