"""A finished run without its parties: a network that has learned three small hospitals' images by heart."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from fedsec.audit import subject as subjects
from fedsec.lab.participants import examples_of
from fedsec.lab.rundir import RunFolder
from fedsec.learning import models
from fedsec.learning.data import Mnist, load_mnist
from fedsec.learning.evaluation import set_parameters
from fedsec.learning.training import LocalTrainer
from fedsec.scenario import Scenario

EXAMPLES = 150


@pytest.fixture(scope="session")
def mnist() -> Mnist:
    """The first images of MNIST."""
    whole, trained = load_mnist(), slice(EXAMPLES + 1200)
    return dataclasses.replace(
        whole,
        train_images=whole.train_images[trained], train_labels=whole.train_labels[trained],
        test_images=whole.test_images[:500], test_labels=whole.test_labels[:500],
    )  # fmt: skip


@pytest.fixture(scope="session")
def folder(mnist: Mnist, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Trained until nothing is left to learn, on few images."""
    scenario = Scenario.from_values(
        {
            "name": "by-heart",
            "hospitals": {"count": 3},
            "training": {"examples": EXAMPLES, "model": "mlp", "rounds": 2, "batch_size": 10},
        }
    )
    made = RunFolder.create(tmp_path_factory.mktemp("runs"), scenario.name)
    made.scenario.write_text(scenario.to_toml())
    made.summary.write_text(json.dumps({"rounds": []}))
    held = examples_of(scenario, mnist)
    images, labels = (
        np.concatenate(parts) for parts in zip(*(held(hospital) for hospital in range(3)), strict=True)
    )
    model = models.by_name("mlp", seed=1)
    trainer = LocalTrainer(model, learning_rate=2e-3, batch_size=10, epochs=30)
    set_parameters(model, trainer.fit(model.get_weights(), images, labels, seed=1)[0])
    model.save(made.model)
    return made


@pytest.fixture
def subject(folder: RunFolder, mnist: Mnist) -> subjects.Subject:
    return subjects.Subject.of(folder, mnist)
