"""Fit selectors where the two documented warnings are not what a test is about."""

from __future__ import annotations

import contextlib
import itertools
import warnings

import numpy as np

from levsketch import CertificationWarning, LeverageKeySelector

NOT_REDUCED = "eps=.* promises at most d/eps"


@contextlib.contextmanager
def quiet():
    """Silence the warning about eps and the one about certification, and no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NOT_REDUCED, category=UserWarning)
        warnings.simplefilter("ignore", CertificationWarning)
        yield


def fit(K, **params):
    """Return a selector fitted to ``K`` at once."""
    with quiet():
        return LeverageKeySelector(**params).fit(K)


def stream(batches, **params):
    """Return a selector fitted to one batch after the other."""
    selector = LeverageKeySelector(**params)
    with quiet():
        for batch in batches:
            selector.partial_fit(batch)
        assert selector.certified_ in (True, False)  # the first look may warn: here
    return selector


def split(K, cuts):
    """Return the batches of ``K`` between ascending row numbers."""
    return [K[a:b] for a, b in itertools.pairwise([0, *cuts, len(K)])]


def snapshot(selector):
    """Return all that an estimator holds: its attributes by identity, and its saved bytes."""
    saved = selector.to_bytes() if hasattr(selector, "_stream") else None
    return dict(vars(selector)), saved


def missed(selector, scores, eps, slack):
    """Return the rows whose true score reaches eps (beyond ``slack``) but that are not selected."""
    heavy = np.asarray(scores * (1 - slack) >= eps)
    heavy[np.asarray(selector.indices_)] = False
    return np.flatnonzero(heavy)
