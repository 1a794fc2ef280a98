"""Data with a known answer, for tests and examples."""

from ._synthetic import make_ill_conditioned_keys, make_planted_attention

__all__ = ["make_ill_conditioned_keys", "make_planted_attention"]
