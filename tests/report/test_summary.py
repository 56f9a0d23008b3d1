"""Totals of a record are sums of its matrices, whatever they are grouped by."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.report.example import matrix, record
from vecsurgery.report import summary

_bias = st.floats(1e-6, 1e6)


def _with(matrices):
    return record() | {"matrices": matrices}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), _bias, _bias, _bias), min_size=1, max_size=8))
def test_layers_add_up_to_the_total(entries):
    changed = _with([matrix(layer, "q", before, meant, stored) for layer, before, meant, stored in entries])
    total = summary.totals(changed)["retain"]
    parts = summary.by_layer(changed, "retain").values()
    assert total.before == pytest.approx(math.fsum(part.before for part in parts))
    assert total.stored == pytest.approx(math.fsum(entry[3] for entry in entries))
    assert total.matrices == sum(part.matrices for part in parts) == len(entries)
    assert total.norm_ratio == pytest.approx(0.81)


def test_norms_of_several_matrices_combine_as_the_root_of_the_sum_of_squares():
    small, large = matrix(0, "q", 1.0, 1.0, 1.0), matrix(0, "k", 1.0, 1.0, 1.0)
    small["stored"]["retain"] |= {"norm_before": 3.0, "norm_ratio_stored": 1.0}
    large["stored"]["retain"] |= {"norm_before": 4.0, "norm_ratio_stored": 0.0}
    total = summary.totals(_with([small, large]))["retain"]
    assert total.norm_before == pytest.approx(5.0)
    assert total.norm_ratio == pytest.approx(0.6)


def test_a_change_without_bias_has_no_share_left():
    empty = matrix(0, "q", 1.0, 0.0, 0.0)
    empty["stored"]["retain"]["rab_before"] = 0.0
    assert summary.totals(_with([empty]))["retain"].left is None


def test_step_totals_weigh_matrices_by_their_bias():
    (total,) = summary.step_totals(record())
    assert (total.step, total.delta, total.geometry, total.matrices) == ("retain_energy", "unlearning", "retain", 4)
    assert total.left == pytest.approx(0.02)
    assert total.norm_ratio == pytest.approx(0.8)
    assert total.rank == 48


def test_steps_are_told_in_the_order_in_which_they_ran():
    changed = record()
    for item in changed["matrices"]:
        later = {"step": "halve", "method": "scale", "delta": "unlearning", "facts": {"factor": 0.5}, "warnings": []}
        item["steps"].append(later)
    assert [total.step for total in summary.step_totals(changed)] == ["retain_energy", "halve"]


def test_only_matrices_whose_bias_more_than_doubled_by_rounding_are_told():
    found = summary.rounding(record())
    assert [item["tensor"] for item in found["retain"]] == ["model.layers.0.self_attn.o_proj.weight"]


def test_growth_of_a_bias_that_is_all_but_gone_is_not_told():
    assert not summary.rounding(_with([matrix(0, "q", 1.0, 1e-15, 1e-8)]))
    assert summary.rounding(_with([matrix(0, "q", 1.0, 1e-15, 1e-5)]))


def test_least_cleaned_matrices_come_by_the_bias_they_still_hold():
    worst = summary.least_cleaned(record(), "retain", count=3)
    held = [item["stored"]["retain"]["rab_after_stored"] for item in worst]
    assert held == sorted(held, reverse=True)
    assert len(held) == 3
