"""One plain update gives the image away; an aggregator's share and the update of DP-SGD do not."""

from __future__ import annotations

import numpy as np
import pytest

from fedsec.audit import inversion
from fedsec.audit.inversion import Noise, invert
from fedsec.audit.subject import Examples, Subject
from fedsec.learning import models
from fedsec.learning.backend import keras

NOISE = Noise(epsilon=8.0, multiplier=0.6, clip=1.0)


def first(subject: Subject) -> Examples:
    held = subject.hospitals[0]
    return Examples(held.images[:1], held.labels[:1])


def test_a_dense_layer_gives_the_image_exactly_and_its_protected_update_nothing(subject: Subject) -> None:
    ((plain, share, private),) = invert(models.by_name("mlp", seed=1), first(subject), NOISE)
    assert plain.image == pytest.approx(first(subject).images[0], abs=1e-5)
    assert plain.correlation == pytest.approx(1)
    assert plain.psnr > 80
    for hidden in (share, private):
        # 784 independent pixels: 0.2 is more than five standard deviations.
        assert abs(hidden.correlation) < 0.2
        assert hidden.psnr < 20


def test_without_noise_and_with_no_sharing_the_attack_would_have_worked(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what stops it are the noise and the shares, not a weak attack: clipping alone hides nothing."""
    monkeypatch.setattr(inversion.additive, "share", lambda words, parties, stream: [words])
    ((_, share, private),) = invert(models.by_name("mlp", seed=1), first(subject), Noise(8.0, 0.0, 1e-3))
    assert share.correlation > 0.99
    assert private.correlation > 0.99


def test_a_convolution_is_searched(subject: Subject) -> None:
    """A few steps on a network of one small convolution: far from noise."""
    layers = keras.layers
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), layers.Conv2D(4, 5, strides=2), layers.Flatten(), layers.Dense(10)]
    )
    ((plain, share, _),) = invert(model, first(subject), NOISE, steps=150)
    assert plain.correlation > 0.5
    assert plain.correlation > share.correlation + 0.3
    assert share.image.shape == (28, 28, 1)


def test_the_noise_of_the_private_view_is_that_of_dp_sgd() -> None:
    """Clipped to norm 2 and with the deviation 0.5 * 2 a coordinate."""
    gradients = [np.full((200, 300), 1.0), np.full(7, 1.0)]
    noised = inversion._private(gradients, Noise(1.0, 0.5, 2.0))
    assert [g.shape for g in noised] == [(200, 300), (7,)]
    assert np.std(noised[0]) == pytest.approx(1.0, rel=0.02)
    silent = inversion._private(gradients, Noise(1.0, 0.0, 2.0))
    assert np.sqrt(sum(np.sum(g**2) for g in silent)) == pytest.approx(2.0)


def test_several_images_are_each_found_in_their_own_update(subject: Subject) -> None:
    held, counted = subject.hospitals[0], []
    examples = Examples(held.images[:3], held.labels[:3])
    found = invert(models.by_name("mlp", seed=1), examples, NOISE, on_image=lambda: counted.append(1))
    assert len(counted) == 3
    for image, (plain, _, _) in zip(examples.images, found, strict=True):
        assert plain.image == pytest.approx(image, abs=1e-5)
