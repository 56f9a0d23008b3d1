"""The command line passes what was asked to the documented functions, and turns errors into messages and exit codes."""

import importlib
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.report.example import record
from vecsurgery import report
from vecsurgery.cli import main
from vecsurgery.errors import InputError, RunError
from vecsurgery.progress import silent

COMMANDS = (
    "run",
    "check",
    "plan",
    "measure",
    "evaluate",
    "curve",
    "report",
    "compare",
    "inspect",
    "extract",
    "apply",
    "undo",
    "reproduce",
    "new",
    "schema",
    "demo",
)


class Calls:
    """Stands in for a documented function: remembers how it was called and answers what it is told to."""

    def __init__(self, answer=None, error=None):
        self.answer, self.error, self.made = answer, error, []

    def __call__(self, *positional, **named):
        self.made.append((positional, named))
        if self.error is not None:
            raise self.error
        return self.answer


@pytest.fixture
def api(monkeypatch):
    """A stand-in for `vecsurgery.surgery.api`, so that no command does real work."""
    module = types.ModuleType("vecsurgery.surgery.api")
    monkeypatch.setitem(sys.modules, "vecsurgery.surgery.api", module)
    monkeypatch.setattr(importlib.import_module("vecsurgery.surgery"), "api", module, raising=False)
    return module


def invoke(*arguments):
    return CliRunner().invoke(main, list(arguments))


def fresh_process(code):
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_no_heavy_library(arguments):
    result = fresh_process(
        "import sys\n"
        "from vecsurgery.cli import main\n"
        f"main({arguments!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'mergekit', 'matplotlib', 'numpy', 'rich', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


def test_help_lists_every_command_and_each_has_an_example():
    assert all(name in invoke("--help").output for name in COMMANDS)
    for name in COMMANDS:
        assert f"vecsurgery {name}" in invoke(name, "--help").output


def test_run_passes_its_options_and_tells_the_verdict(api):
    api.run = Calls(record())
    result = invoke("run", "a.yaml", "out", "--set", "retain_energy.keep=0.1", "--set", "output.dtype=float32")
    assert result.exit_code == 0
    assert result.stdout.startswith("Removed 97 %")
    ((positional, named),) = api.run.made
    assert positional == (Path("a.yaml"), Path("out"))
    assert named["overrides"] == ("retain_energy.keep=0.1", "output.dtype=float32")
    assert named["compute"] == "float32"


def test_run_prints_its_weightiest_warnings_and_says_where_the_others_are(api):
    api.run = Calls({**record(), "warnings": [f"the {place}. is wrong" for place in range(9)]})
    told = [line for line in invoke("run", "a.yaml", "out").stdout.splitlines() if line.startswith("warning: ")]
    found = report.warnings(api.run.answer)
    assert told == [f"warning: {each}" for each in found[:5]]
    assert f"{len(found) - 5} more: vecsurgery report out" in invoke("run", "a.yaml", "out").stdout


def test_run_with_json_prints_the_record_and_nothing_else(api):
    api.run = Calls(record())
    result = invoke("run", "a.yaml", "out", "--json")
    assert json.loads(result.stdout) == record()
    assert result.stderr == ""
    assert api.run.made[0][1]["progress"] is silent


@pytest.mark.parametrize(("error", "code"), [(InputError("bad recipe"), 2), (RunError("disk full"), 1)])
def test_an_error_is_one_message_on_stderr_with_its_exit_code(api, error, code):
    api.run = Calls(error=error)
    result = invoke("run", "a.yaml", "out")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"error: {error}\n")


def test_an_error_with_json_is_json_on_stderr_with_its_problems(api):
    error = InputError("2 problems")
    error.problems = ("a.yaml:1: into: missing", "a.yaml:2: step: unknown")
    api.run = Calls(error=error)
    result = invoke("run", "a.yaml", "out", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stderr)["error"] == {
        "type": "InputError",
        "message": "2 problems",
        "exit_code": 2,
        "problems": list(error.problems),
    }


def test_wrong_usage_exits_2_as_text_and_as_json():
    assert invoke("run").exit_code == 2
    assert invoke("fly").exit_code == 2
    result = invoke("run", "--json", "--wings")
    assert result.exit_code == 2
    assert "--wings" in json.loads(result.stderr)["error"]["message"]


def test_a_fault_of_the_program_is_not_dressed_up(api):
    api.plan = Calls(error=ZeroDivisionError("ours"))
    result = invoke("plan", "a.yaml")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interrupted_run_says_that_it_can_be_resumed(api):
    api.run = Calls(error=KeyboardInterrupt())
    result = invoke("run", "a.yaml", "out")
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr


def test_an_interrupted_check_does_not_claim_to_be_resumable(api):
    api.check = Calls(error=KeyboardInterrupt())
    result = invoke("check", "a.yaml")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_check_prints_facts_and_warnings_and_succeeds(api):
    facts = {"architecture": "llama", "blocks": 4, "tensors": 30, "sites": 16}
    api.check = Calls({"facts": facts, "warnings": ["rope_theta differs"]})
    result = invoke("check", "a.yaml", "--weights")
    assert result.exit_code == 0
    assert result.stdout.startswith("into  llama, 4 blocks, 30 tensors, 16 sites")
    assert "Every number of every checkpoint was read" in re.sub(r"\s+", " ", result.stdout)
    assert "\n- rope_theta differs\n" in result.stdout
    assert result.stdout.endswith("1 warning to judge before you run it.\n")
    assert api.check.made[0][1]["weights"] is True


def test_check_with_json_prints_what_was_found(api):
    found = {"facts": {}, "warnings": []}
    api.check = Calls(found)
    assert json.loads(invoke("check", "a.yaml", "--json").stdout) == found


def test_plan_prints_text_or_json(api):
    plan = types.SimpleNamespace(text=lambda: "12 tensors\n", to_dict=lambda: {"tensors": 12})
    api.plan = Calls(plan)
    assert invoke("plan", "a.yaml").stdout == "12 tensors\n"
    assert json.loads(invoke("plan", "a.yaml", "--json").stdout) == {"tensors": 12}


def test_measure_passes_rows_and_an_unnamed_geometry(api):
    api.measure = Calls()
    assert invoke("measure", "a.yaml", "--rows", "0-499", "--moments", "--out", "g.safetensors").exit_code == 0
    ((positional, named),) = api.measure.made
    assert positional == (Path("a.yaml"), None, Path("g.safetensors"))
    assert (named["rows"], named["moments"]) == ((0, 499), True)


@pytest.mark.parametrize("rows", ["5", "9-3", "a-b", "-1-4"])
def test_measure_refuses_rows_that_are_no_range(api, rows):
    api.measure = Calls()
    assert invoke("measure", "a.yaml", f"--rows={rows}", "--out", "g").exit_code == 2
    assert not api.measure.made


def test_measure_union_adds_the_parts(api):
    api.union = Calls()
    result = invoke("measure", "--union", "1.st", "2.st", "3.st", "--out", "g.st", "--json")
    assert json.loads(result.stdout) == {"file": "g.st"}
    assert api.union.made == [(((Path("1.st"), Path("2.st"), Path("3.st")), Path("g.st")), {})]


@pytest.mark.parametrize("arguments", [["--union", "1", "--moments"], ["a.yaml", "one", "two"], []])
def test_measure_refuses_arguments_that_contradict(api, arguments):
    api.measure = api.union = Calls()
    assert invoke("measure", *arguments, "--out", "g").exit_code == 2
    assert not api.union.made


def test_report_shows_a_finished_run_as_text_json_and_page(tmp_path):
    (tmp_path / "surgery.json").write_text(report.dumps(record()), encoding="utf-8")
    assert invoke("report", str(tmp_path)).stdout == report.text(record())
    assert json.loads(invoke("report", str(tmp_path), "--json").stdout) == record()
    page = tmp_path / "page.html"
    assert invoke("report", str(tmp_path), "--html", str(page)).exit_code == 0
    assert page.read_text(encoding="utf-8") == report.html(record())


def test_report_of_a_folder_without_a_record_exits_2(tmp_path):
    result = invoke("report", str(tmp_path))
    assert result.exit_code == 2
    assert "surgery.json" in result.stderr


def test_report_into_a_folder_that_does_not_exist_exits_2(tmp_path):
    (tmp_path / "surgery.json").write_text(report.dumps(record()), encoding="utf-8")
    assert invoke("report", str(tmp_path), "--html", str(tmp_path / "no" / "page.html")).exit_code == 2


@pytest.mark.parametrize(("identical", "code"), [(True, 0), (False, 1)])
def test_reproduce_fails_where_a_file_differs(api, identical, code):
    state = "same" if identical else "differs"
    api.reproduce = Calls({"identical": identical, "files": {"model.safetensors": state}, "inputs": {}})
    result = invoke("reproduce", "surgery.json", "out")
    assert result.exit_code == code
    assert f"{state:9}  model.safetensors" in result.stdout


def test_new_lists_and_copies_the_shipped_recipes_and_refuses_to_overwrite(tmp_path):
    listed = invoke("new").stdout
    assert "retain" in listed
    assert "rain" in listed
    path = tmp_path / "mine.yaml"
    assert invoke("new", "retain", str(path)).exit_code == 0
    before = path.read_bytes()
    assert b"retain_energy" in before
    assert invoke("new", "rain", str(path)).exit_code == 2
    assert path.read_bytes() == before


def test_new_names_what_it_copies_beside_the_recipe(tmp_path):
    result = invoke("new", "rain-qwen-7b", str(tmp_path / "mine.yaml"))
    assert result.stdout.startswith(f"wrote {tmp_path / 'mine.yaml'} and rain.yaml;")
    assert (tmp_path / "rain.yaml").is_file()


def test_new_with_an_unknown_name_exits_2():
    result = invoke("new", "retian")
    assert result.exit_code == 2
    assert "retain" in result.stderr


def test_schema_is_json_and_can_be_written_to_a_file(tmp_path):
    schema = json.loads(invoke("schema").stdout)
    assert "steps" in schema["properties"]
    file = tmp_path / "schema.json"
    assert invoke("schema", "--out", str(file)).exit_code == 0
    assert json.loads(file.read_text(encoding="utf-8")) == schema
    assert invoke("schema", "--out", str(tmp_path / "no" / "schema.json")).exit_code == 2


@pytest.mark.parametrize("story", ["unlearning", "reasoning"])
def test_demo_prints_what_the_demo_shows(monkeypatch, tmp_path, story):
    show = Calls({"text": "retain restored\n"})
    monkeypatch.setattr(importlib.import_module(f"vecsurgery.demo.{story}.showing"), "show", show)
    asked = [] if story == "unlearning" else [story]
    assert invoke("demo", *asked, "--seeds", "2", "--out", str(tmp_path)).stdout == "retain restored\n"
    assert {key: show.made[0][1][key] for key in ("seeds", "out")} == {"seeds": 2, "out": tmp_path}
