"""How long the command line takes to answer where nothing heavy is needed: `--help`, and `check` of a wrong recipe.

    python -m benchmarks.startup [--repeats 5]

The budget is 0.5 s each. Beside it: a bare interpreter, and importing torch, which none of them may do.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT, arguments, show

BUDGET = 0.5
_WRONG = "into: here\ndeltas: {x: {tuned: there}}\nsteps: [{project: null_spcae, geometry: g}]\n"


def seconds_of(command: Sequence[str], code: int, repeats: int) -> float:
    """Median time of a command that ends with this exit code. Raises RuntimeError where it ends with another."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            check=False,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        times.append(time.perf_counter() - start)
        if ended.returncode != code:
            raise RuntimeError(f"{' '.join(command)}: exit code {ended.returncode}, expected {code}: {ended.stderr}")
    return statistics.median(times)


def main(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """A line for each command: median seconds, and its share of the budget."""
    with tempfile.TemporaryDirectory(prefix="vecsurgery-startup-") as folder:
        recipe = Path(folder) / "wrong.yaml"
        recipe.write_text(_WRONG)
        commands: dict[str, tuple[list[str], int]] = {
            "vecsurgery --help": (["-m", "vecsurgery", "--help"], 0),
            "vecsurgery check, wrong recipe": (["-m", "vecsurgery", "check", str(recipe)], 2),
            "bare interpreter": (["-c", "pass"], 0),
            "importing torch": (["-c", "import torch"], 0),
        }
        rows = []
        for name, (command, code) in commands.items():
            seconds = seconds_of(command, code, options.repeats)
            rows.append({"command": name, "seconds": seconds, "to the budget of 0.5 s": seconds / BUDGET})
    return {f"Start-up, median of {options.repeats}": rows}


if __name__ == "__main__":
    chosen = arguments(__doc__, repeats=5)
    show(main(chosen), as_json=chosen.json)
