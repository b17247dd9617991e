"""The assignment problem by the classical Munkres algorithm, in the published order of scans.

Ties between rounded costs are common in the decode and decide who gets what, so the order is part
of the result. munkres.cuh is the CUDA twin.
"""

import numpy as np
from numpy.typing import NDArray

from kernels.jit import njit

IntArray = NDArray[np.int64]


@njit
def munkres(cost: NDArray[np.float64]) -> IntArray:
    """Column of every row in an assignment of least total cost; cost (n, n) is overwritten.

    The classical algorithm with starred and primed zeros (Munkres 1957). Among assignments of equal
    cost the order of the scans decides, and it is that of the munkres package before 2.0, which the
    published decode calls. A zero is exactly 0.0.
    """
    n = len(cost)
    star_of_row, star_of_column = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    prime_of_row = np.full(n, -1, np.int64)
    row_covered, column_covered = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    _subtract_row_minima(cost)
    _star_first_zeros(cost, star_of_row, star_of_column)
    while True:
        row_covered[:] = False
        prime_of_row[:] = -1
        for column in range(n):
            column_covered[column] = star_of_column[column] >= 0
        if column_covered.all():
            return star_of_row
        row, column = 0, 0
        while True:
            row, column = _find_zero(cost, row_covered, column_covered, row, column)
            if row < 0:
                _make_zero(cost, row_covered, column_covered)
                row, column = 0, 0
                continue
            prime_of_row[row] = column
            if star_of_row[row] < 0:
                break
            column = star_of_row[row]
            row_covered[row] = True
            column_covered[column] = False
        _augment(row, star_of_row, star_of_column, prime_of_row)


@njit
def _subtract_row_minima(cost: NDArray[np.float64]) -> None:
    for row in range(len(cost)):
        cost[row] -= cost[row].min()


@njit
def _star_first_zeros(
    cost: NDArray[np.float64], star_of_row: IntArray, star_of_column: IntArray
) -> None:
    """Star the first zero of every row whose column has no star yet."""
    for row in range(len(cost)):
        for column in range(len(cost)):
            if cost[row, column] == 0.0 and star_of_column[column] < 0:
                star_of_row[row] = column
                star_of_column[column] = row
                break


@njit
def _find_zero(
    cost: NDArray[np.float64],
    row_covered: NDArray[np.bool_],
    column_covered: NDArray[np.bool_],
    start_row: int,
    start_column: int,
) -> tuple[int, int]:
    """An uncovered zero, or (-1, -1).

    Rows are scanned cyclically from start_row; in the first that has one, the last met going
    cyclically from start_column is taken.
    """
    n = len(cost)
    for i in range(n):
        row = (start_row + i) % n
        if row_covered[row]:
            continue
        for j in range(n - 1, -1, -1):
            column = (start_column + j) % n
            if cost[row, column] == 0.0 and not column_covered[column]:
                return row, column
    return -1, -1


@njit
def _make_zero(
    cost: NDArray[np.float64], row_covered: NDArray[np.bool_], column_covered: NDArray[np.bool_]
) -> None:
    """Add the least uncovered cost to covered rows, then subtract it from uncovered columns."""
    n = len(cost)
    least = np.inf
    for row in range(n):
        for column in range(n):
            if not (row_covered[row] or column_covered[column]):
                least = min(least, cost[row, column])
    for row in range(n):
        for column in range(n):
            if row_covered[row]:
                cost[row, column] += least
            if not column_covered[column]:
                cost[row, column] -= least


@njit
def _augment(
    row: int, star_of_row: IntArray, star_of_column: IntArray, prime_of_row: IntArray
) -> None:
    """From a primed zero without a star in its row, swap primes and stars along their path."""
    while row >= 0:
        column = prime_of_row[row]
        next_row = star_of_column[column]
        star_of_row[row] = column
        star_of_column[column] = row
        row = next_row
