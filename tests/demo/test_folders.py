"""The cache of the demos: an entry appears when complete, and one that lost files is told, not used."""

from pathlib import Path

import pytest

from vecsurgery.demo.folders import cache_folder, made_once
from vecsurgery.errors import InputError


def _fill(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"12345")


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        _fill(folder)

    first, second = (made_once(tmp_path, "demo", "key", 0, make) for _ in range(2))
    assert first == second == tmp_path / "demo-key" / "seed-0"
    assert len(made) == 1
    assert (first / "model" / "weights").read_bytes() == b"12345"


@pytest.mark.parametrize("damage", ["lost", "shorter"])
def test_an_entry_that_lost_something_is_told_by_its_folder(tmp_path: Path, damage: str) -> None:
    weights = made_once(tmp_path, "demo", "key", 0, _fill) / "model" / "weights"
    if damage == "lost":
        weights.unlink()
    else:
        weights.write_bytes(b"1")
    with pytest.raises(InputError, match=r"seed-0: files are missing or changed; delete this folder"):
        made_once(tmp_path, "demo", "key", 0, _fill)


def test_a_cache_that_cannot_be_written_is_told_with_its_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="set VECSURGERY_CACHE to a folder"):
        made_once(tmp_path / "file", "demo", "key", 0, _fill)


def test_a_home_is_found_in_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VECSURGERY_CACHE", "~/cache")
    assert cache_folder() == tmp_path / "cache"
