"""levsketch: which keys can ever matter, to any query."""

from levsketch.algorithms.heavy import heavy_attention
from levsketch.algorithms.leverage import leverage_scores
from levsketch.algorithms.universal_set import universal_set
