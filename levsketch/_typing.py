"""Names for the array types that cross module borders."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
# rows as a kernel reads them: an array, C-contiguous, native, float16, float32 or float64; or
# StoredRows
Rows: TypeAlias = Any
# what a user may pass: NumPy, torch, a DataFrame, nested lists
ArrayLike: TypeAlias = Any
