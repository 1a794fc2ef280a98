"""levsketch: which keys can ever matter, to any query - exactly, in one pass.

Where things live, top to bottom; imports point down only
(tests/test_architecture.py):

    cli, plotting   the command and the pictures
    estimators      what a user fits
    algorithms      what the papers say, as functions over (..., n, d)
    streaming       what is remembered between blocks
    functions       one file, one f of f(<q, k>)
    sketches        one file, one map of rows to shorter or longer ones
    linalg          small d x d work
    backends        the few operations over n rows
    _kernels        compiled loops
"""

from importlib.metadata import version as _version

from levsketch import datasets, functions
from levsketch._checks import CertificationWarning, LevsketchFormatError, LevsketchStateError
from levsketch._show_versions import show_versions
from levsketch.algorithms.attention import attention
from levsketch.algorithms.attention_plan import plan_attention
from levsketch.algorithms.coreset import sample_rows
from levsketch.algorithms.heavy import heavy_attention
from levsketch.algorithms.leverage import leverage_scores
from levsketch.algorithms.lewis import lewis_weights
from levsketch.algorithms.sensitivity import sensitivities
from levsketch.algorithms.sensitivity_bounds import sensitivity_bounds
from levsketch.algorithms.sketched_attention import sketched_attention
from levsketch.algorithms.universal_set import universal_set
from levsketch.backends.config import config_context
from levsketch.estimators import (
    LeverageKeySelector,
    LpSensitivitySelector,
    StreamingAttentionSketch,
    load,
)

__version__ = _version("levsketch")

__all__ = [
    "CertificationWarning",
    "LeverageKeySelector",
    "LevsketchFormatError",
    "LevsketchStateError",
    "LpSensitivitySelector",
    "StreamingAttentionSketch",
    "attention",
    "config_context",
    "datasets",
    "functions",
    "heavy_attention",
    "leverage_scores",
    "lewis_weights",
    "load",
    "plan_attention",
    "sample_rows",
    "sensitivities",
    "sensitivity_bounds",
    "show_versions",
    "sketched_attention",
    "universal_set",
]
