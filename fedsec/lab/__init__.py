"""Whole experiments made from the rest: run a scenario, the demo, share a Keras model."""
