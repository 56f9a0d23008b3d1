"""The schema of a record refuses what a report could not show."""

import json

import pytest

from tests.report.example import record
from vecsurgery import report
from vecsurgery.errors import InputError


def test_a_record_survives_being_written_and_read(tmp_path):
    (tmp_path / "surgery.json").write_text(report.dumps(record()), encoding="utf-8")
    assert report.read(tmp_path) == record()
    assert report.read(tmp_path / "surgery.json") == record()


def test_every_unknown_missing_and_mistyped_key_is_named_at_once():
    wrong = record()
    del wrong["seed"]
    wrong["colour"] = "red"
    wrong["matrices"][1]["stored"]["retain"]["rab_before"] = "much"
    with pytest.raises(InputError) as caught:
        report.validated(wrong)
    for name in ("seed", "colour", "matrices.1.stored.retain.rab_before"):
        assert name in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    wrong = record()
    wrong["matrices"][0]["steps"][0]["facts"]["rab"] = value
    with pytest.raises(InputError, match="finite"):
        report.validated(wrong)
    with pytest.raises(ValueError, match="JSON compliant"):
        report.dumps(wrong)


def test_a_record_of_another_version_is_refused_by_its_version():
    with pytest.raises(InputError, match="version 99"):
        report.validated(record() | {"version": 99})


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such file"), ("{", "cannot be read as JSON"), ("[]", "list"), ("{}", "version None")],
)
def test_a_file_that_is_no_record_is_refused_by_name(tmp_path, content, told):
    file = tmp_path / "surgery.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=told) as caught:
        report.read(tmp_path)
    assert str(file) in str(caught.value)


def test_a_record_is_plain_json():
    assert json.loads(report.dumps(record())) == record()
