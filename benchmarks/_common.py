"""What every benchmark needs: a job in its own process with its time and peak memory, and tables of what came out."""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_INTERVAL = 0.003
"""Seconds between two looks at a child's memory."""
ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Outcome:
    """What a job in its own process came to."""

    result: Any
    """What the function returned."""
    seconds: float
    """From the start of the process to its end, imports included."""
    anonymous: int
    """Peak anonymous memory in bytes: what the kernel cannot take back, mapped files not counted."""
    resident: int
    """Peak resident memory in bytes, pages of mapped files included (VmHWM)."""


def child(function: Callable[..., Any], **arguments: Any) -> Outcome:
    """Call a module-level function with JSON arguments in a fresh interpreter; its result must be JSON too.

    Raises RuntimeError with the child's standard error where it fails.
    """
    module = function.__module__
    if module == "__main__":  # `python -m benchmarks.NAME` runs under that name
        module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    task = json.dumps({"module": module, "function": function.__name__, "arguments": arguments})
    return process([sys.executable, "-m", "benchmarks._common", task], last_line=True)


def process(command: Sequence[str], *, last_line: bool = False) -> Outcome:
    """Run a command to its end, watching its memory; `last_line`: parse the last line of its output as JSON.

    Raises RuntimeError where it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    started = subprocess.Popen(
        [*command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    watcher = _Watcher(started.pid)
    output, errors = started.communicate()
    seconds = time.perf_counter() - start
    watcher.stop()
    if started.returncode != 0:
        raise RuntimeError(f"{command[0]} … ended with {started.returncode}:\n{errors[-4000:]}")
    result = json.loads(output.strip().splitlines()[-1]) if last_line else None
    return Outcome(result, seconds, watcher.anonymous, watcher.resident)


class _Watcher:
    """Looks at a process's memory every few milliseconds; the kernel keeps no peak of the anonymous part."""

    def __init__(self, pid: int) -> None:
        self.anonymous = 0
        self.resident = 0
        self._status = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL):
            try:
                lines = self._status.read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                return
            sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
            self.anonymous = max(self.anonymous, 1024 * int(sizes.get("RssAnon", 0)))
            self.resident = max(self.resident, 1024 * int(sizes.get("VmHWM", 0)))


def environment() -> str:
    """The machine and the versions behind the numbers, in one line."""
    import torch
    import transformers

    return (
        f"{os.cpu_count()} cores ({_processor()}), Python {platform.python_version()}, torch {torch.__version__} with "
        f"{torch.get_num_threads()} threads, transformers {transformers.__version__}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table with a column for every key; numbers are right-aligned and get three significant digits.

    A row that lacks a key, or has None there, has an empty cell.
    """
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    numeric = [all(isinstance(row.get(column), int | float | None) for row in rows) for column in columns]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        + " |"
        for line in cells
    ]
    rule = "|".join("-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def arguments(description: str | None, **options: Any) -> argparse.Namespace:
    """Parse the command line: `--json` and an option for each keyword (its default; a type for a required one)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, type):
            parser.add_argument(flag, type=default, required=True)
        elif default is None:
            parser.add_argument(flag, type=Path)
        else:
            parser.add_argument(flag, type=type(default), default=default, help=f"default {default}")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser.parse_args()


def experiment_parser(
    description: str | None, *paths: str, seeds: Sequence[int] = (), **names: Sequence[str]
) -> argparse.ArgumentParser:
    """The command line of an experiment: required folders, `--size full|tiny`, and which parts of it are to run.

    `seeds`: the reported ones, where `--seeds` is to be there; `names`: options that take some of the given names.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for path in paths:
        parser.add_argument(f"--{path}", type=Path, required=True)
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    if seeds:
        told = f"default {','.join(map(str, seeds))}; 0 is the pilot's"
        parser.add_argument("--seeds", type=_numbers, default=tuple(seeds), help=told)
    for option, known in names.items():
        told = f"default {','.join(known)}"
        parser.add_argument(f"--{option}", type=_some_of(known), default=tuple(known), help=told)
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parsed(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if not set(names) <= set(known):
            raise argparse.ArgumentTypeError(f"{text!r}: expected some of {', '.join(known)}")
        return names

    return parsed


def show(tables: Mapping[str, Sequence[Mapping[str, Any]]], *, as_json: bool) -> None:
    """Print tables by title with the environment, as Markdown or as one JSON object."""
    if as_json:
        print(json.dumps({"environment": environment(), **tables}, indent=1))
        return
    print(environment())
    for title, rows in tables.items():
        print(f"\n{title}\n\n{table(rows)}")


def _serve(task: str) -> None:
    """The child's side: call the function and print its result as the last line."""
    wanted = json.loads(task)
    function = getattr(importlib.import_module(wanted["module"]), wanted["function"])
    print(json.dumps(function(**wanted["arguments"])))


if __name__ == "__main__":
    _serve(sys.argv[1])
