"""Models of a recipe that cannot be opened: the message names the line and the key that name them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vecsurgery.cli import main


@pytest.fixture
def folder(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: models, and a folder `elsewhere` for the recipe."""
    for name in ("into", "tuned"):
        (tmp_path / name).symlink_to(checkpoints / name)
    for name in ("elsewhere", "empty", "lora", "delta"):
        (tmp_path / name).mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (tmp_path / "delta" / "delta.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def _refused(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert result.stderr.count("error: ") == 1
    return result.stderr.replace("\n", " ")


LINES = {
    "a plain name that the current folder has": (
        ("into", "tuned: ../tuned"),
        (":1: into: fetching 'into'", "There is no folder of this name in {folder}/elsewhere", "write ../into"),
    ),
    "a plain name that is nowhere": (
        ("../into", "tuned: nowhere"),
        (":3: deltas.a.tuned: fetching 'nowhere'", "no folder of this name in {folder}/elsewhere", "spelling"),
    ),
    "an empty folder": (
        ("../into", "tuned: ../empty"),
        (":3: deltas.a.tuned: opening {folder}/empty: the folder is empty", "config.json", "model.safetensors"),
    ),
    "an adapter as a model": (
        ("../into", "tuned: ../lora"),
        (":3: deltas.a.tuned: ", "this is an adapter, not a model", "`base+adapter`", "`adapter: …`"),
    ),
    "a delta as a model": (
        ("../into", "tuned: ../delta"),
        (":3: deltas.a.tuned: ", "this is a delta, not a model", "`file: …`"),
    ),
    "a model as an adapter": (
        ("../into", "adapter: ../tuned"),
        (":3: deltas.a.adapter: ", "this is a model, not an adapter", "saved by PEFT", "`tuned`"),
    ),
    "a model as an adapter on a model": (
        ("../into", "tuned: ../into+../tuned"),
        (":3: deltas.a.tuned: ", "this is a model, not an adapter"),
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_a_model_that_cannot_be_opened_is_told_with_its_line_and_key(folder: Path, case: str) -> None:
    (into, delta), expected = LINES[case]
    recipe = folder / "elsewhere" / "s.yaml"
    recipe.write_text(f"into: {into}\ndeltas:\n  a: {{{delta}}}\nsteps:\n  - {{scale: 0.5}}\n")
    message = _refused("check", "elsewhere/s.yaml")
    for words in (f"elsewhere/s.yaml{expected[0]}", *expected[1:]):
        assert words.format(folder=folder) in message


def test_a_model_that_an_override_names_is_told_with_the_override(folder: Path) -> None:
    (folder / "elsewhere" / "s.yaml").write_text("into: ../into\ndeltas:\n  a: {tuned: ../tuned}\n")
    message = _refused("check", "elsewhere/s.yaml", "--set", "deltas.a.base=into")
    assert "error: --set deltas.a.base=into: deltas.a.base: fetching 'into'" in message
    assert f"in {folder}/elsewhere" in message


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("tuned", "advice"), [("lora", "not a model; write `base+adapter`."), ("delta", "`vecsurgery apply`")]
)
def test_a_model_that_an_argument_names_is_told_without_the_words_of_recipes(tuned: str, advice: str) -> None:
    message = _refused("extract", "into", tuned, "out")
    assert f"{tuned}: this is" in message
    assert advice in message
    assert "deltas" not in message
