"""Still pictures: their order, their numbers, and which way is up."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.sources.source import SourceError
from pipeline.sources.stills import natural_key
from tests.support.clips import SIZE, grey, number_of, open_with, patches, read, written

_ORIENTATION = 0x0112


def test_a_folder_of_images_in_natural_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "holiday"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(["f10.png", "F2.JPG", "f1.bmp"]):
        cv2.imwrite(str(folder / name), grey(number))
    written(folder / "notes.txt", b"not looked at")
    written(folder / "clip.mp4", b"nor this")
    source = open_with(folder)
    assert (source.name, source.num_frames, source.fps) == ("holiday", 3, None)
    frames = list(source.frames())
    assert [frame.image_name for frame in frames] == ["f1.bmp", "F2.JPG", "f10.png"]
    assert [number_of(frame) for frame in frames] == [2, 1, 0]
    assert [frame.index for frame in frames] == [0, 1, 2]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "skipping 2 other files and 1 folder in it (clip.mp4, more, notes.txt)" in line


def test_every_file_keeps_its_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(["a.png", "c.png"]):
        cv2.imwrite(str(tmp_path / name), grey(number))
    written(tmp_path / "b.jpg", b"not a picture")
    written(tmp_path / "d.jpg", b"")
    assert [(frame.index, frame.image_name) for frame in read(tmp_path)] == [
        (0, "a.png"), (2, "c.png"),
    ]  # fmt: skip
    assert "b.jpg cannot be read" in caplog.text
    assert "2 of 4 images" in caplog.text
    looped = read(tmp_path, loop=True, max_frames=5)
    assert [frame.index for frame in looped] == [0, 2, 4, 6, 8]


def test_only_unreadable_images_are_an_error(tmp_path: Path) -> None:
    written(tmp_path / "broken.png", b"not a picture")
    with pytest.raises(SourceError, match="cannot be read as an image"):
        read(tmp_path)


@given(numbers=st.lists(st.integers(0, 10**6), max_size=20))
def test_numbers_in_names_count(numbers: list[int]) -> None:
    names = [f"shot-{number}_left.jpg" for number in numbers]
    in_order = [f"shot-{number}_left.jpg" for number in sorted(numbers)]
    assert sorted(names, key=natural_key) == in_order


@given(names=st.lists(st.text(max_size=12), unique=True, max_size=12))
def test_any_names_have_one_order(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_stands_upright_whatever_exif_says(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    coded = BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(patches()[..., ::-1]).save(coded, kind, exif=exif, **options)
    path = written(tmp_path / f"phone.{kind.lower()}", coded.getvalue())
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))[..., ::-1]
    (frame,) = read(path)
    assert frame.size == upright.shape[:2]
    assert (frame.source, frame.image_name) == ("phone", path.name)
    assert np.abs(frame.to_host().astype(int) - upright).mean() < 4


def test_a_rotation_of_the_users_replaces_that_of_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    Image.fromarray(patches()[..., ::-1]).save(tmp_path / "phone.png", exif=exif)
    (frame,) = read(tmp_path / "phone.png", rotation=180)
    assert frame.size == SIZE
    np.testing.assert_array_equal(frame.to_host(), patches()[::-1, ::-1])


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_an_animation_is_a_short_video(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"dance.{kind}"
    first, *others = [Image.fromarray(grey(10 * i)) for i in range(3)]
    first.save(path, save_all=True, append_images=others, duration=[200, 300, 100])
    frames = read(path)
    assert [number_of(frame) for frame in frames] == [0, 10, 20]
    assert [frame.pts_seconds for frame in frames] == pytest.approx([0.0, 0.2, 0.5])


def test_images_have_no_speed(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), grey(0))
    with pytest.raises(SourceError, match="leave pace out"):
        open_with(tmp_path, pace=True)
