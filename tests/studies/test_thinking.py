"""The command `evaluate --think` on tiny reasoning models: what they write, side by side, and how far they moved."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import models

import vecsurgery
from vecsurgery.calibration import asking_rows, load_tokenizer, thoughts
from vecsurgery.checkpoint import Stored
from vecsurgery.cli import main
from vecsurgery.errors import InputError
from vecsurgery.evaluation import generation, think_divergences, wilson
from vecsurgery.recipe import DataSpec


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("thinking")
    models.scripted(root / "reasoning")
    models.scripted(root / "endless", ("w20", "w21", "w20"))
    models.perturbed(root / "reasoning", root / "merged", seed=2, size=0.01)
    rows = [
        {"prompt": f"w{50 + number}", "reasoning": "w20 w21", "response": " w42", "check": {"exact": "w42"}}
        for number in range(3)
    ]
    rows.append({"prompt": "w60", "check": {"exact": "w43"}, "instruction_check": {"regex": "^w4"}})
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def here(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(prepared)
    return prepared


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def figures(result: Result, label: str) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)["models"][label]["data"]["think"]["figures"]
    return found


def test_models_that_think_are_told_from_those_that_do_not(here: Path) -> None:
    result = invoke(
        "reasoning", "endless", "--think", "prompts.jsonl", "--think-longest", 40, "--think-samples", 3, "--json"
    )
    good, bad = figures(result, "reasoning"), figures(result, "endless")
    assert good["think_format"]["agg_value"] == 1.0
    assert good["think_format"]["interval"] == list(wilson(12, 12))
    assert good["think_format"]["value_by_index"]["0"]["generations"] == ["w20w21</think>w42"] * 3
    assert good["thinking_mean"]["agg_value"] == good["thinking_median"]["agg_value"] == 2.0
    assert good["answer_accuracy"]["agg_value"] == 0.75
    assert good["compliance"]["agg_value"] == 1.0
    assert good["right_and_compliant"]["agg_value"] == 0.0
    assert (good["stop_rate"]["agg_value"], good["loop_rate"]["agg_value"]) == (1.0, 0.0)
    assert bad["think_format"]["agg_value"] == bad["stop_rate"]["agg_value"] == bad["answer_accuracy"]["agg_value"] == 0
    assert bad["loop_rate"]["agg_value"] == bad["unclosed_rate"]["agg_value"] == 1.0
    assert bad["thinking_mean"]["agg_value"] == 40.0
    content = json.loads(result.stdout)
    assert content["settings"]["think"]["samples"] == 3
    assert content["data"] == {"think": ["prompts.jsonl"]}
    assert content["models"]["reasoning"]["data"]["think"]["tokens"] == 12 * 4


def test_divergences_are_from_the_first_model_or_the_one_that_is_named(here: Path, tmp_path: Path) -> None:
    common = ("--think", "prompts.jsonl", "--think-longest", 8, "--think-samples", 1, "--json")
    result = invoke("reasoning", "merged", *common)
    assert "think_kl" not in figures(result, "reasoning")
    spec = DataSpec((here / "prompts.jsonl",))
    samples = thoughts(asking_rows(spec), spec, load_tokenizer(here / "reasoning"), ("<think>", "</think>"))
    assert len(samples) == 3
    weights = {name: Stored(here / name) for name in ("reasoning", "merged")}
    (expected,) = think_divergences(weights["reasoning"], [weights["merged"]], samples)
    found = figures(result, "merged")
    for name in ("think_kl", "answer_kl"):
        assert found[name]["agg_value"] == pytest.approx(expected[name].value, rel=1e-6)
        assert found[name]["agg_value"] > 0
    (back,) = think_divergences(weights["merged"], [weights["reasoning"]], samples, after=0)
    named = invoke("reasoning", "merged", "--against", "merged", "--think-after", 0, *common)
    assert figures(named, "reasoning")["think_kl"]["agg_value"] == pytest.approx(back["think_kl"].value, rel=1e-6)
    assert "think_kl" not in figures(named, "merged")
    assert "answer_kl" not in figures(named, "reasoning")
    outside = invoke("only=merged", "--against", here / "reasoning", *common)
    assert figures(outside, "only")["think_kl"]["agg_value"] == pytest.approx(expected["think_kl"].value, rel=1e-6)


def test_the_table_shows_rates_with_intervals_and_which_end_is_good(here: Path, tmp_path: Path) -> None:
    picture = tmp_path / "figures.svg"
    result = invoke(
        "reasoning", "merged", "--think", "prompts.jsonl", "--think-longest", 8, "--think-samples", 2,
        "--picture", picture,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "think: 4 rows"
    assert lines[1].split() == ["measure", "unit", "reasoning", "merged", "good", "is"]
    (row,) = (line for line in lines if line.startswith("think format"))
    assert "1 [0.68, 1.00]" in row
    assert row.endswith("high")
    (row,) = (line for line in lines if line.startswith("KL at thinking tokens"))
    assert row.split()[5] == "–"
    assert row.endswith("low")
    assert "think format" in picture.read_text()


def test_a_model_that_does_not_draw_is_asked_once_and_says_so(here: Path, tmp_path: Path) -> None:
    greedy = models.scripted(tmp_path / "greedy")
    (greedy / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    found = vecsurgery.evaluate([greedy], think=here / "prompts.jsonl", think_longest=8, think_samples=3)
    figure = found.figure("greedy", "think", "think_format")
    assert figure is not None
    assert figure.by_index["0"]["samples"] == [1.0]
    assert [line for line in found.warnings if "does not ask for sampling" in line]


def test_models_of_other_tokens_are_measured_but_not_compared(here: Path, tmp_path: Path) -> None:
    other = models.scripted(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"w20"', '"w0"'))
    found = vecsurgery.evaluate([here / "reasoning", other], think=here / "prompts.jsonl", think_longest=4)
    assert found.value("other", "think", "think_format") is not None
    assert found.value("other", "think", "think_kl") is None
    assert [line for line in found.warnings if "'w20' there and 'w0' here" in line]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--against", "reasoning"), "there are none; give --think FILE"),
        (("--think", "prompts.jsonl", "--data", "think=prompts.jsonl"), "this is the name of --think"),
        (("--think", "prompts.jsonl", "--think-tags", "<a>", "<a>"), "expected two tags"),
        (("--think", "bare.jsonl", "--against", "merged"), "no row of bare.jsonl has `reasoning`"),
        (("--think", "wrong.jsonl"), "wrong.jsonl:1: `check` has 'exactly'"),
        (("--think", "long.jsonl"), "long.jsonl:1: a prompt of .* tokens fills the context of reasoning"),
        (("--think", "twice.jsonl"), "twice.jsonl:1: .* holds the tag '</think>' 2 times"),
        (("--think", "prompts.jsonl", "--against", "figures.json"), "a file of figures does not think"),
        ((), "no data was named"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_run(
    arguments: tuple[str, ...], said: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "loaded", lambda *_: pytest.fail("a model was loaded"))
    (here / "bare.jsonl").write_text('{"prompt": "w50"}')
    (here / "wrong.jsonl").write_text('{"prompt": "w50", "check": {"exactly": "a"}}')
    (here / "long.jsonl").write_text(json.dumps({"prompt": " ".join(["w50"] * 70)}))
    (here / "twice.jsonl").write_text('{"prompt": "w50", "reasoning": "w20 </think> w21", "response": "w42"}')
    (here / "figures.json").write_text("{}")
    result = invoke("reasoning", "merged", *arguments)
    assert result.exit_code == 2
    assert re.search(said, result.output), result.output


def test_a_model_in_memory_cannot_be_asked_to_write(here: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(here / "reasoning")
    with pytest.raises(InputError, match="write it first"):
        vecsurgery.evaluate({"memory": model}, think=here / "prompts.jsonl", tokenizer=here / "reasoning")
