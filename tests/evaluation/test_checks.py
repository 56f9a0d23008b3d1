"""Checkers: what passes and what does not, and which rows are refused."""

import sys
from typing import Any

import pytest

from vecsurgery.calibration import Row
from vecsurgery.errors import InputError
from vecsurgery.evaluation import checks, last_number, row_checks


def row(**fields: Any) -> Row:
    return Row("data.jsonl:7", turns=(("user", "q"),), checks=fields)


def right(check: Any, answer: str) -> bool:
    found = row_checks(row(check=check)).right
    assert found is not None
    return found(answer)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", 42.0),
        ("\\boxed{-7}", -7.0),
        ("it costs $1,234.50 in all", 1234.5),
        ("first 3, then 4, then 5", 5.0),
        ("10-5", 5.0),
        ("−8 degrees", -8.0),
        ("4e-2", 0.04),
        ("**.5**", 0.5),
        ("CO2 and H2O", None),
        ("none", None),
    ],
)
def test_the_last_number_of_a_text_is_the_answer(text: str, number: float | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("check", "passes", "fails"),
    [
        ({"exact": "Paris"}, " Paris\n", "paris"),
        ({"exact": ["yes", "Yes"]}, "Yes", "Yes."),
        ({"number": 42}, "so it is 42", "42 of 43"),
        ({"number": 1.5, "tolerance": 0.25}, "1.7", "1.8"),
        ({"regex": r"^\w+ \d{2}$"}, "room 12", "room 123"),
        ({"json_schema": {"type": "object", "required": ["a"]}}, '```json\n{"a": 1}\n```', '{"b": 1}'),
        ({"json_schema": {"type": "string", "pattern": "^a+$"}}, '"aaa"', '"ab"'),
        ({"json_schema": {"type": "integer"}}, "3", "three"),
        ([{"regex": "a"}, {"regex": "b"}], "ab", "a"),
    ],
)
def test_a_check_holds_of_the_right_answer_alone(check: Any, passes: str, fails: str) -> None:
    assert right(check, passes)
    assert not right(check, fails)


def test_accuracy_and_compliance_are_checked_apart() -> None:
    found = row_checks(row(check={"number": 4}, instruction_check={"regex": r"!$"}))
    assert found.right is not None
    assert found.obeys is not None
    assert (found.right("4."), found.obeys("4.")) == (True, False)
    assert (found.right("5!"), found.obeys("5!")) == (False, True)
    neither = row_checks(row())
    assert (neither.right, neither.obeys) == (None, None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"check": {"exactly": "a"}}, r"data\.jsonl:7: `check` has 'exactly'.*did you mean 'exact'"),
        ({"check": {"exact": "a", "number": 1}}, "expected exactly one of"),
        ({"check": {"exact": "a", "tolerance": 1}}, "expected exactly one of"),
        ({"check": {}}, "has nothing; expected exactly one of"),
        ({"check": []}, "is empty"),
        ({"check": "Paris"}, "is 'Paris'; expected an object"),
        ({"check": {"exact": 3}}, "exact is 3; expected a text"),
        ({"check": {"number": "3"}}, "number is '3'; expected a finite number"),
        ({"check": {"number": True}}, "number is True"),
        ({"check": {"regex": "("}}, r"regex '\(' is no regular expression"),
        (
            {"instruction_check": {"json_schema": {"type": "strange"}}},
            "`instruction_check`: json_schema is no JSON schema",
        ),
        ({"check": {"json_schema": 3}}, "json_schema is 3"),
        ({"kwargs": []}, "`kwargs` without `instruction_id_list`"),
        ({"instruction_id_list": ["a"], "kwargs": []}, r"`kwargs` is \[\]; expected a list of 1 objects"),
        ({"instruction_id_list": "a"}, "expected a list of names"),
    ],
)
def test_a_checker_that_is_wrong_is_refused_with_file_and_row(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        row_checks(row(**fields))
    assert str(raised.value).startswith("data.jsonl:7")


def test_a_pattern_that_never_ends_has_not_found_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SECONDS", 0.05)
    endless = r"(?:a|a|aa)+$"
    assert not right({"regex": endless}, "a" * 64 + "b")
    assert right({"regex": endless}, "aaa")
    assert not right({"json_schema": {"pattern": endless}}, '"' + "a" * 64 + 'b"')


def test_a_schema_fetches_nothing_and_names_what_it_lacks() -> None:
    with pytest.raises(InputError, match=r"data\.jsonl:7: .*json_schema refers to what is not in it"):
        right({"json_schema": {"$ref": "https://example.invalid/schema.json"}}, "3")


@pytest.mark.parametrize(
    ("fields", "missing", "extra"),
    [
        ({"check": {"regex": "a"}}, "regex", "evaluation"),
        ({"check": {"json_schema": {}}}, "jsonschema", "evaluation"),
        (
            {"instruction_id_list": ["keywords:existence"], "kwargs": [{}]},
            "lm_eval.tasks.ifeval.instructions_registry",
            "lm-eval",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    fields: dict[str, Any], missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    from vecsurgery.evaluation import instructions

    instructions._registry.cache_clear()
    with pytest.raises(InputError, match=f"which is not installed.*extra `{extra}`"):
        row_checks(row(**fields))


class TestInstructions:
    """IFEval's own checkers, where lm-eval is installed."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("lm_eval")
        pytest.importorskip("langdetect")
        pytest.importorskip("immutabledict")

    def _obeys(self, answer: str, **settings: dict[str, Any]) -> bool:
        names = [name.replace("__", ":") for name in settings]
        found = row_checks(row(instruction_id_list=names, kwargs=list(settings.values()))).obeys
        assert found is not None
        return found(answer)

    def test_published_rows_are_checked_by_the_library(self) -> None:
        words = {"relation": "at least", "num_words": 3, "keywords": None}
        asked: dict[str, dict[str, Any]] = {"length_constraints__number_words": words, "startend__quotation": {}}
        assert self._obeys('"one two three"', **asked)
        assert not self._obeys('"one two"', **asked)
        assert not self._obeys("one two three", **asked)
        assert not self._obeys(" ", **asked)

    def test_unknown_instructions_and_settings_are_refused(self) -> None:
        with pytest.raises(
            InputError, match=r"data\.jsonl:7: .*'keywords:existance'.*did you mean 'keywords:existence'"
        ):
            self._obeys("a", keywords__existance={})
        with pytest.raises(InputError, match=r"`kwargs` of 'keywords:existence' lack keywords"):
            self._obeys("a", keywords__existence={})
        with pytest.raises(InputError, match=r"data\.jsonl:7: `kwargs` of 'keywords:existence'"):
            self._obeys("a", keywords__existence={"keywords": ["a"], "colour": "red"})
