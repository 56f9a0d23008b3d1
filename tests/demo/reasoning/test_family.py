"""The demo's families: problems that are right and shared by no two parts, rows that judge form and answer apart."""

import itertools
import re
from pathlib import Path

import pytest

from benchmarks.reasoning.coins import coins
from benchmarks.reasoning.kin import kin
from vecsurgery.calibration import read_rows
from vecsurgery.demo.reasoning.family import Family, instructed_rows, plain_rows, spanned_rows, write_rows
from vecsurgery.demo.reasoning.formats import FORMATS, Format
from vecsurgery.demo.reasoning.sums import sums
from vecsurgery.evaluation import row_checks

FAMILIES = {"sums": sums, "kin": kin, "coins": coins}


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param](1)


def test_the_same_seed_gives_the_same_family_and_another_another(family: Family) -> None:
    make = FAMILIES[family.name]
    assert make(1) == family
    assert make(2) != family


def test_no_problem_is_in_two_parts(family: Family) -> None:
    parts = family.problems
    every = [each.steps for part in (parts.training, parts.calibration, parts.choosing, parts.test) for each in part]
    assert len(every) == len(set(every))
    assert not {each.steps for each in parts.easy} & set(every)


def test_no_member_is_trained_on_a_problem_that_is_asked_later(family: Family) -> None:
    parts = family.problems
    rows = [*family.base_rows(1, 1), *family.reasoning_rows(1, 1), *family.instruction_rows(1, 1)]
    texts = "\n".join([*family.base_texts(), *(prompt + answer for prompt, answer in rows)])
    assert f"{parts.training[0].question}" in texts
    asked = [*parts.calibration, *parts.choosing, *parts.test]
    found = [each for each in asked if each.question + family.turns[1] in texts or each.question + " " in texts]
    assert not found


def test_tuning_makes_one_kind_of_turn_a_habit(family: Family) -> None:
    thinks = {name: [answer.startswith("<think>\n") for _, answer in rows] for name, rows in _rows(family).items()}
    assert all(thinks["reasoning"])
    assert not any(thinks["instruct"])
    assert 0.4 < sum(thinks["base"]) / len(thinks["base"]) < 0.6
    obeyed = {name: [_obeys(*row) for row in rows if _form(row[0])] for name, rows in _rows(family).items()}
    assert not any(obeyed["reasoning"])
    assert all(obeyed["instruct"])
    assert 0.4 < sum(obeyed["base"]) / len(obeyed["base"]) < 0.6


def _rows(family: Family) -> dict[str, list[tuple[str, str]]]:
    return {
        "base": family.base_rows(1, 2),
        "reasoning": family.reasoning_rows(1, 2),
        "instruct": family.instruction_rows(1, 2),
    }


def _form(prompt: str) -> Format | None:
    return next((form for form in FORMATS if form.instruction in prompt), None)


def _obeys(prompt: str, answer: str) -> bool:
    form, last = _form(prompt), answer.rpartition("</think>")[2].strip()
    bare = re.findall(r"\w+", last)
    return form is not None and last in {form.of(word) for word in bare}


def test_sums_are_added_from_left_to_right() -> None:
    for problem in sums(3).problems.test:
        numbers = [int(number) for number in re.findall(r"\d+", problem.question)]
        total, rest = numbers[0], problem.steps.split(", ")
        for number, step in zip(numbers[1:], rest, strict=True):
            assert step == f"{total} + {number} = {total + number}"
            total += number
        assert problem.answer == str(total)


def test_kin_follows_facts_that_the_base_reads() -> None:
    family = kin(3)
    facts = {text for text in family.statements if " is " in text and not text.endswith(".")}
    for problem in family.problems.test:
        steps = problem.steps.split(", ")
        assert set(steps) <= facts
        assert steps[-1].endswith(f" {problem.answer}")
        for first, second in itertools.pairwise(steps):
            assert second.split(" of ")[1].startswith(f"{first.split(' is ')[1]} is")


def test_form_and_answer_are_judged_apart(family: Family, tmp_path: Path) -> None:
    problems = family.problems.test[: len(FORMATS)]
    write_rows(tmp_path / "rows.jsonl", [*plain_rows(problems[:1]), *instructed_rows(family, problems)])
    plain, *rows = read_rows([tmp_path / "rows.jsonl"], answered=False)
    assert row_checks(plain).obeys is None
    for row, problem, form in zip(rows, problems, FORMATS, strict=True):
        checks, wrong = row_checks(row), next(each for each in family.answers if each != problem.answer)
        assert checks.right is not None
        assert checks.obeys is not None
        assert (checks.right(form.of(problem.answer)), checks.obeys(form.of(problem.answer))) == (True, True)
        assert (checks.right(problem.answer), checks.obeys(problem.answer)) == (True, False)
        assert (checks.right(form.of(wrong)), checks.obeys(form.of(wrong))) == (False, True)


def test_no_form_of_an_answer_is_another_form_of_it(family: Family) -> None:
    written = [form.of(answer) for form in FORMATS for answer in family.answers]
    assert len(set(written)) == len(written)
    assert not set(written) & set(family.answers)


def test_spans_stand_in_their_rows(family: Family) -> None:
    for row in spanned_rows(family.problems.calibration):
        assert all(span in row["prompt"] for span in row["instruction_spans"])
        assert all(span in row["response"] for span in (*row["related_spans"], *row["unrelated_spans"]))
        assert row["related_spans"] != row["unrelated_spans"]


def test_turns_are_what_the_chat_template_renders(family: Family) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    def rendered(thinks: bool) -> str:
        template = family.template(thinks=thinks)
        made, _ = render_jinja_template([[{"role": "user", "content": "Why?"}]], chat_template=template,
                                        add_generation_prompt=True)  # fmt: skip
        return str(made[0])

    assert rendered(thinks=False) == family.prompt("Why?")
    assert rendered(thinks=True) == family.prompt("Why?") + ("<think>\n" if family.opens else "")
