"""asv: fit, partial_fit and transform of the three estimators, on one thread."""

from __future__ import annotations

import numpy as np
from measuring import OneThread, make_keys

import levsketch as lv

ESTIMATORS = {
    "leverage": lambda: lv.LeverageKeySelector(eps=0.05),
    "lp": lambda: lv.LpSensitivitySelector(p=4.0, normaliser=None),
    "attention": lambda: lv.StreamingAttentionSketch(n_keys=128),
}


class Estimators(OneThread):
    """One estimator over a whole array, over blocks of it, and asked 64 queries."""

    params = tuple(ESTIMATORS)
    param_names = ("estimator",)

    def setup(self, estimator):
        super().setup()
        self.K, self.Q = make_keys(8192, 32), make_keys(64, 32, seed=1)
        self.V = np.tanh(self.K) if estimator == "attention" else None
        self.make = ESTIMATORS[estimator]
        # the set alone answers no query for another f: these need the normaliser
        asked = lv.LpSensitivitySelector(p=4.0) if estimator == "lp" else self.make()
        self.fitted = asked.fit(self.K, self.V)

    def stream(self, block):
        one = self.make()
        for i in range(0, len(self.K), block):
            one.partial_fit(
                self.K[i : i + block], self.V if self.V is None else self.V[i : i + block]
            )

    def time_fit(self, estimator):
        self.make().fit(self.K, self.V)

    def time_partial_fit_blocks_of_64(self, estimator):
        self.stream(64)

    def time_partial_fit_blocks_of_1024(self, estimator):
        self.stream(1024)

    def time_transform(self, estimator):
        self.fitted.transform(self.Q)

    def peakmem_fit(self, estimator):
        self.make().fit(self.K, self.V)

    def peakmem_partial_fit(self, estimator):
        self.stream(1024)

    def peakmem_transform(self, estimator):
        self.fitted.transform(self.Q)
