"""Leverage scores by what people use instead of levsketch: the peers of the tables.

Every method is a function of keys (n, d) and a number of threads, already in force for BLAS and
OpenMP, that returns n scores in float64 (`numpy_float32` apart). Packages that are not there are
left out by `installed`.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_limits

import levsketch as lv


def levsketch(K, threads=1):
    return lv.leverage_scores(K)


def numpy_blocked(K, threads=1, dtype=np.float64, block=4096):
    """The best that one would write by hand: blocked Gram (syrk), inverse factor, products."""
    d = K.shape[1]
    G = np.zeros((d, d), dtype)
    for i in range(0, len(K), block):
        B = K[i : i + block].astype(dtype, copy=False)
        G += B.T @ B
    W = scipy.linalg.solve_triangular(np.linalg.cholesky(G), np.eye(d, dtype=dtype), lower=True).T
    out = np.empty(len(K), dtype)
    for i in range(0, len(K), block):
        Z = K[i : i + block].astype(dtype, copy=False) @ W
        np.einsum("ij,ij->i", Z, Z, out=out[i : i + block])
    return out


def numpy_float32(K, threads=1):
    """The same in float32: half the work, no correct digit from condition number 1e4 on."""
    return numpy_blocked(K, threads, np.float32)


def scipy_qr(K, threads=1):
    Q = scipy.linalg.qr(K, mode="economic", check_finite=False)[0]
    return np.einsum("ij,ij->i", Q, Q)


def numpy_one_shot(K, threads=1):
    return np.einsum("ij,ij->i", K @ np.linalg.inv(K.T @ K), K)


def numpy_qr(K, threads=1):
    Q = np.linalg.qr(K).Q
    return np.einsum("ij,ij->i", Q, Q)


def numpy_svd(K, threads=1):
    U = np.linalg.svd(K, full_matrices=False).U
    return np.einsum("ij,ij->i", U, U)


def sklearn_pca(K, threads=1):
    """Scores of the rows [1, k_j]: PCA always centres."""
    from sklearn.decomposition import PCA

    Z = PCA(whiten=True).fit_transform(K)
    return np.einsum("ij,ij->i", Z, Z) / (len(K) - 1) + 1 / len(K)


def sklearn_mahalanobis(K, threads=1):
    from sklearn.covariance import EmpiricalCovariance

    return EmpiricalCovariance(assume_centered=True).fit(K).mahalanobis(K) / len(K)


def statsmodels_hat(K, threads=1):
    from statsmodels.api import OLS

    return OLS(np.ones(len(K)), K).fit().get_influence().hat_matrix_diag


def dask_tsqr(K, threads=1):
    """As dask's documentation has it: threads over chunks, BLAS on one thread in each."""
    import dask
    import dask.array as da

    rows = max(K.shape[1], min(65_536, -(-len(K) // threads)))
    Q = da.linalg.tsqr(da.from_array(K, chunks=(rows, K.shape[1])))[0]
    with threadpool_limits(1), dask.config.set(scheduler="threads", num_workers=threads):
        return (Q * Q).sum(axis=1).compute()


def torch_blocked(K, threads=1, block=4096):
    import torch

    T, d = torch.from_numpy(K), K.shape[1]
    G = torch.zeros((d, d), dtype=T.dtype)
    for B in T.split(block):
        G += B.T @ B
    eye = torch.eye(d, dtype=T.dtype)
    W = torch.linalg.solve_triangular(torch.linalg.cholesky(G), eye, upper=False).T
    return torch.cat([torch.square(B @ W).sum(dim=1) for B in T.split(block)]).numpy()


def torch_qr(K, threads=1):
    import torch

    Q = torch.linalg.qr(torch.from_numpy(K))[0]
    return torch.square(Q).sum(dim=1).numpy()


def pylspack_gram(K, threads=1):
    from pylspack.leverage_scores import ls_via_inv_gram

    return ls_via_inv_gram(K, rcond=0)


class Peer(NamedTuple):
    """A method, the package that it needs, and whether it scores [1, k_j] instead of k_j."""

    scores: object
    package: str
    centred: bool = False


METHODS = {
    "levsketch": Peer(levsketch, "levsketch"),
    "NumPy blocked": Peer(numpy_blocked, "numpy"),
    "NumPy float32": Peer(numpy_float32, "numpy"),
    "SciPy QR": Peer(scipy_qr, "scipy"),
    "NumPy inv + einsum": Peer(numpy_one_shot, "numpy"),
    "NumPy QR": Peer(numpy_qr, "numpy"),
    "NumPy SVD": Peer(numpy_svd, "numpy"),
    "scikit-learn PCA": Peer(sklearn_pca, "sklearn", True),
    "scikit-learn covariance": Peer(sklearn_mahalanobis, "sklearn"),
    "statsmodels OLS": Peer(statsmodels_hat, "statsmodels.api"),
    "dask tsqr": Peer(dask_tsqr, "dask.array"),
    "torch blocked": Peer(torch_blocked, "torch"),
    "torch QR": Peer(torch_qr, "torch"),
    "pylspack": Peer(pylspack_gram, "pylspack.leverage_scores"),
}


def installed(name):
    """Tell whether the package of a method can be imported, and import it (before limits)."""
    try:
        importlib.import_module(METHODS[name].package)
    except (ImportError, OSError):  # OSError: a shared library of pylspack or torch is missing
        return False
    return True


def reference(K, centred=False):
    """Return the scores by QR in float64 that errors are measured against."""
    wide = K.astype(np.float64, copy=False)
    return scipy_qr(np.column_stack([np.ones(len(K)), wide]) if centred else wide)


def max_error(scores, against):
    """Return the largest relative error."""
    return float(np.abs(scores / against - 1).max())
