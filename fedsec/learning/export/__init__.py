"""From a trained Keras model to a plan and its parameters.

``graph`` reads the model's graph, ``linear``, ``activations``, ``pooling`` and ``merging`` turn each layer into
those of ``fedsec.nn.network``, and the planner there does the rest. ``table`` writes the page of layers.
"""

from fedsec.learning.export.conversion import export, network_of
from fedsec.nn.network import Network

__all__ = ["Network", "export", "network_of"]
