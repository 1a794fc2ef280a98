"""Pictures of fitted estimators, as scikit-learn draws its own: `*Display` classes."""

from .leverage import LeverageDisplay

__all__ = ["LeverageDisplay"]
