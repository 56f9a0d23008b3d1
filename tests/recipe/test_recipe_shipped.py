"""The shipped recipes are valid documents that open with how to run them."""

from pathlib import Path

import pytest

from vecsurgery import methods
from vecsurgery.errors import InputError
from vecsurgery.recipe import load, shipped


def test_these_recipes_are_shipped() -> None:
    pairs = ("llama-8b", "olmo-7b", "qwen-1.5b", "qwen-14b", "qwen-32b", "qwen-7b")
    assert shipped.names() == (
        *("adapters", "clean-and-teach", "negate", "rain", *(f"rain-{pair}" for pair in pairs)),
        *("retain", "sage", "sift", "stages", "tofu"),
    )


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


def test_what_a_recipe_extends_is_copied_beside_it_unless_it_is_there(tmp_path: Path) -> None:
    assert shipped.extends("rain-qwen-7b") == ("rain.yaml",)
    path = shipped.copy("rain-qwen-7b", tmp_path / "mine.yaml")
    assert (tmp_path / "rain.yaml").read_text() == shipped.text("rain")
    assert load(path, methods.builtin(), require_files=False).into.text == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    (tmp_path / "rain.yaml").write_text(shipped.text("rain").replace("rtol: 0.1", "rtol: 0.2"))
    path = shipped.copy("rain-qwen-14b", tmp_path)
    assert load(path, methods.builtin(), require_files=False).steps[0].options.rtol == 0.2
