"""Still pictures as output: one file, or one a frame in a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.sinks.overlay import drawn_picture, picture
from pipeline.sinks.pictures import PictureSink, is_for_pictures
from tests.support.people import crowd, poses_of

IMAGE = np.full((96, 128, 3), 90, np.uint8)


def shown(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path)))


def test_one_picture_is_one_file(tmp_path: Path) -> None:
    sink = PictureSink(tmp_path / "out.png", drawn_picture)
    assert list(tmp_path.iterdir()) == []  # a start that is refused leaves nothing
    poses = poses_of(crowd(1, (96, 128)), image=IMAGE, image_name="a.jpg")
    sink(poses)
    np.testing.assert_array_equal(shown(tmp_path / "out.png"), drawn_picture(poses))
    sink(poses_of(crowd(1, (96, 128)), image=IMAGE, image_name="b.jpg", index=4))
    sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-4.png", "out.png"]


def test_a_folder_keeps_the_names_of_its_pictures(tmp_path: Path) -> None:
    sink = PictureSink(tmp_path / "poses", picture)
    for index, name in enumerate(["a.jpg", "a.png", "b.bmp", ""]):
        sink(poses_of(crowd(0, (96, 128)), image=IMAGE, image_name=name, index=index))
    names = sorted(path.name for path in (tmp_path / "poses").iterdir())
    assert names == ["a.jpg", "a.png", "b.bmp.jpg", "cam1_000000000003.jpg"]


@pytest.mark.parametrize("path", ["out.jpg", "poses"])
def test_several_sources_are_kept_apart(tmp_path: Path, path: str) -> None:
    sink = PictureSink(tmp_path / path, picture, per_source=True)
    for source in ("a", "b"):
        sink(poses_of(crowd(0, (96, 128)), image=IMAGE, image_name="1.jpg", source=source))
    names = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.jpg")}
    assert names == (
        {"out-a.jpg", "out-b.jpg"} if path == "out.jpg" else {"poses/a/1.jpg", "poses/b/1.jpg"}
    )


def test_pixels_become_square(tmp_path: Path) -> None:
    poses = poses_of(crowd(0, (96, 128)), image=IMAGE, image_name="a.jpg")
    poses = replace(poses, frame=replace(poses.frame, pixel_aspect=2.0))
    PictureSink(tmp_path / "out.jpg", picture)(poses)
    assert shown(tmp_path / "out.jpg").shape == (96, 256, 3)


def test_what_cannot_be_written_is_counted(tmp_path: Path) -> None:
    sink = PictureSink(tmp_path / "poses", picture)
    (tmp_path / "poses").write_bytes(b"a file meanwhile")
    sink(poses_of(crowd(0, (96, 128)), image=IMAGE, image_name="a.jpg"))
    assert sink.unwritten() == {"cam1": {"cannot_write": 1}}


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a.jpg", True), ("a.PNG", True), ("poses", True), ("a.mp4", False), ("a.avi", False)],
)
def test_pictures_are_asked_for_by_name(path: str, expected: bool) -> None:
    assert is_for_pictures(Path(path)) is expected


def test_a_place_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        PictureSink(tmp_path / "no" / "out.jpg", picture)
    with pytest.raises(ValueError, match="does not exist"):
        PictureSink(tmp_path / "no" / "poses", picture)
