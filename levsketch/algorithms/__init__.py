"""What the papers say, as functions over (..., n, d)."""
