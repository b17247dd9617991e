"""The program as people run it: real processes, real signals, exit codes, what is left behind."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import pytest

from pipeline.sources import demo
from run_stream import main
from tests.support.places import ROOT
from tests.support.rtsp_server import RtspServer, why_unavailable
from tests.support.stream_process import running, wait_for_lines
from tests.support.waiting import PATIENCE_SECONDS, wait_until


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "run_stream.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def messages_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def num_video_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def segments_in_shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("posestream")}


def test_help_is_worth_reading() -> None:
    result = run("--help")
    assert result.returncode == 0
    for word in ("SOURCE", "--weights", "--save", "--publish", "--set", "examples:", "exit codes:"):
        assert word in result.stdout


def test_demo_finds_the_people_where_they_are(tmp_path: Path) -> None:
    """Real weights on real faces: the noses of the three copies move as the copies do."""
    jsonl, video = tmp_path / "demo.jsonl", tmp_path / "demo.mp4"
    result = run("demo", "--max-frames", "40", "--jsonl", jsonl, "--save", video)
    assert result.returncode == 0, result.stderr
    messages = messages_of(jsonl)
    assert [message["frame"] for message in messages] == list(range(40))
    assert num_video_frames(video) == 40
    nose = (226.0, 122.0, 1.0)  # (x, y) in the photograph, by eye
    found = total = 0
    for message in messages:
        noses = [person["keypoints"][0] for person in message["people"]]
        for copy in demo.copies(message["frame"]):
            x, y = copy.picture_from_astronaut @ nose
            size_px = 512 * abs(copy.picture_from_astronaut[0, 0])
            close = [abs(nx - x) + abs(ny - y) < 0.06 * size_px for nx, ny, _ in noses]
            total += 1
            found += any(close)
    assert found >= 0.9 * total, f"{found} of {total} noses"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no source given"),
        (["missing.mp4"], "missing.mp4: no such file"),
        (["{empty}"], "no images in this folder"),
        (["{text}"], "text.mp4"),
        (["demo", "--config", "missing.yaml"], "configuration missing.yaml cannot be read"),
        (["demo", "--set", "poses.refin=off"], "did you mean 'poses.refine'?"),
        (["demo", "--weights", "missing.pth"], "missing.pth"),
        (["demo", "--weights", "{text}"], "text.mp4"),
        (["demo", "--save", "missing/demo.mp4"], "missing"),
        (["demo", "--save", "demo.gif"], ".mp4"),
        (["demo", "--segment-s", "60"], "segment_s needs a video"),
        (["demo", "--save-clean", "c.mp4", "--set", "video.keep_gb=1"], "give segment_s too"),
        (["demo", "--jsonl", "{same}", "--coco", "{same}"], "two outputs would write"),
        (["demo", "--engine", "abacus"], "abacus"),
        (["demo", "--max-frames", "0"], "setting 'sources.0.max_frames': "),
        (["demo", "--max-fps", "0"], "setting 'sources.0.max_fps': "),
        (["demo", "--pace", "--target-fps", "0"], "setting 'contract.target_fps': "),
        (["demo", "--pace", "--max-age-ms", "0"], "setting 'contract.max_age_ms': "),
        (["demo", "--save", "d.mp4", "--segment-s", "0"], "setting 'video.segment_s': "),
        (["demo", "--device", "gpu"], "device must be auto, cpu, cuda or cuda:<index>, got 'gpu'"),
        (["demo", "--device", "cuda:99"], "device 'cuda:99' is not there"),
        (["demo", "--device", "cuda:0,cpu"], "several devices must be different GPUs"),
        (["demo", "--device", "cpu", "--decode", "gpu"], "decode: GPU is not possible"),
        (["demo", "--publish", "tcp://nowhere"], "tcp://nowhere"),
        (["demo", "--part", "network", "--set", "queues.frames=ipc"], "where the parts meet"),
        (
            ["demo", "--config", str(ROOT / "configs/two_machines.yaml"), "--part", "sources"],
            "cannot bind tcp://192.0.2.20:5600: this machine has no such address; put this machine",
        ),
        (["demo", "--set", "queues.frames=tcp://a:65536"], "must be inproc, ipc, "),
        (["demo", "--part", "sources"], "--part needs a cut: --set queues.frames="),
        (["rtsp://user:secret@", "--max-frames", "1"], "is not a URL"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("these are words\n" * 50)
    names = {"empty": "empty", "text": "text.mp4", "same": "same.json"}
    places = {word: str(tmp_path / name) for word, name in names.items()}
    assert main([*(argument.format(**places) for argument in arguments), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run_stream.py: ")
    assert says in line
    assert "secret" not in line


def test_a_process_with_bad_input_prints_no_traceback(tmp_path: Path) -> None:
    result = run("missing.mp4", "--jsonl", tmp_path / "p.jsonl")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "run_stream.py: missing.mp4: no such file or folder\n"


@pytest.mark.parametrize("cut", [(), ("--set", "queues.poses=ipc")], ids=["whole", "cut"])
def test_a_start_that_is_refused_changes_no_file(tmp_path: Path, cut: Sequence[str]) -> None:
    """A port in use, or, in a cut stream, a source that is found missing by another process."""
    files = [tmp_path / name for name in ("p.jsonl", "p.json", "p.mp4")]
    for path in files:
        path.write_text("yesterday\n")
    outputs = ("--jsonl", files[0], "--coco", files[1], "--save", files[2])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        publish = ("--publish", f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        refused = ("demo", *publish) if not cut else ("missing.mp4",)
        result = run(*refused, *outputs, "--openpose", tmp_path / "openpose", *cut)
    assert result.returncode == 2, result.stderr
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert [path.read_text() for path in files] == ["yesterday\n"] * 3


def test_the_same_command_given_twice_is_refused_and_after_a_restart_goes_on(
    tmp_path: Path,
) -> None:
    command = ("demo", "--loop", "--pace", "--jsonl", tmp_path / "p.jsonl", "--quiet")
    with running(*command) as first:
        wait_for_lines(tmp_path / "p.jsonl", 5)
        second = run(*command)
        (line,) = second.stderr.splitlines()
        assert second.returncode == 2
        assert "p.jsonl is being written by another stream; stop that one or choose" in line
        first.kill()
        first.wait(PATIENCE_SECONDS)
    num_lines = len(messages_of(tmp_path / "p.jsonl"))
    assert run(*command, "--max-frames", "2").returncode == 0
    messages = messages_of(tmp_path / "p.jsonl")
    assert len(messages) > num_lines >= 5
    assert len({message["session"] for message in messages}) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_finishes_the_files(tmp_path: Path, number: signal.Signals) -> None:
    jsonl, video, coco = (tmp_path / name for name in ("p.jsonl", "p.mp4", "p.json"))
    with running("demo", "--loop", "--jsonl", jsonl, "--save", video, "--coco", coco) as process:
        wait_for_lines(jsonl, 20)
        process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == 0
    num_messages = len(messages_of(jsonl))
    assert num_messages >= 20
    assert num_video_frames(video) == num_messages
    assert json.loads(coco.read_text())


def test_after_a_kill_what_was_written_is_readable(tmp_path: Path) -> None:
    jsonl, video = tmp_path / "p.jsonl", tmp_path / "p.mp4"
    with running("demo", "--loop", "--jsonl", jsonl, "--save", video) as process:
        wait_for_lines(jsonl, 90)
        process.kill()
        process.wait(PATIENCE_SECONDS)
    assert len(messages_of(jsonl)) >= 90
    assert num_video_frames(video) >= 30


def test_segments_of_drawn_and_clean_pictures_and_a_kill(tmp_path: Path) -> None:
    """The disk of the drawn video is full, really; nothing else suffers from it."""
    jsonl, drawn, clean = (tmp_path / name for name in ("p.jsonl", "full.mp4", "clean.mkv"))
    drawn.symlink_to("/dev/full")
    saving = ("--save", drawn, "--save-clean", clean, "--jsonl", jsonl)
    result = run("demo", "--max-frames", "50", *saving)
    assert result.returncode == 0
    assert result.stderr.count("No space left on device; the stream goes on") == 1
    lost = re.search(r"overlay: demo: frames not written: (\d+) disk_full", result.stderr)
    assert lost is not None
    later = [num_video_frames(path) for path in tmp_path.glob("full-*.mp4")]  # on a real disk
    assert int(lost[1]) + sum(later) == 50
    assert num_video_frames(clean) == len(messages_of(jsonl)) == 50

    clean.unlink()
    in_segments = ("--save-clean", clean, "--segment-s", "1", "--jsonl", jsonl)
    with running("demo", "--loop", *in_segments) as process:
        wait_for_lines(jsonl, 85)
        process.kill()
        process.wait(PATIENCE_SECONDS)
    lines = [json.loads(line) for line in (tmp_path / "clean.mkv.jsonl").read_text().splitlines()]
    finished = {line["file"]: line["pictures"] for line in lines if line["pictures"]}
    assert len(finished) >= 2
    for name, num_pictures in finished.items():
        assert num_video_frames(tmp_path / name) == num_pictures


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What an uncut stream says of the first frames of the demo."""
    jsonl = tmp_path_factory.mktemp("whole") / "p.jsonl"
    assert run("demo", "--max-frames", "12", "--jsonl", jsonl).returncode == 0
    return messages_of(jsonl)


@pytest.mark.parametrize(
    "cuts", [("frames", "ipc"), ("poses", "ipc"), ("both", "ipc"), ("both", "tcp")], ids="-".join
)
def test_a_cut_stream_gives_the_same_poses(
    tmp_path: Path, cuts: tuple[str, str], whole: list[dict[str, Any]]
) -> None:
    where, transport = cuts
    ports = iter((_free_port(), _free_port()))
    settings = [
        f"queues.{cut}=" + ("ipc" if transport == "ipc" else f"tcp://127.0.0.1:{next(ports)}")
        for cut in ("frames", "poses")
        if where in (cut, "both")
    ]
    before = segments_in_shared_memory()
    jsonl, video = tmp_path / "cut.jsonl", tmp_path / "cut.mp4"
    options = [word for setting in settings for word in ("--set", setting)]
    # The overlay's queue is the first of its cut, the recorder's the second: one port more.
    result = run("demo", "--max-frames", "12", "--jsonl", jsonl, "--save", video, *options)
    assert result.returncode == 0, result.stderr
    assert [m["people"] for m in messages_of(jsonl)] == [m["people"] for m in whole]
    assert [m["frame"] for m in messages_of(jsonl)] == list(range(12))
    assert num_video_frames(video) == 12
    assert segments_in_shared_memory() <= before


@pytest.mark.parametrize(("option", "has_ids"), [("--no-track", False), ("--no-smooth", True)])
def test_ids_and_smoothing_can_be_switched_off(
    tmp_path: Path, whole: list[dict[str, Any]], option: str, has_ids: bool
) -> None:
    jsonl = tmp_path / "p.jsonl"
    assert run("demo", "--max-frames", "12", "--jsonl", jsonl, option).returncode == 0
    for message, usual in zip(messages_of(jsonl), whole, strict=True):
        for person, known in zip(message["people"], usual["people"], strict=True):
            assert person["smoothed"] is None
            assert person["id"] == (known["id"] if has_ids else None)
            assert known["smoothed"] is not None
            assert person["keypoints"] == known["keypoints"]
    assert any(person["id"] is not None for message in whole for person in message["people"])


def test_a_cut_stream_stops_in_order_and_tells_of_bad_input(tmp_path: Path) -> None:
    cuts = ("--set", "queues.frames=ipc", "--set", "queues.poses=ipc")
    jsonl = tmp_path / "p.jsonl"
    with running("demo", "--loop", "--jsonl", jsonl, *cuts) as process:
        wait_for_lines(jsonl, 10)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 0
    frames = [message["frame"] for message in messages_of(jsonl)]
    assert frames == list(range(len(frames)))

    result = run("missing.mp4", "--jsonl", jsonl, *cuts)
    assert result.returncode == 2
    assert "missing.mp4: no such file" in result.stderr
    assert "Traceback" not in result.stderr


def test_parts_started_by_hand_meet(tmp_path: Path) -> None:
    cut = ("--set", f"queues.frames=tcp://127.0.0.1:{_free_port()}")
    jsonl = tmp_path / "p.jsonl"
    with running("demo", "--max-frames", "12", "--part", "sources", "--quiet", *cut) as sources:
        assert sources.stderr is not None
        address = cut[1].removeprefix("queues.frames=")
        said = sources.stderr.readline()  # before anybody has come
        assert said == f"WARNING waiting for the network at {address} (nothing heard yet)\n"
        result = run("demo", "--part", "network", "--jsonl", jsonl, *cut)
        assert result.returncode == 0, result.stderr
        assert "waiting for" not in result.stderr
        assert sources.wait(PATIENCE_SECONDS) == 0
    assert [message["frame"] for message in messages_of(jsonl)] == list(range(12))


def test_poses_on_standard_output_are_nothing_but_poses() -> None:
    result = run("demo", "--max-frames", "3", "--jsonl", "-")
    assert result.returncode == 0
    assert [json.loads(line)["frame"] for line in result.stdout.splitlines()] == [0, 1, 2]
    assert re.search(r"demo: 3 frames in [\d.]+ s", result.stderr)


@pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable())
def test_a_camera_is_published_to_whoever_subscribes(tmp_path: Path) -> None:
    """RTSP in, ZeroMQ out; the camera dies and comes back, and nobody is told its password."""
    clip = tmp_path / "clip.mp4"
    write_demo_clip(clip)
    endpoint = f"tcp://127.0.0.1:{_free_port()}"
    subscriber = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "subscriber.py"), endpoint],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert subscriber.stdout is not None
    seen: list[str] = []
    reader = threading.Thread(target=seen.extend, args=(subscriber.stdout,), daemon=True)
    reader.start()

    def frames_seen() -> list[int]:
        found = (re.match(r"127\.0\.0\.1 frame (\d+): ", line) for line in list(seen))
        return [int(match[1]) for match in found if match]

    def wait_for_more() -> None:
        already = len(frames_seen())
        wait_until(lambda: len(frames_seen()) >= already + 5, "no more poses came")

    try:
        with (
            RtspServer(clip, user="me", password="geheim") as server,
            running(server.url.replace("//", "//me:geheim@"), "--publish", endpoint) as process,
        ):
            wait_for_more()
            arguments = Path(f"/proc/{process.pid}/cmdline")
            assert not arguments.exists() or b"geheim" not in arguments.read_bytes()
            server.kill()
            server.start()
            wait_for_more()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == 0
            assert process.stderr is not None
            log = process.stderr.read()
    finally:
        subscriber.kill()
        subscriber.wait(PATIENCE_SECONDS)
        reader.join(PATIENCE_SECONDS)
    frames = frames_seen()
    assert frames == sorted(set(frames))
    assert any(" people" in line and " 0 people" not in line for line in seen)
    assert "geheim" not in log + "".join(seen)


def test_the_page_of_a_running_stream_shows_it_and_ends_with_it() -> None:
    port = _free_port()

    def ask(path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
        connection.request("GET", path)
        answer = connection.getresponse()
        result = answer.status, answer.read(200_000 if path.startswith("/mjpeg") else None)
        connection.close()
        return result

    def fps() -> float:
        try:
            (stream,) = json.loads(ask("/api/streams")[1])["streams"]
        except ConnectionRefusedError:  # not there yet
            return 0.0
        return float(stream["fps"])

    with running("demo", "--loop", "--pace", "--serve", f"127.0.0.1:{port}") as process:
        wait_until(fps, "the page shows no frames")
        assert b"<script" in ask("/")[1]
        assert json.loads(ask("/healthz")[1])["streams"] == {"demo": "live"}
        assert b'pose_source_up{stream="demo"} 1.0' in ask("/metrics")[1]
        status, pictures = ask("/mjpeg/demo?width=320")
        assert (status, pictures.count(b"\xff\xd8\xff") > 1) == (200, True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    assert f"page: http://127.0.0.1:{port}/" in log
    assert "Traceback" not in log
    with pytest.raises(ConnectionRefusedError):
        ask("/")


def write_demo_clip(path: Path) -> None:
    """Two seconds of the demo as a camera would send them, small."""
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "tune": "zerolatency", "g": "15"}
        stream = container.add_stream("libx264", rate=15, options=options)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for index in range(30):
            picture = cv2.resize(demo.picture(2 * index), (640, 360))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
