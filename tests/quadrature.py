"""Integrals under a normal law of queries, in one or two dimensions, by Gauss and Hermite."""

import numpy as np


def quadrature(law, nodes=90):
    """Return points q (m, d), the same in units of the law (m, d), and weights (m,)."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    d = len(law.mean)
    Z = np.stack([axis.ravel() for axis in np.meshgrid(*[z] * d, indexing="ij")], axis=1)
    W = np.prod([axis.ravel() for axis in np.meshgrid(*[w / w.sum()] * d, indexing="ij")], axis=0)
    return law.mean + Z @ law.root.T, Z, W


def polynomials(Z, order):
    """Return one (order 0), and z (order 1): orthonormal under the law."""
    return np.concatenate([np.ones((len(Z), 1)), Z], axis=1)[:, : 1 + order * Z.shape[1]]


def projection(W, basis, F):
    """Return the projection of functions (m, c) on the span of others (m, p)."""
    root = np.sqrt(W)[:, None]
    norms = np.linalg.norm(basis * root, axis=0)
    found = np.linalg.lstsq(basis / norms * root, F * root, rcond=1e-14)[0]
    return basis / norms @ found
