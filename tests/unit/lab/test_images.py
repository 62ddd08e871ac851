from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsec.errors import InputError
from fedsec.lab import images
from fedsec.lab.images import read_pictures
from fedsec.learning.data import Mnist


def picture(path: Path, array: np.ndarray, **kwargs: object) -> Path:
    Image.fromarray(array).save(path, **kwargs)
    return path


def test_a_grey_picture_of_the_right_size_is_read_as_it_is(tmp_path: Path) -> None:
    grey = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)

    read = read_pictures([picture(tmp_path / "digit.png", grey)])

    assert read.shape == (1, 28, 28, 1)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read[0, :, :, 0], grey / 255, rtol=1e-6)


def test_colours_become_grey_and_other_squares_are_scaled(tmp_path: Path) -> None:
    colours = np.full((112, 112, 3), 200, dtype=np.uint8)
    read = read_pictures([picture(tmp_path / "a.png", colours), picture(tmp_path / "b.jpg", colours)])
    assert read.shape == (2, 28, 28, 1)
    np.testing.assert_allclose(read, 200 / 255, atol=0.02)


@pytest.mark.parametrize("shape", [(28, 30), (5, 5), (4097, 4097)])
def test_pictures_that_are_no_digit_are_refused_with_their_size(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    path = picture(tmp_path / "digit.png", np.zeros(shape, dtype=np.uint8))
    with pytest.raises(InputError, match=rf"{shape[1]} x {shape[0]} pixels, expected a square"):
        read_pictures([path])


def test_other_files_are_refused_in_the_users_words(tmp_path: Path) -> None:
    (tmp_path / "digit.png").write_text("no picture")
    with pytest.raises(InputError, match="not a picture that can be read"):
        read_pictures([tmp_path / "digit.png"])
    with pytest.raises(InputError, match="cannot be read as a picture: No such file"):
        read_pictures([tmp_path / "missing.png"])
    whole = picture(tmp_path / "whole.png", np.zeros((28, 28), dtype=np.uint8)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[:50])
    with pytest.raises(InputError, match=r"half\.png"):
        read_pictures([tmp_path / "half.png"])


def test_test_images_are_taken_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    test_images = np.zeros((10, 28, 28), dtype=np.uint8)
    test_images[7] = 255
    empty = np.zeros(0, dtype=np.uint8)
    monkeypatch.setattr(images, "load_mnist", lambda: Mnist(test_images, empty, test_images, empty))

    read = images.read_test_images([7, 0])

    assert read.shape == (2, 28, 28, 1)
    assert (read[0].min(), read[1].max()) == (1, 0)
    for wrong in (-1, 10):
        with pytest.raises(InputError, match=f"test images 0 to 9, got {wrong}"):
            images.read_test_images([wrong])
