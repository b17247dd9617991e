"""Which arrays are pictures, and what is said of those that are none."""

from pathlib import Path

import numpy as np
import pytest

from posestream.frame import checked_image


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (None, "got None, which cv2.imread gives where it cannot read a file"),
        ("a.jpg", "read the file first: cv2.imread"),
        (Path("a.jpg"), "read the file first"),
        (5, "got builtins.int"),
        (np.zeros((4, 5)), r"got shape \(4, 5\) of float64; make three channels of grey"),
        (np.zeros((4, 5, 1), np.uint8), "make three channels of grey"),
        (np.zeros((4, 5, 4), np.uint8), "drop the fourth channel"),
        (np.zeros((3, 4, 5), np.uint8), "channels come last"),
        (np.zeros((2, 4, 5, 3), np.uint8), "pass several pictures as a list"),
        (np.zeros(7, np.uint8), "pass one picture, or a list of them"),
        (np.zeros((0, 5, 3), np.uint8), "it is empty; check the crop"),
        (np.zeros((4, 5, 3), np.float32), r"of float32; values are 0..255"),
        (np.zeros((4, 5, 3), np.int64), "of int64"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(image: object, said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said) as error:
        checked_image(image)
    assert "\n" not in str(error.value)


def test_a_picture_is_passed_on_without_a_copy() -> None:
    picture = np.zeros((4, 5, 3), np.uint8)
    assert checked_image(picture) is picture
    assert checked_image(picture[:, ::2]).flags.c_contiguous
