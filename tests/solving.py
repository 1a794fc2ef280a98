"""Solve for sensitivities where warnings of certification are not what a test is about."""

import warnings

import numpy as np

from levsketch import CertificationWarning, sensitivities
from levsketch.algorithms.leverage import whitening_of
from levsketch.algorithms.sensitivity import whitened_rows
from levsketch.backends import CpuBackend


def whitened(K):
    """Return the whitening of K (n, d) and its whitened rows."""
    K = np.asarray(K, np.float64)
    found = whitening_of(CpuBackend(), K, 0.0, False)
    return found, whitened_rows(CpuBackend(), found, K)


def intervals(K, p, indices=None, **options):
    """Return lower and upper bounds (m,) each, of keys that may be beyond certification."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CertificationWarning)
        found = sensitivities(K, p, indices, **options)
    return found[..., 0], found[..., 1]


def relative(low, high):
    low, high = low[high > 1e-290], high[high > 1e-290]  # what underflows has no relative width
    return float(np.max(1 - low / high, initial=0.0))
