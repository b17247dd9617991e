#!/usr/bin/env python3
"""Sources in, poses out: parses the command line, builds the stream, runs it. No logic."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from common.options import OptionParser
from pipeline.sinks.table import ROWS, Option

if TYPE_CHECKING:
    from pipeline.config import StreamConfig

EXAMPLES = """\
examples:
  run_stream.py demo --save out/demo.mp4        a moving picture that needs no camera
  run_stream.py clip.mp4 --save poses.mp4       skeletons drawn over a video
  run_stream.py clip.mp4 --jsonl poses.jsonl    poses as JSON lines (schema: docs/schema.md)
  run_stream.py 0 --show                        webcam, in a window
  run_stream.py rtsp://camera/live --publish tcp://127.0.0.1:5556
  run_stream.py clip.mp4 --weights higher_hrnet_w32 --save poses.mp4     finds more people

every setting has a name in pipeline/config.py; for what no option covers:
  run_stream.py clip.mp4 --set poses.refine=off --set sources.0.rotation=90

exit codes: 0 done or stopped, 1 a stage or a check failed, 2 bad input (one line says what to do)
"""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    from common.redaction import hide_arguments, redact

    hide_arguments()
    # Imported here so that --help answers at once.
    from pipeline.stream import run

    try:
        if options.selftest:
            from pipeline.selftest import run as selftest

            return selftest.run(device=options.device, weights=options.weights)
        return run(_config(options), part=options.part, quiet=options.quiet)
    except ValueError as error:
        print(f"run_stream.py: {redact(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run_stream.py: stopped before it began", file=sys.stderr)
        return 130


def _config(options: argparse.Namespace) -> "StreamConfig":
    from pipeline.options import OPTIONS, config_of_options

    return config_of_options(
        {name: getattr(options, name, None) for name in OPTIONS},
        path=options.config,
        sources=options.sources,
        overrides=options.set,
    )


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="run_stream.py",
        description="Multi-person pose from live video, in real time.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what goes in").add_argument
    add(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help='video or image file, folder or "*.jpg" of images, camera index, URL (rtsp, http, '
        "rtmp, udp, srt, ...), .sdp file, - for standard input, demo or testsrc",
    )
    add("--config", type=Path, metavar="FILE", help="YAML with what differs from the defaults")
    add("--max-frames", type=int, metavar="N", help="stop each source after N frames")
    add("--pace", action="store_true", help="play files at their own speed, as a camera would")
    add("--max-fps", type=float, metavar="N", help="keep N frames a second of each source at most")
    add("--transport", choices=("tcp", "udp"), help="of RTSP; default: tcp")
    add("--decode", choices=("auto", "cpu", "gpu"), help="where; default: on the network's GPU")
    add("--loop", action="store_true", help="start files again when they end")

    add = parser.add_argument_group("network").add_argument
    add("--weights", metavar="NAME|FILE", help="a published name (python -m nets.zoo lists them), "
        "an https URL, or a file: ours, official .pth, mmpose 0.x")  # fmt: skip
    add("--device", help="cpu, cuda, cuda:N or several: cuda:0,cuda:1; default: a GPU if any")
    add("--engine", help="torch, openvino, tensorrt; default: the fastest")
    add("--precision", help="fp32, bf16, fp16; default: what the hardware has")
    add("--input-size", metavar="N|WxH", help="short side in pixels, or one letterboxed canvas")
    add("--flip-test", action="store_true", help="average with the mirrored picture; half speed")

    add("--target-fps", type=float, metavar="N", help="results a second of every camera; under "
        "too much load first quality goes, then frames")  # fmt: skip
    add("--max-age-ms", type=float, metavar="MS", help="leave camera frames that are older")

    add = parser.add_argument_group("what comes out").add_argument
    for row in ROWS:
        for option in row.options:
            _add_option(add, option)
    add("--privacy", action="store_true", help="no pixel leaves: all drawing is on black")

    add = parser.add_argument_group("the rest").add_argument
    add("--no-track", action="store_true", help="no ids that last (and so nothing is smoothed)")
    add("--no-smooth", action="store_true", help="no smoothed keypoints beside the raw ones")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, by its name")
    add(
        "--part", choices=("sources", "network", "sinks"), help="run only this part of a cut stream"
    )
    add("--selftest", action="store_true", help="check this machine; takes --device and --weights")
    add("--quiet", action="store_true", help="no progress line; warnings and errors only")
    return parser


def _add_option(add: Callable[..., object], option: Option) -> None:
    if option.metavar is None:
        add(option.flag, action="store_true", help=option.help)
    else:
        add(option.flag, metavar=option.metavar, type=option.type, help=option.help)


if __name__ == "__main__":
    sys.exit(main())
