"""From a trained Keras model to a plan and its parameters.

``graph`` reads the model's graph; ``linear``, ``activations``, ``pooling`` and ``merging`` turn each layer
into those of ``fedsec.nn.network``, and the planner there does the rest.
"""

from fedsec.learning.export.conversion import export, network_of

__all__ = ["export", "network_of"]
