"""Rules for the whole suite: in CI a skipped test is a failed test, unless it needs a GPU."""

import os
import signal
from pathlib import Path

import pytest

from kernels.arrays import why_no_gpu
from tests.support.clips import grey, write_clip

# A shell that runs the suite in the background ignores Ctrl-C: so would every process of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)

_unexpected_skips: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-seconds", type=float, default=5.0, help="how long each test of hostile input runs"
    )


@pytest.fixture(scope="session")
def fuzz_seconds(request: pytest.FixtureRequest) -> float:
    """How long each test of hostile input may go on inventing more of it."""
    return float(request.config.getoption("--fuzz-seconds"))


@pytest.fixture
def data_folder() -> Path:
    """tests/data: outputs of the published code on small inputs."""
    return Path(__file__).parent / "data"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """walk.mp4: 30 pictures that tell their number, at 25 a second."""
    return write_clip(tmp_path / "walk.mp4", [grey(i) for i in range(30)])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu need a GPU; FAIL_WITHOUT_GPU=1 is for machines that should have one."""
    if item.get_closest_marker("gpu") is None:
        return
    reason = why_no_gpu()
    if reason is not None and os.environ.get("FAIL_WITHOUT_GPU") == "1":
        pytest.fail(f"no NVIDIA GPU, and FAIL_WITHOUT_GPU=1: {reason}", pytrace=False)
    if reason is not None:
        pytest.skip(f"no NVIDIA GPU: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and "gpu" not in report.keywords:
        _unexpected_skips.append(f"{report.nodeid}: {report.longreprtext}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unexpected_skips and os.environ.get("CI") == "true":
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _unexpected_skips and os.environ.get("CI") == "true":
        terminalreporter.section("skipped in CI, which counts as failed (see .ci/system-packages)")
        for skip in _unexpected_skips:
            terminalreporter.write_line(skip)
