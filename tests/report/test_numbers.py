"""Numbers in a report are short and never read as something they are not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecsurgery.report.numbers import counted, duration, number, percent


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.812, "81 %"),
        (0.031, "3.1 %"),
        (0.9998, "99.98 %"),
        (0.0004, "0.04 %"),
        (1e-9, "< 0.0001 %"),
        (1 - 1e-9, "> 99.9999 %"),
        (2.5, "250 %"),
    ],
)
def test_percentages_of_known_shares(share, shown):
    assert percent(share) == shown


@given(st.floats(1e-12, 1 - 1e-12))
def test_a_share_strictly_between_never_reads_as_none_or_all(share):
    shown = percent(share).split()
    assert shown[0] in "<>" or 0 < float(shown[0]) < 100


def test_numbers_counts_and_durations_read_as_a_person_writes_them():
    assert [number(value) for value in (None, 3.0, 12345.0, 0.012345, 1.5e9)] == [
        "–",
        "3",
        "12,345",
        "0.0123",
        "1.5e+09",
    ]
    assert [counted(1, "matrix"), counted(3, "matrix"), counted(1200, "tensor")] == [
        "1 matrix",
        "3 matrices",
        "1,200 tensors",
    ]
    assert [duration(s) for s in (0.0, 61.2, 7260.0)] == ["0.0 s", "1 min 1 s", "2 h 1 min"]
