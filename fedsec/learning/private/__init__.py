"""DP-SGD behind Keras' ordinary ``compile`` and ``fit``: per-example clipping in one pass, noise once a step.

``make_private`` in ``model`` is the way in. Nothing is imported here.
"""
