"""asv: the operations over n rows, as the backend runs them, on one thread."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from measuring import OneThread, make_keys

from levsketch.backends import backend_for
from levsketch.backends.csr import CsrRows
from levsketch.streaming.factor import block_size


class Kernels(OneThread):
    """Gram blocks, R factors and whitened norms of keys of either width."""

    params = (((65_536, 16), (16_384, 64), (8192, 128)), ("float16", "float32", "float64"))
    param_names = ("shape", "dtype")

    def setup(self, shape, dtype):
        super().setup()
        self.K = make_keys(*shape, dtype)
        self.W = np.triu(make_keys(shape[1], shape[1], seed=1))
        self.scale = np.linspace(0.5, 2.0, shape[0])
        self.block, self.backend = block_size(shape[1]), backend_for(self.K)

    def time_block_grams(self, shape, dtype):
        self.backend.block_grams(self.K, self.block)

    def time_scaled_block_grams(self, shape, dtype):
        self.backend.block_grams(self.K, self.block, self.scale)

    def time_whitened_row_norms(self, shape, dtype):
        self.backend.whitened_row_norms(self.K, self.W, triangular=True)

    def time_qr_blocks(self, shape, dtype):
        self.backend.qr_blocks(self.K, self.block)

    def peakmem_block_grams(self, shape, dtype):
        self.backend.block_grams(self.K, self.block)

    def peakmem_whitened_row_norms(self, shape, dtype):
        self.backend.whitened_row_norms(self.K, self.W, triangular=True)

    def peakmem_qr_blocks(self, shape, dtype):
        self.backend.qr_blocks(self.K, self.block)


class SparseKernels(OneThread):
    """Gram blocks and whitened norms of sparse keys: few nonzeros, and the dense kernels' share."""

    params = (((65_536, 64), (16_384, 512)), (0.01, 0.1, 0.5))
    param_names = ("shape", "density")

    def setup(self, shape, density):
        super().setup()
        rng = np.random.default_rng(0)
        made = scipy.sparse.random_array(shape, density=density, format="csr", rng=rng)
        self.K = CsrRows.of("K", made)
        self.W = np.triu(make_keys(shape[1], shape[1], seed=1))
        self.block, self.backend = block_size(shape[1]), backend_for(self.K)

    def time_block_grams(self, shape, density):
        for i in range(0, len(self.K), 2 * self.block):
            self.backend.block_grams(self.K[i : i + 2 * self.block], self.block)

    def time_whitened_row_norms(self, shape, density):
        self.backend.whitened_row_norms(self.K, self.W, triangular=True)

    def peakmem_block_grams(self, shape, density):
        self.time_block_grams(shape, density)

    def peakmem_whitened_row_norms(self, shape, density):
        self.backend.whitened_row_norms(self.K, self.W, triangular=True)
