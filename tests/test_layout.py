"""The house stays as drawn: imports point one way, and the packages are those of this clone."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "kernels": {"kernels"},
    "nets": {"nets"},
    "pipeline": {"pipeline", "kernels", "nets"},
    "training": {"training", "kernels", "nets"},
}
SCRIPTS = {
    "run_stream": {"pipeline"},
    "train": {"training"},
    "evaluate": {"training", "pipeline", "kernels", "nets"},  # pipeline: for --through-stream
    "export": {"nets"},
}
ROOMS = {*ALLOWED, *SCRIPTS, "benchmarks", "tests"}


def _imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at the top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        rooms = {name.split(".")[0] for name in _imports(path)} & ROOMS
        assert rooms <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {rooms}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_import_what_is_below_them(script: str) -> None:
    rooms = {name.split(".")[0] for name in _imports(ROOT / f"{script}.py")} & ROOMS
    assert rooms <= SCRIPTS[script], f"{script}.py imports {rooms}"


def test_only_queues_and_the_publisher_know_zeromq() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
        if any(name.split(".")[0] == "zmq" for name in _imports(path))
    }
    publishing = {f"pipeline/{name}.py" for name in ("publisher", "admission", "curve")}
    assert users == {"pipeline/queues.py", *publishing}


def test_kernels_know_no_framework() -> None:
    users = {
        path.name
        for path in (ROOT / "kernels").glob("*.py")
        if "torch" in {name.split(".")[0] for name in _imports(path)}
    }
    assert users == {"arrays.py"}  # inside functions: arrays between torch and CuPy


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_are_those_of_this_clone(package: str) -> None:
    # PyPI has another `kernels`; installing either over the other breaks both.
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(ROOT)
