"""Builds the wheel: all rooms become parts of the one package posestream.

In the clone they are imported by their bare names (`from pipeline.config import ...`). Installed,
those names would be anybody's: PyPI has another `kernels`. So a copy of each file goes into the
wheel as posestream/<room>/..., and what names our modules in it is rewritten:

    from pipeline.config import load_config     ->  from posestream.pipeline.config import ...
    logging.getLogger("nets.engines.tensorrt")  ->  logging.getLogger("posestream.nets....")
    "try: run_stream.py demo"                   ->  "try: posestream demo"
"""

import io
import re
import shutil
import tokenize
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "posestream"
ROOMS = ("common", "kernels", "nets", "pipeline", "training")
SCRIPTS = ("run_stream", "train", "evaluate", "export")
DATA = ("configs", "weights")

COMMANDS = {
    r"python -m pipeline\.sinks\.publisher\.curve\b": "posestream curve",
    r"python -m nets\.zoo\b": "posestream weights",
    r"\bpipeline/sinks/publisher/curve\.py\b": "posestream curve",
    r"(?<=torchrun --nproc-per-node 4 )train\.py\b": "-m posestream train",
    r"(?:\bpython )?(?<![\w/])run_stream\.py --selftest\b": "posestream selftest",
    r"(?:\bpython )?(?<![\w/])run_stream\.py\b": "posestream",
    r"(?:\bpython )?(?<![\w/])(train|evaluate|export)\.py\b": r"posestream \1",
}
"""How our commands are called in texts for users, and how they are called once installed."""


def sources() -> Iterator[Path]:
    """Every file that goes into the wheel beside the package posestream itself."""
    for script in SCRIPTS:
        yield ROOT / f"{script}.py"
    for folder in (*ROOMS, *DATA):
        yield from sorted(
            path
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        )


def rewritten(text: str) -> str:
    """A file's text with our modules and commands under the names that they have in the wheel."""
    lines = text.splitlines(keepends=True)
    inserts: list[tuple[int, int]] = []  # (line, column) in front of which the package is named
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            statement = []
        elif token.type not in (tokenize.COMMENT, tokenize.NL):
            statement.append(token)
            if _names_our_module(statement):
                row, column = token.start
                is_text = token.type == tokenize.STRING
                inserts.append((row - 1, column + (1 if is_text else 0)))
    for row, column in reversed(inserts):
        lines[row] = f"{lines[row][:column]}{PACKAGE}.{lines[row][column:]}"
    changed = "".join(lines)
    for command, installed in COMMANDS.items():
        changed = re.sub(command, installed, changed)
    return changed


_OUR_MODULE = re.compile(rf"""(["'])({"|".join(ROOMS)})(\.\w+)+\1""")


def _names_our_module(statement: list[tokenize.TokenInfo]) -> bool:
    """Whether the last token of a statement so far is the first word of a module of ours."""
    token = statement[-1]
    if token.type == tokenize.STRING:
        return _is_module(token.string)
    if len(statement) != 2 or token.string not in (*ROOMS, *SCRIPTS):
        return False
    if statement[0].string == "import":
        raise SystemExit(f"write `from ... import ...`, which can be rewritten: {token.line}")
    return statement[0].string == "from"


def _is_module(literal: str) -> bool:
    """Whether a string is the name of a file of ours, such as "nets.engines.tensorrt"."""
    if _OUR_MODULE.fullmatch(literal) is None:
        return False
    path = ROOT.joinpath(*literal.strip("\"'").split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


class BuildRooms(build_py):  # type: ignore[misc]  # setuptools has no types
    """Copies the rooms into the package, their imports rewritten."""

    def run(self) -> None:
        if self.editable_mode:
            raise SystemExit(
                "an editable install is not possible: the clone runs as it is, for example "
                "`python -m posestream demo`; install a copy with `pip install .`"
            )
        package = Path(self.build_lib) / PACKAGE
        shutil.rmtree(package, ignore_errors=True)  # files of an earlier build
        super().run()
        for path in sources():
            target = package / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        for path in package.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            path.write_text(rewritten(text), encoding="utf-8")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        package = Path(self.build_lib) / PACKAGE
        return [str(path) for path in package.rglob("*") if path.is_file()]


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildRooms})
