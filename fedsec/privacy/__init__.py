"""Differential privacy without TensorFlow: sampling and noise from keyed streams, and what they are worth.

Nothing is imported here.
"""
