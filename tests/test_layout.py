"""The rooms stay as drawn: imports point one way, and the packages are those of this clone."""

import ast
import importlib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.places import ROOT

ALLOWED = {
    "common": {"common"},
    "kernels": {"common", "kernels"},
    "nets": {"common", "nets"},
    "pipeline": {"common", "pipeline", "kernels", "nets"},
    "training": {"common", "training", "pipeline", "kernels", "nets"},
    "posestream": {"common", "posestream", "pipeline", "nets"},
}
SCRIPTS = {
    "run_stream": {"common", "pipeline"},
    "train": {"common", "training"},
    "evaluate": {"common", "training", "pipeline", "kernels", "nets"},
    "export": {"common", "nets"},
}
ROOMS = {*ALLOWED, *SCRIPTS, "benchmarks", "tests"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ALLOWED
    for path in (ROOT / package).rglob("*.py")
}


def _imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at the top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            module = node.module or ""
            names.update(
                submodule if (submodule := f"{module}.{alias.name}") in MODULES else module
                for alias in node.names
            )
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        rooms = {name.split(".")[0] for name in _imports(path)} & ROOMS
        if path == ROOT / "posestream" / "command.py":
            rooms -= SCRIPTS.keys()  # it hands over to them, and nobody imports it
        assert rooms <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {rooms}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_import_what_is_below_them(script: str) -> None:
    rooms = {name.split(".")[0] for name in _imports(ROOT / f"{script}.py")} & ROOMS
    assert rooms <= SCRIPTS[script], f"{script}.py imports {rooms}"


def test_no_cycle_between_files() -> None:
    graph = {name: (_imports(path) & set(MODULES)) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these files import each other: {' -> '.join(error.args[1])}")


def test_no_cycle_between_the_rooms_of_pipeline() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        room = _room_of_pipeline(name)
        if room is not None:
            used = {_room_of_pipeline(other) for other in _imports(path) & set(MODULES)}
            graph.setdefault(room, set()).update(used - {room, None})  # type: ignore[arg-type]
    assert graph.keys() >= {"gpu", "runtime", "sinks", "sources", "selftest"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these rooms import each other: {' -> '.join(error.args[1])}")


def _room_of_pipeline(module: str) -> str | None:
    """sinks for pipeline.sinks.page.api; None for pipeline.config and for other packages."""
    package, *parts = MODULES[module].relative_to(ROOT).parts
    return parts[0] if package == "pipeline" and len(parts) > 1 else None


def test_sources_know_nothing_of_stages_and_queues() -> None:
    for path in sorted((ROOT / "pipeline" / "sources").rglob("*.py")):
        above = {n for n in _imports(path) if n.startswith(("pipeline.runtime", "pipeline.sinks"))}
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


def test_only_queues_and_the_publisher_know_zeromq() -> None:
    users = {
        path.parent.relative_to(ROOT).as_posix()
        for path in MODULES.values()
        if any(name.split(".")[0] == "zmq" for name in _imports(path))
    }
    assert users == {"pipeline/runtime/queues", "pipeline/sinks/publisher"}


def test_kernels_know_no_framework() -> None:
    users = {
        path.name
        for path in (ROOT / "kernels").rglob("*.py")
        if "torch" in {name.split(".")[0] for name in _imports(path)}
    }
    assert users == {"arrays.py"}  # inside functions: arrays between torch and CuPy


def test_tests_share_only_their_support() -> None:
    """Helpers live in tests/support, and nothing there or in a test depends on a benchmark."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        shared = {name for name in _imports(path) if name.split(".")[0] in ("benchmarks", "tests")}
        others = {name for name in shared if not name.startswith("tests.support")}
        assert not others, f"{path.relative_to(ROOT)} imports {others}"


def test_helpers_of_tests_live_in_support() -> None:
    elsewhere = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if not path.is_relative_to(ROOT / "tests" / "support")
        and not path.name.startswith("test_")
        and path.name != "conftest.py"
    ]
    assert elsewhere == []


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_are_those_of_this_clone(package: str) -> None:
    # PyPI has another `kernels`; installing either over the other breaks both.
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(ROOT)


def test_a_name_has_one_meaning() -> None:
    """No class of pipeline/ or common/ bears the name of another: a reader meets it once."""
    places: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        if name.split(".")[0] in ("common", "pipeline"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, []).append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
