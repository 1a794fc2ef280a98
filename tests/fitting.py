"""Fit selectors where the two documented warnings are not what a test is about.

Laws that hold for every key selector run over ``SELECTORS``: functions that return unfitted
selectors, parameters of their own excepted.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings

import numpy as np
import pytest

from levsketch import CertificationWarning, LeverageKeySelector, LpSensitivitySelector

NOT_REDUCED = r"eps=.* promises at most d(\^[0-9.e+]+)?/eps"

# One of each sort: by squares; a factor of lifted rows; samples with additive and with
# maximal levels; a function with a scale of its own; sketched lifts; convex optimisation.
LP_SELECTORS = {
    "p=4": LpSensitivitySelector,
    "p=3": functools.partial(LpSensitivitySelector, p=3),
    "p=1": functools.partial(LpSensitivitySelector, p=1, delta=0.3),
    "huber": functools.partial(LpSensitivitySelector, function="huber"),
    "sketch": functools.partial(LpSensitivitySelector, normaliser="tensorsketch", sketch_size=16),
    "refined": functools.partial(LpSensitivitySelector, refine=True),
}
SELECTORS = {"leverage": LeverageKeySelector} | LP_SELECTORS
# where one selector with a lift and one with a sample say enough
FEW = {name: SELECTORS[name] for name in ("leverage", "p=4", "p=3")}

every_selector = pytest.mark.parametrize("new", SELECTORS.values(), ids=SELECTORS)
few_selectors = pytest.mark.parametrize("new", FEW.values(), ids=FEW)
every_lp_selector = pytest.mark.parametrize("new", LP_SELECTORS.values(), ids=LP_SELECTORS)


@contextlib.contextmanager
def quiet():
    """Silence the warning about eps and the one about certification, and no other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=NOT_REDUCED, category=UserWarning)
        warnings.simplefilter("ignore", CertificationWarning)
        yield


def fit(K, new=LeverageKeySelector, **params):
    """Return a selector fitted to ``K`` at once."""
    with quiet():
        return new(**params).fit(K)


def stream(batches, new=LeverageKeySelector, **params):
    """Return a selector fitted to one batch after the other."""
    selector = new(**params)
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


def public(selector, Q):
    """Return every fitted attribute and answer of a selector as bytes, by name."""
    with quiet():
        found = {
            name: np.asarray(getattr(selector, name)).tobytes()
            for name in dir(type(selector))
            if name.endswith("_") and not name.startswith("_") and hasattr(selector, name)
        }
        found["transform"] = selector.transform(Q).tobytes()
        heavy = selector.heavy_scores(Q)
        found["heavy_scores"] = heavy.toarray().tobytes()
        found["score_samples"] = selector.score_samples(Q).tobytes()
        found["witness_queries"] = selector.witness_queries().tobytes()
    return found


def missed(selector, scores, eps, slack):
    """Return the rows whose true score reaches eps (beyond ``slack``) but that are not selected."""
    heavy = np.asarray(scores * (1 - slack) >= eps)
    heavy[np.asarray(selector.indices_)] = False
    return np.flatnonzero(heavy)
