"""training.image_store: folders, tar and zip give the same pictures; what is broken is named."""

import multiprocessing
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from nets.skeletons import COCO
from tests.support.labelled import (
    StoreKind,
    write_set,
    write_store,
)
from training.annotations import load_labelled_set
from training.config import DatasetConfig
from training.image_store import ImageError, ImageStore, find_images

# --- images --------------------------------------------------------------------------------------


def stores(folder: Path, files: dict[str, bytes]) -> list[ImageStore]:
    kinds: tuple[StoreKind, ...] = ("folder", "tar", "zip")
    return [ImageStore(write_store(folder / "pictures", files, kind)) for kind in kinds]


def pictures(count: int) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {
        f"{number}.png": cv2.imencode(".png", rng.integers(0, 255, (20, 30, 3), np.uint8))[
            1
        ].tobytes()
        for number in range(count)
    }


def test_folder_tar_and_zip_give_the_same_pictures(tmp_path: Path) -> None:
    files = pictures(3)
    for store in stores(tmp_path, files):
        for name, data in files.items():
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            np.testing.assert_array_equal(store.read(name), picture)


def test_archives_may_hold_a_folder_that_names_do_not_mention(tmp_path: Path) -> None:
    plain = pictures(2)
    in_folder = {f"train2017/{name}": data for name, data in plain.items()}
    twins = in_folder | {"other/1.png": plain["0.png"]}
    for kind in ("tar", "zip"):
        store = ImageStore(write_store(tmp_path / "one", in_folder, kind))
        np.testing.assert_array_equal(store.read("1.png"), store.read("train2017/1.png"))
        ambiguous = ImageStore(write_store(tmp_path / "two", twins, kind))
        assert ambiguous.read("0.png").size
        with pytest.raises(ImageError, match=r"there is no image 1\.png"):
            ambiguous.read("1.png")


def test_grey_and_rotated_pictures_are_read_as_stored(tmp_path: Path) -> None:
    grey = np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8)
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))[1].tobytes()
    # An EXIF header with orientation 6: turn by 90 degrees.
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    upright = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    assert upright is not None
    assert upright.shape == (30, 20, 3)
    files = {"grey.png": cv2.imencode(".png", grey)[1].tobytes(), "turned.jpg": turned}
    for store in stores(tmp_path, files):
        np.testing.assert_array_equal(store.read("grey.png"), np.dstack([grey] * 3))
        assert store.read("turned.jpg").shape == (20, 30, 3)


@pytest.mark.parametrize("damage", ["empty", "no image", "cut"])
def test_a_bad_image_is_named(tmp_path: Path, damage: str) -> None:
    rng = np.random.default_rng(0)
    jpeg = cv2.imencode(".jpg", rng.integers(0, 255, (90, 90, 3), np.uint8))[1].tobytes()
    bad = {"empty": b"", "no image": b"<html>", "cut": jpeg[: len(jpeg) // 2]}[damage]
    for store in stores(tmp_path, pictures(1) | {"bad.jpg": bad}):
        with pytest.raises(ImageError, match=rf"bad\.jpg in {store.path}"):
            store.read("bad.jpg")
        assert store.read("0.png").size
        with pytest.raises(ImageError, match=rf"no image gone\.jpg in {store.path}"):
            store.read("gone.jpg")


def test_a_folder_is_never_left(tmp_path: Path) -> None:
    write_store(tmp_path, pictures(1))
    inside = ImageStore(write_store(tmp_path / "inside", pictures(1)))
    for name in ("../0.png", str(tmp_path / "0.png")):
        with pytest.raises(ImageError, match="must lie inside"):
            inside.read(name)


def test_broken_archives_are_refused_at_once(tmp_path: Path) -> None:
    kinds: dict[StoreKind, str] = {"tar": "no whole plain tar", "zip": "no whole zip"}
    for kind, words in kinds.items():
        path = write_store(tmp_path / "some", pictures(4), kind)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=words):
            ImageStore(path)
        path.write_bytes(b"")
        with pytest.raises(ValueError, match=f"{words}|holds no files"):
            ImageStore(path)
    with pytest.raises(ValueError, match=r"a folder, a \.tar or a \.zip"):
        ImageStore(tmp_path / "gone.tar")


def test_a_flipped_bit_in_a_zip_is_noticed(tmp_path: Path) -> None:
    files = {name: bytes(500) + data for name, data in pictures(2).items()}
    path = write_store(tmp_path / "some", files, "zip")
    with zipfile.ZipFile(path) as archive:
        offset = archive.infolist()[0].header_offset
    data = bytearray(path.read_bytes())
    data[offset + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ImageError, match="checksum"):
        ImageStore(path).read("0.png")


@pytest.mark.parametrize(("method", "kind"), [("fork", "tar"), ("fork", "zip"), ("spawn", "tar")])
def test_stores_work_in_threads_and_workers(tmp_path: Path, method: str, kind: StoreKind) -> None:
    files = pictures(20)
    store = ImageStore(write_store(tmp_path / "some", files, kind))
    expected = [store.read(name) for name in files]
    with ThreadPoolExecutor(4) as threads:
        np.testing.assert_array_equal(list(threads.map(store.read, files)), expected)
    with multiprocessing.get_context(method).Pool(2 if method == "fork" else 1) as pool:
        np.testing.assert_array_equal(pool.map(store.read, files, chunksize=1), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read("0.png"), expected[0])


# --- finding images ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("a/some.json", "a/some"),
        ("a/some.json", "a/some.tar"),
        ("a/some.json", "a/some.zip"),
        ("annotations/person_keypoints_val2017.json", "val2017"),
        ("annotations/person_keypoints_val2017.json", "val2017.zip"),
        ("annotations/person_keypoints_train2017.json", "images/train2017"),
        ("json/crowdpose_test.json", "images"),
        ("json/crowdpose_test.json", "images.zip"),
        ("a/some.v2.json", "a/some.v2.tar"),
    ],
)
def test_images_are_found_beside_the_annotations(
    tmp_path: Path, annotations: str, images: str
) -> None:
    place = tmp_path / images
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix in (".tar", ".zip"):
        place.touch()
    else:
        place.mkdir()
    assert find_images(tmp_path / annotations, None) == place


def test_images_that_are_nowhere_are_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tried .*/person_keypoints_val2017\.tar.*/val2017"):
        find_images(tmp_path / "annotations" / "person_keypoints_val2017.json", None)
    with pytest.raises(ValueError, match=r"no folder or archive .*elsewhere"):
        find_images(tmp_path / "a.json", tmp_path / "elsewhere")
    write_set(tmp_path, 1)
    config = DatasetConfig(annotations=tmp_path / "train.json", images=tmp_path / "train.json")
    with pytest.raises(ValueError, match=r"a folder, a \.tar or a \.zip"):
        load_labelled_set(config, COCO)
