"""The pictures show what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fedsec.lab.figures import draw_accuracy, draw_views
from fedsec.lab.result import RoundReport

WHITE = 255


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"), dtype=np.float64)


def test_accuracy_by_round_is_drawn(tmp_path: Path) -> None:
    rounds = [
        RoundReport(
            round=r, accuracy=a, loss=0, included=9, hospitals=10, difference=0, error_bound=0, seconds=1
        )
        for r, a in ((1, 0.7), (2, 0.9))
    ]

    draw_accuracy(rounds, tmp_path / "accuracy.png")

    assert (_pixels(tmp_path / "accuracy.png") < WHITE).mean() > 0.005


def test_a_party_gets_noise_and_the_owner_sees_the_image(tmp_path: Path) -> None:
    left_half_white = np.zeros((1, 28, 28, 1))
    left_half_white[:, :, :14] = 1.0

    draw_views(left_half_white, tmp_path / "views.png")

    pixels = _pixels(tmp_path / "views.png")
    columns = np.array_split(pixels[pixels.shape[0] // 3 : -pixels.shape[0] // 4], 5, axis=1)
    grey = [float(((column > 40) & (column < 215)).mean()) for column in columns]
    assert max(grey[0], grey[4]) < 0.1, "image and joined shares are black and white"
    assert min(grey[1:4]) > 0.3, "a share has every shade"
