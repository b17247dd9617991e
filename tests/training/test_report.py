"""What an evaluation shows."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from training.metrics import Difference, Interval
from training.report import metrics_table, plot_stages, side_by_side, stages_table

METRICS = {"AP": 0.164, "APM": -1.0}
INTERVALS = {"AP": Interval(0.139, 0.193), "APM": Interval(float("nan"), float("nan"))}


def text_of(table: Table) -> str:
    console = Console(width=120, record=True, quiet=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def row_of(table: Table, name: str) -> list[str]:
    """The cells of the row that begins with a name."""
    lines = [[cell.strip() for cell in line.split("│")] for line in text_of(table).splitlines()]
    (row,) = [cells[1:-1] for cells in lines if len(cells) > 2 and cells[1] == name]
    return row


def test_metrics_stand_beside_their_intervals() -> None:
    table = metrics_table(METRICS, INTERVALS)
    assert row_of(table, "AP") == ["AP", "0.164", "0.139 .. 0.193"]
    assert row_of(table, "APM") == ["APM", "-", "-"]  # nobody of that size


def test_differences_carry_their_sign() -> None:
    nothing = Difference(0.0, float("nan"), float("nan"), 0.0)
    differences = {"AP": Difference(0.015, -0.002, 0.031, 0.96), "APM": nothing}
    table = metrics_table(METRICS, INTERVALS, differences)
    assert row_of(table, "AP")[3:] == ["+0.015", "-0.002 .. +0.031", "96.0%"]


def test_no_bootstrap_no_interval() -> None:
    assert row_of(metrics_table(METRICS, {}), "AP") == ["AP", "0.164"]


def test_times_are_grouped_by_the_number_of_people() -> None:
    num_people = [0, 1, 2, 3, 3, 20]
    table = stages_table({"decode": [1.0, 2.0, 3.0, 4.0, 5.0, 60.0]}, num_people)
    assert row_of(table, "0")[:2] == ["0", "1"]
    assert row_of(table, "2 to 3") == ["2 to 3", "3", "4.0 (4.9)"]
    assert row_of(table, "16 or more")[1:] == ["1", "60.0 (60.0)"]
    assert row_of(table, "all")[1] == "6"
    assert "8 to 15" not in text_of(table)


def test_the_plot_is_a_picture_that_shows_the_times(tmp_path: Path) -> None:
    slow, fast = tmp_path / "slow.png", tmp_path / "fast.png"
    plot_stages(slow, {"network": [20.0, 30.0, 900.0], "decode": [1.0, 2.0, 9.0]}, [0, 1, 30])
    plot_stages(fast, {"network": [20.0, 30.0, 31.0], "decode": [1.0, 2.0, 9.0]}, [0, 1, 30])
    pictures = [np.asarray(cv2.imread(str(path))) for path in (slow, fast)]
    assert all(picture.ndim == 3 and picture.shape[1] > 400 for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[1])


def test_a_plot_of_nothing_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    plot_stages(tmp_path / "nothing.png", {"network": []}, [])
    assert (tmp_path / "nothing.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="cannot be written"):
        plot_stages(tmp_path / "nowhere" / "plot.png", {"network": [1.0]}, [1])


def test_pictures_stand_side_by_side_under_their_captions() -> None:
    left, right = np.full((40, 60, 3), 10, np.uint8), np.full((40, 60, 3), 200, np.uint8)
    both = side_by_side(left, right, ("truth", "found"))
    np.testing.assert_array_equal(both[-40:, :60], left)
    np.testing.assert_array_equal(both[-40:, -60:], right)
    assert both[:-40, :60].max() > 200  # letters
