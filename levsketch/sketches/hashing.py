"""Numbers in (0, 1) that are pure functions of a seed and of a row: the same in any batching."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from levsketch._typing import FloatArray, IntArray, Rows

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
# OOPSLA 2014): the odd number next to 2**64 over the golden ratio, and the finaliser
# "variant 13" of Stafford, in which every bit of the input flips every bit of the output
# with a probability near one half.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_STEPS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST = np.uint64(31)


def uniforms(seed: int, index: IntArray, salt: npt.NDArray[np.uint64] | None = None) -> FloatArray:
    """Return a number in the open interval (0, 1) for each row number, shape (n,).

    The number depends on the seed, the row number and the salt of that row alone, so
    it is the same in any batching, in any order and on any machine.

    Parameters
    ----------
    seed : int
        Of any size; taken modulo 2**64.
    index : (n,) int64 array
        Row numbers.
    salt : (n,) uint64 array, optional
        One number a row, such as `row_salt`: streams with the same seed and the same
        row numbers, but other rows, get numbers that are independent. None is a salt of
        zeros.

    Returns
    -------
    (n,) float64 array
        Odd multiples of 2**-53 (52 random bits and a half): never 0, never 1.

    Notes
    -----
    Number ``index`` of the SplitMix64 generator that starts at the hash of the seed, mixed
    with the hash of the salt and finalised once more. O(n) time and memory, about 20
    passes of integer operations. That these numbers behave as independent ones is measured
    (Steele, Lea and Flood, OOPSLA 2014, and the tests), not proved.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch.sketches.hashing import uniforms
    >>> uniforms(0, np.array([0, 1, 2])).round(6)
    array([0.705486, 0.568922, 0.381377])
    >>> uniforms(0, np.array([2, 1])).round(6)
    array([0.381377, 0.568922])
    """
    # one-element arrays: unlike scalars they wrap around without a warning
    start = _mix(np.array([seed % 2**64], np.uint64) + _GAMMA)
    with np.errstate(over="ignore"):
        z = _mix((index.astype(np.uint64) + np.uint64(1)) * _GAMMA + start)
    if salt is not None:
        z ^= _mix(salt)
    z = _mix(z)
    z >>= np.uint64(12)
    # 53 bits with the half: with one bit more the largest would round to 1
    return np.asarray((z.astype(np.float64) + 0.5) * 2.0**-52)


def row_salt(rows: Rows) -> npt.NDArray[np.uint64]:
    """Return a hash of each row of ``rows`` (n, d), shape (n,).

    Entries are widened to float64 first: equal values give equal salts in any type that
    float64 holds. 0.0 and -0.0 are equal. O(n d) time, column by column.

    Examples
    --------
    >>> import numpy as np
    >>> from levsketch.sketches.hashing import row_salt
    >>> a, b, c = row_salt(np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]]))
    >>> bool(a == b), bool(a == c)
    (True, False)
    """
    salt = np.zeros(len(rows), np.uint64)
    for column in range(rows.shape[1]):
        # -0.0 + 0.0 is 0.0
        salt ^= (rows[:, column].astype(np.float64) + 0.0).view(np.uint64)
        # one round between columns: their order and every bit must count
        salt += _GAMMA
        salt ^= salt >> _STEPS[0][0]
        salt *= _STEPS[0][1]
        salt ^= salt >> _LAST
    return _mix(salt)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the finaliser of SplitMix64, a bijection of 64-bit numbers with 0 -> 0."""
    z = x.copy()
    for shift, factor in _STEPS:
        z ^= z >> shift
        z *= factor
    z ^= z >> _LAST
    return z
