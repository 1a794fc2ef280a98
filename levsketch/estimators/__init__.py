"""What a user fits; scikit-learn's rules live only here."""

from ._base import StreamEstimator, load
from .attention import StreamingAttentionSketch
from .leverage import LeverageKeySelector
from .sensitivity import LpSensitivitySelector

__all__ = [
    "LeverageKeySelector",
    "LpSensitivitySelector",
    "StreamEstimator",
    "StreamingAttentionSketch",
    "load",
]
