"""What fits found, what was evaluated and which gates passed stand in text, page and verdict, and read as they are."""

import re
from typing import Any

import pytest

from tests.report.example import amplified, fit, gate, record
from vecsurgery import report
from vecsurgery.report import fitted, judged, summary


@pytest.fixture(scope="module")
def page() -> str:
    return report.html(amplified())


def _row(text: str, *start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if re.split(r"\s{2,}", line)[: len(start)] == list(start)]
    return re.split(r"\s{2,}", line)


def _plain(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_the_example_follows_the_schema() -> None:
    report.validated(amplified())


def test_the_verdict_tells_removal_and_amplification_apart_and_that_the_gates_passed() -> None:
    assert report.verdict(amplified()) == (
        "Removed 98 % of the `retain` activation energy of `unlearning` in 4 block matrices, then amplified the rest "
        "×4 to keep 90 % of the forgetting (in the result: 32 % of that energy, 320 % of the norm); 1 norm and the "
        "head added unchanged; passed both gates; 2 warnings."
    )


def test_bias_above_the_raw_one_after_amplification_does_not_read_as_a_failure() -> None:
    verdict = report.verdict(amplified(8.0))
    assert verdict.startswith("Removed 98 % of the `retain` activation energy")
    assert "in the result: 128 % of that energy" in verdict
    assert "aised" not in verdict


def test_a_failed_gate_comes_first_everywhere(page: str) -> None:
    changed = amplified()
    changed["gates"].append(gate("forgetting", 0.5, passed=False, min=0.8))
    assert report.verdict(changed).startswith("Failed 1 of 3 gates (`forgetting`); removed")
    text = report.text(changed)
    lines = text[text.index("\nGates\n") :].splitlines()[2:]
    assert lines[0].split("  ")[0] == "FAILED"
    assert lines[0].endswith("forgetting 0.5, outside min 0.8")
    failed = report.html(changed)
    assert (
        failed.index("outside min 0.8") < failed.index("retention 0.15, within max 0.2") < failed.index("What went in")
    )
    assert 'class="name failed"' in failed
    assert 'class="name failed"' not in page


def test_a_target_that_is_not_reached_is_told_in_the_verdict_and_at_the_fit() -> None:
    changed = amplified()
    changed["fits"][0]["facts"] |= {"reached": 4.0, "share": 0.7}
    assert "keeps only 70 % of the forgetting and misses the target" in report.verdict(changed)
    assert "reached (the target is not reached)" in report.text(changed)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"factor": 1.0}, "left `unlearning` as it was (×1) to keep 90 % of the forgetting"),
        ({"factor": 0.5}, "scaled `unlearning` ×0.5 to keep 90 % of the forgetting"),
        ({"factor": 3.876}, "amplified `unlearning` ×3.88 to keep 90 % of the forgetting"),
    ],
)
def test_a_factor_is_called_what_it_does(facts: dict[str, float], expected: str) -> None:
    assert fitted.clause(fit(**facts)) == expected


def test_a_fit_of_another_kind_is_told_by_its_own_facts() -> None:
    other = fit() | {"facts": {"residual_norm": 0.25}, "curve": []}
    assert fitted.clause(other) == "fitted `unlearning`"
    changed = amplified() | {"fits": [other]}
    assert _row(report.text(changed), "residual norm")[-1] == "0.25"
    report.html(changed)


def test_a_target_in_probability_is_recognised_by_the_curve() -> None:
    by_loss = fit()
    by_probability = fit(target=0.1, into=0.9, raw=0.05, reached=0.1)
    missed = fit(factor=8.0, target=0.001, into=0.9, raw=0.0005, reached=0.01)
    assert not fitted.by_probability(by_loss)
    assert fitted.by_probability(by_probability)
    assert fitted.met(by_probability)
    assert fitted.by_probability(missed)
    assert not fitted.met(missed)


def test_the_bias_left_without_the_factor_is_that_of_the_projection() -> None:
    found = fitted.amplification(amplified(), "retain")
    assert found is not None
    projected: Any = record()
    assert found.left == pytest.approx(summary.step_totals(projected)[0].left)


def test_a_change_that_is_no_multiple_of_one_delta_is_not_divided_by_the_factor() -> None:
    changed = amplified()
    for item in changed["matrices"]:
        item["stored"]["retain"]["norm_ratio_intended"] *= 1.1  # another delta was added
    found = fitted.amplification(changed, "retain")
    assert found is not None
    assert found.left is None
    assert report.verdict(changed).startswith(
        "Amplified `unlearning` ×4 to keep 90 % of the forgetting (in the result: 32 % of the `retain` activation "
        "energy of `unlearning` in 4 block matrices, 320 % of the norm)"
    )
    assert "before the factor" not in report.html(changed)


def test_a_fit_without_a_geometry_is_told_alone() -> None:
    changed = amplified() | {"geometry": {}, "gates": [], "others": []}
    for item in changed["matrices"]:
        item["stored"], item["steps"] = {}, item["steps"][1:]
    assert report.verdict(changed) == "Amplified `unlearning` ×4 to keep 90 % of the forgetting; 1 warning."


def test_a_bias_of_zero_before_still_tells_of_the_fit() -> None:
    changed = amplified()
    for item in changed["matrices"]:
        item["stored"]["retain"]["rab_before"] = 0.0
    assert "amplified `unlearning` ×4" in report.verdict(changed)
    report.html(changed)


@pytest.mark.parametrize(
    "figure",
    [
        "amplify: unlearning ×4 over 4 matrices",
        "target (nats, capped answer loss)",
        "20 rows in 2 passes",
        "These figures are of the amplified change",
        "Without it 2.0 % of the bias would be left.",
        "forget: 40 rows, 312 scored tokens",
        "capped answer loss",
        "retention 0.15, within max 0.2",
        "smoke: all is well",
        "evaluate.forget: 2 rows were cut",
    ],
)
def test_fits_evaluation_and_gates_stand_in_the_text_and_on_the_page(figure: str, page: str) -> None:
    assert figure in report.text(amplified())
    assert figure in _plain(page)


def test_the_table_says_what_is_left_of_the_raw_effect_and_which_end_is_good() -> None:
    text = report.text(amplified())
    assert _row(text, "forget", "capped answer loss")[2:] == ["nats", "0.5", "5.5", "4.75", "85 %", "high"]
    assert _row(text, "retain", "answer NLL")[2:] == ["nats", "0.25", "3.25", "0.4", "5.0 %", "low"]
    assert _row(text, "general", "perplexity")[2:] == ["1 and above", "12.5", "12.5", "12.8", "–"]


@pytest.mark.parametrize(
    ("name", "forget", "retain"),
    [
        ("capped_loss", "high", "low"),
        ("nll", "high", "low"),
        ("perplexity", "high", "low"),
        ("token_probability", "low", "high"),
        ("rouge", "low", "high"),
        ("leak@4", "low", "high"),
        ("truth_ratio", "high", "high"),
        ("forget_quality", "high", "high"),
        ("perturbed_probability", "", ""),
        ("model_utility", "", ""),
    ],
)
def test_what_is_good_follows_from_the_role_of_the_data(name: str, forget: str, retain: str) -> None:
    assert (judged.good("forget", name), judged.good("retain", name), judged.good("x", name)) == (forget, retain, "")


def test_warnings_of_fits_and_evaluation_are_warnings_of_the_run() -> None:
    changed = amplified()
    changed["fits"][0]["warnings"] = ["the curve is not monotone"]
    found = report.warnings(changed)
    assert {"amplify, unlearning: the curve is not monotone", "evaluate.forget: 2 rows were cut"} <= set(found)


def test_a_step_that_only_multiplies_keeps_its_factor_of_the_norm() -> None:
    total = summary.step_totals(amplified())[-1]
    assert (total.step, total.norm_ratio) == ("amplify", 4.0)


def test_the_page_with_everything_is_escaped_and_self_contained() -> None:
    changed = amplified()
    changed["gates"][0]["reason"] = "<b>bold</b>"
    changed["fits"] = [changed["fits"][0], fit() | {"step": "<i>second</i>"}]
    page = report.html(changed)
    assert "<b>bold</b>" not in page
    assert "<i>second</i>" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "http" not in page
    assert page == report.html(changed)
