"""The auditor finds broken DP-SGD, and leaves the right one alone."""

import numpy as np
import pytest

from fedsec.audit.mechanism import audit_mechanism
from fedsec.learning.private import clipping
from fedsec.learning.private.model import make_private

SETTINGS = {"l2_norm_clip": 1.0, "noise_multiplier": 2.5, "delta": 1e-5}


def test_the_right_mechanism_stays_below_its_claim() -> None:
    audit = audit_mechanism(lambda model: make_private(model, **SETTINGS))
    assert not audit.broken
    # The claim is not so large that the audit says nothing.
    assert 0.5 < audit.claimed < 3


def no_noise(model):
    model._noise.draw = lambda deviation: np.zeros(model._noise._size)


def noise_divided_twice(model):
    plain = model._noise.draw
    model._noise.draw = lambda deviation: plain(deviation / model._expected)


@pytest.mark.parametrize("mistake", [no_noise, noise_divided_twice])
def test_too_little_noise_is_found(mistake) -> None:
    def private(model):
        made = make_private(model, **SETTINGS)
        mistake(made)
        return made

    audit = audit_mechanism(private)
    assert audit.broken, audit


def test_missing_clipping_is_found(monkeypatch) -> None:
    monkeypatch.setattr(clipping, "clip_factors", lambda norms, weights, clip: weights)
    audit = audit_mechanism(lambda model: make_private(model, **SETTINGS))
    assert audit.broken, audit
