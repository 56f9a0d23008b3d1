"""The shipped recipes are valid documents that open with how to run them."""

from pathlib import Path

import pytest

from vecsurgery import methods
from vecsurgery.errors import InputError
from vecsurgery.recipe import load, shipped


def test_these_recipes_are_shipped() -> None:
    assert shipped.names() == ("clean-and-teach", "rain", "retain", "sage", "tofu")


@pytest.mark.parametrize("name", shipped.names())
def test_a_shipped_recipe_is_valid_and_says_how_to_run_it(name: str, tmp_path: Path) -> None:
    path = shipped.copy(name, tmp_path)
    assert path == tmp_path / f"{name}.yaml"
    load(path, methods.builtin(), require_files=False)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"vecsurgery new {name}" in text
    assert f"vecsurgery run {name}.yaml OUT" in text
    assert shipped.summary(name) == text.splitlines()[0][2:]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"mine\.yaml: it exists already"):
        shipped.copy("retain", path)
    assert path.read_text() == "mine"
    with pytest.raises(InputError, match="No such file or directory"):
        shipped.copy("retain", tmp_path / "gone" / "retain.yaml")


def test_an_unknown_recipe_is_told_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'retian'; did you mean 'retain'\?"):
        shipped.text("retian")


def test_copying_without_a_destination_writes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped.copy("rain.yaml").resolve() == tmp_path / "rain.yaml"
