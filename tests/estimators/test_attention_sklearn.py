"""scikit-learn's own checks of StreamingAttentionSketch, and the company that it keeps."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from levsketch import StreamingAttentionSketch

# Moments of low degree follow exp over a short range: documented to warn beyond.
BEYOND = "[0-9]+ of [0-9]+ queries may have logits that no polynomial of degree"
pytestmark = pytest.mark.filterwarnings(f"ignore:{BEYOND}:UserWarning")

VARIANTS = [
    StreamingAttentionSketch(),
    StreamingAttentionSketch(n_keys=3),
    StreamingAttentionSketch(residual="closure"),
    StreamingAttentionSketch(residual="embedding"),
    StreamingAttentionSketch(sketch="exact"),
    StreamingAttentionSketch(sketch="exact", degree=4),
    StreamingAttentionSketch(function=2),
    StreamingAttentionSketch(function=4),
    StreamingAttentionSketch(max_memory="100kB"),
    StreamingAttentionSketch(scale=0.5),
    StreamingAttentionSketch(decay=0.999),
]


@parametrize_with_checks(VARIANTS)
def test_scikit_learn_checks_pass(estimator, check, monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # else some would be skipped
    check(estimator)
