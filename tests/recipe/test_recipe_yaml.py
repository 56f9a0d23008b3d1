"""YAML as the recipe reads it: scalars, places, and what may not stand in a recipe."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vecsurgery.recipe import Recipe

Read = Callable[..., Recipe]
Problems = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 1e-3), ("1E2", 100.0), ("-.5", -0.5), ("+2", 2.0), ("1_000", 1000.0), ("010", 10.0), ("3.", 3.0)],
)
def test_numbers_are_read_as_people_write_them(read: Read, valid: str, text: str, number: float) -> None:
    assert read(valid.replace("scale: 0.5", f"scale: {text}")).steps[1].number == number


@pytest.mark.parametrize("text", ["1:30", "2024-01-01", "yes", "off", "0x10", "1e", "'1'"])
def test_what_only_looks_like_a_number_is_text(problems: Problems, valid: str, text: str) -> None:
    (found,) = problems(valid.replace("scale: 0.5", f"scale: {text}"))
    assert "steps[1].scale: expected a number" in found
    assert text.strip("'") in found


def test_words_that_old_yaml_takes_for_truth_values_can_be_names(read: Read, valid: str) -> None:
    assert set(read(valid.replace("lora", "no").replace("change", "on")).deltas) == {"no", "on"}


def test_a_key_that_stands_twice_is_refused(problems: Problems, valid: str) -> None:
    (found,) = problems(f"{valid}into: tuned\n")
    assert found == "11: into: the key 'into' stands twice (first on line 1); keep one"


def test_a_syntax_error_names_its_line(problems: Problems) -> None:
    (found,) = problems("into: original\ndeltas: {x: [\nsteps: 3\n")
    assert found.startswith("4: not valid YAML: while parsing a flow sequence (from line 2), expected")


@pytest.mark.parametrize("value", ["!!python/object/apply:os.system [echo]", "!custom x", "!!binary aGk=", "!!set {a}"])
def test_tags_that_are_no_plain_data_are_refused(problems: Problems, valid: str, value: str) -> None:
    found = problems(valid.replace("scale: 0.5", f"scale: {value}"))
    assert "is not allowed" in found[0]
    assert found[0].startswith("9: steps[1].scale: ")


def test_an_explicit_tag_that_does_not_fit_is_refused(problems: Problems, valid: str) -> None:
    assert "'abc' is no !!int" in problems(valid.replace("scale: 0.5", "scale: !!int abc"))[0]


def test_aliases_repeat_values_but_not_their_own_surroundings(read: Read, problems: Problems, valid: str) -> None:
    shared = valid.replace("scale: 0.5", "scale: &half 0.5").replace("{change: 2}", "{change: *half}")
    assert read(shared).weights == {"change": 0.5}
    assert "repeats its own surroundings" in problems("into: &a [*a]\ndeltas: {x: {tuned: tuned}}\n")[0]


def test_an_alias_bomb_is_refused(problems: Problems) -> None:
    levels = "".join(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]\n" for level in range(1, 9))
    assert any("too many values" in each for each in problems("l0: &l0 [1]\n" + levels))


def test_nesting_without_end_is_refused(problems: Problems) -> None:
    (found,) = problems("into: " + "[" * 1000)
    assert "nested too deeply" in found


@pytest.mark.parametrize(("text", "says"), [("", "is empty"), ("# nothing\n", "is empty"), ("- a\n", "got a list")])
def test_an_empty_recipe_and_one_that_is_no_map_are_refused(problems: Problems, text: str, says: str) -> None:
    (found,) = problems(text)
    assert says in found
    assert "expected at least the keys into and deltas" in found


def test_keys_must_be_text(problems: Problems, valid: str) -> None:
    assert problems(f"{valid}1: 2\n")[0].startswith("11: 1: a key must be text; write it in quotes: '1'")
    assert "a key must be text, not a map or a list" in problems(f"{valid}? [a]\n: 2\n")[0]


def test_a_recipe_that_is_not_utf8_is_refused(folder: Path, problems: Problems) -> None:
    (folder / "latin.yaml").write_bytes("into: é".encode("latin-1"))
    (found, *_) = problems("extends: latin.yaml\n")
    assert "is not UTF-8 text (byte 6)" in found


def test_characters_that_yaml_forbids_are_a_problem_not_a_crash(problems: Problems) -> None:
    (found,) = problems("deltas: {}\ninto: \x07\n")
    assert found == "2: not valid YAML: special characters are not allowed (code 0x7)"


def test_a_path_with_a_null_byte_is_a_problem_not_a_crash(problems: Problems, valid: str) -> None:
    found = problems(valid.replace("retain.jsonl", '"a\\0b"').replace("into: original", 'into: "a\\0b"'))
    assert len(found) == 2
