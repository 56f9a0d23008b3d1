"""Time and peak memory of writing an elementwise recipe: against mergekit-yaml, plain loops, and copying the bytes.

    python -m benchmarks.write                      # 1.7 B parameters in bfloat16: 11 GB of disk, a few minutes
    python -m benchmarks.write --tensors 10000      # then also two of 10,000 tiny tensors: many experts, many blocks
    python -m benchmarks.write --size tiny          # seconds, to see that it works

The same merge everywhere, computed in float32: into + 0.5 · (tuned − into). Only vecsurgery checks inputs for NaN,
hashes what it reads and writes, syncs the files, and compares the checkpoints first. The loops hold a shard: one merges
tensor by tensor, the other only copies the tensors of `into`. Copying the bytes reads both checkpoints and writes one.
Budgets: 0.7 × the time and 1.0 × the peak memory of mergekit-yaml; for tiny tensors, twice the time of the copy loop.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks._checkpoints import TINY, Shape, make_pair
from benchmarks._common import MEGABYTE, Outcome, arguments, child, process, show

SIZES = {
    "tiny": TINY,
    "1.7b": Shape(layers=24, hidden=2048, intermediate=8192, vocabulary=64000, heads=32, kv_heads=8),
}
_RECIPE = """
into: {folder}/into
deltas: {{change: {{tuned: {folder}/tuned}}}}
steps: [{{scale: 0.5}}]
gates: []
"""
_MERGEKIT = """
merge_method: task_arithmetic
base_model: {folder}/into
models: [{{model: {folder}/tuned, parameters: {{weight: 0.5}}}}]
dtype: float32
out_dtype: bfloat16
"""
_PIECE = 1 << 25


def surgery(recipe: Path, out: Path) -> Outcome:
    """The whole command, with seconds per phase as the record has them."""
    outcome = process([sys.executable, "-m", "vecsurgery", "run", str(recipe), str(out)])
    return replace(outcome, result=json.loads((out / "surgery.json").read_text())["seconds"])


def plain_loop(folder: str, out: str) -> dict[str, float]:
    """In the child: the same merge as short as it can be, a shard in memory."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    start = time.perf_counter()
    Path(out).mkdir()
    for file in sorted(Path(folder, "into").glob("*.safetensors")):
        merged = {}
        with safe_open(file, "pt") as into, safe_open(Path(folder, "tuned", file.name), "pt") as tuned:
            for name in into.keys():  # noqa: SIM118 - not a mapping
                base = into.get_tensor(name)
                delta = tuned.get_tensor(name).float() - base.float()
                merged[name] = (base.float() + 0.5 * delta).to(base.dtype)
        save_file(merged, Path(out, file.name))
    return {"merge": time.perf_counter() - start}


def copy_loop(folder: str, out: str) -> dict[str, float]:
    """In the child: every tensor of `into` taken and saved as it is, a shard in memory."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    start = time.perf_counter()
    Path(out).mkdir()
    for file in sorted(Path(folder, "into").glob("*.safetensors")):
        with safe_open(file, "pt") as into:
            copied = {name: into.get_tensor(name) for name in into.keys()}  # noqa: SIM118 - not a mapping
        save_file(copied, Path(out, file.name))
    return {"copy": time.perf_counter() - start}


def copying(folder: str, out: str) -> dict[str, float]:
    """In the child: read every byte of both checkpoints and write those of one, synced."""
    start = time.perf_counter()
    Path(out).mkdir()
    for file in sorted(Path(folder, "into").glob("*.safetensors")):
        other, target = Path(folder, "tuned", file.name), Path(out, file.name)
        with file.open("rb") as into, other.open("rb") as tuned, target.open("wb") as written:
            while piece := into.read(_PIECE):
                tuned.read(_PIECE)
                written.write(piece)
            written.flush()
            os.fsync(written.fileno())
    return {"copy": time.perf_counter() - start}


def difference(folder: Path, left: str, right: str) -> float:
    """Largest difference between two results, relative to the largest number: they must be the same merge."""
    from vecsurgery.checkpoint.files import Files

    first, second = Files(folder / left), Files(folder / right)
    if first.headers.keys() != second.headers.keys():
        raise RuntimeError(f"{left} and {right} hold different tensors")
    worst = 0.0
    for name in first.headers:
        one, other = first.read(name).float(), second.read(name).float()
        worst = max(worst, float((one - other).abs().max() / one.abs().max()))
    return worst


def run_case(folder: Path, *, mergekit: bool) -> dict[str, Outcome]:
    """Every program on the pair in `folder`. Inputs are in the page cache: copying comes first and reads them."""
    recipe, config = folder / "recipe.yaml", folder / "mergekit.yaml"
    recipe.write_text(_RECIPE.format(folder=folder))
    config.write_text(_MERGEKIT.format(folder=folder))
    outcomes = {"copying the bytes": child(copying, folder=str(folder), out=str(folder / "copy"))}
    shutil.rmtree(folder / "copy")
    outcomes["copy loop"] = child(copy_loop, folder=str(folder), out=str(folder / "copied"))
    shutil.rmtree(folder / "copied")
    outcomes["plain loop"] = child(plain_loop, folder=str(folder), out=str(folder / "loop"))
    outcomes["vecsurgery run"] = surgery(recipe, folder / "ours")
    _require_same(folder, "loop")
    shutil.rmtree(folder / "loop")
    if mergekit:
        program = Path(sys.executable).with_name("mergekit-yaml")
        outcomes["mergekit-yaml"] = process([str(program), str(config), str(folder / "theirs")])
        _require_same(folder, "theirs")
        shutil.rmtree(folder / "theirs")
    shutil.rmtree(folder / "ours")
    return outcomes


def _require_same(folder: Path, other: str) -> None:
    found = difference(folder, "ours", other)
    if found > 2**-8:
        raise RuntimeError(f"the results of vecsurgery and {other} differ by {found:.2g}: not the same merge")


def rows_of(shape: Shape, outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
    """A line for each program, with its ratio to the reference: mergekit-yaml, else the copy loop."""
    reference = outcomes.get("mergekit-yaml", outcomes["copy loop"])
    return [
        {
            "program": program,
            "parameters (10⁹)": shape.parameters / 1e9,
            "tensors": len(shape.tensors()),
            "seconds": outcome.seconds,
            "without start-up (s)": sum((outcome.result or {"": outcome.seconds}).values()),
            "time ratio": outcome.seconds / reference.seconds,
            "peak anonymous (MB)": outcome.anonymous // MEGABYTE,
            "peak resident (MB)": outcome.resident // MEGABYTE,
            "memory ratio": outcome.anonymous / reference.anonymous,
        }
        for program, outcome in outcomes.items()
    ]


def main(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The large checkpoint against mergekit-yaml, those of tiny tensors against the copy loop."""
    tables = {}
    with tempfile.TemporaryDirectory(prefix="vecsurgery-write-", dir=options.folder) as name:
        large = SIZES[options.size]
        make_pair(Path(name, "large"), large)
        tables["Elementwise recipe, ratios to mergekit-yaml"] = rows_of(
            large, run_case(Path(name, "large"), mergekit=True)
        )
        shutil.rmtree(Path(name, "large"))
        if options.tensors:
            for what, tiny in _of_many_tensors(options.tensors).items():
                make_pair(Path(name, what), tiny)
                table = rows_of(tiny, run_case(Path(name, what), mergekit=False))
                tables[f"Tiny tensors in many {what}, ratios to the copy loop"] = table
    return tables


def _of_many_tensors(count: int) -> dict[str, Shape]:
    """About so many tensors as mixtures of experts have them, 7 and 3 for each expert in a block, or in blocks of 9."""
    experts = TINY.with_layers(min(16, max(1, count // 10)))
    blocks = TINY.with_layers(max(1, count // 9))
    return {"experts": experts.with_experts(max(2, (count // experts.layers - 7) // 3)), "blocks": blocks}


if __name__ == "__main__":
    chosen = arguments(__doc__, size="1.7b", tensors=0, folder=None)
    show(main(chosen), as_json=chosen.json)
