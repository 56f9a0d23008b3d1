"""`evaluate --tasks`: tasks of lm-eval from a local folder, without network; refused clearly where it is missing."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import models

from vecsurgery.cli import main
from vecsurgery.evaluation.harness import _figures

_LETTERS = """\
task: last_word
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["w0"], do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reasoning model whose answer is w42, and a task that half of the time wants this answer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    models.scripted(tmp_path / "reasoning")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"w{50 + number}", "answer": "w42" if number % 2 else "w43"} for number in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "last_word.yaml").write_text(_LETTERS.format(data=folder / "rows.jsonl"))
    return tmp_path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


# The library and what it imports warn of much that is no concern of ours.
@pytest.mark.filterwarnings("ignore")
def test_a_local_task_is_measured_behind_the_thought(here: Path) -> None:
    pytest.importorskip("lm_eval")
    arguments = ("--tasks", "last_word", "--task-folder", "tasks", "--think-longest", 20, "--json")
    result = invoke("reasoning", *arguments)
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    found = content["models"]["reasoning"]["data"]["last_word"]
    # Half right: only if the thought, which ends with the closing tag, is no part of the answer.
    assert found["figures"]["exact_match"]["agg_value"] == 0.5
    assert found["rows"] == 4
    assert content["settings"]["tasks"]["names"] == ["last_word"]
    limited = json.loads(invoke("reasoning", *arguments, "--task-limit", 1).stdout)
    assert limited["models"]["reasoning"]["data"]["last_word"]["figures"]["exact_match"]["agg_value"] == 0.0
    table = invoke("reasoning", *arguments[:-1])
    assert any(line.split() == ["exact_match", "0.5"] for line in table.stdout.splitlines())


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_task_is_refused_with_the_one_that_was_meant(here: Path) -> None:
    pytest.importorskip("lm_eval")
    result = invoke("reasoning", "--tasks", "last_ward", "--task-folder", "tasks")
    assert result.exit_code == 2
    assert "there is no task 'last_ward'; did you mean 'last_word'?" in result.stderr


def test_without_lm_eval_tasks_are_refused_with_the_extra_that_brings_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    result = invoke("reasoning", "--tasks", "last_word", "--task-folder", "tasks")
    assert result.exit_code == 2
    assert "needs the package lm_eval, which is not installed" in result.stderr
    assert "extra `lm-eval`" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tasks", "a,,b"), "expected different names"),
        (("--tasks", "a,a"), "expected different names"),
        (("--tasks", "a", "--task-folder", "nowhere"), "there is no folder nowhere"),
    ],
)
def test_names_and_folders_are_looked_at_first(arguments: tuple[str, ...], said: str, here: Path) -> None:
    result = invoke("reasoning", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_figures_of_a_task_are_its_metrics_without_their_errors() -> None:
    metrics = {
        "alias": "task",
        "exact_match,none": 0.5,
        "exact_match_stderr,none": 0.1,
        "exact_match,strict-match": 0.25,
        "sample_len": 4,
    }
    values = {name: figure.value for name, figure in _figures(metrics).items()}
    assert values == {"exact_match": 0.5, "exact_match,strict-match": 0.25}
