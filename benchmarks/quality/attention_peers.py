"""Compare one-pass approximations of softmax attention that keep the same count of numbers.

    python benchmarks/quality/attention_data.py --rows 4096 --output heads
    python benchmarks/quality/attention_peers.py --heads heads --output peers.json

Six heads of an encoder and six synthetic kinds of keys, each at 0.5, 2 and 10 % of the n (d + d_v)
numbers of the keys and values, 1000 queries. Prints ||Y - Y*||_F / ||Y*||_F, medians over seeds; a
method whose fixed part exceeds the budget has no entry.

Every method is `name(K, V, Q, floats, seed)` and returns the outputs (m, d_v) or None. Q holds
scaled queries (softmax of Q K^T), which are used only to answer. `floats` counts what is needed to
answer: rows, weights, moments, and the box of the values where outputs are clipped to it; not what
is needed while rows arrive (buffers, a factor for leverage), nor seeds. Where a method needs the
mean of the keys, or the scale of values, it gets those of all rows, which a stream would not know.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import operator
import pathlib
import time

import numpy as np
from attention_data import KINDS, load_head, synthetic
from scipy.special import logsumexp

import levsketch as lv
from levsketch.sketches.tensorsketch import TensorSketch

HEADS = ((0, 3), (1, 2), (2, 7), (3, 2), (4, 9), (5, 4))
BLOCK = 256  # queries, or arriving rows, that are worked on at a time


def attend(Q, K, V, log_weights=0.0):
    """Return softmax(Q K^T + log_weights) V."""
    out = np.empty((len(Q), V.shape[1]))
    for i in range(0, len(Q), BLOCK):
        P = Q[i : i + BLOCK] @ K.T + log_weights
        P = np.exp(P - P.max(1, keepdims=True))
        out[i : i + BLOCK] = (P @ V) / P.sum(1, keepdims=True)
    return out


def exact(Q, K, V):
    """Return softmax(Q K^T) V."""
    return attend(Q, K, V)


def clipped(Y, V):
    """Return Y inside the box of the values, which costs 2 d_v numbers."""
    return np.clip(Y, V.min(0), V.max(0))


# Rows.


def average(K, V, Q, floats, seed):
    """Return the mean of the values, whatever the query."""
    return np.broadcast_to(V.mean(0), (len(Q), V.shape[1]))


def uniform(K, V, Q, floats, seed):
    """Rows sampled without replacement."""
    m = floats // (K.shape[1] + V.shape[1])
    rows = np.random.default_rng(seed).permutation(len(K))[:m]
    return attend(Q, K[rows], V[rows]) if m else None


def importance(K, V, Q, floats, seed):
    """Rows by priority sampling; sizes are the means of 1/n and of the shares of two squared norms.

    The norms are those of the centred key and of the centred value. Priority sampling (Duffield,
    Lund and Thorup, JACM 2007) needs one pass; a kept row has the weight max(1, threshold / size).
    """
    m = floats // (K.shape[1] + V.shape[1] + 1)
    if not 1 <= m < len(K):
        return None
    size = np.full(len(K), 1.0 / len(K))
    for X in (K, V):
        norms = ((X - X.mean(0)) ** 2).sum(1)
        size += norms / norms.sum()
    priority = size / (1.0 - np.random.default_rng(seed).random(len(K)))
    order = np.argsort(-priority)
    rows, threshold = order[:m], priority[order[m]]
    return attend(Q, K[rows], V[rows], np.log(np.maximum(1.0, threshold / size[rows])))


def window(K, V, Q, floats, seed):
    """Return attention over the first four rows and the last ones."""
    m = floats // (K.shape[1] + V.shape[1])
    rows = np.r_[:4, max(4, len(K) - m + 4) : len(K)]
    return attend(Q, K[rows], V[rows]) if m > 4 else None


def leverage(K, V, Q, floats, seed):
    """Return attention over the rows of largest centred leverage."""
    m = floats // (K.shape[1] + V.shape[1])
    rows = np.argsort(-lv.leverage_scores(K - K.mean(0)))[:m]
    return attend(Q, K[rows], V[rows]) if m else None


def half(K, V, rng):
    """Return about half of the rows, by a self-balancing walk.

    Rows are paired at random; of each pair the walk keeps one, by the inner product of their
    difference with the sum so far in the feature space of exp(<k, k'> / sqrt(d)) (1 + <v, v'>).
    """
    order = rng.permutation(len(K))
    order, odd = np.split(order, [len(K) // 2 * 2])  # odd: a row without a partner
    K, V = K[order] / K.shape[1] ** 0.25, V[order]
    G = np.exp(K @ K.T - (K * K).sum(1).max(initial=0.0)) * (1.0 + V @ V.T)
    D = G[::2] - G[1::2]
    D = D[:, ::2] - D[:, 1::2]  # inner products of differences
    total, keep = np.zeros(len(D)), np.empty(len(D), int)
    for i in range(len(D)):
        plus = rng.random() < 0.5 - 0.5 * total[i] / max(D[i, i], 1e-300)
        total += D[i] if plus else -D[i]
        keep[i] = 2 * i + (not plus)
    return np.r_[order[keep], odd[rng.random(len(odd)) < 0.5]]


def halving(K, V, Q, floats, seed):
    """Rows that remain after halving by discrepancy, in the manner of BalanceKV.

    Arriving blocks are halved until their rows weigh as much as the lightest kept; of these, as
    many as needed are halved while there are too many rows.
    """
    m, rng = floats // (K.shape[1] + V.shape[1] + 1), np.random.default_rng(seed)
    if m < 2:
        return None
    X, Y = K - K.mean(0), V - V.mean(0)
    Y /= np.sqrt((Y * Y).sum(1).mean())
    classes = {}  # binary logarithm of the weight: rows
    for start in range(0, len(K), BLOCK):
        lightest = min(classes, default=0)
        rows = np.arange(start, min(start + BLOCK, len(K)))
        classes[0] = np.r_[classes.get(0, rows[:0]), rows]
        while (surplus := sum(map(len, classes.values())) - m) > 0 or min(classes) < lightest:
            level = min(classes)
            rows = classes.pop(level)
            if level >= lightest and 2 * surplus < len(rows):
                classes[level], rows = rows[2 * surplus :], rows[: 2 * surplus]
            rows = rows[half(X[rows], Y[rows], rng)]
            classes[level + 1] = np.r_[classes.get(level + 1, rows[:0]), rows]
    rows = np.concatenate(list(classes.values()))
    weights = np.repeat(list(classes), list(map(len, classes.values())))
    return attend(Q, K[rows], V[rows], weights * math.log(2.0))


def nearest(X, C):
    """Return the number of the nearest centroid of each row."""
    label, norms = np.empty(len(X), int), (C * C).sum(1)
    for i in range(0, len(X), BLOCK):
        label[i : i + BLOCK] = (norms - 2 * X[i : i + BLOCK] @ C.T).argmin(1)
    return label


def averages(K, V, weights, label):
    """Return the weighted means of keys and values, and the weight, of each label in use."""
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    X = np.c_[K, V, np.ones(len(K))] * weights[:, None]
    X = np.add.reduceat(X[order], starts)
    d, count = K.shape[1], X[:, -1]
    return X[:, :d] / count[:, None], X[:, d:-1] / count[:, None], count


def lloyd(K, V, weights, m, rng):
    """Return m centroids, their values and weights: k-means++ and three rounds of Lloyd."""
    near, chosen = np.ones(len(K)), []
    for i in range(m):
        mass = np.cumsum(weights * near)
        if mass[-1] == 0:  # fewer distinct keys than centroids
            break
        row = min(np.searchsorted(mass, rng.random() * mass[-1], "right"), len(K) - 1)
        distance = ((K - K[row]) ** 2).sum(1)
        near = np.minimum(near, distance) if i else distance
        chosen.append(row)
    C = K[chosen]
    for _ in range(3):
        C, U, count = averages(K, V, weights, nearest(K, C))
    return C, U, count


def kmeans(K, V, Q, floats, seed):
    """Centroids of keys and values, with counts: each block is clustered with those so far."""
    m, rng = floats // (K.shape[1] + V.shape[1] + 1), np.random.default_rng(seed)
    if m < 1:
        return None
    C, U, count = K[:0], V[:0], np.empty(0)
    step = max(m, BLOCK)
    for i in range(0, len(K), step):
        C, U = np.r_[C, K[i : i + step]], np.r_[U, V[i : i + step]]
        count = np.r_[count, np.ones(len(C) - len(count))]
        if len(C) > m:
            C, U, count = lloyd(C, U, count, m, rng)
    return attend(Q, C, U, np.log(count))


def macqueen(K, V, Q, floats, seed):
    """Centroids with counts, from the first rows on: a row moves the nearest (mini-batches)."""
    m = floats // (K.shape[1] + V.shape[1] + 1)
    if m < 1:
        return None
    C, U, count = K[:m], V[:m], np.ones(min(m, len(K)))
    for i in range(m, len(K), BLOCK // 4):
        X, Y = K[i : i + BLOCK // 4], V[i : i + BLOCK // 4]
        label = np.r_[np.arange(m), nearest(X, C)]
        C, U, count = averages(np.r_[C, X], np.r_[U, Y], np.r_[count, np.ones(len(X))], label)
    return attend(Q, C, U, np.log(count))


# Features and moments.


def favor(K, V, Q, floats, seed):
    """Positive orthogonal random features (FAVOR+) of centred keys, scaled as in Performers.

    Kept per feature: the logarithm of its sum over the keys, and the average value under it. So
    the output is an average of these, and nothing overflows.
    """
    d, rng = K.shape[1], np.random.default_rng(seed)
    m = (floats - d) // (V.shape[1] + 1)
    if m < 1:
        return None
    blocks = [np.linalg.qr(rng.standard_normal((d, d)))[0] for _ in range(-(-m // d))]
    W = np.concatenate(blocks)[:m] * np.sqrt(rng.chisquare(d, (m, 1)))
    X = (K - K.mean(0)) * d**-0.25
    log_features = X @ W.T - 0.5 * (X * X).sum(1)[:, None]
    log_sums = logsumexp(log_features, axis=0)
    values = np.exp(log_features - log_sums).T @ V
    return attend(Q * d**0.25, W, values, log_sums)


def taylor(K, V, Q, floats, seed, degree):
    """Taylor polynomial of centred logits, its denominator at least n, as Jensen has it.

    What the moments give is computed here from the logits: the same numbers, in less code.
    """
    d, n = K.shape[1], len(K)
    if math.comb(d + degree, degree) * (V.shape[1] + 1) + 2 * V.shape[1] > floats:
        return None
    X, out = K - K.mean(0), np.empty((len(Q), V.shape[1]))
    for i in range(0, len(Q), BLOCK):
        S = Q[i : i + BLOCK] @ X.T
        P = sum(S**r / math.factorial(r) for r in range(degree + 1))
        out[i : i + BLOCK] = P @ V / np.maximum(P.sum(1, keepdims=True), n)
    return clipped(out, V)


def tensorsketch(K, V, Q, floats, seed):
    """Taylor polynomial of degree 3: exact to degree 1, degrees 2 and 3 sketched in equal parts."""
    d, n = K.shape[1], len(K)
    size = ((floats - 2 * V.shape[1]) // (V.shape[1] + 1) - d - 1) // 2
    if size < d:
        return None
    X, ones = K - K.mean(0), np.ones((n, 1))
    W = np.hstack([V, ones])
    S = W.sum(0) + Q @ (X.T @ W)
    for r in (2, 3):
        sketch = TensorSketch.make(d, degree=r, size=size, seed=2 * seed + r)
        S += sketch.apply(Q) @ (sketch.apply(X).T @ W) / math.factorial(r)
    return clipped(S[:, :-1] / np.maximum(S[:, -1:], n), V)


def closure(K, V, Q, floats, seed):
    """Exact rows of largest centred leverage; the others as jointly Gaussian keys and values.

    The others' sum is at least Jensen's bound by itself, and capped by the certificate of
    bounded logits, for which t is the largest leverage among them.
    """
    n, d, d_v = len(K), K.shape[1], V.shape[1]
    fixed = (d + 1) * (d_v + 1) + d * (d + 1) // 2 + 2 * d_v + 1
    m = (floats - fixed) // (d + d_v)
    if not 0 <= m < n - 1:
        return None
    scores = lv.leverage_scores(K - K.mean(0))
    order = np.argsort(-scores)
    rows, rest = order[:m], order[m:]
    mean, mean_v = K[rest].mean(0), V[rest].mean(0)
    X, Y = K[rest] - mean, V[rest] - mean_v
    variance = ((Q @ (X.T @ X)) * Q).sum(1) / len(rest)
    # |<q, k - mean>| of the rest: leverages belong to the moments of all keys
    spread = ((Q @ np.cov(K.T, bias=True)) * Q).sum(1) * n
    bound = np.sqrt(scores[rest].max() * spread) + np.abs(Q @ (K.mean(0) - mean))
    bound = np.maximum(bound, 1e-4)
    # log(1 + variance (e^bound - 1 - bound) / bound^2)
    cap = np.logaddexp(0.0, np.log(variance + 1e-300) + bound - 2 * np.log(bound))
    log_rest = math.log(len(rest)) + Q @ mean + np.minimum(variance / 2, cap)
    value = clipped(mean_v + Q @ (X.T @ Y) / len(rest), V)
    if not m:
        return value
    logits = Q @ K[rows].T
    top = np.maximum(logits.max(1), log_rest)[:, None]
    P, share = np.exp(logits - top), np.exp(log_rest[:, None] - top)
    return (P @ V[rows] + share * value) / (P.sum(1, keepdims=True) + share)


ROWS = (average, uniform, importance, window, leverage, halving, kmeans, macqueen)
METHODS = {method.__name__: method for method in (*ROWS, favor, tensorsketch, closure)}
for _degree in (1, 2, 3):
    METHODS[f"taylor{_degree}"] = functools.partial(taylor, degree=_degree)

# Data and errors.


def errors(Y, truth, mean):
    """Return relative Frobenius errors, plain and of truth - mean, and the worst row's."""
    rows = np.linalg.norm(Y - truth, axis=1)
    total = np.linalg.norm(truth)
    return {
        "relative": np.linalg.norm(rows) / total,
        "centred": np.linalg.norm(rows) / np.linalg.norm(truth - mean),
        "worst": rows.max() / (total / math.sqrt(len(truth))),
    }


def data(args):
    """Yield name, seed, Q, K, V."""
    for layer, head in HEADS if args.heads else ():
        Q, K, V = (X.astype(float) for X in load_head(args.heads, layer, head, args.rows))
        for seed in range(args.seeds):
            rows = np.random.default_rng(seed).permutation(args.rows)[: args.queries]
            yield f"L{layer}H{head}", seed, Q[rows] / math.sqrt(K.shape[1]), K, V
    for kind in KINDS:
        for seed in range(args.seeds):
            yield kind, seed, *synthetic(kind, args.rows, 32, seed, args.queries)


def compare(args):
    """Return one record per data set, seed, budget and method."""
    records = []
    for name, seed, Q, K, V in data(args):
        truth, mean = exact(Q, K, V), V.mean(0)
        for budget, method in itertools.product(args.budgets, args.methods):
            start = time.perf_counter()
            Y = METHODS[method](K, V, Q, int(budget / 100 * (K.size + V.size)), seed)
            record = {"data": name, "seed": seed, "budget": budget, "method": method}
            record["seconds"] = time.perf_counter() - start
            if Y is not None:
                records.append(record | errors(Y, truth, mean))
        print(".", end="", flush=True)
    print()
    return records


def table(records):
    """Print medians over seeds: budgets and methods by data."""
    key = operator.itemgetter("budget", "method", "data")
    names = list(dict.fromkeys(r["data"] for r in records))
    print(f"{'':>5} {'':12}" + "".join(f"{name:>9}" for name in names))
    for budget, method in dict.fromkeys(key(r)[:2] for r in records):
        line = f"{budget:>4}% {method:12}"
        for name in names:
            found = [r["relative"] for r in records if key(r) == (budget, method, name)]
            line += f"{np.median(found):>9.3f}" if found else f"{'':>9}"
        print(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=pathlib.Path, help="folder of attention_data.py's files")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 2.0, 10.0], help="%%")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--output", type=pathlib.Path, help="JSON file of all records")
    args = parser.parse_args()
    records = compare(args)
    table(records)
    if args.output:
        args.output.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
