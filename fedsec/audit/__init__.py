"""Attacks on trained models and on the training itself, each with a confidence interval.

Nothing is imported here.
"""
