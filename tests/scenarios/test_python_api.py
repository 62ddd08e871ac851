"""The Python API as the README shows it: Keras in, private answers out, no cryptography in sight."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsec
from fedsec.errors import DeadlineError, ServiceEndedError, UnsupportedModelError, UsageError
from fedsec.lab.images import read_test_images

ROOT = Path(fedsec.__file__).parent.parent
IMAGES = (0, 1, 2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        # The party processes find the checkout whether it is installed or not.
        patch.setenv("PYTHONPATH", str(ROOT))
        with fedsec.Cluster.local() as running:
            yield running


@pytest.fixture(scope="module")
def model() -> Any:
    from fedsec.learning.models import by_name  # noqa: PLC0415 - loads TensorFlow

    return by_name("short-conv", seed=3)


def logits_of(model: Any) -> np.ndarray:
    from fedsec.lab.clear import keras_logits  # noqa: PLC0415 - loads TensorFlow

    return keras_logits(model, read_test_images(IMAGES))


@pytest.mark.parametrize("form", ["model", ".keras", ".h5"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_plain_keras_model_is_shared_served_and_asked(
    form: str, model: Any, cluster: Any, tmp_path: Path
) -> None:
    given = model
    if form != "model":
        given = tmp_path / f"plain{form}"
        model.save(given)

    with fedsec.share(given, cluster) as shared:
        shared.serve(num_requests=3)
        with fedsec.Client.connect(cluster) as client:
            answers = client.predict(read_test_images(IMAGES))
        assert shared.wait(90) == 3

    np.testing.assert_allclose(answers, logits_of(model), atol=0.02)


def test_a_service_without_a_number_goes_on_until_it_is_stopped(model: Any, cluster: Any) -> None:
    shared = fedsec.share(model, cluster)
    try:
        shared.serve()
        with fedsec.Client.connect(cluster.file, cluster.identity("user")) as client:
            for image in read_test_images(IMAGES):
                assert client.predict(image, reveal="logits").shape == (1, 10)
            with pytest.raises(DeadlineError, match="3 images"):
                shared.wait(0.2)
            shared.stop()
            with pytest.raises((ServiceEndedError, fedsec.FedsecError)):
                client.predict(read_test_images([0]))
    finally:
        shared.stop()
    with pytest.raises(ServiceEndedError):
        fedsec.Client.connect(cluster)


def test_a_cluster_file_alone_needs_the_owners_identity(model: Any, cluster: Any) -> None:
    with pytest.raises(UsageError, match="give the owner's identity too"):
        fedsec.share(model, cluster.file)
    with fedsec.share(model, cluster.file, cluster.identity("owner")) as shared:
        assert shared.plan.input_shape == (28, 28, 1)


def test_what_cannot_be_served_is_refused_by_its_layer(cluster: Any) -> None:
    from fedsec.learning.backend import keras  # noqa: PLC0415 - loads TensorFlow

    layers = [
        keras.Input((28, 28, 1)),
        keras.layers.LayerNormalization(name="scaling"),
        keras.layers.Flatten(),
    ]
    with pytest.raises(UnsupportedModelError, match="scaling"):
        fedsec.share(keras.Sequential([*layers, keras.layers.Dense(10)]), cluster)


def test_a_run_that_did_not_finish_is_named(tmp_path: Path, cluster: Any) -> None:
    (tmp_path / "scenario.toml").write_text("")
    with pytest.raises(UsageError, match=r"has no plan\.json: its training did not finish"):
        fedsec.share(tmp_path, cluster)
