"""Rows of fits, evaluation and gates: rendered for `into`, with answers where they are needed, each used once."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import models
from support.workspace import Workspace

import vecsurgery
from vecsurgery.calibration import tokenizer
from vecsurgery.errors import InputError
from vecsurgery.planning import tokenizers
from vecsurgery.planning.disjoint import require_disjoint
from vecsurgery.surgery import api


def _write_questions(path: Path, count: int, *, seed: int, length: int = 4) -> list[dict[str, str]]:
    asked, answered = (models.sentences(count, seed=seed + offset, length=length) for offset in (0, 1))
    rows = [{"question": question, "answer": answer} for question, answer in zip(asked, answered, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture
def judged(workspace: Workspace) -> Workspace:
    """The workspace with a fit, rows to evaluate on, and gates; no row stands in two files."""
    for seed, name in enumerate(("forget", "forget-test", "retain-test", "kept")):
        _write_questions(workspace.root / f"{name}.jsonl", 6, seed=100 + 10 * seed)
    models.write_texts(workspace.root / "general.jsonl", 5, seed=200)
    workspace.recipe["steps"].append({"fit": "amplify", "data": "forget.jsonl", "rows": "0-3"})
    workspace.recipe["evaluate"] = {"forget": "forget-test.jsonl", "retain": "retain-test.jsonl"}
    workspace.recipe["gates"] = [
        {"measure": "retention", "max": 1.0},
        {"measure": "forgetting", "min": 0.5, "data": "kept.jsonl"},
        {"measure": "perplexity_ratio", "max": 2.0, "data": "general.jsonl", "limit": 3},
    ]
    return workspace


def _opened(work: Workspace) -> Any:
    return api.opened(work.write())


def test_rows_are_rendered_for_into_and_no_answer_token_is_lost(judged: Workspace) -> None:
    inputs = _opened(judged)
    (fit,) = inputs.fit_samples.values()
    assert list(inputs.fit_samples) == ["amplify"]
    assert len(fit.samples) == 4
    rows = [json.loads(line) for line in (judged.root / "forget.jsonl").read_text().splitlines()]
    loaded = inputs.tokenizers[judged.root / "into"]
    for sample, row in zip(fit.samples, rows, strict=False):
        answer = loaded.convert_ids_to_tokens([sample.ids[index] for index in sample.answer])
        assert answer == row["answer"].split()
        assert sample.positions == tuple(range(1, len(sample.ids)))
    assert {name: len(samples.samples) for name, samples in inputs.evaluation.items()} == {"forget": 6, "retain": 6}


def test_a_gate_measures_on_its_own_rows_or_on_those_of_its_role(judged: Workspace) -> None:
    inputs = _opened(judged)
    assert [gate.measure for gate in inputs.recipe.gates] == ["retention", "forgetting", "perplexity_ratio", "smoke"]
    assert set(inputs.gate_samples) == {0, 1, 2}
    assert inputs.gate_samples[0] is inputs.evaluation["retain"]
    assert inputs.gate_samples[1].samples[0].where.startswith(str(judged.root / "kept.jsonl"))
    assert [len(sample.answer) for sample in inputs.gate_samples[2].samples] == [0, 0, 0]


def test_check_counts_all_rows_and_names_what_was_cut(judged: Workspace) -> None:
    judged.recipe["evaluate"]["retain"] = {"data": "retain-test.jsonl", "max_length": 8}
    found = vecsurgery.check(judged.write())
    rows = found["facts"]["rows"]
    assert {name: entry["samples"] for name, entry in rows.items()} == {
        "step 'amplify'": 4, "evaluate.forget": 6, "evaluate.retain": 6,
        "gates[1] (forgetting)": 6, "gates[2] (perplexity_ratio)": 3,
    }  # fmt: skip
    assert any("evaluate.retain: " in warning and "6 of 6 samples were cut" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (("steps", 1, "data"), "step 'amplify'"),
        (("evaluate", "forget"), "evaluate.forget"),
        (("evaluate", "retain"), "evaluate.retain"),
        (("gates", 1, "data"), r"gates\[1\] \(forgetting\)"),
    ],
)
def test_rows_without_an_answer_are_refused_where_answers_are_measured(
    judged: Workspace, place: tuple[Any, ...], name: str
) -> None:
    holder: Any = judged.recipe
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = "general.jsonl"
    with pytest.raises(InputError, match=rf"{name}: \d of \d rows have no answer to measure: .*general.jsonl:1, "):
        vecsurgery.check(judged.write())


def test_an_answer_that_is_cut_away_is_no_answer(judged: Workspace) -> None:
    judged.recipe["steps"][1]["max_length"] = 5
    with pytest.raises(InputError, match=r"step 'amplify': 4 of 4 rows have no answer to measure"):
        vecsurgery.check(judged.write())


def test_other_rows_of_evaluation_need_no_answer(judged: Workspace) -> None:
    judged.recipe["evaluate"]["general"] = "general.jsonl"
    assert len(_opened(judged).evaluation["general"].samples) == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"evaluate": {"forget": "forget.jsonl"}, "gates": []},
            r"step 'amplify' and evaluate.forget share 4 rows: \S+forget.jsonl:1, \S+:2, \S+:3 and 1 more",
        ),
        (
            {"evaluate": {"retain": "kept.jsonl"}, "geometry": {"retain": {"data": "kept.jsonl"}}, "gates": []},
            r"geometry 'retain' and evaluate.retain share 6 rows",
        ),
        (
            {"gates": [{"measure": "forgetting", "min": 0.5, "data": "forget.jsonl"}]},
            r"step 'amplify' and gates\[0\] \(forgetting\) share 4 rows",
        ),
        (
            {"geometry": {"retain": {"data": ["retain.jsonl", "forget.jsonl"]}}},
            r"step 'amplify' and geometry 'retain' share 4 rows",
        ),
    ],
)
def test_a_row_is_used_once_or_the_rows_are_named(judged: Workspace, change: dict[str, Any], says: str) -> None:
    require_disjoint(_opened(judged))
    judged.recipe |= change
    for call in (lambda: vecsurgery.check(judged.write()), lambda: vecsurgery.run(judged.write(), judged.out)):
        with pytest.raises(InputError, match=f"rows are used twice.*\n.*{says}"):
            call()
    assert not judged.out.exists()


def test_the_same_row_in_another_file_and_spelling_is_the_same_row(judged: Workspace) -> None:
    row = json.loads((judged.root / "forget.jsonl").read_text().splitlines()[1])
    spelled = {"prompt": row["question"].replace(" ", "  "), "response": row["answer"] + " "}
    with (judged.root / "kept.jsonl").open("a") as file:
        file.write(json.dumps(spelled) + "\n")
    with pytest.raises(InputError, match=r"share 1 row: \S+/forget.jsonl:2 = \S+/kept.jsonl:7$"):
        vecsurgery.check(judged.write())


def test_rows_that_are_left_out_may_be_used_elsewhere(judged: Workspace) -> None:
    judged.recipe["evaluate"]["forget"] = {"data": "forget.jsonl", "rows": "4-5"}
    vecsurgery.check(judged.write())


def test_geometries_may_share_rows_and_so_may_what_judges(judged: Workspace) -> None:
    judged.recipe["geometry"]["more"] = {"data": "retain.jsonl", "skip_first": 0}
    judged.recipe["steps"].insert(1, {"project": "null_space", "geometry": "more"})
    judged.recipe["gates"][1]["data"] = "forget-test.jsonl"
    vecsurgery.check(judged.write())


def test_rows_of_a_geometry_file_count_too(judged: Workspace) -> None:
    judged.recipe["geometry"]["retain"]["data"] = ["retain.jsonl", "kept.jsonl"]
    gates = judged.recipe.pop("gates")
    vecsurgery.measure(judged.write(), "retain", judged.root / "retain.safetensors")
    judged.recipe |= {"geometry": {"retain": {"file": "retain.safetensors"}}, "gates": gates}
    with pytest.raises(InputError, match=r"share 6 rows: retain.safetensors = \S+/kept.jsonl:1, "):
        vecsurgery.check(judged.write())


def test_a_geometry_file_fits_the_model_that_it_names(judged: Workspace) -> None:
    judged.recipe["geometry"]["retain"]["model"] = "tuned"
    vecsurgery.measure(judged.write(), "retain", judged.root / "retain.safetensors")
    judged.recipe["geometry"]["retain"] = {"file": "retain.safetensors", "model": "tuned"}
    vecsurgery.check(judged.write())
    del judged.recipe["geometry"]["retain"]["model"]
    told = r"was measured on \S*tuned .*, not on \S*into .*name that model as `geometry\.retain\.model`"
    with pytest.raises(InputError, match=told):
        vecsurgery.check(judged.write())


def test_a_reference_model_is_opened_once_and_has_a_role(judged: Workspace) -> None:
    judged.recipe["steps"][1]["reference"] = "base"
    inputs = _opened(judged)
    reference = inputs.fit_models["amplify"]["reference"]
    assert reference.folder == judged.root / "base"
    assert inputs.roles[id(reference)] == "steps.amplify.reference"
    assert judged.root / "base" in inputs.folders
    again = judged.root / "again" / "recipe.yaml"
    again.parent.mkdir()
    again.write_text(inputs.recipe.text)
    assert api.opened(again).recipe.text == inputs.recipe.text
    vecsurgery.check(judged.write())


def test_a_reference_model_that_reads_other_tokens_is_refused(judged: Workspace) -> None:
    judged.recipe["steps"][1]["reference"] = "base"
    path = judged.root / "base" / "tokenizer.json"
    path.write_text(path.read_text().replace('"Answer:":', '"Reply:":'))
    with pytest.raises(InputError, match=r"step 'amplify': reference: id 8 .* 'Answer:' in `into` and 'Reply:'"):
        vecsurgery.check(judged.write())


def test_every_tokenizer_is_loaded_once(judged: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def counted(folder: Path) -> Any:
        loaded.append(folder.name)
        return tokenizer.load_tokenizer(folder)

    monkeypatch.setattr(tokenizers, "load_tokenizer", counted)
    judged.recipe["steps"][1]["reference"] = "base"
    vecsurgery.check(judged.write())
    assert sorted(loaded) == ["base", "into", "tuned"]


def test_a_fit_of_models_in_memory_is_refused_clearly(judged: Workspace) -> None:
    with pytest.raises(InputError, match=r"step 'amplify': a fit measures losses of stored checkpoints"):
        vecsurgery.edit(
            into=judged.root / "into",
            deltas={"change": judged.root / "tuned"},
            steps=[{"fit": "amplify", "data": str(judged.root / "forget.jsonl")}],
        )


def test_the_plan_refuses_rows_that_serve_twice_too(judged: Workspace) -> None:
    judged.recipe["evaluate"]["forget"] = "forget.jsonl"
    with pytest.raises(InputError, match="rows are used twice"):
        vecsurgery.plan(judged.write())
