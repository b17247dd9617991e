"""A camera of pictures that tell when they were taken: raw pictures -> x264 -> RTSP, on GStreamer.

    pictures.yuv --paced by the clock, noted in a log--> x264 (zerolatency) -> RTP -> whoever asks

GStreamer's Python binding belongs to the system's interpreter, so bench_latency runs this file with
that. It knows nothing of what the pictures show: it plays them over and over, and for each one
writes a line `number unix_seconds` just before the encoder gets it.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import Any


def serve(options: argparse.Namespace) -> None:
    import gi  # type: ignore[import-not-found, unused-ignore]

    for name in ("Gst", "GstApp", "GstRtspServer"):
        gi.require_version(name, "1.0")
    from gi.repository import (  # type: ignore[import-not-found, unused-ignore]
        GLib,
        Gst,
        GstApp,  # noqa: F401  # gives appsrc its methods
        GstRtspServer,
    )

    Gst.init(None)
    width, height, fps = options.width, options.height, options.fps
    raw = options.pictures.read_bytes()
    length = width * height * 3 // 2
    pictures = [raw[start : start + length] for start in range(0, len(raw), length)]
    log = options.log.open("w", buffering=1)

    def play(feed: Any, alive: threading.Event) -> None:
        while (clock := feed.get_clock()) is None:  # not playing yet
            time.sleep(0.005)
        began = feed.get_base_time()
        due, number = time.monotonic(), 0
        while alive.is_set():
            due += 1 / fps
            time.sleep(max(0.0, due - time.monotonic()))
            buffer = Gst.Buffer.new_wrapped(pictures[number % len(pictures)])
            buffer.pts = clock.get_time() - began
            buffer.duration = Gst.SECOND // fps
            log.write(f"{number} {time.time():.6f}\n")
            if feed.emit("push-buffer", buffer) != Gst.FlowReturn.OK:
                return
            number += 1

    class Factory(GstRtspServer.RTSPMediaFactory):  # type: ignore[misc, unused-ignore]
        def do_create_element(self, _url: Any) -> object:
            return Gst.parse_launch(
                f"( appsrc name=feed is-live=true format=time block=false caps=video/x-raw,"
                f"format=I420,width={width},height={height},framerate={fps}/1"
                f" ! x264enc tune=zerolatency speed-preset=ultrafast pass=qual quantizer=23"
                # Parameter sets stand in the session description; once more with every key
                # picture, and FFmpeg gives that picture twice.
                f" key-int-max={fps} ! rtph264pay config-interval=0 name=pay0 pt=96 )"
            )

        def do_configure(self, media: Any) -> None:
            feed = media.get_element().get_by_name("feed")
            alive = threading.Event()
            alive.set()
            player = threading.Thread(target=play, args=(feed, alive), daemon=True)
            media.connect("prepared", lambda _: player.start())
            media.connect("unprepared", lambda _: alive.clear())
            # Preparing waits for a first picture.
            first = Gst.Buffer.new_wrapped(pictures[-1])
            first.pts, first.duration = 0, Gst.SECOND // fps
            feed.emit("push-buffer", first)

    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(options.port))
    factory = Factory()
    factory.set_shared(True)
    factory.set_latency(0)
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        sys.exit(f"cannot listen on port {options.port}")
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Play raw pictures over RTSP on 127.0.0.1.")
    parser.add_argument("pictures", type=Path, help="I420 pictures, one after the other")
    parser.add_argument("log", type=Path, help="where to write when each picture was pushed")
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--height", type=int, required=True)
    parser.add_argument("--fps", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    serve(parser.parse_args())
