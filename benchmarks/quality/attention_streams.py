"""One pass over streams that cannot be replayed: memory, batchings, merges, certificates.

    python benchmarks/quality/attention_streams.py --rows 10000000
    python benchmarks/quality/attention_streams.py --certificates 100000 --picture tightness.png

Memory: rows from a generator (d = 8, d_v = 4), in batches of 100,000; bytes of the state
(`nbytes_`), peak memory of the process and rows/s along the way, and the error on 2,000 queries at
the end, whose exact outputs are summed beside the stream.

Batching and merging: 40,000 clustered rows in batches of several sizes (bytes compared), and in
8 shards merged in several orders, against one stream: errors of all.

Certificates: random and adversarial queries over key sets of many kinds; how many bounds are
violated (there must be none), and how far they are from the truth, as quantiles and a picture.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import time

import numpy as np

import levsketch as lv
from levsketch.functions.softmax import combine, softmax_sums


def batches(rows, size=100_000, d=8, d_v=4):
    """Yield keys and values; nothing is kept."""
    rng = np.random.default_rng(0)
    centres, mix = rng.standard_normal((20, d)), rng.standard_normal((d, d_v))
    for _ in range(0, rows, size):
        K = centres[rng.integers(20, size=size)] + 0.5 * rng.standard_normal((size, d))
        yield K, np.tanh(K @ mix)


def long_stream(rows):
    Q = 1.5 * np.random.default_rng(1).standard_normal((4000, 8))
    asked, sample = Q[:2000], Q[2000:]
    att = lv.StreamingAttentionSketch(n_keys=100)
    exact = np.full(2000, -np.inf), np.zeros((2000, 5))
    start = time.perf_counter()
    spent, done, told = 0.0, 0, {"queries": sample}
    print(f"{'rows':>12} {'state bytes':>12} {'peak MB':>8} {'rows/s':>10}")
    for K, V in batches(rows):
        start = time.perf_counter()
        att.partial_fit(K, V, **told)
        spent, done, told = spent + time.perf_counter() - start, done + len(K), {}
        if done <= 1_000_000:  # the truth, while that is cheap
            found = softmax_sums(asked / np.sqrt(8), K, np.c_[V, np.ones(len(K))])
            exact = combine(*exact, *found)
        if done in (100_000, 1_000_000) or done % max(rows // 5, 1) == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{done:>12} {att.nbytes_:>12} {peak:>8.0f} {done / spent:>10.0f}", flush=True)
        if done == 1_000_000:
            truth = exact[1][:, :-1] / exact[1][:, -1:]
            error = np.linalg.norm(att.transform(asked) - truth) / np.linalg.norm(truth)
            print(
                f"relative error of 2,000 queries after 1,000,000 rows: {error:.4f}, "
                f"on probes {att.probe_error_:.4f}, by {att.residual_}"
            )


def batchings_and_merges():
    rng = np.random.default_rng(2)
    K, V = map(np.concatenate, zip(*batches(40_000, 8_000), strict=True))
    Q = 1.5 * rng.standard_normal((1000, 8))
    truth = lv.attention(Q, K, V)

    def error(att):
        return np.linalg.norm(att.transform(Q) - truth) / np.linalg.norm(truth)

    def fitted(part, sizes=(8_000,)):
        att = lv.StreamingAttentionSketch(n_keys=100)
        at = 0
        while at < len(part):
            step = sizes[at % len(sizes)]
            att.partial_fit(K[part[at : at + step]], V[part[at : at + step]])
            at += step
        return att

    rows = np.arange(len(K))
    streams = [fitted(rows, sizes) for sizes in ((40_000,), (8_000,), (1, 7, 333), (512,))]
    same = len({att.to_bytes() for att in streams}) == 1
    print(f"40,000 rows in 4 batchings: same bytes {same}, error {error(streams[0]):.4f}")
    shards = [fitted(part) for part in np.array_split(rows, 8)]
    for name, order in (("in order", range(8)), ("reversed", range(7, -1, -1))):
        whole = lv.StreamingAttentionSketch(n_keys=100)
        for i in order:
            whole = whole.merge(shards[i])
        print(f"8 shards merged {name}: error {error(whole):.4f}")
    tree = shards
    while len(tree) > 1:
        tree = [a.merge(b) for a, b in zip(tree[::2], tree[1::2], strict=True)]
    print(f"8 shards merged as a tree: error {error(tree[0]):.4f}")


KINDS = (
    "gaussian .25",
    "gaussian .5",
    "gaussian 1",
    "gaussian 2",
    "clusters",
    "heavy tails",
    "ill-conditioned",
    "outlier",
    "rank 2",
    "duplicates",
)


def keys_of(kind, rng, n=3000, d=8):
    """Return keys, values and the standard deviation of logits to ask for."""
    K, std = rng.standard_normal((n, d)), 1.0
    if kind.startswith("gaussian"):
        std = float(kind.split()[1])
    elif kind == "clusters":
        K = rng.standard_normal((12, d))[rng.integers(12, size=n)] + 0.1 * K
    elif kind == "heavy tails":
        K = rng.standard_t(2, size=(n, d))
    elif kind == "ill-conditioned":
        K = K * np.logspace(0, -14, d)
    elif kind == "outlier":
        K[n // 2] *= 1e6
    elif kind == "rank 2":
        K = K[:, :2] @ rng.standard_normal((2, d))
    elif kind == "duplicates":
        K = K[rng.integers(5, size=n)]
    return K, rng.standard_normal((n, 3)) + np.tanh(K[:, :3]), std


def asked(K, std, count, rng):
    """Return queries: of the law, towards keys, of witness directions, huge, tiny and zero."""
    C = np.cov(K.T) + 1e-30 * np.eye(K.shape[1])
    Q = rng.standard_normal((count, K.shape[1]))
    Q *= std / np.sqrt(max(np.trace(C), 1e-300))
    towards = K[rng.integers(len(K), size=count // 4)]
    Q[: count // 4] = towards / np.maximum(np.linalg.norm(towards, axis=1), 1e-300)[:, None] ** 2
    Q[: count // 4] *= 10 ** rng.uniform(-2, 1.5, (count // 4, 1))
    witness = towards[: count // 8] @ np.linalg.pinv(C)
    Q[count // 4 : count // 4 + count // 8] = witness / len(K)
    Q[-1] = 0.0
    Q[-2] *= 1e6
    Q[-3] *= 1e-9
    return Q


def certificates(count, picture):
    rng = np.random.default_rng(3)
    each, done, violated, found = 500, 0, 0, {}
    while done < count:
        kind = KINDS[(done // each) % len(KINDS)]
        K, V, std = keys_of(kind, rng)
        params = {"n_keys": int(rng.choice([60, 200, 600])), "scale": 1.0}
        params["residual"] = str(rng.choice(["auto", "closure", "embedding"]))
        att = lv.StreamingAttentionSketch(**params).fit(K, V)
        Q = asked(K, std, each, rng)
        truth = lv.attention(Q, K, V, scale=1.0)
        error = np.linalg.norm(att.transform(Q) - truth, axis=1)
        bound, mass = att.error_bound(Q), att.covered_mass(Q)
        true_mass = np.ones(each)
        if len(att.indices_) < len(K):
            kept = np.zeros(len(K))
            kept[att.indices_] = 1.0
            true_mass = lv.attention(Q, K, kept[:, None], scale=1.0)[:, 0]
        slack = 1e-12 * np.abs(V).max()
        violated += int((error > bound + slack).sum() + (mass > true_mass + 1e-12).sum())
        found.setdefault(kind, []).append(np.stack([error, bound, mass, true_mass]))
        done += each
    print(f"{done:,} queries, 2 certificates each: {violated} violated")
    print(f"{'keys':>16} {'bound / error: 10 %':>20} {'50 %':>9} {'90 %':>9} {'covered':>10}")
    for kind, parts in found.items():
        error, bound, mass, true_mass = np.concatenate(parts, axis=1)
        ratio = np.quantile(bound / np.maximum(error, 1e-12), [0.1, 0.5, 0.9])
        share = np.median(mass / np.maximum(true_mass, 1e-300))
        print(f"{kind:>16} {ratio[0]:>20.1f} {ratio[1]:>9.1f} {ratio[2]:>9.1f} {share:>10.3f}")
    if picture:
        draw(found, picture)


def draw(found, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for kind, parts in found.items():
        error, bound, mass, true_mass = np.concatenate(parts, axis=1)[:, ::7]
        axes[0].loglog(np.maximum(error, 1e-9), np.maximum(bound, 1e-9), ".", ms=2, label=kind)
        axes[1].plot(true_mass, mass, ".", ms=2)
    for axis, text in zip(
        axes, ("error of the output", "attention mass on kept keys"), strict=True
    ):
        axis.axline((1e-3, 1e-3), (1.0, 1.0), color="k", lw=0.8)
        axis.set_xlabel(f"{text}, true")
        axis.set_ylabel("certified")
    axes[0].set_title("upper bounds: nothing below the line")
    axes[1].set_title("lower bounds: nothing above the line")
    axes[0].legend(markerscale=6, fontsize=7)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=0, help="length of the stream")
    parser.add_argument("--certificates", type=int, default=0, help="number of queries")
    parser.add_argument("--picture", type=pathlib.Path)
    args = parser.parse_args()
    if args.rows:
        long_stream(args.rows)
    if args.certificates:
        certificates(args.certificates, args.picture)
    else:
        batchings_and_merges()


if __name__ == "__main__":
    main()
