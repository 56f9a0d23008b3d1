"""Progress is shown as lines that stay few, and as bars that need a terminal."""

import io
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsurgery.cli import _progress
from vecsurgery.progress import silent


def _told(calls, *, seconds_each=0.0):
    """The lines that these (done, total) give, with a clock that moves by hand."""
    stream, now = io.StringIO(), itertools.count()
    lines = _progress.Lines(stream, clock=lambda: next(now) * seconds_each)
    for done, total in calls:
        lines("writing", done, total, "tensors")
    return stream.getvalue().splitlines()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5000))
def test_a_quick_stage_has_two_lines_its_beginning_and_its_end(total):
    told = _told([(done, total) for done in range(total + 1)])
    assert told == [f"writing: 0/{total} tensors", f"writing: {total}/{total} tensors"]


@pytest.mark.parametrize(
    ("seconds_each", "told"),
    [(0.1, []), (0.4, [75]), (2.0, [15, 30, 45, 60, 75, 90]), (60.0, [10, 20, 30, 40, 50, 60, 70, 80, 90])],
)
def test_a_slow_stage_is_told_once_in_thirty_seconds_and_ten_times_at_most(seconds_each, told):
    lines = _told([(done, 100) for done in range(101)], seconds_each=seconds_each)
    assert lines == [f"writing: {done}/100 tensors" for done in (0, *told, 100)]


def test_a_finished_stage_is_not_told_twice():
    assert _told([(1, 1), (1, 1)], seconds_each=60.0) == ["writing: 1/1 tensors"]


def test_an_empty_stage_is_told_once():
    stream = io.StringIO()
    lines = _progress.Lines(stream)
    lines("measuring", 0, 0, "blocks")
    assert stream.getvalue() == "measuring: 0/0 blocks\n"


@pytest.mark.parametrize(("seconds_each", "lines"), [(0.1, 2), (8.0, 3), (40.0, 8)])
def test_a_stage_that_starts_over_is_told_again_once_in_thirty_seconds(seconds_each, lines):
    told = _told([(done, 1) for _ in range(4) for done in (0, 1)], seconds_each=seconds_each)
    assert len(told) == lines
    assert told[:2] == ["writing: 0/1 tensors", "writing: 1/1 tensors"]


def test_json_has_no_progress():
    with _progress.shown(as_json=True) as progress:
        assert progress is silent


def test_bars_on_a_terminal_take_names_literally(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with _progress.shown(as_json=False) as progress:
        for done in (0.0, 5e8, 1e9):
            progress("writing [red]model", done, 1e9, "bytes")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "[red]" in shown.err


@pytest.mark.parametrize(
    ("speed", "unit", "shown"),
    [(None, "rows", ""), (2.5e6, "bytes", "2.5 MB/s"), (4.0, "rows", "4.0 rows/s"), (0.5, "blocks", "2.0 s each")],
)
def test_rates_are_in_a_unit_that_fits(speed, unit, shown):
    assert _progress.rate(speed, unit) == shown


def test_amounts_of_bytes_share_the_unit_of_their_total():
    assert _progress.amount(1.5e9, 14e9, "bytes") == "1.5/14.0 GB"
    assert _progress.amount(3, 28, "blocks") == "3/28 blocks"
