"""Pictures of fitted estimators, as scikit-learn draws its own: `*Display` classes."""
