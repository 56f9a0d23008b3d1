"""The demo's world: the same text everywhere, and no question that calibration or unlearning saw is evaluated."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from vecsurgery.demo.unlearning.settings import Settings
from vecsurgery.demo.unlearning.words import ATTRIBUTES, FIRST_NAMES, LAST_NAMES
from vecsurgery.demo.unlearning.world import Question, make_world
from vecsurgery.errors import InputError

SETTINGS = Settings()
FILES = {
    "full.jsonl", "forget.jsonl", "forget-test.jsonl", "retain.jsonl", "retain-test.jsonl", "general.txt",
    "general-test.txt",
}  # fmt: skip


def _people(rows: tuple[Question, ...]) -> set[str]:
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    return {name for row in rows for name in names if name in row.question}


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def test_world_of_a_seed_is_the_same_text_on_every_machine(tmp_path: Path) -> None:
    make_world(0, SETTINGS).write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert _digest(tmp_path) == "f02672d0c5e10310be2421314282f79a168fcb9f576376bc4e062ba3e022372b"


def test_another_seed_is_another_world() -> None:
    assert make_world(0, SETTINGS) != make_world(1, SETTINGS)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_evaluation_asks_about_other_people_in_other_words_than_calibration(seed: int) -> None:
    world = make_world(seed, SETTINGS)
    assert not _people(world.retain) & _people(world.retain_test)
    assert not {row.question for row in world.forget} & {row.question for row in world.forget_test}
    assert not set(world.general) & set(world.general_test)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nobody_is_both_forgotten_and_retained(seed: int) -> None:
    world = make_world(seed, SETTINGS)
    forgotten = _people(world.forget)
    assert forgotten == _people(world.forget_test)
    assert len(forgotten) == SETTINGS.forgotten
    assert not forgotten & (_people(world.retain) | _people(world.retain_test))


def test_full_rows_hold_every_other_row_once_and_ask_every_fact_in_all_phrasings() -> None:
    world = make_world(0, SETTINGS)
    assert len(set(world.full)) == len(world.full) == SETTINGS.people * len(ATTRIBUTES) * 4
    assert {*world.forget, *world.forget_test, *world.retain, *world.retain_test} <= set(world.full)


def test_files_read_back_as_the_rows_and_sentences(tmp_path: Path) -> None:
    world = make_world(3, SETTINGS)
    world.write(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "forget-test.jsonl").read_text().splitlines()]
    assert rows == [{"question": row.question, "answer": row.answer} for row in world.forget_test]
    assert tuple((tmp_path / "general.txt").read_text().strip().split("\n\n")) == world.general


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(SETTINGS, people=24), "at least one left to evaluate"),
        (replace(SETTINGS, people=401), "at most 400 people"),
        (replace(SETTINGS, sentences_test=161), "161 for evaluation"),
    ],
)
def test_impossible_world_is_refused_with_its_numbers(settings: Settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_world(0, settings)
