"""OUT.partial: bound to a plan, resumable, complete or absent."""

import errno
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from vecsurgery.checkpoint import atomic
from vecsurgery.checkpoint.disk import require_space
from vecsurgery.checkpoint.partial import Journal, check_output, open_partial, partial_path, publish
from vecsurgery.checkpoint.shards import plan_shards
from vecsurgery.checkpoint.writer import write_shard
from vecsurgery.errors import InputError, RunError

SHARDS = plan_shards([("a", "float32", (4,)), ("b", "float32", (4,))], 16)
TENSORS = {"a": torch.arange(4.0), "b": torch.arange(4.0) + 9}


def write(folder: Path, number: int, facts: dict[str, object] | None = None) -> None:
    shard = SHARDS[number]
    written = write_shard(folder, shard, [(entry.name, TENSORS[entry.name]) for entry in shard.tensors])
    Journal(folder).record(written, facts or {})


def test_an_output_appears_under_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with open_partial(out, "plan") as partial:
        write(partial.path, 0)
        write(partial.path, 1)
        assert not out.exists()
        publish(partial, b"{}\n")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", *(shard.file for shard in SHARDS)]
    assert not partial_path(out).exists()


def _cut_off(monkeypatch: pytest.MonkeyPatch, out: Path, *, at: str) -> None:
    """Publish a folder of two shards, cut off where the state or the folder would be renamed, or the state removed."""
    renamed = {"state": partial_path(out) / ".vecsurgery", "folder": partial_path(out)}
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self == renamed.get(at):
            raise KeyboardInterrupt
        return real(self, target)

    def remove(folder: Path) -> None:
        raise KeyboardInterrupt

    def whole() -> None:
        with open_partial(out, "plan") as partial:
            write(partial.path, 0)
            write(partial.path, 1)
            with monkeypatch.context() as patch:
                if at in renamed:
                    patch.setattr(Path, "replace", replace)
                else:
                    patch.setattr(shutil, "rmtree", remove)
                publish(partial, b"{}")

    with pytest.raises(KeyboardInterrupt):
        whole()


@pytest.mark.parametrize("at", ["state", "folder"])
def test_a_run_cut_off_before_the_folder_has_its_name_is_resumed_with_every_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    out = tmp_path / "out"
    _cut_off(monkeypatch, out, at=at)
    assert not out.exists()
    with open_partial(out, "plan") as partial:
        assert partial.resumed
        assert set(partial.journal.finished()) == {shard.file for shard in SHARDS}
        publish(partial, b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_cut_off_behind_the_renaming_leaves_nothing_but_the_output_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    _cut_off(monkeypatch, out, at="removal")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", *(shard.file for shard in SHARDS)]
    assert not partial_path(out).exists()
    shutil.rmtree(out)  # what it left beside does not disturb the next run, of whatever plan
    with open_partial(out, "another plan") as partial:
        assert not partial.resumed
        publish(partial, b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_state_that_another_run_is_about_to_publish_is_not_taken_from_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_partial(out, "plan") as partial:
        (partial.path / ".vecsurgery").replace(tmp_path / "out.partial.state")
        with pytest.raises(InputError, match="another run is working in it"), open_partial(out, "plan"):
            pass
        assert (tmp_path / "out.partial.state" / "plan").exists()


def test_a_folder_of_the_user_under_the_name_of_the_state_is_refused_and_kept(tmp_path: Path) -> None:
    notes = tmp_path / "out.partial.state" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with (
        pytest.raises(InputError, match=r"out.partial.state holds files of another origin"),
        open_partial(tmp_path / "out", "plan"),
    ):
        pass
    assert notes.read_text() == "mine"


def test_an_empty_folder_may_be_the_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with open_partial(out, "plan") as partial:
        publish(partial, b"{}")
    assert (out / "config.json").read_bytes() == b"{}"


def test_a_resumed_run_finds_the_finished_shards_with_their_facts(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupted() -> None:
        with open_partial(out, "plan") as partial:
            assert not partial.resumed
            write(partial.path, 0, {"norm": 0.5})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with open_partial(out, "plan") as partial:
        assert partial.resumed
        finished = partial.journal.finished()
        assert {name: entry.facts for name, entry in finished.items()} == {SHARDS[0].file: {"norm": 0.5}}


def test_a_shard_without_its_journal_entry_or_of_another_size_counts_as_unfinished(tmp_path: Path) -> None:
    with open_partial(tmp_path / "out", "plan") as partial:
        write_shard(partial.path, SHARDS[0], [("a", TENSORS["a"])])
        assert partial.journal.finished() == {}
        write(partial.path, 1)
        assert list(partial.journal.finished()) == [SHARDS[1].file]
        with (partial.path / SHARDS[1].file).open("ab") as file:
            file.write(b"x")
        assert partial.journal.finished() == {}


def _work_and_be_killed(out: Path) -> None:
    with open_partial(out, "plan") as partial:
        write(partial.path, 0)
        write_shard(partial.path, SHARDS[1], [("b", TENSORS["b"])])
        (partial.path / "model-9.safetensors.part").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_killed_between_shard_and_journal_is_resumed_at_that_shard(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = multiprocessing.get_context("spawn").Process(target=_work_and_be_killed, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with open_partial(out, "plan") as partial:
        assert list(partial.journal.finished()) == [SHARDS[0].file]
        assert not list(partial.path.glob("*.part"))
        before = (partial.path / SHARDS[1].file).read_bytes()
        write(partial.path, 1)
        assert (partial.path / SHARDS[1].file).read_bytes() == before


def refused(out: Path, plan: str, message: str) -> None:
    with pytest.raises(InputError, match=message), open_partial(out, plan):
        pass


def test_another_plan_foreign_files_and_a_second_run_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_partial(out, "plan"):
        refused(out, "plan", "another run is working in it")
    refused(out, "other", "unfinished run of another plan")
    foreign = partial_path(tmp_path / "mine")
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("text")
    refused(tmp_path / "mine", "plan", "files of another origin")


def test_an_output_that_is_taken_or_an_input_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    with pytest.raises(InputError, match="choose an output that is no input"):
        check_output(source, [source])
    with pytest.raises(InputError, match="choose an output that is no input"):
        check_output(tmp_path / "x" / ".." / "model", [source])
    link = tmp_path / "link"
    link.symlink_to(source)
    with pytest.raises(InputError, match="choose an output that is no input"):
        check_output(link, [source])
    with pytest.raises(InputError, match="choose an output that is no input"):
        check_output(tmp_path / "run", [tmp_path / "run.partial"])
    for inside in (source / "sub", source / "deep" / "sub", link / "sub"):
        with pytest.raises(InputError, match="lies within the input"):
            check_output(inside, [source])
    check_output(tmp_path / "model-2", [source])
    (source / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is not empty"):
        check_output(source)
    with pytest.raises(InputError, match="a file of that name exists"):
        check_output(source / "config.json")


def test_a_damaged_journal_entry_is_named(tmp_path: Path) -> None:
    with open_partial(tmp_path / "out", "plan") as partial:
        write(partial.path, 0)
        (entry,) = partial.journal.folder.iterdir()
        entry.write_text("{")
        with pytest.raises(RunError, match=r"entry .*json is damaged"):
            partial.journal.finished()


def test_files_in_sub_folders_have_journal_entries_of_their_own(tmp_path: Path) -> None:
    with open_partial(tmp_path / "out", "plan") as partial:
        (partial.path / "surgery").mkdir()
        written = write_shard(partial.path / "surgery", SHARDS[0], [("a", TENSORS["a"])])
        named = type(written)(f"surgery/{written.file}", written.size, written.sha256)
        partial.journal.record(named, {})
        assert list(partial.journal.finished()) == [named.file]


def test_a_small_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="the disk is full"):
        atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_too_little_space_is_refused_with_both_numbers(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there", 1, "the output")
    with pytest.raises(InputError, match=r"needs 1000\.00 TB, the disk has .* free"):
        require_space(tmp_path / "not" / "there", 10**15, "the output")
