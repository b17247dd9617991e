"""The table of what each CUDA kernel takes on each architecture; needs no GPU.

    python -m benchmarks.cuda_budget

The figures are those of tests/support/cuda_budget.py.
"""

import json

from tests.support.cuda_budget import ARCHITECTURES, budgets, cuda_files


def main() -> None:
    """Print the table, and the numbers once more as one JSON line."""
    rows = [row for file in cuda_files() for arch in ARCHITECTURES for row in budgets(file, arch)]
    rows.sort(key=lambda row: (row.file, row.kernel))
    print("| file | kernel | sm | threads | registers | static shared, bytes | spills | blocks |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.file} | {row.kernel} | {row.architecture} | {row.threads} | {row.registers} | "
            f"{row.shared_bytes} | {row.spill_bytes} | {row.blocks} |"
        )
    print(json.dumps({"bench": "cuda_budget", "kernels": [row._asdict() for row in rows]}))


if __name__ == "__main__":
    main()
