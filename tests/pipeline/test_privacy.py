"""`privacy`: no pixel reaches a file, a screen or the network, whichever sink there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from common.settings import ConfigError
from pipeline.config import StreamConfig, load_config
from pipeline.messages import Poses
from pipeline.options import config_of_options
from pipeline.sinks import table
from pipeline.sinks.overlay import drawn_picture
from pipeline.sinks.page.page import Page
from pipeline.sinks.page.viewers import View
from pipeline.sinks.sink import Sink
from pipeline.sinks.table import ROWS, SinkContext, SinkRow, asked_rows
from pipeline.stream import Stream
from tests.support.page_stand import COLOR_BGR, Stand, picture_of, serving, split_body
from tests.support.painted import grid_people, paint, painted_model
from tests.support.sink_context import context_of

SIZE = (256, 384)
BACKGROUND = (90, 60, 160)


def write_clip(path: Path, num_frames: int = 8) -> None:
    """People on a ground that nobody may see."""
    picture = paint(SIZE, grid_people(1))
    picture[(picture == 0).all(axis=-1)] = BACKGROUND
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for _ in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode())


def settings(tmp_path: Path, **others: Any) -> StreamConfig:
    write_clip(tmp_path / "clip.mp4")
    return load_config(
        sources=[str(tmp_path / "clip.mp4")],
        settings={"inference.engine": "torch", "poses.refine": "off", **others},
    )


@pytest.mark.parametrize("privacy", [False, True])
def test_no_sink_gets_pixels(
    tmp_path: Path, privacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sink at once, those of pictures too; the control, without privacy, does get them."""
    saved = tmp_path / "poses.mp4"
    got: dict[str, bool] = {}

    def spied(row: SinkRow) -> SinkRow:
        def make(value: Any, context: SinkContext) -> Sink:
            sink = row.make(value, context)
            call = type(sink).__call__

            class Spy:
                def __call__(self, poses: Poses) -> None:
                    got[row.name] = poses.frame.has_pixels
                    call(sink, poses)

                def close(self) -> None:
                    sink.close()

            return Spy()

        return replace(row, make=make)

    monkeypatch.setattr(table, "ROWS", [spied(row) for row in table.ROWS])
    asked = {
        "video.path": str(saved),
        "recorder.jsonl": str(tmp_path / "poses.jsonl"),
        "recorder.coco": str(tmp_path / "coco.json"),
        "recorder.openpose": str(tmp_path / "openpose"),
        "publisher.endpoint": f"ipc://{tmp_path}/poses",
        "page.serve": "127.0.0.1:0",
    }
    config = settings(tmp_path, privacy=privacy, **asked)
    assert Stream(config, model=painted_model()).run() == 0
    assert set(got) == {row.name for row in asked_rows(config)}
    assert got["overlay"] is not privacy
    assert got["page"] is not privacy
    assert not privacy or not any(got.values())

    with av.open(str(saved)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="bgr24").astype(int)
    grounds = int((np.abs(frame - BACKGROUND).max(axis=-1) < 20).sum())
    assert (grounds == 0) if privacy else (grounds > 20_000)
    assert (frame.max(axis=-1) > 100).any(), "the skeletons are drawn all the same"


def test_drawing_is_on_black_for_video_and_window_alike() -> None:
    config = load_config(sources=["demo"], settings={"privacy": True, "viewer.show": True})
    stand = Stand()
    picture = context_of(config).draw(stand.poses().without_pixels())
    expected = drawn_picture(stand.poses(), on_black=True)
    assert picture.shape == expected.shape
    assert not (picture == COLOR_BGR).all(axis=-1).any()


@pytest.mark.parametrize("cut", ["ipc", "tcp://127.0.0.1:5600"])
def test_frames_that_would_leave_the_process_are_refused(cut: str) -> None:
    with pytest.raises(ConfigError, match=r"^privacy forbids queues\.frames"):
        load_config(sources=["demo"], settings={"privacy": True, "queues.frames": cut})


def test_a_clean_video_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^privacy forbids video\.clean"):
        load_config(sources=["demo"], settings={"privacy": True, "video.clean": "clean.mp4"})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_poses_cross_to_other_processes_without_pixels(row: SinkRow) -> None:
    config = load_config(
        sources=["demo"], settings={"privacy": True, "queues.poses": "tcp://127.0.0.1:5600"}
    )
    assert not row.needs_pixels(config)


def test_the_page_draws_on_black_even_if_pixels_reach_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand = Stand()
    views = frozenset({View("message", 640), View("picture", 640)})
    delivered: dict[View, bytes] = {}
    with serving(stand, privacy=True) as page:
        monkeypatch.setattr(page._server.audience, "wanted", lambda source: views)
        monkeypatch.setattr(page._server, "deliver", lambda source, made: delivered.update(made))
        page(stand.poses())
    assert isinstance(page, Page)
    message, jpeg = split_body(delivered[View("message", 640)])
    assert (len(message["people"]), jpeg) == (2, b"")
    picture = picture_of(delivered[View("picture", 640)])
    assert np.median(picture) == 0
    assert picture.max() > 150, "skeletons are drawn"
    assert (np.abs(picture - COLOR_BGR).max(axis=-1) < 10).sum() == 0


def test_the_option_switches_it_on() -> None:
    assert config_of_options({"privacy": True}, sources=["demo"]).privacy
    assert not config_of_options({"serve": "8000"}, sources=["demo"]).privacy
