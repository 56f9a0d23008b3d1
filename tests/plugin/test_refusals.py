"""What is no configuration, or names what is not there, is refused in one line before mergekit starts."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.plugin.conftest import refused
from vecsurgery.cli import mergekit_yaml

pytestmark = pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # mergekit imports it by its old name

MODELS = "models: [{model: ./one}]\nbase_model: ./into\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("merge_method: [a\n", "merged.yml: expected YAML: line 2: expected ',' or ']'"),
        ("- a\n", "expected a map with merge_method, models and base_model"),
        (MODELS, "merge_method is missing; expected the name of a method, as in `merge_method: linear`"),
        (f"{MODELS}merge_method: 3\n", "merge_method is 3; expected the name of a method"),
        (f"{MODELS}merge_method: tiess\n", "merge_method: unknown method 'tiess'; did you mean 'ties'?"),
        (f"{MODELS}merge_method: vecsurgery_spectrall\n", "did you mean 'vecsurgery_spectral'?"),
        ("merge_method: ties\nmodels: 3\n", "models: expected a valid list; got 3"),
        ("merge_method: ties\n", "Exactly one of 'models', 'slices', or 'modules' must be present"),
        ("merge_method: ties\nmodels: [{model: a@b@c}]\n", "Invalid model path - multiple @: a@b@c"),
        ("into: ./into\ndeltas: {}\nsteps: []\n", "this is a recipe of vecsurgery (it has into, deltas, steps)"),
        ("extends: rain\n", "not a configuration of mergekit; run it with `vecsurgery run"),
    ],
)
def test_what_is_no_configuration_of_mergekit_is_told_as_what_it_is(content: str, message: str, tmp_path: Path) -> None:
    assert message in refused(content, tmp_path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that are no checkpoints: `adapter`, `delta`, `empty`; and `into`, which is one as far as names tell."""
    root = tmp_path_factory.mktemp("models")
    for name, file in (("adapter", "adapter_config.json"), ("delta", "delta.json"), ("empty", "notes.txt")):
        (root / name).mkdir()
        (root / name / file).write_text("{}")
    (root / "into").mkdir()
    (root / "into" / "config.json").write_text('{"model_type": "llama"}')
    return root


OURS, MERGEKITS = "vecsurgery_trim", "task_arithmetic"


@pytest.mark.parametrize(
    ("method", "model", "message"),
    [
        (OURS, "./nothere", "/nothere (relative paths start at the current folder); expected the folder of a"),
        (MERGEKITS, "./nothere", "/nothere (relative paths start at the current folder); expected the folder of a"),
        (MERGEKITS, "nowhere/nothere", "the model 'nowhere/nothere': "),
        (MERGEKITS, "a/b/c", "is neither an existing folder"),
        (OURS, "./adapter", "is an adapter, not a checkpoint; name it in a recipe, deltas: {NAME: {adapter: …}}"),
        (MERGEKITS, "./adapter", "is an adapter, not a checkpoint; write BASE+./adapter"),
        (OURS, "./delta", "is a delta folder of vecsurgery, not a checkpoint; name it in a recipe, deltas: {NAME: {f"),
        (MERGEKITS, "./delta", "deltas: {NAME: {file: ./delta}}, and use `vecsurgery run`"),
        (OURS, "./empty", "empty has no config.json; expected the folder of a checkpoint or a hub id"),
        (MERGEKITS, "./into+./empty", "./empty is no adapter: it has no adapter_config.json"),
    ],
)
def test_a_model_that_is_none_is_told_as_what_it_is(
    models: Path, method: str, model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    content = {"merge_method": method, "models": [{"model": model}], "base_model": "./into"}
    if method == OURS:
        content["parameters"] = {"density": 0.5}
    told = refused(content, tmp_path)
    assert message in told


def test_a_base_model_that_is_not_there_is_looked_for_in_the_current_folder(tmp_path: Path) -> None:
    content = "merge_method: vecsurgery_trim\nmodels: [{model: ./one}]\nbase_model: ./bass\n"
    assert "relative paths start at the current folder" in refused(content, tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        mergekit_yaml.main([str(tmp_path / "none.yml"), str(tmp_path / "merged")])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told == f"error: reading the configuration {tmp_path / 'none.yml'}: No such file or directory\n"


def test_the_module_runs_as_the_console_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mergekit_yaml", "--help"])
    monkeypatch.delitem(sys.modules, mergekit_yaml.__name__)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(mergekit_yaml.__name__, run_name="__main__")
    assert ended.value.code == 0


def _makes_and_fails(out: Path) -> None:
    out.mkdir(exist_ok=True)
    raise OSError("disk full")


def test_a_folder_that_holds_nothing_is_taken_away_where_mergekit_fails(tmp_path: Path) -> None:
    existing, made = tmp_path / "existing", tmp_path / "made"
    existing.mkdir()
    for out in (existing, made):
        with pytest.raises(OSError, match="disk full"), mergekit_yaml._not_left_empty(out):
            _makes_and_fails(out)
    assert existing.exists()
    assert not made.exists()
