"""TOFU_EVAL.json: what is written reads back as it was; what is no such file is refused by name."""

import json
from pathlib import Path

import pytest

from vecsurgery.errors import InputError, RunError
from vecsurgery.evaluation import EvaluatedModel, Figure, Measured, read_tofu, tofu_text, write_tofu
from vecsurgery.evaluation.catalogue import MEASURES, measure, recognised


def _model() -> EvaluatedModel:
    forget = {
        "row_probability": Figure(
            0.25, {"0": {"prob": 0.2, "avg_loss": 1.6}, "1": {"prob": 0.3, "avg_loss": 1.2}}, "prob"
        ),
        "perturbed_probability": Figure(0.1, {"0": {"prob": [0.1, 0.2], "avg_loss": [2.3, 1.6]}}, "prob"),
        "truth_ratio": Figure(0.5, {"0": {"score": 0.5}, "1": {"score": 0.0}}),
        "forget_quality": Figure(0.9),
        "rouge": Figure(0.4, {"0": {"rougeL_recall": 0.4, "generation": "a", "ground_truth": "b"}}, "rougeL_recall"),
        "leak@4": Figure(0.7, {"0": {"score": 0.7, "samples": [0.1, 0.7]}}),
        "accuracy": Figure(0.1, {"0": {"score": 0.1}}),
    }
    retain = {"row_probability": Figure(0.9), "truth_ratio": Figure(0.8), "capped_loss": Figure(0.01)}
    return EvaluatedModel("cleaned", "folder", "abc", {"forget": Measured(forget), "retain": Measured(retain)})


def test_names_are_those_of_open_unlearning() -> None:
    assert set(json.loads(tofu_text(_model()))) == {
        "forget_Q_A_Prob", "forget_Q_A_PERT_Prob", "forget_truth_ratio", "forget_quality", "forget_Q_A_ROUGE",
        "forget_leak@4", "exact_memorization", "retain_Q_A_Prob", "retain_Truth_Ratio", "retain_capped_answer_loss",
    }  # fmt: skip


def test_what_was_written_reads_back_and_writes_the_same_bytes(tmp_path: Path) -> None:
    path = write_tofu(_model(), tmp_path)
    assert path == tmp_path / "cleaned" / "TOFU_EVAL.json"
    again = read_tofu(path, "again")
    assert {name: measured.values() for name, measured in again.data.items()} == {
        name: measured.values() for name, measured in _model().data.items()
    }
    assert again.data["forget"].figures["truth_ratio"].per_row == (0.5, 0.0)
    assert again.data["forget"].figures["perturbed_probability"].per_row == pytest.approx((0.15,))
    assert again.data["forget"].rows == 2
    assert tofu_text(again) == path.read_text()


def test_every_measure_has_a_name_that_is_recognised_for_any_data() -> None:
    names = [each.name for each in MEASURES] + ["leak@16"]
    for data in ("forget", "retain", "ra", "my_own"):
        for name in names:
            found = recognised(measure(name).key_for(data))
            assert found is not None
            assert (found[0], found[1].name) == (data, name), (data, name)


def test_metrics_of_other_programs_are_kept_under_their_own_names(tmp_path: Path) -> None:
    path = tmp_path / "TOFU_EVAL.json"
    content = {
        "model_utility": {"agg_value": 0.6},
        "privleak": {"agg_value": None},
        "mia_min_k": {"auc": 0.4, "agg_value": 0.4, "forget": {"agg_value": 1}},
        "ra_Q_A_Prob": {"agg_value": 0.3, "value_by_index": {"0": {"prob": 0.3, "avg_loss": 1.2}, "1": None}},
        "retain_Q_A_PERT_ROUGE": {"agg_value": 0.2, "value_by_index": {"0": {"generation": ["a", "b"]}}},
    }
    path.write_text(json.dumps(content))
    model = read_tofu(path, "theirs")
    assert model.data["ra"]["row_probability"] == 0.3
    assert model.data["other"].values() == {
        "model_utility": 0.6, "privleak": None, "mia_min_k": 0.4, "retain_Q_A_PERT_ROUGE": 0.2,
    }  # fmt: skip
    assert model.fingerprint is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not the JSON"),
        ("[]", "expected an object of metrics"),
        ("{}", "expected an object of metrics"),
        ('{"forget_quality": 0.3}', "'forget_quality': expected an object with `agg_value`"),
        ('{"forget_quality": {"value": 0.3}}', "expected an object with `agg_value`"),
        ('{"forget_quality": {"agg_value": "high"}}', "`agg_value` is 'high'"),
        ('{"forget_quality": {"agg_value": true}}', "`agg_value` is True"),
        ('{"forget_quality": {"agg_value": NaN}}', "NaN is no number of JSON"),
        ('{"forget_quality": {"agg_value": 1e999}}', "`agg_value` is inf"),
        ('{"a": {"agg_value": 1}, "a": {"agg_value": 2}}', "'a' stands twice"),
        ('{"a": {"agg_value": 1, "value_by_index": [1]}}', "`value_by_index` is list"),
        ('{"a": {"agg_value": 1, "value_by_index": {"0": 3}}}', "row '0' is 3; expected an object"),
        ('{"a": {"agg_value": 1, "value_by_index": {"0": {"b": {}}}}}', "row '0' has 'b'"),
        ('{"forget_truth_ratio": {"agg_value": 1, "value_by_index": {"0": {"score": "x"}}}}', "has 'score': 'x'"),
        ("[" * 100_000, "not the JSON"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused_with_its_name_and_the_reason(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_tofu(path, "theirs")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json: No such file"):
        read_tofu(tmp_path / "absent.json", "theirs")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "cleaned").write_text("a file")
    with pytest.raises(RunError, match="TOFU_EVAL"):
        write_tofu(_model(), tmp_path)


def test_equal_metrics_of_two_tasks_do_not_overwrite_each_other() -> None:
    data = {"gsm8k": Measured({"acc": Figure(0.25)}), "arc": Measured({"acc": Figure(0.5)})}
    written = json.loads(tofu_text(EvaluatedModel("model", "folder", "fingerprint", data)))
    assert {name: figure["agg_value"] for name, figure in written.items()} == {"gsm8k_acc": 0.25, "arc_acc": 0.5}
