"""asv: the functions of the package, on one thread."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from measuring import OneThread, make_keys

import levsketch as lv


class Leverage(OneThread):
    """Scores by Gram blocks (condition 1) and by the certified path (1e10)."""

    params = (((65_536, 16), (16_384, 64), (8192, 128)), (None, 1e10))
    param_names = ("shape", "condition")

    def setup(self, shape, condition):
        super().setup()
        self.K = make_keys(*shape, condition=condition)

    def time_leverage_scores(self, shape, condition):
        lv.leverage_scores(self.K)

    def peakmem_leverage_scores(self, shape, condition):
        lv.leverage_scores(self.K)

    def time_universal_set(self, shape, condition):
        lv.universal_set(self.K, 0.05)

    def peakmem_universal_set(self, shape, condition):
        lv.universal_set(self.K, 0.05)


class SparseLeverage(OneThread):
    """Scores and sets of sparse keys."""

    params = (0.01, 0.1)
    param_names = ("density",)

    def setup(self, density):
        super().setup()
        rng = np.random.default_rng(0)
        shape = (65_536, 256)
        self.K = scipy.sparse.random_array(shape, density=density, format="csr", rng=rng)

    def time_leverage_scores(self, density):
        lv.leverage_scores(self.K)

    def peakmem_leverage_scores(self, density):
        lv.leverage_scores(self.K)

    def time_universal_set(self, density):
        lv.universal_set(self.K, 0.05)

    def peakmem_universal_set(self, density):
        lv.universal_set(self.K, 0.05)


class Lewis(OneThread):
    """Weights for exponents on both sides of 2."""

    params = (1.0, 4.0)
    param_names = ("p",)

    def setup(self, p):
        super().setup()
        self.K = make_keys(8192, 32)

    def time_lewis_weights(self, p):
        lv.lewis_weights(self.K, p)

    def peakmem_lewis_weights(self, p):
        lv.lewis_weights(self.K, p)


class Attention(OneThread):
    """Heavy scores, exact outputs and outputs from a sketch, for few and more queries."""

    params = (16, 256)
    param_names = ("queries",)

    def setup(self, queries):
        super().setup()
        self.K, self.Q = make_keys(8192, 32), make_keys(queries, 32, seed=1)
        self.V = np.tanh(self.K)

    def time_heavy_attention(self, queries):
        lv.heavy_attention(self.Q, self.K, 0.01)

    def time_attention(self, queries):
        lv.attention(self.Q, self.K, self.V)

    def time_sketched_attention(self, queries):
        lv.sketched_attention(self.Q, self.K, self.V, 128)

    def peakmem_heavy_attention(self, queries):
        lv.heavy_attention(self.Q, self.K, 0.01)

    def peakmem_attention(self, queries):
        lv.attention(self.Q, self.K, self.V)

    def peakmem_sketched_attention(self, queries):
        lv.sketched_attention(self.Q, self.K, self.V, 128)
