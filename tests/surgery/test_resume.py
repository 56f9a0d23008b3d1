"""A fault while writing: exit code 1, a partial output that the same command finishes to the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.results import contents
from support.workspace import Workspace

import vecsurgery
from vecsurgery.cli import main
from vecsurgery.errors import RunError
from vecsurgery.surgery import running

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs the device that is always full")
THIRD = "model-00003-of-00004.safetensors"


@pytest.fixture
def sharded(workspace: Workspace) -> Workspace:
    workspace.recipe["output"] = {"shard_size": "20KB"}
    return workspace


def _run(workspace: Workspace) -> Result:
    return CliRunner().invoke(main, ["run", str(workspace.write()), str(workspace.out)])


def _full_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk is full from the moment on at which `name` is written."""
    write_all: Callable[..., Any] = running.write_all

    def interrupted(*args: Any, **kwargs: Any) -> None:
        (args[3].path / f"{name}.part").symlink_to(FULL)
        write_all(*args, **kwargs)

    monkeypatch.setattr(running, "write_all", interrupted)


def _uninterrupted(workspace: Workspace) -> dict[str, bytes]:
    """The bytes of a run into another folder of the same name."""
    (workspace.root / "whole").mkdir()
    vecsurgery.run(workspace.write(), workspace.root / "whole" / "out")
    return contents(workspace.root / "whole" / "out")


@pytest.mark.parametrize("name", [THIRD, "README.md"])
def test_a_full_disk_is_exit_code_1_and_the_next_run_finishes_bit_for_bit(
    sharded: Workspace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = _uninterrupted(sharded)
    with monkeypatch.context() as full:
        _full_at(full, name)
        result = _run(sharded)
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 1
    assert "the disk is full" in result.stderr
    assert "run the same command again" in result.stderr
    assert not sharded.out.exists()
    partial = sharded.root / "out.partial"
    kept = {path.name: path.stat().st_ino for path in partial.glob("*.safetensors")}
    (partial / f"{name}.part").unlink(missing_ok=True)  # somebody made room
    assert set(kept) == {f"model-0000{n}-of-00004.safetensors" for n in ((1, 2) if name == THIRD else (1, 2, 3, 4))}
    assert _run(sharded).exit_code == 0
    assert contents(sharded.out) == expected
    assert not partial.exists()
    assert all((sharded.out / file).stat().st_ino == inode for file, inode in kept.items())
    assert set(vecsurgery.verify(sharded.out).values()) == {"same"}


def test_a_resumed_run_reports_the_matrices_of_the_shards_that_were_finished_before(
    sharded: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sharded.root / "whole").mkdir()
    whole = vecsurgery.run(sharded.write(), sharded.root / "whole" / "out")
    with monkeypatch.context() as full:
        _full_at(full, THIRD)
        _run(sharded)
    resumed = vecsurgery.run(sharded.write(), sharded.out)
    assert resumed["matrices"] == whole["matrices"]
    assert resumed.get("inputs") == whole.get("inputs")
    assert resumed["files"] == whole["files"]
    assert resumed.get("verdict") == whole.get("verdict")


def test_a_fault_while_measuring_is_resumable_too(sharded: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _uninterrupted(sharded)

    def stop(stage: str, done: int, total: int, unit: str) -> None:
        if stage == "measuring retain" and 0 < done < total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vecsurgery.run(sharded.write(), sharded.out, progress=stop)
    assert not sharded.out.exists()
    assert (sharded.root / "out.partial").is_dir()
    vecsurgery.run(sharded.write(), sharded.out)
    assert contents(sharded.out) == expected


@pytest.mark.parametrize(("fault", "measures_again"), [("report.html", False), ("publish", True)])
def test_geometry_that_is_not_kept_goes_last_and_its_loss_is_resumable(
    sharded: Workspace, monkeypatch: pytest.MonkeyPatch, fault: str, measures_again: bool
) -> None:
    sharded.recipe["output"]["keep_geometry"] = False
    expected = _uninterrupted(sharded)

    def cut_off(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        if fault == "publish":
            interrupted.setattr(running, "publish", cut_off)
        else:
            _full_at(interrupted, fault)
        with pytest.raises((KeyboardInterrupt, RunError)):
            vecsurgery.run(sharded.write(), sharded.out)
    (sharded.root / "out.partial" / f"{fault}.part").unlink(missing_ok=True)  # somebody made room
    stages: set[str] = set()
    vecsurgery.run(sharded.write(), sharded.out, progress=lambda stage, *_: stages.add(stage))
    assert contents(sharded.out) == expected
    assert not (sharded.out / "surgery").exists()
    assert ("measuring retain" in stages) == measures_again


def test_a_run_that_was_killed_as_its_geometry_was_finished_leaves_no_journal_of_it(
    sharded: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _uninterrupted(sharded)
    with monkeypatch.context() as full:
        _full_at(full, THIRD)
        _run(sharded)
    partial = sharded.root / "out.partial"
    (partial / f"{THIRD}.part").unlink(missing_ok=True)
    (partial / "surgery" / "retain.safetensors.journal").write_text("{}\n")
    vecsurgery.run(sharded.write(), sharded.out)
    assert contents(sharded.out) == expected


def test_a_resumed_run_says_what_it_found(sharded: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(running, "publish", cut_off)
        with pytest.raises(KeyboardInterrupt):
            vecsurgery.run(sharded.write(), sharded.out)
    told: list[tuple[str, float, float]] = []
    vecsurgery.run(
        sharded.write(), sharded.out, progress=lambda stage, done, total, _: told.append((stage, done, total))
    )
    (found,) = [entry for entry in told if entry[0] == "going on in out.partial"]
    assert found[1] == found[2] > 1
