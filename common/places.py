"""Where the project's own files are: in the clone, or inside the installed package posestream."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Holds configs/, weights/ and the rooms."""
DEFAULT_WEIGHTS = ROOT / "weights" / "higher_mobile.safetensors"

_IN_CLONE = __package__ == "common"


def shipped(path: Path) -> Path:
    """The path, or, where nothing is there, the file that comes with the project under that name.

    So `configs/fast.yaml` is found from any folder.
    """
    own = ROOT / path
    return own if not path.exists() and own.is_file() else path


def command_of(script: str) -> list[str]:
    """How a process runs one of the top-level scripts, given without `.py`."""
    if _IN_CLONE:
        return [sys.executable, str(ROOT / f"{script}.py")]
    return [sys.executable, "-m", f"{(__package__ or '').partition('.')[0]}.{script}"]
