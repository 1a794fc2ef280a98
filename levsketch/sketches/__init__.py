"""Randomness as data: hash functions and linear sketches that a seed determines."""
