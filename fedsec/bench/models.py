"""Names of the models that are measured; apart from the process that makes them, which loads TensorFlow."""

from __future__ import annotations

SHORT_CONV, MLP, CNN = "short-conv", "mlp-1m", "cnn-1m"
CLEAR = "fedsec.bench.clear"
"""The worker that makes them."""
