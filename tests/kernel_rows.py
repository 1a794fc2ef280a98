"""Rows as kernels take them, and the instruction sets on which kernels are tested."""

import ml_dtypes
import numpy as np

from levsketch._kernels import blocks
from levsketch.backends.cpu import use_instruction_set

CHOSEN = blocks.tiles_name()  # by LEVSKETCH_SIMD, if that is set: the other tests need it so
LEVELS = [name for name in ("baseline", "avx2", "avx512") if blocks.select_tiles(name)]
use_instruction_set(CHOSEN)
# Widths around the vector and panel sizes of each level, and a wide one.
WIDTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65]

HALVES = [np.float16, ml_dtypes.bfloat16]
STORED = [np.float64, np.float32, *HALVES]


def draw(n, d, dtype, seed=0):
    rng = np.random.default_rng(seed)
    K = rng.standard_normal((n, d)) * np.exp(3 * rng.standard_normal((n, 1)))
    return (K / 256).astype(dtype)  # float16 has no infinities then, but subnormal numbers


def bits(K):
    """Return rows as kernels take them: uint16 stands for bfloat16."""
    return K.view(np.uint16) if K.dtype == ml_dtypes.bfloat16 else K


def grams(K, block, threads=1, scale=()):
    out = np.full((-(-len(K) // block), K.shape[1], K.shape[1]), np.nan)
    blocks.block_grams(bits(K), np.array(scale, float), block, out, threads)
    return out


def wide(K):
    return K.astype(np.float64).astype(np.longdouble)
