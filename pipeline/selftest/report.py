"""What the selftest says: rows, their verdict, and the table. It knows nothing of what is tested.

Row, Row, ... --Report--> a table that grows (terminal), or a line for each (file, pipe)
          '--failures--> exit code
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

_HEADINGS = ("check", "result", "ms", "floor ms", "note")
_WIDTHS = (38, 6, 9, 9)
_STYLES = {"PASS": "green", "FAIL": "bold red", "-": "dim"}


class Row(NamedTuple):
    """One line of the table."""

    check: str
    passed: bool | None = None
    """None: nothing to pass, a measurement or a remark."""
    ms: float | None = None
    """Median milliseconds of a call."""
    floor_ms: float | None = None
    """What the measured ceilings of this machine allow at best; the note says which."""
    note: str = ""


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """What stands in the columns."""
    result = {True: "PASS", False: "FAIL", None: "-"}[row.passed]
    return row.check, result, _number(row.ms), _number(row.floor_ms), row.note


def plain_line(columns: Sequence[str]) -> str:
    """The columns under each other, numbers to the right."""
    check, result, ms, floor_ms, note = columns
    widths = _WIDTHS
    line = f"{check:<{widths[0]}} {result:<{widths[1]}} {ms:>{widths[2]}} {floor_ms:>{widths[3]}}"
    return f"{line}  {note}".rstrip()


def failures(rows: Iterable[Row]) -> list[str]:
    """The checks that failed; a check that was not done has not failed."""
    return [row.check for row in rows if row.passed is not None and not row.passed]


def summary(rows: Sequence[Row]) -> str:
    """The last line."""
    failed = failures(rows)
    count = sum(row.passed is not None for row in rows)
    if failed:
        return f"{len(failed)} of {count} checks FAILED: {', '.join(failed)}"
    return f"all {count} checks passed"


def guarded(name: str, check: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows of a check. One that raises, whatever it raises, is a row that failed."""
    try:
        yield from check()
    except Exception as error:  # a GPU has many ways to fail, and the other checks go on
        lines = str(error).splitlines() or [""]
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        yield Row(name, False, note=f"{kind}{lines[0]}")


class Report:
    """Shows rows as they come and remembers them."""

    def __init__(self, console: Console) -> None:
        self.rows: list[Row] = []
        self._console = console
        self._table = Table(box=None, pad_edge=False)
        for heading in _HEADINGS:
            is_number = heading.endswith("ms")
            self._table.add_column(heading, justify="right" if is_number else "left")
        self._live = Live(self._table, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._print_plain(plain_line(_HEADINGS))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()
        if error is None:
            self._print_plain(summary(self.rows))

    def add(self, row: Row) -> None:
        self.rows.append(row)
        check, result, *rest = cells(row)
        if self._console.is_terminal:
            self._table.add_row(
                Text(check), Text(result, _STYLES[result]), *(Text(cell) for cell in rest)
            )
            self._live.refresh()
        else:
            self._print_plain(plain_line((check, result, *rest)))

    def _print_plain(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _number(ms: float | None) -> str:
    """Three digits that mean something."""
    if ms is None:
        return "-"
    if ms < 0.001:
        return "<0.001"
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}"
