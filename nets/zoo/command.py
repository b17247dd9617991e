"""Published weights on the command line: which there are, and get some for later.

python -m nets.zoo                          the list
python -m nets.zoo get higher_hrnet_w32     download now, for a machine without a network
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.options import OptionParser
from common.redaction import hide_arguments, plain_url
from nets.zoo.download import is_right
from nets.zoo.published import PUBLISHED, SERVER, Published
from nets.zoo.weights_files import URL_VARIABLE, cached_file, weights_file, weights_folder

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """\
examples:
  python -m nets.zoo                              names, data, AP, what is here already
  python -m nets.zoo get higher_hrnet_w32         download, check, say where it lies
  python run_stream.py clip.mp4 --weights higher_hrnet_w32       downloads it when it is missing

POSESTREAM_WEIGHTS_URL names a mirror (https://host/folder) or a folder with the files.

exit codes: 0 done, 2 no such name or no download (one line says what to do), 130 stopped by Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    hide_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for name in options.names:
            print(weights_file(name))
    except ValueError as error:
        print(f"weights: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("weights: stopped; the same command goes on from there", file=sys.stderr)
        return 130
    if not options.names:
        _print_list()
    return 0


def _parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m nets.zoo",
        description="Lists published weights, or downloads some.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(names=[])
    commands = parser.add_subparsers(metavar="COMMAND")
    commands.add_parser("list", help="what there is (also without a command)")
    get = commands.add_parser("get", help="download, or say where it lies already")
    get.add_argument("names", nargs="+", metavar="NAME", help="of the list, or an https URL")
    return parser


def _print_list() -> None:
    from rich.console import Console

    console = Console()
    console.print(_table())
    place = os.environ.get(URL_VARIABLE) or SERVER
    lines = [
        "",
        "px: short side of the network input. AP: as mmpose, the publisher, states it, with flip",
        "test, on COCO val2017 or CrowdPose test; in brackets with several scales. A backbone",
        "finds nobody: a training starts from it. MB: about.",
        "",
        f"from:    {plain_url(place)}",
        f"kept in: {weights_folder()}",
        *(f"         {path.name} is here, too" for path in _others()),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _others() -> list[Path]:
    """Files of the folder that no name stands for: of URLs."""
    known = {entry.file for entry in PUBLISHED.values()}
    return [
        path
        for path in sorted(weights_folder().glob("*"))
        if path.name not in known and path.suffix not in (".lock", ".part")
    ]


def _table() -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "data", "px", "AP", "MB", "licence", "here"):
        justify: Literal["left", "right"] = "right" if column in ("px", "MB") else "left"
        table.add_column(column, justify=justify, no_wrap=True)
    for name, entry in PUBLISHED.items():
        row = name, entry.data, entry.input_size, _ap(entry), entry.megabytes, entry.licence
        table.add_row(*("" if cell is None else str(cell) for cell in row), _state(name, entry))
    return table


def _ap(entry: Published) -> str:
    if entry.ap is None:
        return "backbone"
    return f"{entry.ap:.3f} ({entry.ap_scales:.3f})".replace("0.", ".")


def _state(name: str, entry: Published) -> str:
    cached = cached_file(name)
    if not cached.exists():
        part = cached.with_name(f"{cached.name}.part")
        return "part" if part.exists() else "no"
    return "yes" if is_right(cached, entry.sha256) else "bad"
