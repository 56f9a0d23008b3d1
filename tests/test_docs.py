"""The documentation is true: its recipes validate, its commands parse, its code runs, its links lead somewhere."""

import importlib.util
import os
import pkgutil
import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType

import click
import nbformat
import pytest
import torch
from click.testing import CliRunner
from nbclient import NotebookClient
from safetensors.torch import load_file
from support import models

import vecsurgery
from vecsurgery import methods, recipe
from vecsurgery.cli import main, mergekit_yaml
from vecsurgery.surgery import judging

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_MACHINE = re.compile(r"(?<![\w.])/(?:work|home|root|tmp|Users|mnt|private)/")
_ENTRY_POINTS = "vecsurgery.steps"


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in _FENCE.findall(page.read_text("utf-8")) if language in languages]


def _spans(page: Path) -> list[str]:
    """Code in running text."""
    return _SPAN.findall(_FENCE.sub("", page.read_text("utf-8")))


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _group() -> click.Group:
    assert isinstance(main, click.Group)
    return main


def _subcommands() -> list[str]:
    return _group().list_commands(click.Context(main))


def _subcommand(name: str, context: click.Context | None = None) -> click.Command:
    command = _group().get_command(context or click.Context(main), name)
    assert command is not None, f"there is no command {name!r}"
    return command


def _commands() -> list[tuple[str, str]]:
    """(where, command line) of every `vecsurgery …` that the documentation shows."""
    found = []
    for page in PAGES:
        lines = [line for block in _blocks(page, "sh", "bash", "console") for line in block.splitlines()]
        found += [(_name(page), line) for line in [*lines, *_spans(page)]]
    for path in RECIPES:
        comments = [line.lstrip("# ") for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
        found += [(_name(path), line) for line in comments]
    helped = {"--help": main, **{name: _subcommand(name) for name in _subcommands()}}
    for name, command in helped.items():
        lines = [re.split(r"\s{2,}", line.strip())[0] for line in (command.help or "").splitlines()]
        found += [(name, line) for line in lines]
    plain = [(where, line.removeprefix("$ ").partition(" #")[0].strip()) for where, line in found]
    return list(dict.fromkeys((where, line) for where, line in plain if line.startswith("vecsurgery ")))


def _slug(heading: str) -> str:
    """The anchor that a heading gets where the pages are read."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _anchors(page: Path) -> set[str]:
    text = _FENCE.sub("", page.read_text("utf-8"))
    return {_slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.fixture(scope="session")
def models_of_the_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a first use needs, under the names that the documentation uses."""
    root = tmp_path_factory.mktemp("readme")
    original = models.checkpoint(root / "original", seed=1, dtype=torch.bfloat16)
    models.perturbed(original, root / "unlearned", seed=2, size=0.12, only="proj")
    models.write_texts(root / "retain.jsonl")
    for number, name in enumerate(("forget", "forget-test", "retain-test")):
        models.write_answers(original, root / f"{name}.jsonl", first=20 + 30 * number)
    return root


@pytest.fixture
def first_use(models_of_the_readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a first use, with the README's recipe as sage.yaml."""
    folder = tmp_path / "here"
    shutil.copytree(models_of_the_readme, folder)
    (folder / "sage.yaml").write_text(_blocks(ROOT / "README.md", "yaml")[0], encoding="utf-8")
    monkeypatch.chdir(folder)
    # Random models fall into loops by chance; the gate that stops them has tests of its own.
    monkeypatch.setattr(judging, "looping", lambda ids: False)
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_a_shipped_recipe_validates(path: Path) -> None:
    loaded = recipe.load(path, methods.available(), require_files=False)
    assert loaded.steps


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, "yaml")], ids=_name)
def test_every_recipe_in_the_documentation_validates(page: Path, tmp_path: Path) -> None:
    for path in RECIPES:
        shutil.copy(path, tmp_path)
    for text in _blocks(page, "yaml"):
        written = tmp_path / "documented.yaml"
        written.write_text(text, encoding="utf-8")
        recipe.load(written, methods.available(), require_files=False)


@pytest.mark.parametrize(("where", "line"), _commands(), ids=[f"{where}: {line}" for where, line in _commands()])
def test_every_documented_command_line_parses(where: str, line: str) -> None:
    name, *arguments = (word for word in shlex.split(line)[1:] if not re.fullmatch(r"\[[A-Z.]+\]", word))
    if name.startswith("-") or name == "COMMAND":
        return
    context = click.Context(main, info_name="vecsurgery")
    command = _subcommand(name, context)
    if not arguments:
        return  # a command that is only mentioned
    command.make_context(name, arguments, parent=context)


def test_the_documentation_shows_every_command() -> None:
    assert {shlex.split(line)[1] for _, line in _commands()} >= set(_subcommands())


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, "python")], ids=_name)
def test_the_python_of_a_page_runs(page: Path, first_use: Path) -> None:
    blocks = _blocks(page, "python")
    if not any("vecsurgery.run(" in block for block in blocks):
        vecsurgery.run("sage.yaml", "cleaned")
    names: dict[str, object] = {"__name__": "documented"}
    for block in blocks:
        exec(compile(block, _name(page), "exec"), names)


def test_the_first_use_of_the_readme_works_as_written(first_use: Path) -> None:
    """Every command line of the section, in order; the recipe is the one that the page shows."""
    section = (ROOT / "README.md").read_text("utf-8").partition("## First use")[2].partition("\n## ")[0]
    lines = [
        line for _, text in _FENCE.findall(section) for line in text.splitlines() if line.startswith("vecsurgery ")
    ]
    shown = (first_use / "sage.yaml").read_text("utf-8")
    (first_use / "sage.yaml").unlink()
    for line in lines:
        result = CliRunner().invoke(main, shlex.split(line, comments=True)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"
        if line.startswith("vecsurgery new"):
            (first_use / "sage.yaml").write_text(shown, encoding="utf-8")
    assert (first_use / "cleaned" / "report.html").is_file()


# mergekit imports numpy.core by its old name
@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_the_configurations_of_mergekit_work_as_written(first_use: Path) -> None:
    from vecsurgery.plugin import configuration

    same, other = _blocks(ROOT / "docs" / "mergekit.md", "yml")
    (first_use / "clean.yml").write_text(same, encoding="utf-8")
    (first_use / "rain.yml").write_text(other, encoding="utf-8")
    assert configuration.read(first_use / "rain.yml", pytest.fail) is not None
    vecsurgery.run("sage.yaml", "cleaned")
    (line,) = (text for block in _blocks(ROOT / "docs" / "mergekit.md", "sh") for text in block.splitlines())
    result = CliRunner().invoke(mergekit_yaml.command(), shlex.split(line)[1:])
    assert result.exit_code == 0, (result.output, result.exception)
    written, again = ({**load_file(first_use / name / "model.safetensors")} for name in ("cleaned", "again"))
    assert set(written) == set(again)
    assert all(torch.equal(again[name], tensor) for name, tensor in written.items())


def test_the_readme_opens_with_demo_and_test() -> None:
    lines = [
        line.partition("#")[0].strip() for block in _blocks(ROOT / "README.md", "sh") for line in block.splitlines()
    ]
    assert lines[:2] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(r"^demo:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=_name)
def test_links_within_the_documentation_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), target
        if anchor:
            assert anchor in _anchors(place), target


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_name_of_the_package_in_the_documentation_exists(page: Path) -> None:
    for name in _spans(page):
        if re.fullmatch(r"vecsurgery(\.\w+)+", name) and name != _ENTRY_POINTS:
            pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_generated_parts_are_current(page: Path) -> None:
    text = page.read_text("utf-8")
    assert _generator().generated(text) == text, "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES[1:], ids=_name)
def test_running_text_is_wrapped(page: Path) -> None:
    text = _FENCE.sub("", page.read_text("utf-8"))
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "!["))]
    assert not long, f"{_name(page)}: wrap at 120 characters: {long[0]}"


def test_the_tree_of_the_readme_names_every_room() -> None:
    (tree,) = (text for text in _blocks(ROOT / "README.md", "") if text.startswith("vecsurgery/"))
    rooms = {path.parent.name for path in (ROOT / "vecsurgery").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) == rooms
    assert all((ROOT / folder).is_dir() for folder in re.findall(r"^(\w+)/", tree, re.MULTILINE))


def test_the_changelog_tells_of_this_version_and_its_commands() -> None:
    latest = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## ")[1]
    assert latest.startswith(vecsurgery.__version__)
    assert all(f"`{name}`" in latest for name in _subcommands())


@pytest.mark.parametrize("path", [*PAGES, *RECIPES, NOTEBOOK, ROOT / "CHANGELOG.md"], ids=_name)
def test_no_page_names_a_place_on_a_machine(path: Path) -> None:
    assert not _MACHINE.search(path.read_text("utf-8"))


# The kernel speaks over local sockets, which jupyter_client warns about; it ends with the test.
@pytest.mark.filterwarnings("default")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=place).execute()
    printed = "".join(output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output)
    assert "written and in memory are the same: True" in printed
