"""Flower side of fedsec: the client mod, the strategy wrapper, the in-process grid and our own apps.

Nothing is imported here, so that ``fedsec.federation.mod`` serves a NumPy user without TensorFlow.
"""
