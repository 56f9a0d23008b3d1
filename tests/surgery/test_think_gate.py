"""The gate `think_format`: the result writes by its own sampling settings, before it gets its name."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import models
from support.workspace import Workspace

import vecsurgery
from vecsurgery.calibration import asking_rows, load_tokenizer, prompts
from vecsurgery.errors import GateError, InputError
from vecsurgery.evaluation import Writer, generation, measure_thinking
from vecsurgery.recipe import DataSpec
from vecsurgery.surgery import judging
from vecsurgery.surgery.api import opened

_TAGS = ("<think>", "</think>")


@pytest.fixture
def thinking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A reasoning model, a change that leaves its text alone, and a gate on what the result writes."""
    monkeypatch.setattr(judging, "looping", lambda ids: False)
    root = tmp_path / "work"
    into = models.scripted(root / "into")
    models.perturbed(into, root / "tuned", seed=2, size=0.01)
    (root / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"w{50 + n}"}) + "\n" for n in range(4)))
    gate = {"measure": "think_format", "min": 0.99, "data": "prompts.jsonl", "samples": 3, "longest": 12}
    return Workspace(root, {"into": "into", "deltas": {"change": {"tuned": "tuned"}}, "gates": [gate]})


def _broken(work: Workspace) -> None:
    """The change now breaks the thought: its end token is never reached."""
    models.scripted(work.root / "tuned", ("w20", "w21", "w22", "w20"))


def _gate(record: Any) -> dict[str, Any]:
    (found,) = (gate for gate in record["gates"] if gate["measure"] == "think_format")
    return dict(found)


def test_a_result_that_thinks_passes_with_the_figure_of_its_folder(thinking: Workspace) -> None:
    gate = _gate(vecsurgery.run(thinking.write(), thinking.out))
    assert (gate["passed"], gate["value"]) == (True, 1.0)
    assert "of 12 texts, 95 % interval 0.758 to 1.000" in gate["reason"]
    assert list(gate["data"]) == [str(thinking.root / "prompts.jsonl")]
    spec, tokenizer = DataSpec((thinking.root / "prompts.jsonl",)), load_tokenizer(thinking.out)
    writer = Writer(thinking.out, tokenizer, longest=12)
    asked = prompts(asking_rows(spec), spec, tokenizer, _TAGS)
    assert writer.draws
    assert measure_thinking(writer, asked, count=3)["think_format"] == gate["value"]


def test_a_result_that_no_longer_thinks_is_kept_under_another_name(thinking: Workspace) -> None:
    _broken(thinking)
    with pytest.raises(GateError, match=r"think_format 0 .*misses min 0\.99 by 0\.99"):
        vecsurgery.run(thinking.write(), thinking.out)
    assert not thinking.out.exists()
    assert (thinking.root / "out.failed" / "report.html").is_file()


def test_logits_that_are_not_finite_fail_the_gate(thinking: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    thinking.recipe["steps"] = [{"scale": 1e37, "where": "*norm.weight"}]
    models.perturbed(thinking.root / "into", thinking.root / "tuned", seed=2, size=0.3)
    with pytest.raises(GateError) as raised:
        vecsurgery.run(thinking.write(), thinking.out)
    assert "think_format: the logits of a generation are not finite" in str(raised.value)


def test_prompts_count_as_rows_and_are_planned_for(thinking: Workspace) -> None:
    facts = vecsurgery.check(thinking.write())["facts"]["rows"]
    assert facts["gates[0] (think_format)"]["samples"] == 4
    plan = vecsurgery.plan(thinking.write())
    assert plan.judging is not None
    assert plan.judging.generated == 4 * 3 * 12
    assert "think_format writes at most 144 tokens" in plan.text()
    whole = sum(
        4 * tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) > 1 else 1) for tensor in plan.tensors.values()
    )
    assert plan.judging.memory > whole
    before = plan.hash
    with (thinking.root / "prompts.jsonl").open("a") as file:
        file.write('{"prompt": "w90"}\n')
    assert vecsurgery.plan(thinking.write()).hash != before


def test_rows_of_a_geometry_do_not_judge(thinking: Workspace) -> None:
    rows = [{"prompt": f"w{60 + n}", "reasoning": "w20 w21", "response": "w42"} for n in range(3)]
    (thinking.root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    thinking.recipe["geometry"] = {"thoughts": {"data": "prompts.jsonl", "tokens": {"between": list(_TAGS)}}}
    thinking.recipe["steps"] = [{"project": "null_space", "geometry": "thoughts"}]
    with pytest.raises(InputError, match=r"geometry 'thoughts' and gates\[0\] \(think_format\) share 3 rows"):
        vecsurgery.check(thinking.write())


def test_what_cannot_be_asked_is_told_by_check(thinking: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "loaded", lambda *_: pytest.fail("a model was loaded"))
    (thinking.root / "prompts.jsonl").write_text(json.dumps({"prompt": " ".join(["w50"] * 70)}))
    with pytest.raises(InputError, match=r"gates\[0\] \(think_format\): .*prompts.jsonl:1: a prompt of"):
        vecsurgery.check(thinking.write())
    (thinking.root / "prompts.jsonl").write_text('{"text": "w50"}')
    with pytest.raises(InputError, match=r"gates\[0\] \(think_format\): .*expected a row that asks"):
        vecsurgery.check(thinking.write())


def test_the_resolved_recipe_says_how_much_is_written(thinking: Workspace) -> None:
    thinking.recipe["gates"][0]["tags"] = ["<a>", "</a>"]
    first = opened(thinking.write()).recipe
    again = opened(thinking.write(first.text)).recipe
    assert again.gates[0].writing == first.gates[0].writing
    assert first.gates[0].writing is not None
    assert first.gates[0].writing.tags == ("<a>", "</a>")
    assert (again.text, first.gates[0].writing.longest) == (first.text, 12)
