"""What a user fits; scikit-learn's rules live only here."""

from ._base import StreamEstimator, load
from .leverage import LeverageKeySelector

__all__ = ["LeverageKeySelector", "StreamEstimator", "load"]
