"""Evaluation and gates of a run: what passes, what fails, and what is left behind."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from support import models
from support.workspace import Workspace

import vecsurgery
from tests.surgery.test_fits import unlearned as unlearned
from vecsurgery import forward
from vecsurgery.checkpoint import Stored, file_sha256
from vecsurgery.cli import main
from vecsurgery.errors import GateError, NotFiniteError
from vecsurgery.evaluation import Figure, Measured, answer_nll, measure_answers, scoring
from vecsurgery.forward import Single, losses
from vecsurgery.planning import costs
from vecsurgery.planning.judged import CONTINUATIONS, CONTINUED, SMOKE_SAMPLES, smoke_samples
from vecsurgery.recipe.types import GateSpec
from vecsurgery.report.record import read
from vecsurgery.surgery import judging
from vecsurgery.surgery.api import opened


@pytest.fixture
def judged(unlearned: Workspace) -> Workspace:
    """A recipe with a fit, rows to judge by and no gates."""
    for name, first in (("forget-test", 60), ("retain-test", 90)):
        models.write_answers(unlearned.root / "into", unlearned.root / f"{name}.jsonl", first=first)
    (unlearned.root / "general.txt").write_text("\n\n".join(models.sentences(6, seed=5, length=9)))
    unlearned.recipe["evaluate"] = {
        "forget": "forget-test.jsonl",
        "retain": "retain-test.jsonl",
        "general": "general.txt",
    }
    return unlearned


def _run(workspace: Workspace, gates: list[dict[str, Any]]) -> Any:
    workspace.recipe["gates"] = gates
    return vecsurgery.run(workspace.write(), workspace.out)


def _steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """No continuation loops: random models do so by chance."""
    monkeypatch.setattr(judging, "looping", lambda ids: False)


def test_figures_of_evaluate_are_those_of_the_folders(judged: Workspace) -> None:
    record = _run(judged, [])
    samples = opened(judged.root / "recipe.yaml").evaluation
    for model, folder in (("into", "into"), ("raw", "tuned"), ("edited", "out")):
        for name in ("forget", "retain", "general"):
            expected = measure_answers(Stored(judged.root / folder), samples[name], role=name).values()
            assert record["evaluation"][name]["figures"][model] == pytest.approx(expected, rel=1e-5)
    assert record["gates"] == []


def test_gates_hold_their_measures_against_bounds(judged: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    _steady(monkeypatch)
    gates = [
        {"measure": "retention", "max": 100},
        {"measure": "forgetting", "min": 0.01},
        {"measure": "perplexity_ratio", "max": 1e6, "data": "general.txt"},
    ]
    del judged.recipe["evaluate"]["general"]
    found = {gate["measure"]: gate for gate in _run(judged, gates)["gates"]}
    assert list(found) == ["retention", "forgetting", "perplexity_ratio", "smoke"]
    assert all(gate["passed"] for gate in found.values())
    samples = opened(judged.root / "recipe.yaml").evaluation
    models_of = {name: Stored(judged.root / name) for name in ("into", "tuned", "out")}
    forget = {name: answer_nll(model, samples["forget"]).capped for name, model in models_of.items()}
    retain = {name: answer_nll(model, samples["retain"]).mean for name, model in models_of.items()}
    share = (forget["out"] - forget["into"]) / (forget["tuned"] - forget["into"])
    assert found["retention"]["value"] == pytest.approx(retain["out"] - retain["into"], rel=1e-4)
    assert found["forgetting"]["value"] == pytest.approx(share, rel=1e-4)
    assert found["smoke"]["value"] is None


def test_a_failed_gate_keeps_the_result_under_another_name_and_says_by_how_much(judged: Workspace) -> None:
    with pytest.raises(
        GateError, match=r"does not pass 1 of 2 gates.*\n.*retention 0\.\d+ .*misses max 0\.0001 by 0\."
    ):
        _run(judged, [{"measure": "retention", "max": 1e-4}, {"measure": "smoke"}])
    failed = judged.root / "out.failed"
    assert not judged.out.exists()
    assert not (judged.root / "out.partial").exists()
    assert (failed / "report.html").is_file()
    gate = read(failed)["gates"][0]
    assert gate["passed"] is False
    assert gate["value"] > 1e-4
    assert Stored(failed).layout.tensors.keys() == Stored(judged.root / "into").layout.tensors.keys()


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.5, "misses min 0.75 by 0.25"), (1.0, "within min 0.75 and max 1.25"), (1.5, "misses max 1.25 by 0.25")],
)
def test_a_gate_with_two_bounds_names_the_one_that_is_missed(value: float, said: str) -> None:
    figures = {name: {"nll": Figure(nll)} for name, nll in (("into", 0.0), ("edited", value))}
    measured = {name: Measured(found) for name, found in figures.items()}
    gate = judging._gate(GateSpec("retention", min=0.75, max=1.25), measured)
    assert gate["reason"].endswith(said)
    assert gate["passed"] == (value == 1.0)


def test_what_failed_before_is_never_overwritten(judged: Workspace) -> None:
    for _ in range(2):
        with pytest.raises(GateError):
            _run(judged, [{"measure": "retention", "max": 1e-4}])
    assert {path.name for path in judged.root.glob("out*")} == {"out.failed", "out.failed-2"}


def test_the_command_exits_1_and_names_the_figure(judged: Workspace) -> None:
    judged.recipe["gates"] = [{"measure": "forgetting", "min": 5}]
    shown = CliRunner().invoke(main, ["run", str(judged.write()), str(judged.out)])
    assert shown.exit_code == 1
    assert "misses min 5 by" in shown.stderr
    judged.recipe["gates"] = [{"measure": "forgetting", "min": 6}]
    as_json = CliRunner().invoke(main, ["run", str(judged.write()), str(judged.out), "--json"])
    assert as_json.exit_code == 1
    assert "out.failed-2" in json.loads(as_json.stderr)["error"]["message"]


def test_a_destructive_recipe_is_stopped_by_the_default_gate(workspace: Workspace) -> None:
    del workspace.recipe["gates"]
    models.perturbed(workspace.root / "into", workspace.root / "tuned", seed=2, size=0.3)
    workspace.recipe["steps"] = [{"scale": 60.0}]
    with pytest.raises(
        GateError,
        match=r"(?s)smoke: perplexity .* times that of `into`, at most 10 is allowed.*`gates: \[\]` turns it off",
    ):
        vecsurgery.run(workspace.write(), workspace.out)
    assert not workspace.out.exists()
    assert (workspace.root / "out.failed").is_dir()


def test_logits_that_are_not_finite_fail_the_default_gate(workspace: Workspace) -> None:
    del workspace.recipe["gates"]
    workspace.recipe["steps"] = [{"scale": 1e37, "where": "*norm.weight"}]
    with pytest.raises(GateError, match=r"logits are not finite on \d+ of \d+ texts"):
        vecsurgery.run(workspace.write(), workspace.out)
    assert not workspace.out.exists()


def test_what_is_not_finite_fails_the_gate_where_models_are_measured_one_by_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    del workspace.recipe["gates"]
    workspace.recipe["steps"] = [{"scale": 1e37, "where": "*norm.weight"}]
    monkeypatch.setattr(losses, "_STATES", 1)
    with pytest.raises(GateError, match=r"logits are not finite on \d+ of \d+ texts"):
        vecsurgery.run(workspace.write(), workspace.out)
    assert (workspace.root / "out.failed").is_dir()


def test_continuations_that_are_not_finite_fail_the_default_gate(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    del workspace.recipe["gates"]

    def broken(*_: Any, **__: Any) -> Any:
        raise NotFiniteError("continuing prompts: the logits are not finite (NaN or infinity).")

    monkeypatch.setattr(judging, "greedy", broken)
    with pytest.raises(GateError, match="logits of a greedy continuation are not finite"):
        vecsurgery.run(workspace.write(), workspace.out)


def test_text_that_does_not_fit_into_one_pass_has_the_same_figures(
    judged: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _run(judged, [])["evaluation"]
    monkeypatch.setattr(scoring, "_HIDDEN_BYTES", 3 * 4 * 32 * 40)
    again = vecsurgery.run(judged.write(), judged.root / "again")["evaluation"]
    for name, record in expected.items():
        for model, figures in record["figures"].items():
            assert again[name]["figures"][model] == pytest.approx(figures, rel=1e-6)


def test_smoke_passes_by_a_geometry_of_another_model(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    _steady(monkeypatch)
    del workspace.recipe["gates"]
    other = models.checkpoint(workspace.root / "other", seed=9, vocab_size=400, tokenizer=False)
    models.write_tokenizer(other, size=400)
    texts = [" ".join(f"w{200 + 5 * row + word}" for word in range(12)) for row in range(24)]
    (workspace.root / "other.txt").write_text("\n\n".join(texts))
    workspace.recipe["geometry"]["retain"] = {"data": "other.txt", "model": "other"}
    record = vecsurgery.run(workspace.write(), workspace.out)
    assert record["gates"][0]["passed"]


def test_the_model_card_does_not_tell_where_files_lie(judged: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    models.perturbed(judged.root / "into", judged.root / "retrained", seed=7, size=0.08)
    (judged.root / "plain.txt").write_text("\n\n".join(models.sentences(6, seed=55, length=9)))
    (judged.root / "own.jinja").write_text("{% for message in messages %}{{ message['content'] }} {% endfor %}")
    judged.recipe["steps"][1] = {"fit": "amplify", "data": "forget.jsonl", "reference": "retrained"}
    judged.recipe["evaluate"]["general"] = {"data": "general.txt", "template": "own.jinja"}
    judged.recipe["gates"] = [{"measure": "perplexity_ratio", "max": 1e9, "data": "plain.txt"}, {"measure": "smoke"}]
    _steady(monkeypatch)
    vecsurgery.run(judged.write(), judged.out)
    card = (judged.out / "README.md").read_text()
    assert str(judged.root) not in card
    for name in ("forget.jsonl", "retain-test.jsonl", "plain.txt", "own.jinja", "retrained"):
        assert name in card


def test_new_loops_fail_the_default_gate_and_old_ones_do_not(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    del workspace.recipe["gates"]
    into = opened(workspace.write()).into.fingerprint
    asked: list[tuple[bool, int, int]] = []

    def continued(model: Single, prompts: Any, *, tokens: int, **_: Any) -> Any:
        edited = model.weights.fingerprint != into
        asked.append((edited, len(prompts), tokens))
        return [[[7] * CONTINUED if edited and not number else [1, 2, 3] for number in range(len(prompts))]]

    monkeypatch.setattr(judging, "greedy", continued)
    with pytest.raises(
        GateError, match=r"1 of 4 greedy continuations .* where those of `into` do not; so they end: “….{60}”\n"
    ) as caught:
        vecsurgery.run(workspace.write(), workspace.out)
    failed = read(workspace.root / "out.failed")
    assert failed["gates"][0]["reason"] in str(caught.value)
    assert asked == [(True, CONTINUATIONS, CONTINUED), (False, 1, CONTINUED)]
    monkeypatch.setattr(judging, "greedy", lambda model, prompts, **_: [[[7] * CONTINUED] * len(prompts)])
    record = vecsurgery.run(workspace.write(), workspace.out)
    assert [gate["passed"] for gate in record["gates"]] == [True]


@pytest.mark.parametrize(
    ("decoded", "shown"),
    [
        ("a\n\nb  c", "“a b c”"),
        ("one two " * 40, "“…" + ("one two " * 8)[-61:-1] + "”"),
        ("\x1b[31m", "“\N{REPLACEMENT CHARACTER}[31m”"),
        ("\n\n", "… " + " ".join(["9"] * 16) + " (token ids)"),
        (None, "… " + " ".join(["9"] * 16) + " (token ids)"),
    ],
)
def test_a_loop_is_shown_by_its_end_on_one_printable_line(tmp_path: Path, decoded: str | None, shown: str) -> None:
    if decoded is not None:
        models.write_tokenizer(tmp_path)
    tokenizer = SimpleNamespace(decode=lambda ids: decoded)
    inputs: Any = SimpleNamespace(into=SimpleNamespace(folder=tmp_path), tokenizers={tmp_path: tokenizer})
    assert judging._end(inputs, [9] * 64) == shown


def test_smoke_reads_at_most_32_calibration_samples(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    models.write_texts(workspace.root / "retain.jsonl", 60)
    del workspace.recipe["gates"]
    _steady(monkeypatch)
    seen: list[int] = []
    scores = forward.token_scores

    def counted(variants: Any, samples: Any, **options: Any) -> Any:
        seen.append(len(samples))
        return scores(variants, samples, **options)

    monkeypatch.setattr(forward, "token_scores", counted)
    vecsurgery.run(workspace.write(), workspace.out)
    assert seen == [SMOKE_SAMPLES]


@pytest.mark.parametrize("tokenizer", [True, False])
def test_a_recipe_without_text_is_looked_at_with_built_in_text(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tokenizer: bool
) -> None:
    _steady(monkeypatch)
    workspace.recipe = {"into": "into", "deltas": {"change": {"tuned": "tuned"}}, "steps": [{"scale": 0.5}]}
    if not tokenizer:
        for name in ("into", "tuned"):
            (workspace.root / name / "tokenizer.json").unlink()
    record = vecsurgery.run(workspace.write(), workspace.out)
    assert record["gates"][0]["passed"]


def test_the_plan_counts_what_judging_takes(judged: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vecsurgery.plan(judged.write(), overrides=["evaluate={}"]).judging is None
    judged.recipe["gates"] = [{"measure": "smoke"}]
    plan = vecsurgery.plan(judged.write())
    planned = plan.judging
    assert planned is not None
    inputs = opened(judged.root / "recipe.yaml")
    texts = [*inputs.evaluation.values(), smoke_samples(inputs)]
    assert planned.tokens == sum(len(sample.ids) for text in texts for sample in text.samples)
    assert (planned.models, planned.passes) == (3, 1)
    assert planned.reads == sum(item.reads for item in plan.tensors.values()) + 2 * plan.written
    assert "evaluate and gates: 3 models" in plan.text()
    assert plan.to_dict()["judging"]["reads"] == planned.reads
    monkeypatch.setattr(costs, "HELD_BYTES", 0)
    monkeypatch.setattr(losses, "_STATES", 1)
    split = vecsurgery.plan(judged.write()).judging
    assert split is not None
    assert split.passes == 3
    assert split.reads > planned.reads + 60 * plan.written


def test_rows_that_serve_twice_are_scored_once(judged: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    scores = forward.token_scores

    def counted(variants: Any, samples: Any, **options: Any) -> Any:
        seen.append(len(samples))
        return scores(variants, samples, **options)

    _steady(monkeypatch)
    monkeypatch.setattr(forward, "token_scores", counted)
    record = _run(judged, [{"measure": "retention", "max": 100}, {"measure": "forgetting", "min": -100}])
    smoke = len(opened(judged.root / "recipe.yaml").samples["retain"].samples[:SMOKE_SAMPLES])
    rows = [record["evaluation"][name]["rows"] for name in ("forget", "retain", "general")]
    assert seen == [sum(rows) + smoke]


def test_an_undefined_share_of_forgetting_is_a_failed_gate(judged: Workspace) -> None:
    judged.recipe["steps"] = [{"scale": 0.5}]
    judged.recipe["geometry"] = {}
    judged.recipe |= {"into": "tuned", "deltas": {"change": {"tuned": "into"}}}
    with pytest.raises(GateError, match="which is no number to hold against a bound"):
        _run(judged, [{"measure": "forgetting", "min": 0.5}])
    assert math.isfinite(read(judged.root / "out.failed")["evaluation"]["forget"]["figures"]["edited"]["nll"])


def test_rows_with_wrong_answers_give_truth_ratios(judged: Workspace) -> None:
    rows = [json.loads(line) for line in (judged.root / "forget-test.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"perturbed_answer": [f"w{70 + number} w71", "w72 w73"], "paraphrased_answer": f"w{80 + number}"}
    path = judged.root / "forget-test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = _run(judged, [])
    names = [str(judged.root / name) for name in ("into", "tuned", "out")]
    expected = vecsurgery.evaluate(dict(zip(("into", "raw", "edited"), names, strict=True)), {"forget": path})
    for model in ("into", "raw", "edited"):
        found = record["evaluation"]["forget"]["figures"][model]["truth_ratio"]
        assert found == pytest.approx(expected.value(model, "forget", "truth_ratio"), rel=1e-4)


def test_rows_of_a_gate_are_recorded_with_their_hash(judged: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    _steady(monkeypatch)
    del judged.recipe["evaluate"]["general"]
    data = judged.root / "general.txt"
    ratio, smoke = _run(judged, [{"measure": "perplexity_ratio", "max": 1e6, "data": "general.txt", "seed": 7}])[
        "gates"
    ]
    assert ratio["data"] == {str(data): file_sha256(data)}
    assert "data" not in smoke
    assert read(judged.out)["seed"] == 7
