"""The renderings say what the record says, escape it, and are the same bytes each time."""

import re

import pytest

from tests.report.example import matrix, record
from vecsurgery import report


@pytest.fixture(scope="module")
def page():
    return report.html(record())


def _without_geometry():
    changed = record() | {"geometry": {}}
    for item in changed["matrices"]:
        facts = {"norm": 2.0, "norm_ratio": 0.5, "factor": 0.5}
        item["stored"] = {}
        item["steps"] = [{"step": "scale", "method": "scale", "delta": "unlearning", "facts": facts, "warnings": []}]
    return changed


def test_the_verdict_is_one_line_of_stored_figures():
    assert report.verdict(record()) == (
        "Removed 97 % of the `retain` activation energy of `unlearning` in 4 block matrices while keeping 81 % of its "
        "norm; 1 norm and the head added unchanged; 2 warnings."
    )


def test_the_verdict_tells_a_bias_that_grew():
    grown = record() | {"matrices": [matrix(0, "q", 1.0, 1.5, 1.5)]}
    assert report.verdict(grown).startswith(
        "Raised the `retain` activation energy of `unlearning` in 1 block matrix to 150 %"
    )


def test_the_verdict_without_a_geometry_tells_the_norm():
    assert report.verdict(_without_geometry()) == (
        "Scale on `unlearning` kept 50 % of its norm over 4 matrices; 1 norm and the head added unchanged; no warnings."
    )


def test_the_verdict_of_a_run_without_steps_says_that_the_delta_was_added():
    plain = _without_geometry() | {"matrices": []}
    assert report.verdict(plain).startswith("Added `unlearning` as it is")


def test_the_verdict_does_not_count_rounding_as_what_was_kept():
    rounded = record()
    for item in rounded["matrices"]:
        for stored in item["stored"].values():
            stored["norm_ratio_intended"] = 0.5 * stored["norm_ratio_stored"]
    assert "the rest is rounding to the storage type" in report.verdict(rounded)


def test_a_matrix_left_out_unprotected_is_a_warning_and_part_of_the_verdict():
    left_out = [{"tensor": "a.weight", "step": "null_space", "delta": "instruct", "unprotected": True}]
    changed = record() | {"left_out": left_out}
    assert "1 matrix left out by the selection" in report.verdict(changed)
    assert any("a.weight" in line and "unprotected" in line for line in report.warnings(changed))


def test_warnings_that_differ_only_in_numbers_are_gathered_with_a_count():
    changed = record()
    for index, item in enumerate(changed["matrices"]):
        item["steps"][0]["warnings"] = [f"keep 0.02 is below the floor 0.0{index + 3}: the floor was used"]
    found = [line for line in report.warnings(changed) if "below the floor" in line]
    assert len(found) == 1
    assert "model.layers.0.self_attn.q_proj.weight" in found[0]
    assert "3 more" in found[0]


def test_notes_are_shown_and_counted_neither_as_warnings_nor_in_the_verdict():
    licence = "the licences of the sources are not all known; the model card says `license: other`: settle it"
    noted = record() | {"notes": [licence]}
    assert report.verdict(noted) == report.verdict(record())
    assert report.warnings(noted) == report.warnings(record())
    assert f"Note: {licence}\n" in report.text(noted)
    assert "Note: the licences of the sources are not all known; the model card says <code>license: other" in (
        report.html(noted)
    )
    assert "Note:" not in report.text(record()) + report.html(record())


def test_what_weighs_most_is_told_first():
    other = "something else"
    kin = "deltas.x: RoPE base differs: into has 1, tuned has 2"
    changed = record() | {
        "warnings": [other, kin],
        "left_out": [{"tensor": "a.weight", "step": "null_space", "delta": "x", "unprotected": True}],
    }
    emptied = "only 0.1 of the delta's norm is left; raise rtol, or use fewer positions"
    changed["matrices"][3]["steps"][0]["warnings"] = [emptied]
    found = report.warnings(changed)
    assert emptied in found[0]
    assert "added unprotected" in found[1]
    assert found[2] == kin
    assert other in found[3:]
    assert len(found) == 6


def test_warnings_of_fits_and_evaluation_are_warnings_of_the_run():
    fit = {"step": "amplify", "delta": "unlearning", "warnings": ["the target was not reached"]}
    changed = record() | {"fits": [fit], "evaluation": {"forget": {"warnings": ["evaluate.forget: not finite"]}}}
    found = report.warnings(changed)
    assert "amplify, unlearning: the target was not reached" in found
    assert "evaluate.forget: not finite" in found


def test_the_settings_of_a_step_stand_beside_its_figures():
    steps = "steps:\n- {project: retain_energy, id: retain_energy, geometry: retain, keep: 0.02, others: source}\n"
    changed = record() | {"recipe": f"into: org/original\n{steps}"}
    assert "keep 0.02, others source" in report.text(changed)
    assert "keep 0.02, others source" in report.html(changed)


def test_the_terms_are_told_once(page):
    for shown in (re.sub(r"\s+", " ", report.text(record())), page):
        assert shown.count("retention activation bias, RAB") == 1


def test_backticks_on_the_page_are_code_and_a_lone_one_is_itself():
    changed = record() | {"warnings": ["the card says `license: other`; see 5` long"]}
    page = report.html(changed)
    assert "the card says <code>license: other</code>; see 5` long" in page


def test_a_share_above_one_fills_its_bar_and_is_marked(page):
    grown = record() | {"matrices": [matrix(0, "q", 1.0, 1.0, 25.0), matrix(0, "o", 1.0, 0.5, 0.5)]}
    assert '<i class="over" style="width: 100.0%">' in report.html(grown)
    assert 'class="over"' not in page


def test_a_norm_that_rounding_multiplied_does_not_flatten_the_picture():
    changed = record()
    changed["matrices"][0]["stored"]["retain"]["norm_ratio_stored"] = 31.0
    assert "×21.9" in report.html(changed)
    for matrix_ in changed["matrices"]:
        matrix_["stored"]["retain"]["norm_ratio_stored"] = 2.1
    assert "×" not in report.html(changed).split("<svg")[1].split("</svg>")[0]
    assert "×" not in report.html(record()).split("<svg")[1].split("</svg>")[0]


def test_matrices_left_out_are_gathered_by_step_and_delta():
    left_out = [{"tensor": f"m{i}.weight", "step": "null_space", "delta": "x", "unprotected": True} for i in range(6)]
    text = report.text(record() | {"left_out": left_out})
    assert "6 matrices left out of null_space: the change by x added unprotected: m0.weight, m1.weight" in text
    assert "m3.weight and 2 more" in text


@pytest.mark.parametrize(
    "figure",
    [
        "org/original at aaaaaaaaaaaa",
        "20,000 positions at 4 sites",
        "120 rows used, 3 repeated",
        "model.layers.0.self_attn.o_proj.weight",
        "rounding to the storage type more than doubled the bias on retain of 1 matrix",
        "2 tensors of unlearning outside the blocks' matrices: added unchanged",
        "1 min 1 s",
    ],
)
def test_golden_facts_stand_in_the_text_and_on_the_page(figure, page):
    assert figure in report.text(record())
    assert figure in re.sub(r"\s+", " ", page.replace("&#39;", "'"))


def test_the_text_has_bias_per_layer_and_in_total():
    lines = [line.split() for line in report.text(record()).splitlines()]
    assert ["0", "2", "50", "1", "1.8", "3.6", "%", "81", "%"] in lines
    assert ["all", "4", "100", "2", "3", "3.0", "%", "81", "%"] in lines


def test_the_page_has_every_fact_of_every_matrix(page):
    for name in ("strength", "floor", "energy removed", "relative after", "64 × 64", "self_attn.q_proj"):
        assert name in page


def test_the_page_needs_nothing_from_outside_and_runs_nothing(page):
    assert "http" not in page
    assert not re.search(r"<script|<link|<img|@import|\ssrc=|url\((?!#)|javascript:|\son\w+=", page)


def test_names_from_the_record_are_escaped(page):
    assert "<b>unlearned</b>" not in page
    assert "org/&lt;b&gt;unlearned&lt;/b&gt;" in page


def test_the_verdict_on_the_page_is_escaped_too():
    changed = record()
    for item in changed["matrices"]:
        item["steps"][0]["delta"] = "<i>`x"
    assert "<i>" not in report.html(changed)


def test_ids_on_the_page_are_unique_and_every_reference_has_one():
    changed = record()
    changed["geometry"]["second"] = changed["geometry"]["retain"]
    for item in changed["matrices"]:
        item["stored"]["second"] = item["stored"]["retain"]
    page = report.html(changed)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(ids)


def test_rendering_is_deterministic():
    assert report.html(record()) == report.html(record())
    assert report.text(record()) == report.text(record())


@pytest.mark.parametrize("change", [{"matrices": []}, {"matrices": [], "geometry": {}, "others": [], "seconds": {}}])
def test_an_empty_run_renders(change):
    assert "No step touched a matrix" in report.text(record() | change)
    assert "No step touched a matrix" in report.html(record() | change)


def test_a_bias_of_zero_everywhere_renders():
    zero = matrix(0, "q", 1.0, 0.0, 0.0)
    zero["stored"]["retain"]["rab_before"] = 0.0
    changed = record() | {"matrices": [zero]}
    assert "nothing" not in report.text(changed)
    assert "<svg" in report.html(changed)


def test_a_measurement_without_its_optional_figures_renders():
    bare = matrix(0, "q", 1.0, 0.5, 0.5)
    bare["stored"]["retain"] = {
        "rab_before": 1.0,
        "rab_after_intended": 0.5,
        "rab_after_stored": 0.5,
        "norm_before": 2.0,
    }
    bare["steps"][0]["facts"] = {}
    changed = record() | {"matrices": [bare]}
    report.validated(changed)
    assert "–" in report.text(changed)
    assert "<svg" in report.html(changed)
    assert report.verdict(changed).startswith(
        "Removed 50 % of the `retain` activation energy of `unlearning` in 1 block matrix;"
    )
