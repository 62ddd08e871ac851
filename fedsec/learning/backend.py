"""Keras and TensorFlow, loaded in one place and without their noise on stderr.

Every module that needs either takes it from here, so that the environment is set before they load.
"""

from __future__ import annotations

from fedsec.learning import quiet

quiet.set_environment()
with quiet.without_notices(), quiet.without_signals():
    import keras
    import tensorflow as tf

__all__ = ["keras", "tf"]
