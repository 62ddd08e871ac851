"""The audit's attack on a real service: three party processes, and a user who may only ask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fedsec
from fedsec.audit import model_inversion
from fedsec.audit.answers import Asked, stand_in
from fedsec.audit.model_inversion import ATTACKS, Known
from fedsec.learning import models
from fedsec.learning.data import load_mnist, pixels
from fedsec.learning.training import LocalTrainer
from fedsec.nn.heads import softmax_error
from fedsec.ring.streams import KeyedStream

ROOT = Path(fedsec.__file__).parent.parent


@pytest.mark.slow  # hundreds of images through the protocol; the attack by itself is in tests/unit/audit
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_service_answers_the_attack_as_its_stand_in_does(
    attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, few in {"_STEPS": 2, "_PROBES": 4, "_WALKERS": 4, "_WALK": 10, "_SETTLING": 2}.items():
        monkeypatch.setattr(model_inversion, name, few)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    mnist = load_mnist()
    images, labels = pixels(mnist.train_images[:1000]), mnist.train_labels[:1000]
    model = models.by_name("mlp", seed=1)
    trainer = LocalTrainer(model, learning_rate=2e-3, batch_size=32, epochs=2)
    model.set_weights(trainer.fit(model.get_weights(), images, labels, seed=1)[0])
    expected_of = stand_in(model, 16)
    differences = []
    with fedsec.Cluster.local() as cluster, fedsec.share(model, cluster) as shared:
        shared.serve(reveals=("probabilities", "label"))
        with fedsec.Client.connect(cluster) as client:

            def ask(asked, reveal):
                answers, expected = client.predict(asked, reveal), expected_of(asked, reveal)
                differences.append(np.abs(answers - expected))
                return answers

            asked = Asked(ask)
            draw = model_inversion._normal(KeyedStream(bytes(32)))
            pictures = ATTACKS[attack](asked, 3, Known.of(images[labels != 3]), draw, 1)
        shared.stop()
    assert pictures.shape == (1, 28, 28, 1)
    assert asked.queries == sum(len(one) for one in differences)
    if attack == "probabilities":
        # The stand-in has the pieces of the protocol's softmax, and not its truncations.
        assert max(one.max() for one in differences) < softmax_error(10)
    else:
        # Two logits that are nearer than 2^-11 may change places; of a hundred pictures none has such.
        assert np.mean(np.concatenate(differences) > 0) <= 0.01
