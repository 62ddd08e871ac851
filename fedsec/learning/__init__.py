"""Keras and data: loading, partitioning, models, local training, evaluation, export to a plan."""
