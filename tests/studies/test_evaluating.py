"""The command `evaluate` on tiny checkpoints: tables, JSON, files; everything wrong is told before a model is run."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import models
from transformers import AutoModelForCausalLM

import vecsurgery
from vecsurgery.calibration import load_tokenizer, prepare
from vecsurgery.checkpoint import Stored
from vecsurgery.cli import main
from vecsurgery.errors import InputError
from vecsurgery.evaluation import answer_nll, forget_quality
from vecsurgery.recipe import DataSpec


def _words(seed: int, length: int) -> str:
    return models.sentences(1, seed=seed, length=length)[0]


def _questions(path: Path, count: int, *, seed: int, wrong: bool = True) -> Path:
    rows: list[dict[str, Any]] = []
    for number in range(seed, seed + count):
        row: dict[str, Any] = {"question": _words(number, 4), "answer": _words(number + 1000, 3)}
        if wrong:
            row |= {
                "paraphrased_answer": _words(number + 2000, 3),
                "perturbed_answer": [_words(number + 3000, 3), _words(number + 4000, 4)],
            }
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluating")
    models.checkpoint(root / "original", seed=1)
    models.perturbed(root / "original", root / "unlearned", seed=2, size=0.2)
    models.perturbed(root / "original", root / "retrained", seed=3, size=0.1)
    _questions(root / "forget.jsonl", 4, seed=1)
    _questions(root / "retain.jsonl", 5, seed=50, wrong=False)
    models.write_texts(root / "general.jsonl", 3)
    return root


@pytest.fixture
def here(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with models and data that no test changes."""
    monkeypatch.chdir(prepared)
    return prepared


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def told(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def test_a_table_has_a_column_for_each_model_and_a_block_for_each_data_source(here: Path) -> None:
    result = invoke(
        "before=original", "unlearned", "--forget", "forget.jsonl", "--retain", "retain.jsonl",
        "--data", "general=general.jsonl",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    blocks = [block.splitlines() for block in result.stdout.split("\n\n")]
    assert [block[0] for block in blocks[:3]] == [
        "forget: 4 rows (should be forgotten)", "retain: 5 rows", "general: 3 rows",
    ]  # fmt: skip
    columns = ["measure", "unit", "before", "unlearned"]
    assert [block[1].split() for block in blocks[:3]] == [[*columns, "good", "is"], [*columns, "good", "is"], columns]
    assert any(line.startswith("capped answer loss  nats") for line in blocks[0])
    assert [line.split()[0] for line in blocks[2][2:]] == ["perplexity"]
    assert "before: measuring" in result.stderr


def test_figures_in_json_are_those_of_the_models(here: Path) -> None:
    content = told(invoke("original", "--retain", "retain.jsonl", "--json"))
    samples = prepare(DataSpec((here / "retain.jsonl",)), load_tokenizer(here / "original"))
    expected = answer_nll(Stored(here / "original"), samples)
    figures = content["models"]["original"]["data"]["retain"]["figures"]
    assert figures["nll"]["agg_value"] == pytest.approx(expected.mean, abs=1e-9)
    assert figures["capped_loss"]["agg_value"] == pytest.approx(expected.capped, abs=1e-9)
    assert figures["token_probability"]["agg_value"] == pytest.approx(expected.probability, abs=1e-9)
    rows = [entry["score"] for entry in figures["nll"]["value_by_index"].values()]
    assert rows == pytest.approx(expected.per_row, abs=1e-9)


def test_generated_figures_and_files_go_round(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    content = told(
        invoke(
            "original",
            "unlearned",
            "--forget",
            "forget.jsonl",
            "--retain",
            "retain.jsonl",
            "--generate",
            "--samples",
            4,
            "--leak",
            1,
            "--leak",
            3,
            "--longest",
            4,
            "--tofu-eval",
            out,
            "--json",
        )
    )
    forget = content["models"]["original"]["data"]["forget"]["figures"]
    assert {"rouge", "leak@1", "leak@3"} <= set(forget)
    assert "leak@1" not in content["models"]["original"]["data"]["retain"]["figures"]
    assert forget["leak@1"]["agg_value"] <= forget["leak@3"]["agg_value"]
    assert content["settings"]["sampling"] == {"count": 4, "temperature": 1.0, "top_p": 1.0, "seed": 0}
    written = json.loads((out / "original" / "TOFU_EVAL.json").read_text())
    assert written["forget_Q_A_Prob"] == forget["row_probability"]
    again = told(invoke(f"old={out / 'original' / 'TOFU_EVAL.json'}", "--json"))
    for name, figure in again["models"]["old"]["data"]["forget"]["figures"].items():
        assert figure["agg_value"] == forget[name]["agg_value"]


def test_figures_of_a_file_stand_beside_those_of_models(here: Path, tmp_path: Path) -> None:
    path = tmp_path / "theirs" / "TOFU_EVAL.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"forget_Q_A_Prob": {"agg_value": 0.123}, "model_utility": {"agg_value": 0.61}}))
    result = invoke("original", path, "--forget", "forget.jsonl")
    assert result.exit_code == 0, result.output
    header = next(line for line in result.stdout.splitlines() if line.startswith("measure"))
    assert header.split() == ["measure", "unit", "original", "theirs", "good", "is"]
    row = next(line for line in result.stdout.splitlines() if line.startswith("row probability"))
    assert row.split()[-2:] == ["0.123", "low"]
    assert "model_utility" in result.stdout
    assert "how they were measured is not known here" in result.stdout


def test_forget_quality_compares_with_the_reference_however_it_is_named(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    content = told(
        invoke(
            "unlearned",
            "retrained",
            "--forget",
            "forget.jsonl",
            "--reference",
            "retrained",
            "--json",
            "--tofu-eval",
            out,
        )
    )
    models_found = content["models"]
    ratios = {
        label: [row["score"] for row in each["data"]["forget"]["figures"]["truth_ratio"]["value_by_index"].values()]
        for label, each in models_found.items()
    }
    quality = {
        label: each["data"]["forget"]["figures"]["forget_quality"]["agg_value"] for label, each in models_found.items()
    }
    assert quality["retrained"] == 1.0
    assert quality["unlearned"] == forget_quality(ratios["unlearned"], ratios["retrained"])
    for reference in (str(here / "retrained"), str(out / "retrained" / "TOFU_EVAL.json")):
        alone = told(invoke("unlearned", "--forget", "forget.jsonl", "--reference", reference, "--json"))
        found = alone["models"]["unlearned"]["data"]["forget"]["figures"]["forget_quality"]["agg_value"]
        assert found == pytest.approx(quality["unlearned"])


def test_models_in_memory_are_measured_with_a_tokenizer_that_is_named(here: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(here / "original")
    data = {"retain": here / "retain.jsonl"}
    with pytest.raises(InputError, match="a model in memory has no tokenizer"):
        vecsurgery.evaluate({"module": module}, data)
    edited = vecsurgery.edit(
        into=str(here / "original"), deltas={"change": (str(here / "unlearned"), str(here / "original"))}, steps=[]
    )
    found = vecsurgery.evaluate({"module": module, "edited": edited}, data, tokenizer=here / "original")
    stored = vecsurgery.evaluate({"a": here / "original", "b": here / "unlearned"}, data)
    for one, other in (("module", "a"), ("edited", "b")):
        ours, theirs = found.value(one, "retain", "nll"), stored.value(other, "retain", "nll")
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert found.value("module", "forget", "nll") is None
    with pytest.raises(InputError, match="there are module, edited"):
        found.model("absent")
    with pytest.raises(InputError, match="loaded from its folder"):
        vecsurgery.evaluate({"edited": edited}, data, generate=True)


def test_models_that_read_other_tokens_are_told_once(here: Path, tmp_path: Path) -> None:
    other = models.checkpoint(tmp_path / "other", seed=5)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for message in messages %}w9 {{ message.content }} w10 {% endfor %}"
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    data = ["--forget", "forget.jsonl", "--retain", "retain.jsonl"]
    result = invoke("original", "unlearned", other, *data)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if "read the rows as other tokens" in line]
    assert line.startswith("- forget, retain: other read the rows as other tokens than original")
    assert "other tokens" not in invoke("original", "unlearned", other, *data, "--template", "none").stdout


def test_rows_limit_and_seed_choose_the_same_rows_for_every_model(here: Path) -> None:
    content = told(
        invoke(
            "original", "unlearned", "--retain", "retain.jsonl", "--rows", "1-3", "--limit", 2, "--seed", 4, "--json"
        )
    )
    assert content["settings"]["retain"] == {
        "template": "auto", "rows": [1, 3], "limit": 2, "max_tokens": None, "max_length": None, "seed": 4,
    }  # fmt: skip
    assert [each["data"]["retain"]["rows"] for each in content["models"].values()] == [2, 2]
    assert content["warnings"] == []


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_picture_is_drawn(here: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"figures{suffix}"
    result = invoke("original", "unlearned", "--retain", "retain.jsonl", "--picture", path)
    assert result.exit_code == 0, result.output
    assert path.read_bytes().startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG")


WRONG: list[tuple[str, list[str], str]] = [
    ("no data", ["original"], "no data was named"),
    ("no such file", ["original", "--forget", "absent.jsonl"], "reading data file absent.jsonl: No such file"),
    ("no such model", ["absent", "--forget", "forget.jsonl"], "absent"),
    ("second model missing", ["original", "./absent", "--forget", "forget.jsonl"], "there is no folder"),
    ("figures missing", ["absent.json"], "reading absent.json: No such file"),
    ("two labels", ["original", "./original", "--forget", "forget.jsonl"], "two models are called 'original'"),
    ("label", ["a/b=original", "--forget", "forget.jsonl"], "cannot name a model"),
    ("empty label", ["=original", "--forget", "forget.jsonl"], "cannot name a model"),
    ("no model behind", ["a=", "--forget", "forget.jsonl"], "no model stands behind"),
    ("data without name", ["original", "--data", "general.jsonl"], "expected NAME=FILE"),
    ("data with a slash", ["original", "--data", "a/b=general.jsonl"], "text without slashes"),
    ("no answers", ["original", "--retain", "general.jsonl", "--generate"], "no row of the data has an answer"),
    ("nothing to leak", ["original", "--retain", "retain.jsonl", "--samples", "2"], "no forget data with answers"),
    ("k without samples", ["original", "--forget", "forget.jsonl", "--leak", "2"], "and 0 are sampled"),
    (
        "k",
        ["original", "--forget", "forget.jsonl", "--samples", "2", "--leak", "3"],
        "leak@3: the best of k",
    ),
    ("temperature", ["original", "--forget", "forget.jsonl", "--samples", "2", "--temperature", "0"], "temperature 0"),
    ("top_p", ["original", "--forget", "forget.jsonl", "--samples", "2", "--top-p", "1.5"], "top_p 1.5"),
    ("rows", ["original", "--forget", "forget.jsonl", "--rows", "2-9"], "there are 4 rows"),
    ("template", ["original", "--forget", "forget.jsonl", "--template", "no.jinja"], "no.jinja"),
    ("picture", ["original", "--forget", "forget.jsonl", "--picture", "x.pdf"], "ends in .svg or .png"),
    ("picture's folder", ["original", "--forget", "forget.jsonl", "--picture", "no/x.svg"], "there is no folder"),
    ("reference rows", ["original", "--forget", "retain.jsonl", "--reference", "retrained"], "has `perturbed_answer`"),
    ("reference data", ["original", "--retain", "retain.jsonl", "--reference", "retrained"], "give --forget FILE"),
    ("context", ["original", "--forget", "forget.jsonl", "--max-length", "5000"], "reads at most 64 tokens"),
]


@pytest.mark.parametrize(("arguments", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_cannot_be_evaluated_is_told_before_any_model_is_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    def never(*arguments: object, **named: object) -> None:
        raise AssertionError("a model was run")

    monkeypatch.setattr("vecsurgery.studies.asking.measure_sources", never)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_figures_are_not_written_over(here: Path, tmp_path: Path) -> None:
    path = tmp_path / "original" / "TOFU_EVAL.json"
    path.parent.mkdir()
    path.write_text("{}")
    result = invoke("original", "--forget", "forget.jsonl", "--tofu-eval", tmp_path)
    assert result.exit_code == 2
    assert "it exists" in result.stderr
    assert path.read_text() == "{}"


def test_a_missing_package_is_told_before_any_model_is_opened(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    result = invoke("original", "--forget", "forget.jsonl", "--reference", "retrained")
    assert result.exit_code == 2
    assert "pip install scipy" in result.stderr
