"""SIGKILL at random moments: a folder under the final name is complete, and the next run finishes the same bytes."""

import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from support import models

import vecsurgery
from vecsurgery.report import pictures

ROUNDS = 20
RECIPE = """
into: into
deltas: {change: {tuned: tuned}}
geometry: {retain: {data: retain.jsonl}}
steps: [{project: retain_energy, geometry: retain, keep: 0.1}]
gates: []
output: {shard_size: 30000}
"""


PRELOADED = [
    "tests.surgery.test_kill",
    "vecsurgery.surgery.running",
    "vecsurgery.report.page",
    "transformers.models.llama.modeling_llama",
]
"""What a child needs, so that it is forked with its imports behind it and a kill falls into the work."""


def _work(recipe: Path, out: Path, ready: Event) -> None:
    missing = [name for name in PRELOADED if name not in sys.modules]
    assert not missing, f"the fork server could not import {missing}"
    torch.set_num_threads(1)
    # As in the other tests of this folder: drawing would take three quarters of the time, and most of the kills.
    pictures.layers = lambda *args, **kwargs: "<svg></svg>"
    ready.set()
    vecsurgery.run(recipe, out)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kill")
    into = models.checkpoint(root / "into", seed=1, num_hidden_layers=8)
    models.perturbed(into, root / "tuned", seed=2)
    models.write_texts(root / "retain.jsonl", 60)
    (root / "recipe.yaml").write_text(RECIPE)
    return root


@pytest.fixture(scope="module")
def context() -> Iterator[ForkServerContext]:
    """Children are forked from a server that has imported everything and computed nothing, so it has one thread.

    The server passes over what it cannot import and, up to Python 3.11, does not get pytest's path: hence PYTHONPATH.
    """
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        ensure_running()
        yield chosen


def _bytes(folder: Path) -> dict[str, bytes]:
    """Every file but those that carry times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("surgery.json", "report.html")
    }


def _started(context: ForkServerContext, recipe: Path, out: Path) -> ForkServerProcess:
    """A child whose imports are behind it."""
    ready = context.Event()
    child = context.Process(target=_work, args=(recipe, out, ready))
    child.start()
    ready.wait()
    return child


def _timed(context: ForkServerContext, recipe: Path, out: Path) -> float:
    child = _started(context, recipe, out)
    start = time.perf_counter()
    child.join()
    assert child.exitcode == 0
    return time.perf_counter() - start


def test_a_killed_run_leaves_nothing_or_everything_and_resumes_to_the_same_bytes(
    workspace: Path, context: ForkServerContext, tmp_path: Path
) -> None:
    recipe = workspace / "recipe.yaml"
    (tmp_path / "warm").mkdir()
    (tmp_path / "whole").mkdir()
    _timed(context, recipe, tmp_path / "warm" / "out")
    length = _timed(context, recipe, tmp_path / "whole" / "out")
    expected = _bytes(tmp_path / "whole" / "out")
    moments = random.Random(0)
    interrupted = 0
    for number in range(ROUNDS):
        out = tmp_path / str(number) / "out"
        out.parent.mkdir()
        child = _started(context, recipe, out)
        time.sleep(moments.uniform(0.0, length))
        child.kill()
        child.join()
        if out.exists():
            assert set(vecsurgery.verify(out).values()) == {"same"}
        else:
            interrupted += (out.parent / "out.partial").exists()
            _timed(context, recipe, out)
        assert _bytes(out) == expected
        assert not (out.parent / "out.partial").exists()
    assert interrupted > 0
