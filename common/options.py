"""The command line of every program: a misspelt option gets the one it is probably meant for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from common.nearest import nearest
from common.redaction import redact
from common.version import VERSION


class OptionParser(argparse.ArgumentParser):
    """argparse's own, whose errors are one line each; with --version."""

    _words: Sequence[str] = ()

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.add_argument("--version", action="version", version=f"posestream {VERSION}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End the program with exit code 2."""
        # A misspelt option that is required is reported as missing: so look at all words.
        hint = "".join(f"; did you mean {meant} for {word}?" for word, meant in self._misspelt())
        self.exit(2, f"{self.prog}: {redact(message)}{hint} (--help lists all options)\n")

    def _misspelt(self) -> list[tuple[str, str]]:
        known = [option for action in self._actions for option in action.option_strings]
        words = [word.partition("=")[0] for word in self._words if word.startswith("--")]
        unknown = [word for word in words if not any(o.startswith(word) for o in known)]
        close = [(word, nearest(word, known)) for word in unknown]
        return [(word, meant) for word, meant in close if meant is not None]
