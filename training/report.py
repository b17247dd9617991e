"""What an evaluation shows: tables, a plot of time against people, ground truth beside prediction.

This file computes nothing that is scored, and does not know how people are drawn.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from common.cache import redirect_libraries
from training.image_store import Picture
from training.metrics import Difference, Interval

_GROUPS = ((0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, None))
"""First and last number of people in a picture, by rows of the table of times."""
_BAR_HEIGHT = 26
_BAR_COLOR = (40, 40, 40)
_TEXT_COLOR = (255, 255, 255)


def metrics_table(
    metrics: Mapping[str, float],
    intervals: Mapping[str, Interval],
    differences: Mapping[str, Difference] | None = None,
) -> Table:
    """AP and its relatives, with their intervals, and by how much they exceed another's."""
    table = Table(title="AP and AR by OKS", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("value", justify="right")
    if intervals:
        table.add_column("95 % interval", justify="right", no_wrap=True)
    if differences is not None:
        table.add_column("minus other", justify="right", no_wrap=True)
        table.add_column("95 % interval", justify="right", no_wrap=True)
        table.add_column("higher in", justify="right", no_wrap=True)
    for name, value in metrics.items():
        cells = [name, _number(value)]
        if intervals:
            cells.append(_interval(intervals[name]))
        if differences is not None:
            other = differences[name]
            cells += [f"{other.value:+.3f}", _interval(other, "+"), f"{other.share_better:.1%}"]
        table.add_row(*cells)
    return table


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _interval(interval: Interval | Difference, sign: str = "") -> str:
    if np.isnan(interval.low):
        return "-"
    return f"{interval.low:{sign}.3f} .. {interval.high:{sign}.3f}"


def stages_table(stage_ms: Mapping[str, Sequence[float]], num_people: Sequence[int]) -> Table:
    """Median (95th percentile) milliseconds of each stage, by the number of people found."""
    table = Table(title="ms a picture: median (95th percentile)", title_justify="left")
    table.add_column("people found")
    table.add_column("pictures", justify="right")
    for stage in stage_ms:
        table.add_column(stage, justify="right")
    counts = np.asarray(num_people)
    rows = [(_group_name(a, b), (counts >= a) & (counts <= (b or np.inf))) for a, b in _GROUPS]
    rows[0] = "0", counts == 0
    for name, chosen in [*rows, ("all", counts >= 0)]:
        if chosen.any():
            times = (np.asarray(ms)[chosen] for ms in stage_ms.values())
            table.add_row(name, str(int(chosen.sum())), *(_median(ms) for ms in times))
    return table


def _group_name(first: int, last: int | None) -> str:
    if last is None:
        return f"{first} or more"
    return str(first) if first == last else f"{first} to {last}"


def _median(ms: NDArray[np.float64]) -> str:
    return f"{np.median(ms):.1f} ({np.percentile(ms, 95):.1f})"


def plot_stages(
    path: Path, stage_ms: Mapping[str, Sequence[float]], num_people: Sequence[int]
) -> None:
    """Write a plot of each stage's milliseconds against the number of people found.

    Raises:
        ValueError: the file cannot be written, or not as a picture of that kind.
    """
    redirect_libraries()
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except OSError as error:  # it insists on a folder of its own
        raise ValueError(f"plots cannot be drawn: {error}") from None

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    counts = np.asarray(num_people)
    present = np.unique(counts)
    for stage, ms in stage_ms.items():
        times = np.asarray(ms, np.float64)
        (line,) = axes.plot(
            present, [np.median(times[counts == n]) for n in present], marker="o", ms=4, label=stage
        )
        axes.plot(counts, times, ".", color=line.get_color(), alpha=0.25, ms=4)
    if len(counts):
        axes.set_yscale("log")
    axes.set_xlabel("people found in the picture")
    axes.set_ylabel("ms (points: pictures, lines: medians)")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise ValueError(f"plot {path} cannot be written: {error.strerror}") from None


def side_by_side(left: Picture, right: Picture, captions: tuple[str, str]) -> Picture:
    """Two pictures (h, w, 3) of one size, each under its caption, with a gap between them."""
    gap = np.full((len(left) + _BAR_HEIGHT, 4, 3), 255, np.uint8)
    parts = [_captioned(left, captions[0]), gap, _captioned(right, captions[1])]
    return np.concatenate(parts, axis=1)


def _captioned(picture: Picture, caption: str) -> Picture:
    bar = np.full((_BAR_HEIGHT, picture.shape[1], 3), _BAR_COLOR, np.uint8)
    origin = (6, _BAR_HEIGHT - 8)
    cv2.putText(bar, caption, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45, _TEXT_COLOR, 1, cv2.LINE_AA)
    return np.concatenate([bar, picture])
