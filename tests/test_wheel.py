"""The wheel: one package, which runs beside somebody else's `kernels`."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from common.version import VERSION
from tests.support.places import ROOT

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]  # its kernels are compiled as well

ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - {"setup"}

USES_THE_API = """\
import json, sys
import kernels, posestream
from posestream.pipeline.sources import demo

poses = posestream.PoseEstimator(engine="torch")(demo.picture(0))
frames = [poses.frame.index for poses in posestream.stream("demo", max_frames=3, engine="torch")]
bare = [name for name in ("common", "nets", "pipeline", "training", "configs", "weights")
        if name in sys.modules]
print(json.dumps([kernels.OWNER, posestream.__file__, len(poses), frames, bare]))
"""


def tracked() -> list[str]:
    """The clone's files, those that are not committed yet included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "clone"  # of what git tracks, so that the build leaves nothing behind
    for name in tracked():
        if not name.startswith(("tests/", "docs/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(ROOT / name, source / name)
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, *build, "--wheel-dir", folder, source], check=True)
    (path,) = folder.glob("posestream-*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and another package called kernels.

    The heavy libraries are those of the environment that runs the tests.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, *install], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "kernels").mkdir()
    (packages / "kernels" / "__init__.py").write_text("OWNER = 'somebody else'\n")
    (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def run(environment: Path, *command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = map(str, command)
    done = subprocess.run(
        [environment / "bin" / program, *arguments],
        capture_output=True, text=True, cwd=cwd, check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_it_holds_one_package_with_every_room(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"posestream", f"posestream-{VERSION}.dist-info"}
    folders = [*ROOMS, "configs", "weights"]
    files = {file for file in tracked() if file.split("/")[0] in folders}
    files |= {f"{script}.py" for script in SCRIPTS}
    in_wheel = {name.removeprefix("posestream/") for name in names}
    assert not {file.removeprefix("posestream/") for file in files} - in_wheel


def test_its_modules_import_each_other_inside_the_package(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    ours = (ROOMS | SCRIPTS) - {"posestream"}
    for name in archive.namelist():
        if not name.endswith(".py"):
            continue
        tree = ast.parse(archive.read(name))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                top = (node.module or "").split(".")[0]
                assert top not in ours, f"{name}: from {node.module}"
            if isinstance(node, ast.Import):
                tops = {alias.name.split(".")[0] for alias in node.names}
                assert not tops & ours, f"{name}: import {tops}"


def test_the_demo_runs_from_anywhere(environment: Path, tmp_path: Path) -> None:
    run(
        environment, "posestream", "demo", "--max-frames", 20, "--jsonl", "poses.jsonl",
        "--engine", "torch", "--config", "configs/processes.yaml", cwd=tmp_path,
    )  # fmt: skip
    messages = [json.loads(line) for line in (tmp_path / "poses.jsonl").read_text().splitlines()]
    assert [message["frame"] for message in messages] == list(range(20))
    assert all(message["people"] for message in messages)


def test_the_api_works_beside_another_package_called_kernels(
    environment: Path, tmp_path: Path
) -> None:
    done = run(environment, "python", "-c", USES_THE_API, cwd=tmp_path)
    owner, file, num_people, frames, bare = json.loads(done.stdout)
    assert owner == "somebody else"
    assert Path(file).is_relative_to(environment)
    assert num_people > 0
    assert (frames, bare) == ([0, 1, 2], [])


@pytest.mark.parametrize("word", ["train", "evaluate", "export", "selftest", "weights", "curve"])
def test_subcommands_call_themselves_by_their_name(
    environment: Path, tmp_path: Path, word: str
) -> None:
    said = run(environment, "posestream", word, "--help", cwd=tmp_path).stdout
    name = "posestream" if word == "selftest" else f"posestream {word}"
    assert said.startswith(f"usage: {name} ")
    assert ".py " not in said


def test_its_version(environment: Path, tmp_path: Path) -> None:
    assert run(environment, "posestream", "--version", cwd=tmp_path).stdout.split() == [
        "posestream", VERSION,
    ]  # fmt: skip
