"""docs/python.md: every block runs, in its order, as in one notebook."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.sources import demo
from tests.support.clips import write_clip
from tests.support.places import ROOT
from tests.support.rtsp_server import RtspServer, why_unavailable

TEXT = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.M | re.S)
CAMERA = "rtsp://camera.local/live"

pytestmark = [
    pytest.mark.timeout(600),  # kernels and engine may have to be compiled first
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable()),
]


@pytest.fixture
def notebook_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The current folder, with the files that the blocks name; yields the camera's URL."""
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("people.jpg", demo.picture(0))
    clip = write_clip(Path("clip.mp4").resolve(), [demo.picture(i) for i in range(10)])
    with RtspServer(clip) as server:
        yield server.url


def test_every_block_runs_and_does_what_the_text_says(notebook_folder: str) -> None:
    names: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS):
        code = block.replace(CAMERA, notebook_folder)
        exec(compile(code, f"docs/python.md, block {number}", "exec"), names)
    assert len(names["poses"]) == len(names["key_points"]) == len(names["detections"]) > 0
    assert names["nose"].shape[1] == 2
    assert Path("poses.csv").read_text().startswith("source,frame,pts_seconds,person,id,")
    assert (names["table"]["frame"].nunique(), names["exit_code"]) == (10, 0)
    assert names["counter"].most == len(names["first"]) > 0
    assert len(Path("poses.jsonl").read_text().splitlines()) == 20
    assert names["picture"].shape == names["image"].shape
    drawn = cv2.imread("drawn.jpg")
    assert drawn is not None
    assert (np.abs(drawn.astype(int) - names["image"]) > 60).any()
    assert (names["annotated"] != names["image"]).any()
    for box, xy, score in zip(
        names["detections"].xyxy, names["poses"].keypoints, names["poses"].scores, strict=True
    ):
        seen = xy[(score > 0)]
        assert (seen.min(axis=0) <= box[2:]).all()
        assert (seen.max(axis=0) >= box[:2]).all()
    assert np.isfinite(names["seconds"])


def test_the_camera_is_the_only_thing_that_is_replaced() -> None:
    assert sum(CAMERA in block for block in BLOCKS) == 1
