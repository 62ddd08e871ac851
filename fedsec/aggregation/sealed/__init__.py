"""Sealed rounds: the average stays in shares at three parties; see ``docs/explanation/sealed-path.md``."""
